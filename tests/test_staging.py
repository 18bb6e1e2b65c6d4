"""Commits that are killed half way, by SIGKILL of the process that makes them."""

from __future__ import annotations

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from time import sleep

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from spark_aesthetic.datasources import staging
from spark_aesthetic.errors import TableError

# Dies when the last but one file has moved, or, with 0, before the note is there.
KILLED = """
import os, signal, sys
from fsspec.implementations.local import LocalFileSystem
from spark_aesthetic.datasources import staging
staging.PARALLEL = 1
folder, replaces, left = sys.argv[1], sys.argv[2] == "True", int(sys.argv[3])
move = LocalFileSystem.mv
def mv(self, source, target, **options):
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    move(self, source, target, **options)
LocalFileSystem.mv = mv
staged = staging.new(folder)
for name in "abc":
    open(f"{staged}/{name}", "w").write(f"new {name}")
gone = ["00003.tar"] if replaces else []
first = 0 if replaces else 4
moves = {name: f"{first + at:05d}.tar" for at, name in enumerate("abc")}
staging.commit(staged, moves, gone=gone, replaces=replaces)
"""


def test_a_file_that_is_there_is_not_replaced_by_an_append(tmp_path: Path) -> None:
    folder = tmp_path / "a [1]"
    staged = Path(staging.new(str(folder)))
    (staged / "a").write_text("new")
    (folder / "00000.tar").write_text("old")
    with pytest.raises(TableError, match="another write has put there"):
        staging.commit(str(staged), {"a": "00000.tar"}, replaces=False)
    staging.settle(str(folder))
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"00000.tar": "old"}


def test_what_cannot_be_removed_does_not_fail_a_commit_that_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = LocalFileSystem.rm

    def failing(self: LocalFileSystem, path: str, recursive: bool = False) -> None:
        if recursive:
            raise OSError("busy")
        remove(self, path)

    staged = Path(staging.new(str(tmp_path)))
    (staged / "a").write_text("new")
    with monkeypatch.context() as patched:
        patched.setattr(LocalFileSystem, "rm", failing)
        staging.commit(str(staged), {"a": "00000.tar"}, replaces=False)
    assert staged.exists()
    staging.settle(str(tmp_path))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"00000.tar": "new"}


def test_a_file_that_is_made_while_its_folder_is_removed_goes_too(tmp_path: Path) -> None:
    for _ in range(20):
        staged = Path(staging.new(str(tmp_path)))
        for at in range(100):
            (staged / str(at)).touch()

        def write(staged: Path = staged) -> None:
            with suppress(FileNotFoundError):
                for at in range(100, 5000):
                    (staged / str(at)).touch()
                    sleep(0.001)

        with ThreadPoolExecutor() as pool:
            task = pool.submit(write)
            staging.settle(str(tmp_path))
            task.result(10)
        assert list(tmp_path.iterdir()) == []


def texts(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.glob("*.tar"))}


OLD = {f"{at:05d}.tar": f"old {at}" for at in range(4)}
NEW = {f"{at:05d}.tar": f"new {name}" for at, name in enumerate("abc")}


@pytest.mark.parametrize(
    ("replaces", "left", "seen", "settled"),
    [
        (False, 0, OLD, OLD),
        (False, 3, OLD | {"00004.tar": "new a", "00005.tar": "new b"}, OLD),
        (True, 0, OLD, OLD),
        (True, 3, OLD | {"00000.tar": "new a", "00001.tar": "new b"}, NEW),
    ],
)
def test_a_killed_commit_is_undone_or_brought_to_its_end(
    tmp_path: Path, replaces: bool, left: int, seen: dict[str, str], settled: dict[str, str]
) -> None:
    for name, text in OLD.items():
        (tmp_path / name).write_text(text)
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), str(replaces), str(left)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert texts(tmp_path) == seen
    staging.settle(str(tmp_path))
    assert texts(tmp_path) == settled
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(settled)


@pytest.mark.parametrize("replaces", [False, True])
def test_a_store_whose_folders_look_like_patterns(replaces: bool) -> None:
    # fsspec's own copies and removals take them for patterns, and each of these matches the one before.
    system = fsspec.filesystem("memory")
    for name in ("a1", "a[1]", "a?1*"):
        system.pipe_file(f"/{name}/00000.tar", b"old")
    try:
        for name in ("a[1]", "a?1*"):
            folder = f"memory://{name}"
            killed = staging.new(folder)
            system.pipe_file(f"{killed.removeprefix('memory:/')}/x", b"left")
            staging.settle(folder)
            staged = staging.new(folder)
            system.pipe_file(f"{staged.removeprefix('memory:/')}/x", b"new")
            target = "00000.tar" if replaces else "00001.tar"
            staging.commit(staged, {"x": target}, replaces=replaces)
            old = {} if replaces else {f"/{name}/00000.tar": b"old"}
            assert {at: system.cat_file(at) for at in system.find(f"/{name}")} == {**old, f"/{name}/{target}": b"new"}
        assert system.find("/a1") == ["/a1/00000.tar"]
    finally:
        for name in ("a1", "a[1]", "a?1*"):
            for at in system.find(f"/{name}"):
                system.rm_file(at)


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (f"{tmp_path}/file/out", "memory2://a"):
        with pytest.raises(TableError, match="expected a place that can be reached, found: ") as caught:
            staging.new(place)
        assert "\n" not in str(caught.value)
