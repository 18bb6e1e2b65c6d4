"""Where shards are: which of them a path names, and what their file systems say of them. Knows no Spark."""

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

# Requests to a store at one time, each of which waits some tens of milliseconds.
PARALLEL = 32

# What a file system raises that has no room.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_PATTERN = frozenset("*?[{")

# Of paths; one that is escaped belongs to a name.
_SEPARATOR = re.compile(r"(?<!\\)::")

_SHARD = re.compile(r"\.(tar(\.(gz|xz|bz2|zst))?|tgz)$", re.IGNORECASE)

# As fsspec's file systems call what they know of a file, the better ones first.
_ETAGS = ("ETag", "etag")
_TIMES = ("mtime", "LastModified", "last_modified", "Last-Modified", "updated", "modified", "created")


@contextmanager
def reaching(url: str) -> Iterator[None]:
    """Turn what a file system raises into one line about a place; fsspec's have no base error in common.

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
            f"webdataset: {url}: expected a place that can be reached, found: {in_a_line(error)}; "
            f"{'make room there' if is_full else 'check the address, and the access to it'}"
        ) from error


def locate(url: str) -> tuple[Any, str]:
    """The fsspec file system of an address and its path there; dbfs:/ is a folder of each machine.

    Raises:
        MissingDependencyError: fsspec needs another package for it.
    """
    place = files.absolute(url)
    if "://" not in place:
        # fsspec takes "::" in a path for one of its chained addresses, and ~name for a home folder.
        return fsspec.filesystem("file"), place
    if "::" in place:
        raise TableError(
            f"webdataset: {url}: expected one address, found several that fsspec would chain, of which it reads one; "
            "name each shard, separated by :: or in braces {a,b}"
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
    # The instance is one for the whole process, which may have listed the folder before another one wrote there.
    system.invalidate_cache()
    return system, place


def absolute(url: str) -> str:
    """The same place for every process of a cluster, whatever its working folder is."""
    return _address(url, *locate(url))


def _address(url: str, system: Any, place: str) -> str:
    """Of what is at a place, for which another url was given: of one file always the same."""
    return str(system.unstrip_protocol(place)).rstrip("/") if "://" in files.mounted(url) else normpath(place)


@dataclass(frozen=True)
class Found:
    """What is at a path.

    Attributes:
        shards: Each with what its file system says of it, such as its size, in their order.
        passed_over: Files of folders that are shards by their names, and not .tar.
    """

    shards: list[tuple[str, dict[str, Any]]]
    passed_over: list[str]


def find(path: str) -> list[str]:
    """The shards that a path names; see `look`."""
    return [url for url, _ in look(path).shards]


def look(path: str) -> Found:
    """Look for the shards that a path names.

    A path is first taken as it is: a shard, or a folder with its .tar files. If nothing is called so, it is a pattern:
    paths separated by :: as in the webdataset library, with ranges as {00000..00099}, alternatives as {a,b}, and * ?
    []. The folders at its beginning that are called so are none of the pattern.

    Raises:
        TableError: There are none, one that is named is not there, or the place cannot be reached.
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
        told = f", and {len(found.passed_over)} of other names ({found.passed_over[0]}, …)" if found.passed_over else ""
        raise TableError(
            f"webdataset: expected shards (.tar) at {path!r}, found none{told}; check the path or the pattern"
        )
    return found


def _is_pattern(path: str) -> bool:
    return "::" in path or bool(_PATTERN & set(path))


def _named(url: str) -> Found:
    """What is called so."""
    system, place = locate(url)
    with reaching(url):
        try:
            info = system.info(place)
        except FileNotFoundError as error:
            cause = error.__cause__
            # fsspec says "not found" of a dead server and of one that refuses too; its cause knows better.
            if isinstance(cause, OSError) or getattr(cause, "status", 404) not in (404, 410):
                raise ConnectionError(str(cause)) from error
            raise TableError(
                f"webdataset: expected the shard {url}, found nothing there ({error}); correct the path or the range"
            ) from error
    # A page of HTML is a listing.
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
    """What is called so, or matches a pattern with * ? []."""
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
            # What a write has staged is not there yet.
            if info["type"] == "directory" and not at.rstrip("/").rpartition("/")[2].startswith(("_", ".")):
                inner = _in_folder(url, system, at)
                found.shards.extend(inner.shards)
                found.passed_over.extend(inner.passed_over)
    return found


def _as_pattern(path: str) -> str:
    """A path in which the folders at the beginning that are called so, whatever their letters mean, are escaped."""
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
    """The .tar files of a folder, sorted; none where there is no folder."""
    try:
        return sorted(name for name in system.ls(folder, detail=False) if name.endswith(".tar"))
    except FileNotFoundError:
        return []


def version_of(info: Mapping[str, Any]) -> str | None:
    """Size and ETag of a shard, or size and time if it has none, as text; None if its file system says neither.

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
    """When a shard was modified, in microseconds of the epoch; None if its file system does not say so."""
    time = next((info[name] for name in _TIMES if info.get(name)), None)
    seconds = time.timestamp() if isinstance(time, datetime) else time
    return int(1_000_000 * seconds) if isinstance(seconds, float | int) else None
