"""Files that many tasks write and that come into place together; Spark's driver alone calls `commit` and `settle`.

Tasks write into a hidden folder of the place. What goes where is noted there before anything moves, and the note goes
once all has moved. So whatever a killed driver leaves is known for what it is: without a note nothing is in place yet;
with one, files that were added are taken out again, and files that replace others are put in place to the last.

A folder takes one write at a time. Each has a lease in its hidden folder, and one that begins beside a write which is
alive is refused. What stands in such a folder was not necessarily written by this module: names are checked.
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

# Names that begin so are hidden from patterns such as *.tar, and from Spark.
_STAGED, _NOTE, _LEASE, _SIGN = "_staged-", "commit.json", "writer.json", "sign"
_OWN = re.compile(rf"{_STAGED}[0-9a-f]{{32}}")

# The names that a write gives to files, and those that it removes.
_TARGET, _GONE = re.compile(r"[0-9]{5,}\.(tar|parquet)"), re.compile(r".*\.(tar|parquet)", re.DOTALL)

# A note of a million shards with sidecars has some tens of megabytes.
_MAX_NOTE_BYTES = 256 << 20

# Bytes of a name that a disk takes, and a store.
_MAX_NAME_ON_DISK, _MAX_NAME = 255, 1024

_TRIES = 3

# Within this time a write that has begun at the same moment withdraws.
_SETTLING_SECONDS = 2.0

Item = TypeVar("Item")


def new(folder: str) -> str:
    """The address of a hidden folder, made in another one, for the files that a write stages.

    They lie in it without folders of their own: so a disk lets a task that has not heard of the write's end make no
    more of them.

    Raises:
        TableError: Another write is at work in the folder, or it cannot be reached.
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
    """Raise TableError unless this write, which has a lease now, is the only one that goes on."""
    for last in (False, True):
        there = {write.hidden: write for write in _writes(system, hidden.rpartition("/")[0], folder)}
        others = [write for at, write in there.items() if at != hidden and write.is_alive]
        if not others and hidden in there:
            return
        if last or hidden not in there or min(other.rank for other in others) < rank:
            raise _refusal(folder, others)
        # The other one has begun later, and withdraws when it sees this one.
        sleep(_SETTLING_SECONDS)


def sign(staged: str) -> None:
    """On a worker: say that a write is alive; raises as a file system does."""
    system, hidden = locate(staged)
    system.pipe_file(f"{hidden}/{_SIGN}", b"")


@dataclass(frozen=True)
class _Note:
    moves: dict[str, str]
    gone: list[str]
    replaces: bool


def commit(staged: str, moves: dict[str, str], *, gone: Iterable[str] = (), replaces: bool) -> None:
    """Put staged files in place, whole ones, each at once.

    Args:
        staged: What `new` gave.
        moves: Where each staged file goes, both by their names in their folders.
        gone: Files of the place to remove, once all others are there.
        replaces: Whether a commit that is interrupted goes on later, because older files are lost already; else it is
            undone.

    Raises:
        TableError: Without `replaces`, a file of that name is there already, or another write has taken this one for
            dead; nothing has moved.
    """
    system, hidden = locate(staged)
    if not system.exists(f"{hidden}/{_LEASE}"):
        raise TableError(
            f"webdataset: {staged}: expected this write's files, found that another write has removed them, which took "
            "this one for dead; run it again, one write at a time to a folder"
        )
    if not replaces:
        _all(lambda name: _check_free(system, f"{hidden.rpartition('/')[0]}/{name}"), moves.values())
    note = _Note(moves, list(gone), replaces)
    # A note is there whole or not at all.
    system.pipe_file(f"{hidden}/{_NOTE}.new", json.dumps(asdict(note)).encode())
    _move(system, f"{hidden}/{_NOTE}.new", f"{hidden}/{_NOTE}")
    _carry_out(system, hidden, note)
    _drop(system, hidden)


def roll_back(staged: str) -> None:
    """Undo a write that has failed, or bring it to its end where it was replacing files already."""
    system, hidden = locate(staged)
    if system.exists(hidden):
        _settle(system, hidden, _note(system, hidden))


def settle(folder: str) -> None:
    """Undo or go on with what writes have left in a folder that were killed, so that it is as if they had not been.

    Raises:
        TableError: One is alive, or the folder has something that looks like the files of one and is not; nothing has
            changed then.
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
    """A write whose hidden folder is there."""

    hidden: str
    lease: Lease | None
    last: float
    is_alive: bool

    @property
    def rank(self) -> tuple[float, str]:
        return (self.lease.began if self.lease else 0, self.hidden)


def _writes(system: Any, place: str, folder: str) -> list[_Write]:
    with reaching(folder):
        # No pattern, which the folder's own name may look like.
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
                f"webdataset: {hidden}: expected no folder called so but those of writes at work, found "
                f"{'a link' if info.get('islink') else 'one that no write has made'}; nothing in it was followed: look "
                "who has put it there, and remove it"
            )
        # What else is called so is somebody's own, and stays.
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
                f"webdataset: {hidden}/{_LEASE}: expected the lease of a write, found a folder; nothing was moved or "
                f"removed: look who has put it there, and remove {hidden}"
            )
        # A pipe would wait for its writer, and a link lead to one. No write makes them, so it is not alive by them.
        if own is not None and own["type"] == "file" and not own.get("islink"):
            held = Lease.parse(system.cat_file(f"{hidden}/{_LEASE}", 0, 1 << 16))
    alive = lease.is_alive(held, last, here=lease.machine(), started=lease.started, now=time())
    return _Write(hidden, held, last, alive)


def _refusal(folder: str, others: list[_Write]) -> TableError:
    told = "the same moment, which has removed this one's files; run this one again"
    if others:
        other = min(others, key=lambda write: write.rank)
        assert other.lease is not None, "who is alive says so"
        began, last = (
            datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")
            for seconds in (other.lease.began, max(other.last, other.lease.began))
        )
        told = (
            f"{began} by {other.lease.host or 'an unknown machine'}, whose last sign is of {last}; wait for it, or "
            f"write to another folder. If it is dead, remove {other.hidden}/{_LEASE}: then the next write clears up"
        )
    return TableError(f"webdataset: {folder}: expected one write at a time to a folder, found another begun at {told}")


def _note(system: Any, hidden: str) -> _Note | None:
    """What was to go where, or None if it was not noted yet.

    Raises:
        TableError: The note is none that a write makes.
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
                f"webdataset: {path}: expected the note of a write that was cut off, found {str(error)[:100]!r}; "
                "nothing was moved or removed: look who has put it there, check the shards beside it, and remove "
                f"{hidden}"
            ) from error


def _check_sources(system: Any, hidden: str, note: _Note) -> None:
    """Raise ValueError if a commit cannot go on with the files that are there."""
    # One that is undone may have been cut off while it was: then neither file is left.
    if not note.replaces:
        return
    system.invalidate_cache()
    staged, placed = (
        {name.rstrip("/").rpartition("/")[2] for name in system.ls(folder, detail=False)}
        for folder in (hidden, hidden.rpartition("/")[0])
    )
    for source, target in note.moves.items():
        if source not in staged and target not in placed:
            raise ValueError(f"that {source!r} goes to {target!r}, and neither is there")


def _parsed(text: bytes, max_name: int) -> _Note:
    """A note whose names are those of files in its own folder; raises ValueError or TypeError for any other."""
    note = _Note(**json.loads(text))
    if not (isinstance(note.moves, dict) and isinstance(note.gone, list) and isinstance(note.replaces, bool)):
        raise TypeError("other types than those of a note")
    for kind, names in ((None, note.moves), (_TARGET, note.moves.values()), (_GONE, note.gone)):
        for name in names:
            if not _is_name(name, max_name) or (kind is not None and not kind.fullmatch(name)):
                raise ValueError(f"the name {name!r}")
    if len(set(note.moves.values())) < len(note.moves):
        raise ValueError("two files that go to one name")
    return note


def _is_name(name: Any, max_name: int) -> bool:
    if not isinstance(name, str) or name in ("", ".", "..") or {"/", "\0", os.sep} & set(name):
        return False
    # Names on a disk that are not UTF-8 have some halves of characters; any other one raises a ValueError.
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
        # A disk would move it into a folder that is called so, or that a link of the name leads to.
        if isinstance(system, LocalFileSystem) and system.isdir(target):
            raise TableError(f"webdataset: {target}: expected a shard or nothing, found a folder; remove it")
        # A commit that goes on finds some of them moved.
        if system.exists(source) or not system.exists(target):
            _move(system, source, target)

    _all(move, note.moves.items())
    _all(lambda name: _remove(system, f"{place}/{name}"), note.gone)


def _drop(system: Any, hidden: str) -> None:
    # The note first: from here on the write is done, or undone, and then it is dead.
    for name in (_NOTE, _LEASE):
        _remove(system, f"{hidden}/{name}")
    # Again where a task that has not heard of the end has made a file meanwhile.
    for _ in range(_TRIES):
        # An error here would fail a write that is done; the next write removes what is left.
        with suppress(OSError):
            if _is_pattern(hidden) and not isinstance(system, LocalFileSystem):
                for name in system.find(hidden):
                    system.rm_file(name)
            else:
                system.rm(hidden, recursive=True)
            return


def _remove(system: Any, path: str) -> None:
    # Not asked before whether it is there: tasks and the driver clear up at the same time.
    with suppress(FileNotFoundError):
        system.rm_file(path)


def _move(system: Any, source: str, target: str) -> None:
    # fsspec's own mv, which most stores have, takes a path for a pattern if it looks like one.
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
            f"{path}: expected no file of that name, found one that another write has put there since this one began; "
            "run one write at a time to a folder"
        )


def _all(work: Callable[[Item], None], items: Iterable[Item]) -> None:
    """At once: a store copies where a disk renames."""
    with ThreadPoolExecutor(PARALLEL) as pool:
        for _ in pool.map(work, items):
            pass
