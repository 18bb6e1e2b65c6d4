"""Commits of staged shards, including commits that SIGKILL ends half way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from time import sleep
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from spark_aesthetic.errors import TableError
from spark_aesthetic.webdataset import staging
from spark_aesthetic.webdataset.lease import Lease, is_alive
from spark_aesthetic.webdataset.places import locate

# This process kills itself after `left` moves. After 3, the note and two of the three files have moved. After 0,
# nothing has moved, not even the note.
KILLED = """
import os, signal, sys
from fsspec.implementations.local import LocalFileSystem
from spark_aesthetic.webdataset import staging
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
    with pytest.raises(TableError, match="perhaps of a write that ran at the same time"):
        staging.commit(str(staged), {"a": "00000.tar"}, replaces=False)
    staging.roll_back(str(staged))
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
            staging.roll_back(str(staged))
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
    # fsspec's own copy and remove treat these names as patterns, and each pattern matches the name before it.
    system = fsspec.filesystem("memory")
    for name in ("a1", "a[1]", "a?1*"):
        system.pipe_file(f"/{name}/00000.tar", b"old")
    try:
        for name in ("a[1]", "a?1*"):
            folder = f"memory://{name}"
            killed = staging.new(folder)
            system.pipe_file(f"{killed.removeprefix('memory:/')}/x", b"left")
            system.rm_file(f"{killed.removeprefix('memory:/')}/writer.json")
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


HEX = "0" * 32


def hostile_note(folder: Path, note: bytes, name: str = f"_staged-{HEX}") -> Path:
    hidden = folder / name
    hidden.mkdir()
    (hidden / "a").write_text("staged")
    (hidden / "commit.json").write_bytes(note)
    return hidden


def note(**changed: object) -> bytes:
    return json.dumps({"moves": {"a": "00000.tar"}, "gone": [], "replaces": True} | changed).encode()


@pytest.mark.parametrize(
    "text",
    [
        note(moves={"a": "../outside"}), note(moves={"a": "../00001.tar"}), note(moves={"../outside": "00001.tar"}),
        note(moves={"../../outside": "00001.tar"}), note(moves={"/etc/passwd": "00001.tar"}),
        note(moves={"..": "00001.tar"}), note(moves={"a": "/tmp/00001.tar"}), note(moves={"a": "x.tar"}),
        note(moves={"a": ""}), note(moves={"a": 5}), note(moves=[]), note(gone=["../outside"]),
        note(gone=["../outside.tar"]), note(gone=[5]), note(gone="00000.tar"), note(gone=["x"]), note(replaces="yes"),
        note(replaces=False, moves={"a": "../outside"}), note(more=1), b"{}", b"", b"[]", b"null", b"{cut off",
        b"\xff\0", b"[" * 100_000, b"9" * 5000, note()[:-5], note(moves={"a": "\u0663" * 5 + ".tar"}),
        note(moves={"a": "00001.tar", "b": "00001.tar"}), note(moves={"none": "00001.tar"}),
        note(moves={"\ud800": "00001.tar"}), note(gone=["\ud800.tar"]), note(moves={"a" * 256: "00000.tar"}),
        note(moves={"a": "0" * 252 + ".tar"}), note(gone=["ü" * 126 + ".tar"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", [f"_staged-{HEX}", "_staged-x"])
def test_a_note_that_no_write_has_made_moves_and_removes_nothing(tmp_path: Path, text: bytes, name: str) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    for path in (tmp_path / "outside", tmp_path / "outside.tar", folder / "00000.tar"):
        path.write_text("whole")
    hidden = hostile_note(folder, text, name)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for begin in (staging.settle, staging.new):
        if begin is staging.new and name != "_staged-x":
            continue
        with pytest.raises(TableError) as caught:
            begin(str(folder))
        assert str(hidden) in str(caught.value)
        assert "remove" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_links_in_the_place_of_staged_folders_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "commit.json").write_bytes(note())
    (elsewhere / "a").write_text("of somebody")
    (tmp_path / "out" / f"_staged-{HEX}").symlink_to(elsewhere)
    with pytest.raises(TableError, match=r"found a link\. Its content was ignored"):
        staging.settle(str(tmp_path / "out"))
    assert {path.name for path in elsewhere.iterdir()} == {"commit.json", "a"}
    (tmp_path / "out" / f"_staged-{HEX}").unlink()
    # First the note is a link, then a link to a folder is in the place of a shard.
    hidden = hostile_note(tmp_path / "out", b"")
    (hidden / "commit.json").unlink()
    (hidden / "commit.json").symlink_to(elsewhere / "commit.json")
    with pytest.raises(TableError, match="found 'a link"):
        staging.settle(str(tmp_path / "out"))
    (hidden / "commit.json").unlink()
    (hidden / "commit.json").write_bytes(note())
    (tmp_path / "out" / "00000.tar").symlink_to(elsewhere)
    with pytest.raises(TableError, match="expected a shard or nothing, found a folder"):
        staging.settle(str(tmp_path / "out"))
    assert {path.name for path in elsewhere.iterdir()} == {"commit.json", "a"}


@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "link to nothing"])
def test_a_lease_that_is_no_file_is_not_waited_for(tmp_path: Path, kind: str) -> None:
    hidden = tmp_path / "out" / f"_staged-{HEX}"
    hidden.mkdir(parents=True)
    os.mkfifo(hidden / "writer.json" if kind == "pipe" else tmp_path / "pipe")
    if kind != "pipe":
        (hidden / "writer.json").symlink_to(tmp_path / ("pipe" if kind == "link to a pipe" else "nothing"))

    def expired(*_: object) -> None:
        raise TimeoutError("it waits for a writer")

    signal.signal(signal.SIGALRM, expired)
    signal.alarm(5)
    try:
        staging.roll_back(staging.new(str(tmp_path / "out")))
        staging.settle(str(tmp_path / "out"))
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    assert list((tmp_path / "out").iterdir()) == []
    assert (tmp_path / "pipe").exists() == (kind != "pipe")


def test_a_lease_that_is_a_folder_is_told_with_the_remedy(tmp_path: Path) -> None:
    hidden = tmp_path / f"_staged-{HEX}"
    (hidden / "writer.json").mkdir(parents=True)
    for begin in (staging.settle, staging.new):
        with pytest.raises(TableError, match=rf"found a folder\. Nothing was .* and remove {hidden}$"):
            begin(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [hidden.name]


def test_an_undo_that_was_cut_off_is_undone_to_its_end(tmp_path: Path) -> None:
    hostile_note(tmp_path, note(replaces=False, moves={"moved and removed": "00001.tar", "a": "00002.tar"}))
    staging.settle(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_not_utf_8_goes_when_a_commit_is_brought_to_its_end(tmp_path: Path) -> None:
    old = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9.tar"))
    old.write_text("old")
    hostile_note(tmp_path, note(gone=[old.name]))
    staging.settle(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["00000.tar"]


def test_what_is_called_alike_and_is_not_a_write_stays(tmp_path: Path) -> None:
    (tmp_path / "_staged-photos").mkdir()
    (tmp_path / "_staged-photos" / "a.jpg").touch()
    (tmp_path / f"_staged-{HEX}").touch()
    staging.settle(str(tmp_path))
    assert (tmp_path / "_staged-photos" / "a.jpg").exists()
    assert (tmp_path / f"_staged-{HEX}").exists()


class Versioned(MemoryFileSystem):  # type: ignore[misc]
    """A store that takes a version as its second argument, as s3fs does."""

    protocol = "versioned"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(str(path).replace("versioned://", "memory://")))

    def cat_file(self, path: str, version_id: object = None, start: Any = None, end: Any = None) -> bytes:
        assert version_id is None
        return bytes(super().cat_file(path, start=start, end=end))


fsspec.register_implementation("versioned", Versioned)


@pytest.mark.parametrize("where", ["disk", "memory", "versioned"])
def test_a_second_write_is_refused_and_the_first_goes_on(tmp_path: Path, where: str) -> None:
    folder = str(tmp_path) if where == "disk" else f"{where}://leased"
    system, _ = locate(folder)
    first = staging.new(folder)
    place = locate(first)[1]
    system.pipe_file(f"{place}/a", b"new")
    for begin in (staging.settle, staging.new):
        with pytest.raises(
            TableError, match=r"expected one write at a time .* by .*\. Wait for it, or .* remove "
        ) as told:
            begin(folder)
        assert f"{place}/writer.json" in str(told.value)
    staging.sign(first)
    staging.commit(first, {"a": "00000.tar"}, replaces=False)
    assert [name.rpartition("/")[2] for name in system.ls(place.rpartition("/")[0], detail=False)] == ["00000.tar"]
    staging.roll_back(staging.new(folder))
    system.rm(place.rpartition("/")[0], recursive=True)


def test_of_writes_that_begin_at_once_one_goes_on(tmp_path: Path) -> None:
    def begin(_: int) -> str | None:
        try:
            return staging.new(str(tmp_path))
        except TableError:
            return None

    with ThreadPoolExecutor(4) as pool:
        went_on = [staged for staged in pool.map(begin, range(4)) if staged is not None]
    assert [str(path) for path in tmp_path.iterdir()] == went_on
    assert len(went_on) == 1


def test_a_write_that_was_taken_for_dead_does_not_commit(tmp_path: Path) -> None:
    staged = staging.new(str(tmp_path))
    (Path(staged) / "a").touch()
    (Path(staged) / "writer.json").unlink()
    second = staging.new(str(tmp_path))
    with pytest.raises(TableError, match="a different write has removed them because it considered this one dead"):
        staging.commit(staged, {"a": "00000.tar"}, replaces=False)
    staging.roll_back(second)
    assert not list(tmp_path.glob("*.tar"))


HERE, NOW = "here 1", 1_000_000.0


@pytest.mark.parametrize(
    ("held", "last", "alive"),
    [
        (None, NOW, False),
        (Lease(HERE, 7, "then", NOW), NOW, True),
        (Lease(HERE, 7, "then", 0), 0, True),
        (Lease(HERE, 7, "earlier", NOW), NOW, False),
        (Lease(HERE, 8, "then", NOW), NOW, False),
        (Lease(HERE, 8, None, NOW), NOW, False),
        (Lease(HERE, None, None, NOW), 0, True),
        (Lease("there 1", 8, "then", NOW - 3599), 0, True),
        (Lease("there 1", 8, "then", NOW - 3601), 0, False),
        (Lease("there 1", 8, "then", 0), NOW - 60, True),
        (Lease("there 1", 7, "then", 0), NOW - 3601, False),
        (Lease("there 1", 7, "then", 0), NOW + 60, True),
        (Lease("there 1", 7, "then", 2 * NOW), 0, False),
    ],
)
def test_who_is_alive(held: Lease | None, last: float, alive: bool) -> None:
    assert is_alive(held, last, here=HERE, started={7: "then"}.get, now=NOW) == alive


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"null", b"{}", b"\xff", b"[" * 100_000, b'{"pid": -1, "began": 1}', b"9" * 9]
)
def test_a_lease_that_is_none_is_of_nobody(text: bytes) -> None:
    assert Lease.parse(text) == Lease("", None, None, 0)
    assert Lease.parse(Lease.own().dumped()).pid == os.getpid()


FULL = """
import resource, signal, sys
from spark_aesthetic.webdataset import staging
from spark_aesthetic.errors import TableError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
staged = staging.new(sys.argv[1])
moves = {f"{at:06d}-0-000000.tar": f"{at:05d}.tar" for at in range(200)}
for name in moves:
    open(f"{staged}/{name}", "w").close()
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    staging.commit(staged, moves, replaces=True)
except OSError as error:
    print(error)
    staging.roll_back(staged)
"""


def test_a_note_that_a_full_disk_cuts_off_is_none(tmp_path: Path) -> None:
    (tmp_path / "00000.tar").write_text("old")
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "File too large" in done.stdout
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"00000.tar": "old"}
