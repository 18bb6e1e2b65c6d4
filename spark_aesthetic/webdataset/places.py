"""Resolve a path to shards and their file metadata. This module is independent of Spark."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from os.path import normpath
from typing import Any

import fsspec
from braceexpand import braceexpand

from spark_aesthetic import files
from spark_aesthetic.errors import AestheticError, MissingDependencyError, TableError, in_a_line

# Concurrent requests to a store; each takes some tens of milliseconds.
PARALLEL = 32

# Error numbers for a full file system.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_PATTERN = frozenset("*?[{")

# The separator of paths. An escaped one is part of a name.
_SEPARATOR = re.compile(r"(?<!\\)::")

_SHARD = re.compile(r"\.(tar(\.(gz|xz|bz2|zst))?|tgz)$", re.IGNORECASE)

# Metadata names in fsspec's file systems, in order of preference.
_ETAGS = ("ETag", "etag")
_TIMES = ("mtime", "LastModified", "last_modified", "Last-Modified", "updated", "modified", "created")


@contextmanager
def reaching(url: str) -> Iterator[None]:
    """Turn any exception of a file system into a one-line error; fsspec's exceptions have no common base class.

    Raises:
        TableError: The place cannot be reached.
    """
    try:
        yield
    except AestheticError:
        raise
    except Exception as error:
        is_full = isinstance(error, OSError) and error.errno in _FULL
        raise TableError(
            f"webdataset: {url}: expected a place that can be reached, found: {in_a_line(error)}. "
            f"{'Free some space there.' if is_full else 'Check the address and the permissions.'}"
        ) from error


def locate(url: str) -> tuple[Any, str]:
    """Return the fsspec file system of an address and the path in it. dbfs:/ is a local mount on every machine.

    Raises:
        MissingDependencyError: The package that fsspec needs for the file system is not installed.
    """
    place = files.absolute(url)
    if "://" not in place:
        # fsspec.core.url_to_fs would treat "::" in a path as a chained address and ~name as a home folder.
        return fsspec.filesystem("file"), place
    if "::" in place:
        raise TableError(
            f"webdataset: {url}: expected one address, found several that fsspec would chain. "
            "Write the full address of each shard, separated by ::, or use braces {a,b}."
        )
    try:
        with reaching(url):
            system, place = fsspec.core.url_to_fs(place)
    except TableError as error:
        if not isinstance(error.__cause__, ImportError):
            raise
        raise MissingDependencyError(
            f"{url}: expected the package of that file system, found none on this machine: {error.__cause__}"
        ) from error
    # fsspec shares one instance per process, so it may hold a listing from before a different process wrote there.
    system.invalidate_cache()
    return system, place


def absolute(url: str) -> str:
    """Return an address that is valid in every process of the cluster, independent of the working directory."""
    return _address(url, *locate(url))


def _address(url: str, system: Any, place: str) -> str:
    """Return the canonical address of `place`, in the style (URL or local path) of the user's `url`."""
    return str(system.unstrip_protocol(place)).rstrip("/") if "://" in files.mounted(url) else normpath(place)


@dataclass(frozen=True)
class Found:
    """The shards at a path.

    Attributes:
        shards: The shards in order, each with its file metadata, such as the size.
        passed_over: Files in folders that have a shard's extension but not exactly .tar, such as .tar.gz. They are not
            read.
    """

    shards: list[tuple[str, dict[str, Any]]]
    passed_over: list[str]


def find(path: str) -> list[str]:
    """Return the addresses of the shards at a path; see `look`."""
    return [url for url, _ in look(path).shards]


def look(path: str) -> Found:
    """Find the shards at a path.

    A path is first read literally, as a shard or a folder of .tar files. If nothing has that name, it is a pattern:
    paths separated by ::, as in the webdataset library, with ranges {00000..00099}, alternatives {a,b} and * ? [].
    Leading folders that exist under their literal name are not patterns.

    Raises:
        TableError: No shard matches, a listed shard does not exist, or the place cannot be reached.
    """
    with reaching(path), ThreadPoolExecutor(PARALLEL) as pool:
        try:
            parts = [_named(path)]
        except TableError:
            if not _is_pattern(path):
                raise
            alternatives = [url for part in _SEPARATOR.split(_as_pattern(path)) for url in braceexpand(part)]
            parts = list(pool.map(_matching, alternatives))
    found = Found(
        [shard for part in parts for shard in part.shards], [name for part in parts for name in part.passed_over]
    )
    if not found.shards:
        told = (
            f", and {len(found.passed_over)} with other extensions ({found.passed_over[0]}, …)"
            if found.passed_over
            else ""
        )
        raise TableError(
            f"webdataset: expected shards (.tar) at {path!r}, found none{told}. Check the path or the pattern."
        )
    return found


def _is_pattern(path: str) -> bool:
    return "::" in path or bool(_PATTERN & set(path))


def _named(url: str) -> Found:
    """Return the shard or the folder's shards at a literal address."""
    system, place = locate(url)
    with reaching(url):
        try:
            info = system.info(place)
        except FileNotFoundError as error:
            cause = error.__cause__
            # fsspec also raises FileNotFoundError if a server is down or denies access. The cause has the reason.
            if isinstance(cause, OSError) or getattr(cause, "status", 404) not in (404, 410):
                raise ConnectionError(str(cause)) from error
            raise TableError(
                f"webdataset: expected the shard {url}, found nothing there ({error}). Correct the path or the range."
            ) from error
    # An HTML page is the listing of a folder.
    if info["type"] != "directory" and info.get("mimetype") != "text/html":
        return Found([(_address(url, system, place), info)], [])
    return _in_folder(url, system, place)


def _in_folder(url: str, system: Any, place: str) -> Found:
    found, passed_over = [], []
    for info in sorted(system.ls(place, detail=True), key=lambda info: str(info["name"])):
        address = _address(url, system, info["name"])
        if info["type"] == "directory":
            continue
        if info["name"].endswith(".tar"):
            found.append((address, info))
        elif _SHARD.search(info["name"]):
            passed_over.append(address)
    return Found(found, passed_over)


def _matching(url: str) -> Found:
    """Return the shards at a literal address, or those that match it as a pattern with * ? []."""
    try:
        return _named(url)
    except TableError:
        if not set("*?[") & set(url):
            raise
    system, place = locate(url)
    with reaching(url):
        matches = sorted(system.glob(place, detail=True).items())
        found = Found([(_address(url, system, at), info) for at, info in matches if info["type"] != "directory"], [])
        for at, info in matches:
            # Folders that begin with _ or . are hidden; they may hold the staged files of an uncommitted write.
            if info["type"] == "directory" and not at.rstrip("/").rpartition("/")[2].startswith(("_", ".")):
                inner = _in_folder(url, system, at)
                found.shards.extend(inner.shards)
                found.passed_over.extend(inner.passed_over)
    return found


def _as_pattern(path: str) -> str:
    """Escape the leading folders that exist with their literal name, so that they are not read as patterns."""
    parts = path.split("/")
    escaped = list(parts)
    for at, part in enumerate(parts[:-1]):
        if _is_pattern(part):
            system, place = locate("/".join(parts[: at + 1]))
            if not system.exists(place):
                break
            escaped[at] = re.sub(r"([{},:\\])", r"\\\1", re.sub(r"([*?[])", r"[\1]", part))
    return "/".join(escaped)


def tars(system: Any, folder: str) -> list[str]:
    """Return the sorted .tar files of a folder, or an empty list if the folder does not exist."""
    try:
        return sorted(name for name in system.ls(folder, detail=False) if name.endswith(".tar"))
    except FileNotFoundError:
        return []


def version_of(info: Mapping[str, Any]) -> str | None:
    """Return a shard's size and ETag, or size and time if it has no ETag, as text; None if all are unknown.

    Examples:
        >>> version_of({"size": 10, "ETag": '"5f"', "LastModified": "today"}), version_of({"size": 10, "mtime": 1.5})
        ('10 5f', '10 1.500000')
    """
    mark = next((info[name] for name in (*_ETAGS, *_TIMES) if info.get(name)), None)
    if isinstance(mark, float):
        mark = f"{mark:.6f}"
    told = [str(part).strip('"') for part in (info.get("size"), mark) if part is not None]
    return " ".join(told) or None


def modified_us(info: Mapping[str, Any]) -> int | None:
    """Return a shard's modification time in microseconds since the epoch, or None if unknown."""
    time = next((info[name] for name in _TIMES if info.get(name)), None)
    seconds = time.timestamp() if isinstance(time, datetime) else time
    return int(1_000_000 * seconds) if isinstance(seconds, float | int) else None
