"""Read and write small files by path or address, through fsspec or the mount of dbfs:/ on Databricks."""

from __future__ import annotations

import re
from pathlib import Path
from uuid import uuid4

import fsspec

from spark_aesthetic.errors import OptionError

# Databricks mounts dbfs:/ in this folder on every node.
_MOUNT = "/dbfs/"

# Spark writes file:/path with one slash; URLs have three.
_LOCAL = re.compile(r"^file:(//)?(?=/[^/])")


def home(path: str) -> str:
    """Replace a leading `~` by the home folder of the driver's user, as a shell does.

    Examples:
        >>> home("~/scores") == f"{Path.home()}/scores", home("a~b"), home("s3://bucket/~")
        (True, 'a~b', 's3://bucket/~')
    """
    return str(Path.home()) + path[1:] if path == "~" or path.startswith("~/") else path


def mounted(path: str) -> str:
    """Return a path as Python opens it.

    `dbfs:/` becomes the folder of its mount, `file:` is removed, and `~` becomes the home folder.

    Examples:
        >>> mounted("dbfs:/heads/own.json"), mounted("file:/heads/own.json"), mounted("s3://bucket/heads")
        ('/dbfs/heads/own.json', '/heads/own.json', 's3://bucket/heads')
    """
    if path.startswith("dbfs:/"):
        return _MOUNT + path.removeprefix("dbfs:/").lstrip("/")
    return home(_LOCAL.sub("", path))


def beside(name: str, folder: str) -> str:
    """Resolve a relative path against a folder, which is a path or an address; return any other path as `mounted` does.

    Examples:
        >>> beside("head.pth", "s3://bucket/heads"), beside("file:/models/head.pth", "s3://bucket/heads")
        ('s3://bucket/heads/head.pth', '/models/head.pth')
    """
    place = mounted(name)
    return place if "://" in place or Path(place).is_absolute() else f"{folder.rstrip('/')}/{place}"


def absolute(path: str) -> str:
    """Return an absolute path; an address is returned as `mounted` does."""
    return beside(path, str(Path.cwd()))


def is_file(path: str | Path) -> bool:
    """Whether a path is a file; False also for a text that cannot be a path, such as one that is too long."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def read(path: str) -> bytes:
    """Read the bytes of a file.

    Raises:
        OSError: The file cannot be read. The file system of an address may raise an error of a different type.
    """
    system, place = fsspec.core.url_to_fs(absolute(path))
    content: bytes = system.cat_file(place)
    return content


def write(path: str, content: bytes) -> None:
    """Write or replace a file and create missing folders; raises as `read` does."""
    system, place = fsspec.core.url_to_fs(absolute(path))
    system.makedirs(place.rpartition("/")[0], exist_ok=True)
    system.pipe_file(place, content)


def check_file(path: str, option: str, *, overwrite: bool) -> None:
    """Check that a file can be written, before work is done that would be lost otherwise.

    Raises:
        OptionError: `path` is a folder, the file exists and `overwrite` is false, or `check_writable` raises it.
    """
    folder_found = OptionError(f"{option} {path!r}: expected the name of a file, found a folder. Add the file's name.")
    if path.endswith("/"):
        # The next line would create the folder, so this check comes first.
        raise folder_found
    check_writable(absolute(path).rpartition("/")[0], option)
    system, place = fsspec.core.url_to_fs(absolute(path))
    if system.isdir(place):
        raise folder_found
    if not overwrite and system.exists(place):
        raise OptionError(f"{option} {path!r}: expected no file there, found one. Pass --overwrite to replace it.")


def check_writable(folder: str, option: str) -> None:
    """Check that a folder can be written, before work is done that would be lost: create a file and delete it.

    Raises:
        OptionError: The folder cannot be created or written, or its file system is not installed.
    """
    probe = beside(f".writable-{uuid4().hex}", absolute(folder))
    try:
        write(probe, b"")
        system, place = fsspec.core.url_to_fs(probe)
        system.rm_file(place)
    # fsspec's file systems have no common base error, and one that is not installed raises ImportError.
    except Exception as error:
        raise OptionError(
            f"{option}: expected a folder that can be written, found {folder!r}: {type(error).__name__}: {error}. "
            "Name a different folder, or grant access to this one."
        ) from error
