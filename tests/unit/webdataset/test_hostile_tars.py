"""Tars and shards that were built to do harm cost only their own rows."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import hostile_tars
import pytest
from hostile_tars import AFTER, BAD_KEYS, END, GOOD, GOOD_KEYS, header, member
from pyspark.sql.types import BinaryType, StringType, StructField, StructType

from spark_aesthetic.errors import OptionError, TableError
from spark_aesthetic.webdataset import shards
from spark_aesthetic.webdataset.shards import ShardError
from spark_aesthetic.webdataset.source import WebDataset

HOSTILE = hostile_tars.hostile()
NAMES = ("__key__", "__url__", "__path__", "jpg", "txt", "__error__")
SCHEMA = StructType([StructField(name, BinaryType() if name == "jpg" else StringType()) for name in NAMES])

# Each error of a row begins with one of these words.
REASONS = ("sample: ", "shard ")


def rows(path: Path, schema: StructType | None = SCHEMA, **options: object) -> list[dict[str, object]]:
    source = WebDataset({"path": str(path), "onDamage": "report", **options})
    reader = source.reader(schema or source.schema())
    return [row for part in reader.partitions() for batch in reader.read(part) for row in batch.to_pylist()]


def check(path: Path) -> list[dict[str, object]]:
    """Read a shard with both readers, check the errors and the reader's own columns, and return the rows."""
    found = rows(path)
    for row in found:
        assert row["__url__"] == str(path)
        assert row["__error__"] is None or str(row["__error__"]).startswith(REASONS), row["__error__"]
        assert str(row["__path__"]).startswith(str(path))
    assert len({(row["__path__"], row["__error__"]) for row in found}) == len(found)
    # If a shard fails, the error states the place and the remedy.
    try:
        for _ in shards.read(str(path), lambda _: True):
            pass
    except ShardError as error:
        said = str(error)
    else:
        said = "found damage at byte of onDamage=report"
    assert re.search(r"found damage at byte .*onDamage=report", said)
    assert "\n" not in said
    assert len(said) < 1000
    return found


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_shard_costs_its_own_rows_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / "x.tar").write_bytes(HOSTILE[name])
    started = time.process_time()
    found = check(tmp_path / "x.tar")
    # `make coverage` traces every line, which takes about three times as long.
    assert time.process_time() - started < (5 if sys.gettrace() is None else 20)
    if HOSTILE[name].startswith(GOOD):
        assert (found[0]["__key__"], found[0]["jpg"]) == ("good", b"good")
    else:
        assert [row["__key__"] for row in found] == [None]
    # The schema is inferred from the same shard, so it is bounded too.
    names = [name.upper().lower() for name in WebDataset(
        {"path": str(tmp_path / "x.tar"), "onDamage": "report"}).schema().names]  # fmt: skip
    assert len(names) == len(set(names)) <= 210


def test_a_file_that_is_too_large_is_a_fault_of_its_sample(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(
        GOOD + member("a.jpg", b"a" * 1001) + member("a.txt", b"its caption")
        + member("l.jpg", b"", kind=b"1", link="a.jpg") + member("b.jpg", b"b" * 1000) + AFTER + END
    )  # fmt: skip
    found = {row["__key__"]: row for row in rows(tmp_path / "x.tar", maxMemberBytes="1000")}
    assert list(found) == ["good", "a", "l", "b", "later"]
    told = "sample: jpg is larger than maxMemberBytes"
    assert (found["a"]["jpg"], found["a"]["txt"], found["a"]["__error__"]) == (None, "its caption", told)
    assert (found["l"]["jpg"], found["l"]["__error__"]) == (None, told)
    assert found["b"]["__error__"] is None
    with pytest.raises(ShardError, match=r"sample 'a': sample: jpg is larger than maxMemberBytes\. .* onDamage=report"):
        rows(tmp_path / "x.tar", maxMemberBytes="1000", onDamage="fail")
    # The column jpg is not in this schema, so it is not read and its size does not matter.
    schema = StructType([StructField("__key__", StringType()), StructField("txt", StringType())])
    assert len(rows(tmp_path / "x.tar", schema, maxMemberBytes="1000", onDamage="fail")) == 5


@pytest.mark.parametrize("wrong", ["0", "-1", "many", "1.5m", "513m", "9" * 5000, ""])
def test_a_limit_that_is_none_is_an_error_of_the_option(tmp_path: Path, wrong: str) -> None:
    with pytest.raises(OptionError, match="webdataset: maxMemberBytes="):
        WebDataset({"path": str(tmp_path), "maxMemberBytes": wrong}).reader(SCHEMA)


def test_all_files_of_a_sample_have_a_limit_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MAX_SAMPLE_BYTES", 2 << 20)
    part = bytes(1 << 20)
    (tmp_path / "x.tar").write_bytes(
        GOOD + b"".join(member(f"a.{name}", part) for name in ("jpg", "txt", "png", "gif")) + AFTER + END
    )
    schema = StructType([*SCHEMA, *(StructField(name, BinaryType()) for name in ("png", "gif"))])
    found = rows(tmp_path / "x.tar", schema)
    assert [row["__key__"] for row in found] == ["good", "a", "later"]
    assert found[1]["__error__"] == "sample: its files are larger than 512 MiB"
    assert [found[1][name] is None for name in ("jpg", "txt", "png", "gif")] == [False, False, True, True]


PEAK = """
import sys
from pathlib import Path
from pyspark.sql.types import BinaryType, StringType, StructField, StructType
from spark_aesthetic.webdataset.source import WebDataset
def peak():
    # Not getrusage's, which begins with that of the process that started this one.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
before = peak()
source = WebDataset({"path": sys.argv[1], "onDamage": "report"})
names = ("__key__", "jpg", "txt", "__error__")
schema = StructType([StructField(name, BinaryType() if name == "jpg" else StringType()) for name in names])
reader = source.reader(schema)
for part in reader.partitions():
    for batch in reader.read(part):
        for row in batch.to_pylist():
            print(row["__key__"], row["__error__"])
print((peak() - before) >> 10)
"""


def read_apart(path: Path) -> tuple[list[str], int, float]:
    """Read a shard in a separate process; return the lines it prints, the MiB it takes and its CPU seconds."""
    started = os.times()
    done = subprocess.run([sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, check=True)
    ended = os.times()
    *told, peak = done.stdout.splitlines()
    return told, int(peak), ended.children_user - started.children_user


def test_a_bomb_is_passed_over_in_little_memory(tmp_path: Path) -> None:
    hostile_tars.bomb(tmp_path / "x.tar.gz", 600 << 20)
    told, peak, _ = read_apart(tmp_path / "x.tar.gz")
    assert told == ["good None", "bomb sample: jpg is larger than maxMemberBytes", "later None"]
    assert peak < 150


@pytest.mark.long
@pytest.mark.parametrize(
    ("size", "opened", "stopped"),
    [(2 << 30, gzip.open, False), (9 << 30, gzip.open, True), (6 << 30, bz2.open, True), (6 << 30, lzma.open, True)],
    ids=["gz of 2 GiB", "gz of 9 GiB", "bz2 of 6 GiB", "xz of 6 GiB"],
)
def test_a_bomb_ends_at_a_bound(tmp_path: Path, size: int, opened: object, stopped: bool) -> None:
    hostile_tars.bomb(tmp_path / "x.tar.gz", size, opened=opened)  # type: ignore[arg-type]
    told, peak, seconds = read_apart(tmp_path / "x.tar.gz")
    print(f"{size >> 30} GiB: {peak} MiB, {seconds:.1f} s")
    assert told[0] == "good None"
    assert ("more than 100 times the compressed size" in told[-1]) == stopped
    assert (told[-1] == "later None") != stopped
    assert peak < 200


def test_a_bound_stops_what_expands_too_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spark_aesthetic.webdataset.compressed._BOMB_BYTES", 4 << 20)
    for at, opened in enumerate((gzip.open, bz2.open, lzma.open)):
        hostile_tars.bomb(tmp_path / f"{at}.tar.gz", 32 << 20, opened=opened)  # type: ignore[arg-type]
        found = check(tmp_path / f"{at}.tar.gz")
        assert found[0]["__key__"] == "good"
        assert "more than 100 times the compressed size" in str(found[-1]["__error__"])


def test_xz_that_asks_for_gigabytes_is_damage(tmp_path: Path) -> None:
    filters = [
        {"id": lzma.FILTER_LZMA2, "dict_size": 1 << 29, "mode": lzma.MODE_FAST, "mf": lzma.MF_HC3, "nice_len": 8}
    ]
    with lzma.open(tmp_path / "x.tar.xz", "wb", filters=filters) as file:
        file.write(GOOD + END)
    (row,) = check(tmp_path / "x.tar.xz")
    assert "Memory usage limit" in str(row["__error__"])


def test_links_that_go_back_again_and_again_cost_a_bounded_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spark_aesthetic.webdataset.tar._MAX_LINKED_BYTES", 64 << 20)
    links = b"".join(member(f"l{at}.jpg", b"", kind=b"1", link=f"{'ab'[at % 2]}.jpg") for at in range(1000))
    content = GOOD + member("a.jpg", bytes(1 << 20)) + member("b.jpg", bytes(1 << 20)) + links + AFTER + END
    (tmp_path / "x.tar").write_bytes(content)
    (tmp_path / "y.tar.gz").write_bytes(gzip.compress(content))
    for name, least in (("x.tar", 60), ("y.tar.gz", 20)):
        found = check(tmp_path / name)
        assert len(found) == 1004
        told = [row for row in found if row["__error__"] is not None]
        assert least <= 1000 - len(told) < 1000
        assert "links for which more than" in str(told[-1]["__error__"])


def test_links_in_front_of_damage_cost_nothing_between(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(
        GOOD
        + member("l.jpg", b"", kind=b"1", link="nowhere.jpg")
        + AFTER
        + member("last.jpg")
        + header("bad.jpg", field=b"-1")
        + END
    )
    found = check(tmp_path / "x.tar")
    assert [row["__key__"] for row in found] == ["good", "l", "later", None]
    assert "found damage at byte 4608, after the sample 'last'" in str(found[-1]["__error__"])


def test_reserved_names_are_a_fault_and_overwrite_nothing(tmp_path: Path) -> None:
    names = ("z.__url__", "z.__KEY__", "z.__Path__", "z.__ERROR__", "z.__mine__")
    (tmp_path / "x.tar").write_bytes(
        GOOD + member("z.jpg") + b"".join(member(name, b"/elsewhere.tar") for name in names)
        + member("alone.__url__", b"/elsewhere.tar") + AFTER + END
    )  # fmt: skip
    found = check(tmp_path / "x.tar")
    assert [row["__key__"] for row in found] == ["good", "z", "alone", "later"]
    assert found[1]["__error__"] == "; ".join(
        f"sample: {name} is a reserved name" for name in ("__url__", "__key__", "__path__", "__error__", "__mine__")
    )
    assert found[2]["__error__"] == "sample: __url__ is a reserved name"
    schema = WebDataset({"path": str(tmp_path / "x.tar")}).schema()
    assert schema.names == ["__key__", "__url__", "jpg", "txt"]
    with pytest.raises(ShardError, match="sample 'z': sample: __url__ is a reserved name"):
        rows(tmp_path / "x.tar", onDamage="fail")


def test_names_that_differ_in_case_are_two_samples_and_one_column(tmp_path: Path) -> None:
    parts = [member("a.jpg", b"1"), member("a.JPG", b"2"), member("b.\u017feg.txt", b"3"), member("b.seg.txt", b"4")]
    (tmp_path / "x.tar").write_bytes(b"".join(parts) + END)
    found = rows(tmp_path / "x.tar")
    assert [(str(row["__path__"]).rpartition("#")[2], row["jpg"]) for row in found[:2]] == [("a", b"1"), ("2", b"2")]
    schema = WebDataset({"path": str(tmp_path / "x.tar")}).schema()
    assert schema.names == ["__key__", "__url__", "jpg", "\u017feg.txt"]


@pytest.mark.parametrize("key", BAD_KEYS)
def test_a_key_that_names_another_place_is_refused(tmp_path: Path, key: str) -> None:
    with (tmp_path / "x.tar").open("wb") as file:
        shard = shards.ShardWriter(file)
        with pytest.raises(TableError, match=r"webdataset: key .*: expected one without a dot"):
            shard.write(key, {"jpg": b"x"})
        shard.abandon()
    assert (tmp_path / "x.tar").stat().st_size == 0


def test_other_keys_come_back(tmp_path: Path) -> None:
    with (tmp_path / "x.tar").open("wb") as file:
        shard = shards.ShardWriter(file)
        for key in GOOD_KEYS:
            shard.write(key, {"jpg": b"x"})
        shard.close()
    assert [sample.key for sample in shards.read(str(tmp_path / "x.tar"), lambda _: True)] == GOOD_KEYS


@pytest.mark.parametrize("name", ["", "a/b", "..\\x", "a\nb", "\0", "__url__", "__ERROR__", "x\u202etxt", "n" * 256])
def test_a_column_whose_files_readers_would_not_take_is_refused(tmp_path: Path, name: str) -> None:
    schema = StructType([StructField("__key__", StringType()), StructField(name, BinaryType())])
    if name == "__url__":
        # The writer leaves this column out, because readers add it.
        return
    with pytest.raises(TableError, match=r"webdataset: column .*expected an extension that readers accept"):
        WebDataset({"path": str(tmp_path / "out")}).writer(schema, overwrite=False)
    assert not (tmp_path / "out").exists()


def bases() -> list[bytes]:
    named = [HOSTILE[name] for name in ("odd names", "a deep chain of links", "PAX size=-5")]
    honest = b"".join(
        hostile_tars.pax(hostile_tars.record("path", f"p/{at}.jpg"))
        + member("short", b"p")
        + member(f"s{at}.txt", b"t")
        for at in range(5)
    )
    return [*named[:1], named[1][: 40 * 512] + END, *named[2:], GOOD + honest + AFTER + END, (GOOD + END) * 3]


def test_mutated_shards_end_and_say_why(tmp_path: Path) -> None:
    """Fuzz the readers for as many seconds as SPARK_AESTHETIC_FUZZ_SECONDS states."""
    path, some = tmp_path / "x.tar", bases()
    seconds = float(os.environ.get("SPARK_AESTHETIC_FUZZ_SECONDS", "3"))
    first = int(os.environ.get("SPARK_AESTHETIC_FUZZ_SEED", "0"))
    until, seed = time.monotonic() + seconds, first
    while time.monotonic() < until:
        content = hostile_tars.mutated(seed, some)
        path.write_bytes(gzip.compress(content, 1) if seed % 4 == 0 else content)
        started = time.process_time()
        try:
            check(path)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {json.dumps(repr(error))}") from error
        assert time.process_time() - started < 5, f"seed {seed}"
        seed += 1
    print(f"tar and shard readers: {seed - first} inputs")
    assert seed > first
