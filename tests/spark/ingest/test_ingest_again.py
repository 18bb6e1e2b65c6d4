"""Sources that have changed since they were ingested: shards that are written again, and pages in place of images."""

from __future__ import annotations

import os
import tarfile
import threading
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pyspark.sql import SparkSession
from shard_files import add
from test_ingest import _run, id_of, rows

import spark_aesthetic as sa
from spark_aesthetic.errors import TableError
from spark_aesthetic.ingest.table import ImageTable
from spark_aesthetic.testing import noise_image

pytestmark = pytest.mark.usefixtures("interpreted")


def write_shard(path: Path, samples: dict[str, int], at: int) -> None:
    """Write a shard with an image and a caption for each sample.

    `at` is the time of the shard.
    """
    with tarfile.open(path, "w") as tar:
        for key, seed in samples.items():
            add(tar, f"{key}.jpg", noise_image(seed))
            add(tar, f"{key}.txt", f"caption of {seed}".encode())
    os.utime(path, (at, at))


@pytest.mark.long
def test_a_shard_that_was_written_again_replaces_its_rows(spark: SparkSession, tmp_path: Path) -> None:
    table, shard = tmp_path / "table", tmp_path / "0.tar"
    # `late` is later than the run that ingests the shard.
    early, late = 1_000_000_000, 4_000_000_000
    write_shard(shard, {"b": 1, "c": 2, "d": 3}, early)
    write_shard(tmp_path / "1.tar", {"b": 4}, early)
    source = str(tmp_path / "*.tar")
    first = sa.ingest_images(spark, source, str(table))
    assert (first.listed, first.added, first.unchanged) == (2, 4, 0)
    assert sa.ingest_images(spark, source, str(table)).chunks == 0
    # c is a different image, d is gone, e is new, and a is new and has the least path.
    write_shard(shard, {"b": 1, "c": 12, "e": 5, "a": 6}, early + 1)
    done = sa.ingest_images(spark, source, str(table))
    assert (done.listed, done.skipped, done.chunks) == (2, 1, 1)
    # The row of b had the shard's version, so it is written again without that version.
    assert (done.added, done.replaced, done.removed, done.unchanged) == (2, 2, 1, 0)
    found = rows(spark, table)
    ids = {f"0.tar#{key}": seed for key, seed in {"a": 6, "b": 1, "c": 12, "e": 5}.items()} | {"1.tar#b": 4}
    assert {name: row.image_id for name, row in found.items()} == {
        name: id_of(noise_image(seed)) for name, seed in ids.items()
    }
    assert found["0.tar#c"].txt == "caption of 12"
    assert sa.ingest_images(spark, source, str(table)).chunks == 0
    # The samples are the same, so none of them is scored again.
    os.utime(shard, (late, late))
    touched = sa.ingest_images(spark, source, str(table))
    assert (touched.added, touched.replaced, touched.removed, touched.unchanged) == (0, 1, 0, 3)
    assert sa.ingest_images(spark, source, str(table)).chunks == 0
    # A table of an older release has no versions, so the shards that were modified since then are read again.
    older = tmp_path / "older"
    spark.read.format("delta").load(str(table)).drop("__version__").write.format("delta").save(str(older))
    upgraded = sa.ingest_images(spark, source, str(older))
    assert (upgraded.skipped, upgraded.replaced, upgraded.unchanged) == (1, 1, 3)
    assert sa.ingest_images(spark, source, str(older)).chunks == 0


def test_a_shard_that_was_damaged_is_whole_the_next_time(spark: SparkSession, tmp_path: Path) -> None:
    table, shard = tmp_path / "table", tmp_path / "0.tar"
    write_shard(shard, {"a": 1, "b": 2, "c": 3}, 1_000_000_000)
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    done = sa.ingest_images(spark, str(shard), str(table))
    assert done.failed == 1
    shard.write_bytes(whole)
    done = sa.ingest_images(spark, str(shard), str(table))
    assert (done.failed, done.removed) == (0, 1)
    assert set(rows(spark, table)) == {"0.tar#a", "0.tar#b", "0.tar#c"}


def test_copies_of_samples_that_are_no_more_are_taken_in_later(spark: SparkSession, tmp_path: Path) -> None:
    table = tmp_path / "table"
    write_shard(tmp_path / "0.tar", {"a": 1, "b": 2}, 1_000_000_000)
    write_shard(tmp_path / "1.tar", {"a": 1, "c": 3}, 1_000_000_000)
    write_shard(tmp_path / "2.tar", {"a": 1}, 1_000_000_000)
    source = str(tmp_path / "{0..2}.tar")

    def ingest() -> Any:
        return sa.ingest_images(spark, source, str(table), keep_once=True)

    assert ingest().left_out == 2
    assert ingest().chunks == 0
    write_shard(tmp_path / "0.tar", {"b": 2}, 1_000_000_001)
    done = ingest()
    assert (done.removed, done.replaced + done.unchanged, done.added) == (1, 1, 0)
    # The copies of the removed sample are new to the next run, which keeps one of them.
    done = ingest()
    assert (done.added, done.left_out) == (1, 1)
    assert set(rows(spark, table)) == {"0.tar#b", "1.tar#a", "1.tar#c"}
    assert [row.path[-7:] for row in spark.read.format("delta").load(f"{table}_duplicates").collect()] == ["2.tar#a"]
    assert ingest().chunks == 0


def test_samples_whose_files_are_apart_are_joined(spark: SparkSession, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for key in "ab":
            add(tar, f"{key}.json", b"{}")
        for seed, key in enumerate("abc"):
            add(tar, f"{key}.jpg", noise_image(seed))
        add(tar, "c.jpg", noise_image(9))
        for key in "bcad":
            add(tar, f"{key}.txt", f"caption of {key}".encode())
        add(tar, "broken.jpg", b"no image")
        add(tar, "e.jpg", noise_image(8))
        add(tar, "broken.txt", b"caption of broken")
    done = sa.ingest_images(spark, str(tmp_path / "0.tar"), str(tmp_path / "table"))
    assert done.failed_by_reason == {"sample: no image": 1, "decode: not an image": 1}
    found = {name.partition("#")[2]: row for name, row in rows(spark, tmp_path / "table").items()}
    seeds = {"a": 0, "b": 1, "c": 2, "c#2": 9, "e": 8}
    assert set(found) == {*seeds, "d", "broken"}
    assert {name: bytes(found[name].image) for name in seeds} == {
        name: noise_image(seed) for name, seed in seeds.items()
    }
    assert {name: row.txt for name, row in found.items()} == {
        "a": "caption of a", "b": "caption of b", "c": None, "c#2": "caption of c", "d": "caption of d",
        "broken": "caption of broken", "e": None,
    }  # fmt: skip
    assert (found["a"].json, found["c"].json, found["a"].width) == ("{}", None, found["e"].width)


def test_files_that_may_belong_to_either_of_two_samples_are_told(spark: SparkSession, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for seed, name in enumerate(("0.jpg", "1.jpg", "0.txt", "0.jpg")):
            add(tar, name, noise_image(seed) if name.endswith("jpg") else b"of the first or of the last")
    done = sa.ingest_images(spark, str(tmp_path / "0.tar"), str(tmp_path / "table"))
    reason = "sample: its files are apart in the shard, jpg before txt, jpg"
    assert (done.added, done.failed_by_reason) == (3, {reason: 1})
    assert {name: (bytes(row.image), row.txt, row.error) for name, row in rows(spark, tmp_path / "table").items()} == {
        "0.tar#0": (noise_image(0), None, None),
        "0.tar#1": (noise_image(1), None, None),
        "0.tar#0#2": (noise_image(3), "of the first or of the last", reason),
    }


class Pages(BaseHTTPRequestHandler):
    """A server that answers 200, with a page until `images` is set."""

    images: ClassVar[bool] = False

    def do_GET(self) -> None:
        seed = int(self.path.strip("/").removesuffix(".jpg"))
        data = noise_image(seed) if seed == 0 or Pages.images else b"<html>Please log in</html>"
        self.send_response(200)
        self.end_headers()
        self.wfile.write(data if seed < 3 or Pages.images else noise_image(seed)[:20])

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


def test_what_was_no_image_is_fetched_again(spark: SparkSession, tmp_path: Path) -> None:
    source, table = str(tmp_path / "source"), str(tmp_path / "table")
    with ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        prefix = f"http://127.0.0.1:{server.server_address[1]}/"
        places = [(f"{prefix}{seed}.jpg",) for seed in range(4)]
        spark.createDataFrame(places, "url string").coalesce(1).write.parquet(source)
        done = sa.ingest_images(spark, source, table, uri_col="url", allow=[prefix])
        # Two answers are pages, and one is an image that is cut off within its header.
        assert (done.added, done.failed) == (4, 3)
        Pages.images = True
        assert sa.ingest_images(spark, source, table, uri_col="url", allow=[prefix]).chunks == 0
        done = sa.ingest_images(spark, source, table, uri_col="url", allow=[prefix], retry_failed=True)
        server.shutdown()
    assert (done.skipped, done.replaced, done.failed) == (1, 3, 0)
    assert {row.image_id for row in rows(spark, table).values()} == {id_of(noise_image(seed)) for seed in range(4)}


@pytest.mark.long
def test_a_clock_that_was_ahead_blocks_no_later_run(spark: SparkSession, tmp_path: Path) -> None:
    folder, table = tmp_path / "in", tmp_path / "table"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(noise_image(0))
    ahead = _run(spark, folder, table)
    ahead.began += timedelta(hours=5)
    ahead.table.make()
    _, new = ahead.list_new()
    ahead.write(list(new), 1)
    (folder / "b.jpg").write_bytes(noise_image(1))
    done = sa.ingest_images(spark, str(folder), str(table))
    assert (done.skipped, done.added) == (1, 1)
    # A run ends all runs that began before it, whatever their clocks said.
    (folder / "c.jpg").write_bytes(noise_image(2))
    with pytest.raises(TableError, match="found that a later one has begun"):
        ahead.write(list(_run(spark, folder, table).list_new()[1]), 2)


def test_of_two_runs_of_one_number_one_goes_on(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, table = tmp_path / "in", tmp_path / "table"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(noise_image(0))
    one, other = _run(spark, folder, table), _run(spark, folder, table)
    one.began = other.began
    one.table.make()
    one.generation = other.generation = 1_000
    _, new = one.list_new()
    # The second run has read the last number before the first run committed.
    with monkeypatch.context() as patched:
        patched.setattr(ImageTable, "last_generation", lambda _: one.generation - 1)
        with pytest.raises(TableError, match="found that a later one has begun"):
            other.list_new()
    one.write(list(new), 1)
    assert set(rows(spark, table)) == {"a.jpg"}
