"""Files that many tasks write and that come into place together; Spark's driver alone calls `commit` and `settle`.

Tasks write into a hidden folder of the place. What goes where is noted there before anything moves, and the note goes
once all has moved. So whatever a killed driver leaves is known for what it is: without a note nothing is in place yet;
with one, files that were added are taken out again, and files that replace others are put in place to the last.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, TypeVar
from uuid import uuid4

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from spark_aesthetic.datasources.places import PARALLEL, locate, reaching
from spark_aesthetic.errors import TableError

# Names that begin so are hidden from patterns such as *.tar, and from Spark.
_STAGED, _NOTE = "_staged-", "commit.json"

_TRIES = 3

Item = TypeVar("Item")


def new(folder: str) -> str:
    """The address of a hidden folder, made in another one, for the files that a write stages.

    They lie in it without folders of their own: so a disk lets a task that has not heard of the write's end make no
    more of them.
    """
    staged = f"{folder}/{_STAGED}{uuid4().hex}"
    system, hidden = locate(staged)
    with reaching(folder):
        system.makedirs(hidden)
    return staged


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
        TableError: Without `replaces`, a file of that name is there already; nothing has moved.
    """
    system, hidden = locate(staged)
    if not replaces:
        _all(lambda name: _check_free(system, f"{hidden.rpartition('/')[0]}/{name}"), moves.values())
    note = _Note(moves, list(gone), replaces)
    # A note is there whole or not at all.
    system.pipe_file(f"{hidden}/{_NOTE}.new", json.dumps(asdict(note)).encode())
    _move(system, f"{hidden}/{_NOTE}.new", f"{hidden}/{_NOTE}")
    _carry_out(system, hidden, note)
    _drop(system, hidden)


def settle(folder: str) -> None:
    """Undo or go on with what writes have left in a folder that were killed, so that it is as if they had not been.

    One that is at work loses its files by it, and fails: a folder takes one write at a time.
    """
    system, place = locate(folder)
    place = place.rstrip("/")
    with reaching(folder):
        if not system.exists(place):
            return
        # No pattern, which the folder's own name may look like.
        names = [name.rstrip("/").rpartition("/")[2] for name in system.ls(place, detail=False)]
    for hidden in [f"{place}/{name}" for name in names if name.startswith(_STAGED)]:
        if system.exists(f"{hidden}/{_NOTE}"):
            note = _Note(**json.loads(system.cat_file(f"{hidden}/{_NOTE}")))
            if note.replaces:
                _carry_out(system, hidden, note)
            else:
                _all(lambda name: _remove(system, f"{place}/{name}"), note.moves.values())
        _drop(system, hidden)


def _carry_out(system: Any, hidden: str, note: _Note) -> None:
    place = hidden.rpartition("/")[0]

    def move(pair: tuple[str, str]) -> None:
        source, target = f"{hidden}/{pair[0]}", f"{place}/{pair[1]}"
        # A commit that goes on finds some of them moved.
        if system.exists(source) or not system.exists(target):
            _move(system, source, target)

    _all(move, note.moves.items())
    _all(lambda name: _remove(system, f"{place}/{name}"), note.gone)


def _drop(system: Any, hidden: str) -> None:
    # The note first: from here on the write is done, or undone.
    _remove(system, f"{hidden}/{_NOTE}")
    # Again where a task that has not heard of the end has made a file meanwhile.
    for _ in range(_TRIES):
        # Else a write that is done would fail; the next one removes what is left.
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
