"""Commit files from many tasks together. Only Spark's driver calls `commit` and `settle`.

Tasks write to a hidden folder inside the target folder. Before any file moves, the commit stores a journal of all moves
there (the note, `commit.json`), and removes it when they are done. The state after a killed driver is therefore known.
Without a note, either no file was moved or all were. With a note, an append is rolled back and an overwrite is
finished.

Only one write to a folder may run at a time. Each write has a lease in its hidden folder, and a write that begins while
an earlier one is alive is refused. A hidden folder may come from an untrusted writer, so all names in it are checked.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from time import sleep, time
from typing import Any, TypeVar
from uuid import uuid4

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from spark_aesthetic.errors import TableError
from spark_aesthetic.webdataset import lease
from spark_aesthetic.webdataset.lease import Lease
from spark_aesthetic.webdataset.places import PARALLEL, locate, modified_us, reaching

# Folders with this prefix are invisible to patterns such as *.tar and to Spark.
_STAGED, _NOTE, _LEASE, _SIGN = "_staged-", "commit.json", "writer.json", "sign"
_OWN = re.compile(rf"{_STAGED}[0-9a-f]{{32}}")

# Valid names of files that a write creates, and of files that it removes.
_TARGET, _GONE = re.compile(r"[0-9]{5,}\.(tar|parquet)"), re.compile(r".*\.(tar|parquet)", re.DOTALL)

# A note for a million shards with sidecars takes some tens of megabytes.
_MAX_NOTE_BYTES = 256 << 20

# Maximum bytes of a file name on a local disk, and in a store.
_MAX_NAME_ON_DISK, _MAX_NAME = 255, 1024

_TRIES = 3

# If two writes begin at the same moment, the later one withdraws within this time.
_SETTLING_SECONDS = 2.0

Item = TypeVar("Item")


def new(folder: str) -> str:
    """Create a hidden folder for a write's staged files and return its address.

    Staged files have no subfolders. On a disk, a task that outlives its write therefore cannot create more files,
    because the folder no longer exists.

    Raises:
        TableError: A different write is running in the folder, or the folder cannot be reached.
    """
    staged = f"{folder}/{_STAGED}{uuid4().hex}"
    system, hidden = locate(staged)
    own = Lease.own()
    try:
        with reaching(folder):
            system.makedirs(hidden)
            system.pipe_file(f"{hidden}/{_LEASE}", own.dumped())
        _check_alone(system, hidden, (own.began, hidden), folder)
    except BaseException:
        with suppress(Exception):
            _drop(system, hidden)
        raise
    return staged


def _check_alone(system: Any, hidden: str, rank: tuple[float, str], folder: str) -> None:
    """Raise TableError unless this write, which already has a lease, is the only one that continues."""
    for last in (False, True):
        there = {write.hidden: write for write in _writes(system, hidden.rpartition("/")[0], folder)}
        others = [write for at, write in there.items() if at != hidden and write.is_alive]
        if not others and hidden in there:
            return
        if last or hidden not in there or min(other.rank for other in others) < rank:
            raise _refusal(folder, others)
        # The concurrent write began later and withdraws when it sees this one.
        sleep(_SETTLING_SECONDS)


def sign(staged: str) -> None:
    """On a worker: write a heartbeat. The file system's errors propagate."""
    system, hidden = locate(staged)
    system.pipe_file(f"{hidden}/{_SIGN}", b"")


@dataclass(frozen=True)
class _Note:
    moves: dict[str, str]
    gone: list[str]
    replaces: bool


def commit(staged: str, moves: dict[str, str], *, gone: Iterable[str] = (), replaces: bool) -> None:
    """Move complete staged files into place, each atomically.

    Args:
        staged: The address from `new`.
        moves: The target name of each staged file name.
        gone: Names of files to remove from the target folder after all moves.
        replaces: Whether the write replaces files. If true, an interrupted commit is finished later, because older
            files are already lost. If false, it is rolled back.

    Raises:
        TableError: A target file already exists (only without `replaces`), or a different write considered this one
            dead and removed its files. No file was moved.
    """
    system, hidden = locate(staged)
    if not system.exists(f"{hidden}/{_LEASE}"):
        raise TableError(
            f"webdataset: {staged}: expected this write's files, found that a different write has removed them because "
            "it considered this one dead. Run it again, with one write to a folder at a time."
        )
    if not replaces:
        _all(lambda name: _check_free(system, f"{hidden.rpartition('/')[0]}/{name}"), moves.values())
    note = _Note(moves, list(gone), replaces)
    # Renaming makes the note appear atomically.
    system.pipe_file(f"{hidden}/{_NOTE}.new", json.dumps(asdict(note)).encode())
    _move(system, f"{hidden}/{_NOTE}.new", f"{hidden}/{_NOTE}")
    _carry_out(system, hidden, note)
    _drop(system, hidden)


def roll_back(staged: str) -> None:
    """Roll a failed write back, or finish it if it was already replacing files."""
    system, hidden = locate(staged)
    if system.exists(hidden):
        _settle(system, hidden, _note(system, hidden))


def settle(folder: str) -> None:
    """Roll back, or finish, every write that was killed in this folder.

    Raises:
        TableError: A write is alive, or the folder contains something that only looks like a write's files. Nothing was
            changed.
    """
    system, place = locate(folder)
    place = place.rstrip("/")
    with reaching(folder):
        if not system.exists(place):
            return
    writes = _writes(system, place, folder)
    alive = [write for write in writes if write.is_alive]
    if alive:
        raise _refusal(folder, alive)
    notes = [_note(system, write.hidden) for write in writes]
    for write, note in zip(writes, notes, strict=True):
        _settle(system, write.hidden, note)


@dataclass(frozen=True)
class _Write:
    """A write with an existing hidden folder."""

    hidden: str
    lease: Lease | None
    last: float
    is_alive: bool

    @property
    def rank(self) -> tuple[float, str]:
        return (self.lease.began if self.lease else 0, self.hidden)


def _writes(system: Any, place: str, folder: str) -> list[_Write]:
    with reaching(folder):
        # The folder is listed instead of globbed, because its own name may look like a pattern.
        found = list(_hidden(system, place))
        return [_write(system, hidden) for hidden in found]


def _hidden(system: Any, place: str) -> Iterator[str]:
    system.invalidate_cache()
    for info in system.ls(place, detail=True):
        path = info["name"].rstrip("/")
        name = path.rpartition("/")[2]
        if not name.startswith(_STAGED):
            continue
        hidden = f"{place}/{name}"
        if info.get("islink") or (not _OWN.fullmatch(name) and system.exists(f"{hidden}/{_NOTE}")):
            raise TableError(
                f"webdataset: {hidden}: expected only folders of running writes under this prefix, found "
                f"{'a link' if info.get('islink') else 'one that no write created'}. Its content was ignored. "
                "Check who created it, and remove it."
            )
        # Everything else with this prefix belongs to the user and is left alone.
        if _OWN.fullmatch(name) and info["type"] == "directory":
            yield hidden


def _write(system: Any, hidden: str) -> _Write:
    held, last = None, 0.0
    with suppress(FileNotFoundError):
        infos = system.ls(hidden, detail=True)
        last = max((modified_us(info) or 0 for info in infos), default=0) / 1_000_000
        own = next((info for info in infos if info["name"].rstrip("/").rpartition("/")[2] == _LEASE), None)
        if own is not None and own["type"] == "directory" and not own.get("islink"):
            raise TableError(
                f"webdataset: {hidden}/{_LEASE}: expected the lease of a write, found a folder. Nothing was moved or "
                f"removed. Check who created it, and remove {hidden}"
            )
        # Reading a named pipe, or a link to one, would block. No write creates them, so they do not count as leases.
        if own is not None and own["type"] == "file" and not own.get("islink"):
            # `start` and `end` are keywords, because the second parameter of s3fs's cat_file is the object's version.
            held = Lease.parse(system.cat_file(f"{hidden}/{_LEASE}", start=0, end=1 << 16))
    alive = lease.is_alive(held, last, here=lease.machine(), started=lease.started, now=time())
    return _Write(hidden, held, last, alive)


def _refusal(folder: str, others: list[_Write]) -> TableError:
    told = "the same moment, which has removed this write's files. Run this write again."
    if others:
        other = min(others, key=lambda write: write.rank)
        assert other.lease is not None, "only a write with a lease is alive"
        began, last = (
            datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")
            for seconds in (other.lease.began, max(other.last, other.lease.began))
        )
        told = (
            f"{began} by {other.lease.host or 'an unknown machine'}, last active at {last}. Wait for it, or write to a "
            f"different folder. If it is dead, remove {other.hidden}/{_LEASE}; the next write then cleans up."
        )
    return TableError(
        f"webdataset: {folder}: expected one write at a time to a folder, found a second one begun at {told}"
    )


def _note(system: Any, hidden: str) -> _Note | None:
    """Read the note of a write, or return None if it has none yet.

    Raises:
        TableError: The note is not one that a write creates.
    """
    path = f"{hidden}/{_NOTE}"
    with reaching(path):
        if not system.exists(path):
            return None
        info = system.info(path)
        size = info.get("size") or 0
        try:
            if info.get("islink") or info["type"] != "file" or size > _MAX_NOTE_BYTES:
                raise ValueError("a link, a folder, or a file that is too large")
            is_disk = isinstance(system, LocalFileSystem)
            note = _parsed(system.cat_file(path), _MAX_NAME_ON_DISK if is_disk else _MAX_NAME)
            _check_sources(system, hidden, note)
            return note
        except (ValueError, TypeError, RecursionError) as error:
            raise TableError(
                f"webdataset: {path}: expected the note of an interrupted write, found {str(error)[:100]!r}. "
                "Nothing was moved or removed. Check who created it, check the shards in the folder, and remove "
                f"{hidden}"
            ) from error


def _check_sources(system: Any, hidden: str, note: _Note) -> None:
    """Raise ValueError if a commit cannot be finished because a file is missing."""
    # A rollback may itself have been interrupted, which leaves neither file.
    if not note.replaces:
        return
    system.invalidate_cache()
    staged, placed = (
        {name.rstrip("/").rpartition("/")[2] for name in system.ls(folder, detail=False)}
        for folder in (hidden, hidden.rpartition("/")[0])
    )
    for source, target in note.moves.items():
        if source not in staged and target not in placed:
            raise ValueError(f"{source!r} to be moved to {target!r}, and neither exists")


def _parsed(text: bytes, max_name: int) -> _Note:
    """Parse a note and check that all its names are plain file names; raises ValueError or TypeError."""
    note = _Note(**json.loads(text))
    if not (isinstance(note.moves, dict) and isinstance(note.gone, list) and isinstance(note.replaces, bool)):
        raise TypeError("unexpected types in the note")
    for kind, names in ((None, note.moves), (_TARGET, note.moves.values()), (_GONE, note.gone)):
        for name in names:
            if not _is_name(name, max_name) or (kind is not None and not kind.fullmatch(name)):
                raise ValueError(f"the name {name!r}")
    if len(set(note.moves.values())) < len(note.moves):
        raise ValueError("two files with the same target name")
    return note


def _is_name(name: Any, max_name: int) -> bool:
    if not isinstance(name, str) or name in ("", ".", "..") or {"/", "\0", os.sep} & set(name):
        return False
    # Names on disk that are not UTF-8 contain escaped surrogates. Different surrogates raise a ValueError.
    return len(name.encode("utf-8", "surrogateescape")) <= max_name


def _settle(system: Any, hidden: str, note: _Note | None) -> None:
    if note is not None and note.replaces:
        _carry_out(system, hidden, note)
    elif note is not None:
        _all(lambda name: _remove(system, f"{hidden.rpartition('/')[0]}/{name}"), note.moves.values())
    _drop(system, hidden)


def _carry_out(system: Any, hidden: str, note: _Note) -> None:
    place = hidden.rpartition("/")[0]

    def move(pair: tuple[str, str]) -> None:
        source, target = f"{hidden}/{pair[0]}", f"{place}/{pair[1]}"
        # A local move would put the file inside an existing folder, or inside the folder that a link leads to.
        if isinstance(system, LocalFileSystem) and system.isdir(target):
            raise TableError(f"webdataset: {target}: expected a shard or nothing, found a folder. Remove it.")
        # A resumed commit skips the files that were already moved.
        if system.exists(source) or not system.exists(target):
            _move(system, source, target)

    _all(move, note.moves.items())
    _all(lambda name: _remove(system, f"{place}/{name}"), note.gone)


def _drop(system: Any, hidden: str) -> None:
    # Removing the note completes the commit or the rollback; removing the lease then marks the write as dead.
    for name in (_NOTE, _LEASE):
        _remove(system, f"{hidden}/{name}")
    # Removal is repeated because a task that outlives the write may create a file in the meantime.
    for _ in range(_TRIES):
        # An error here must not fail a completed write. The next write removes the remaining files.
        with suppress(OSError):
            if _is_pattern(hidden) and not isinstance(system, LocalFileSystem):
                for name in system.find(hidden):
                    system.rm_file(name)
            else:
                system.rm(hidden, recursive=True)
            return


def _remove(system: Any, path: str) -> None:
    # Tasks and the driver clean up concurrently, so checking for existence first would be a race.
    with suppress(FileNotFoundError):
        system.rm_file(path)


def _move(system: Any, source: str, target: str) -> None:
    # fsspec's default `mv`, used by most stores, expands a path that looks like a pattern.
    if type(system).mv is AbstractFileSystem.mv and _is_pattern(source):
        system.cp_file(source, target)
        system.rm_file(source)
    else:
        system.mv(source, target)


def _is_pattern(path: str) -> bool:
    return bool(set("*?[") & set(path))


def _check_free(system: Any, path: str) -> None:
    if system.exists(path):
        raise TableError(
            f"{path}: expected no file of that name, found one, perhaps of a write that ran at the same time. Write "
            "again, with one write to a folder at a time; if the file is still in the way, move it."
        )


def _all(work: Callable[[Item], None], items: Iterable[Item]) -> None:
    """Process the items concurrently, because a store copies files where a disk renames them."""
    with ThreadPoolExecutor(PARALLEL) as pool:
        for _ in pool.map(work, items):
            pass
