"""The cache of weights: one folder per user and node, in which incomplete or damaged files are replaced."""

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

# The interval between warnings while a process waits for a lock.
_WAITING_SECONDS = 30.0

_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH

_REMEDY = (
    "Set SPARK_AESTHETIC_CACHE (on executors: spark.executorEnv.SPARK_AESTHETIC_CACHE) to another folder, such as "
    "/tmp, where each user gets a private subfolder."
)


def cache_path() -> Path:
    """Return the cache folder, which may not exist yet.

    It is `$SPARK_AESTHETIC_CACHE` if set, otherwise the user's cache folder, or the folder for temporary files if the
    user has no writable home. If that folder is shared like /tmp (sticky and writable by everyone), the cache is its
    subfolder `spark-aesthetic-UID`.
    """
    named = os.environ.get("SPARK_AESTHETIC_CACHE")
    folder = Path(named) if named else _default_path()
    return folder / f"spark-aesthetic-{os.getuid()}" if _is_shared(folder) else folder


def cache_dir() -> Path:
    """Create the cache folder if it is missing, and check that this user, and nobody else, can write to it.

    Raises:
        WeightsError: This user cannot write to the folder, or other users can.
    """
    folder = cache_path()
    _make(folder)
    try:
        # os.access knows neither quotas nor the decisions of a network file system, so write a file.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _unwritable(error) from error
    return folder


def check_private(path: Path) -> None:
    """Check that only this user and root can write to a path in the cache and to the folders above it in the cache.

    Raises:
        WeightsError: The path or one of these folders belongs to another user or is writable by other users.
    """
    root = cache_path()
    inside = [folder for folder in path.parents if folder == root or root in folder.parents]
    for place in (path, *inside):
        status = place.stat()
        if status.st_uid not in (0, os.geteuid()):
            found = f"one owned by the user with the id {status.st_uid}"
        elif status.st_mode & _WRITABLE_BY_OTHERS:
            found = f"mode {stat.S_IMODE(status.st_mode):04o}"
        else:
            continue
        raise WeightsError(
            f"cache of weights: expected {str(place)!r} to be writable only by the user with the id {os.geteuid()}, "
            f"because other users could replace the weights, found {found}. {_REMEDY}"
        )


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Hold the file lock of a target in the cache. Its folder is created if it is missing.

    Other processes of the node wait, and log a warning with the path of the lock every 30 seconds.

    Raises:
        WeightsError: The lock cannot be acquired, or other users can write to the cache.
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
    """Write a file of the cache and its digest. After a crash or a power loss the file is complete or missing.

    Args:
        target: The path of the file. The caller holds its lock.
        write: Writes the file to the path that it receives.

    Raises:
        WeightsError: There is no space for the file, or it cannot be written.
    """
    part, digest = target.with_name(target.name + ".part"), _digest_path(target)
    try:
        write(part)
        part.chmod(0o644)
        # The digest comes first: a file without a digest counts as damaged, a digest without a file is ignored.
        written = digest.with_name(digest.name + ".part")
        written.write_text(f"{blake3_of(part)}  {target.name}\n")
        written.chmod(0o644)
        _sync(written)
        written.replace(digest)
        rename(part, target)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise WeightsError(
            f"{target}: expected to write this file, found: {error}. Make space in the cache of weights, or move the "
            f"cache. {_REMEDY}"
        ) from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def rename(part: Path, target: Path) -> None:
    """Rename a complete file to its target, so that a power loss leaves all of it or nothing."""
    _sync(part)
    part.replace(target)
    _sync(target.parent)


def is_whole(path: Path) -> bool:
    """Whether a file that `publish` wrote matches its digest. The first check in a process takes 0.5 s for 1.2 GB.

    Raises:
        WeightsError: Other users can write to the file or to the cache.
    """
    digest = _digest_path(path)
    if not path.exists() or not digest.exists():
        return False
    check_private(path)
    check_private(digest)
    # Compared as bytes, because a damaged digest file may not be text.
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
    """Create a folder of the cache. All users may read it, because root may have filled it in a container's image."""
    try:
        for place in (*reversed(folder.parents), folder):
            if not place.exists():
                # With the default mode and a umask of 002 the group could write to the folder.
                place.mkdir(mode=0o755, exist_ok=True)
    except OSError as error:
        raise _unwritable(error) from error
    check_private(folder)


def _unwritable(error: Exception) -> WeightsError:
    return WeightsError(
        f"cache of weights: expected a folder in which files can be locked and written, found: {error}. {_REMEDY}"
    )


def _digest_path(path: Path) -> Path:
    return path.with_name(path.name + ".b3")


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
