"""The cache of weights: one user's folder on a node, and files in it that are whole or made again."""

from __future__ import annotations

import logging
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from platformdirs import user_cache_path

from spark_aesthetic.errors import WeightsError
from spark_aesthetic.predictors.digests import blake3_of

_log = logging.getLogger(__name__)

# Between two warnings of a process that waits for another one.
_WAITING_SECONDS = 30.0

_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH

_REMEDY = (
    "set SPARK_AESTHETIC_CACHE to another folder (on executors: spark.executorEnv.SPARK_AESTHETIC_CACHE); "
    "in /tmp each user gets one of their own"
)


def cache_path() -> Path:
    """Return the cache folder, which may not exist yet.

    It is `$SPARK_AESTHETIC_CACHE`, or the user's cache folder, or, for a user without a home folder, the machine's
    folder for temporary files. In a folder that is shared as /tmp is (sticky, and open to everyone) it is the
    subfolder `spark-aesthetic-UID`.
    """
    named = os.environ.get("SPARK_AESTHETIC_CACHE")
    folder = Path(named) if named else _default_path()
    return folder / f"spark-aesthetic-{os.getuid()}" if _is_shared(folder) else folder


def cache_dir() -> Path:
    """Make the cache folder if it is missing, and check that this user, and nobody else, can write to it.

    Raises:
        WeightsError: It cannot be written to, or others can write to it.
    """
    folder = cache_path()
    _make(folder)
    try:
        # os.access knows neither quotas nor what a network file system will say.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _unwritable(error) from error
    return folder


def check_private(path: Path) -> None:
    """Check that nobody but this user and root can have written a file or folder of the cache, its folders included.

    Raises:
        WeightsError: It, or a folder between it and the cache's, belongs to another user or is open to others.
    """
    root = cache_path()
    inside = [folder for folder in path.parents if folder == root or root in folder.parents]
    for place in (path, *inside):
        status = place.stat()
        if status.st_uid not in (0, os.geteuid()):
            found = f"one of the user with the id {status.st_uid}"
        elif status.st_mode & _WRITABLE_BY_OTHERS:
            found = f"mode {stat.S_IMODE(status.st_mode):04o}"
        else:
            continue
        raise WeightsError(
            f"cache of weights: expected {str(place)!r} to be writable by the user with the id {os.geteuid()} alone, "
            f"found {found}, so that others could exchange the weights; {_REMEDY}"
        )


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Hold the file lock of a target in the cache, whose folder is made.

    Other processes of the node wait, and a warning every half a minute names the lock that they wait for.

    Raises:
        WeightsError: No lock can be had there, or others can write to the cache.
    """
    lock = FileLock(f"{target}.lock")
    _make(target.parent)
    while True:
        try:
            lock.acquire(timeout=_WAITING_SECONDS)
            break
        except Timeout:
            _log.warning("waiting for %s: another process holds %s", target.name, lock.lock_file)
        # filelock raises NotImplementedError on a file system that has no locks.
        except (OSError, NotImplementedError) as error:
            raise _unwritable(error) from error
    try:
        yield
    finally:
        lock.release()


def publish(target: Path, write: Callable[[Path], object]) -> None:
    """Write a file of the cache and its digest; after a crash or a power loss it is whole or it is not there.

    Args:
        target: Where it goes; its lock is held.
        write: Writes the file to the path that it is given.

    Raises:
        WeightsError: There is no space for it, or it cannot be written.
    """
    part, digest = target.with_name(target.name + ".part"), _digest_path(target)
    try:
        write(part)
        part.chmod(0o644)
        # First: a file without its digest would be taken for broken, a digest without its file for nothing.
        written = digest.with_name(digest.name + ".part")
        written.write_text(f"{blake3_of(part)}  {target.name}\n")
        written.chmod(0o644)
        _sync(written)
        written.replace(digest)
        rename(part, target)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise WeightsError(
            f"{target}: expected to write it, found: {error}; make space in the cache of weights, or {_REMEDY}"
        ) from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def rename(part: Path, target: Path) -> None:
    """Put a whole file in its place, so that a power loss leaves all of it or none."""
    _sync(part)
    part.replace(target)
    _sync(target.parent)


def is_whole(path: Path) -> bool:
    """Whether a published file has the content of its digest; computed once a process, 0.5 s for 1.2 GB.

    Raises:
        WeightsError: Others can write to the file or to the cache.
    """
    digest = _digest_path(path)
    if not path.exists() or not digest.exists():
        return False
    check_private(path)
    check_private(digest)
    # As bytes: what a damaged disk has made of the digest may be no text.
    return digest.read_bytes().split()[:1] == [blake3_of(path).encode()]


def _default_path() -> Path:
    folder = user_cache_path("spark-aesthetic")
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    usable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    return folder if usable else Path(tempfile.gettempdir())


def _is_shared(folder: Path) -> bool:
    try:
        mode = folder.stat().st_mode
    except OSError:
        return False
    return bool(mode & stat.S_ISVTX and mode & stat.S_IWOTH)


def _make(folder: Path) -> None:
    """Make a folder of the cache, which others may read: root may have filled it, in the image of a container."""
    try:
        for place in (*reversed(folder.parents), folder):
            if not place.exists():
                # Not the default mode: with a umask of 002 the folder would be open to the group.
                place.mkdir(mode=0o755, exist_ok=True)
    except OSError as error:
        raise _unwritable(error) from error
    check_private(folder)


def _unwritable(error: Exception) -> WeightsError:
    return WeightsError(
        f"cache of weights: expected a folder in which files can be locked and written, found: {error}; {_REMEDY}"
    )


def _digest_path(path: Path) -> Path:
    return path.with_name(path.name + ".b3")


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
