"""Small files by path or by address: what fsspec opens, and Databricks' own file system where it is mounted."""

from __future__ import annotations

import re
from pathlib import Path
from uuid import uuid4

import fsspec

from spark_aesthetic.errors import OptionError

# Of the file system of Databricks, on every node.
_MOUNT = "/dbfs/"

# Spark writes one slash, URLs have three.
_LOCAL = re.compile(r"^file:(//)?(?=/[^/])")


def home(path: str) -> str:
    """Put the home folder of the driver's user in place of a `~` at the beginning, as a shell does.

    Examples:
        >>> home("~/scores") == f"{Path.home()}/scores", home("a~b"), home("s3://bucket/~")
        (True, 'a~b', 's3://bucket/~')
    """
    return str(Path.home()) + path[1:] if path == "~" or path.startswith("~/") else path


def mounted(path: str) -> str:
    """Give a path as Python opens it.

    `dbfs:/` is the folder in which Databricks mounts it on every node, `file:` is removed, and `~` is the home folder.

    Examples:
        >>> mounted("dbfs:/heads/own.json"), mounted("file:/heads/own.json"), mounted("s3://bucket/heads")
        ('/dbfs/heads/own.json', '/heads/own.json', 's3://bucket/heads')
    """
    if path.startswith("dbfs:/"):
        return _MOUNT + path.removeprefix("dbfs:/").lstrip("/")
    return home(_LOCAL.sub("", path))


def beside(name: str, folder: str) -> str:
    """A relative path as one in a folder, which is a path or an address; any other is as `mounted` gives it.

    Examples:
        >>> beside("head.pth", "s3://bucket/heads"), beside("file:/models/head.pth", "s3://bucket/heads")
        ('s3://bucket/heads/head.pth', '/models/head.pth')
    """
    place = mounted(name)
    return place if "://" in place or Path(place).is_absolute() else f"{folder.rstrip('/')}/{place}"


def absolute(path: str) -> str:
    """A path from the root, or an address as `mounted` gives it."""
    return beside(path, str(Path.cwd()))


def is_file(path: str | Path) -> bool:
    """Whether a path is a file; False also for a text that no path can be, such as one that is too long."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def read(path: str) -> bytes:
    """The bytes of a file.

    Raises:
        OSError: It cannot be read; the file system of an address may raise another error of its own.
    """
    system, place = fsspec.core.url_to_fs(absolute(path))
    content: bytes = system.cat_file(place)
    return content


def write(path: str, content: bytes) -> None:
    """Write a file, or over one, in a folder that is made if need be; raises as `read` does."""
    system, place = fsspec.core.url_to_fs(absolute(path))
    system.makedirs(place.rpartition("/")[0], exist_ok=True)
    system.pipe_file(place, content)


def check_file(path: str, option: str, *, overwrite: bool) -> None:
    """Check that a file can be written, before work is done that could else not be kept.

    Raises:
        OptionError: A folder is there, or a file and it is not to be replaced, or `check_writable` raises it.
    """
    folder_found = OptionError(f"{option} {path!r}: expected the name of a file, found a folder; add a name")
    if path.endswith("/"):
        # Before the next line makes the folder.
        raise folder_found
    check_writable(absolute(path).rpartition("/")[0], option)
    system, place = fsspec.core.url_to_fs(absolute(path))
    if system.isdir(place):
        raise folder_found
    if not overwrite and system.exists(place):
        raise OptionError(f"{option} {path!r}: expected no file there, found one; --overwrite replaces it")


def check_writable(folder: str, option: str) -> None:
    """Write a file into a folder and delete it, before work is done that could else not be kept.

    Raises:
        OptionError: The folder cannot be made or written to, or its file system is not installed.
    """
    probe = beside(f".writable-{uuid4().hex}", absolute(folder))
    try:
        write(probe, b"")
        system, place = fsspec.core.url_to_fs(probe)
        system.rm_file(place)
    # fsspec's file systems have no base error in common, and a missing one is an ImportError.
    except Exception as error:
        raise OptionError(
            f"{option}: expected a folder that can be written, found {folder!r}: {type(error).__name__}: {error}; "
            "name another, or grant access to it"
        ) from error
