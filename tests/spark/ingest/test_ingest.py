"""Files, shards and addresses become rows of a table. No row is lost or repeated, and no byte changes."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from conftest import bytes_read, last_query, own_session, plan_metrics
from PIL import Image
from processes import Job, until
from pyspark.sql import Row, SparkSession
from shard_files import add

import spark_aesthetic as sa
from spark_aesthetic.cli import curation
from spark_aesthetic.errors import AestheticError, OptionError, TableError
from spark_aesthetic.ingest import listing
from spark_aesthetic.ingest.allowed import Allowed
from spark_aesthetic.ingest.fetching import fetch
from spark_aesthetic.ingest.job import IngestSummary
from spark_aesthetic.ingest.pace import Limits
from spark_aesthetic.ingest.run import Run
from spark_aesthetic.ingest.sources import Addresses, open_source
from spark_aesthetic.ingest.table import ImageTable
from spark_aesthetic.testing import noise_image, photographs, small_predictor
from spark_aesthetic.webdataset.source import WebDataset

pytestmark = pytest.mark.usefixtures("interpreted")


def rows(spark: SparkSession, table: Path | str) -> dict[str, Row]:
    """Return the rows by the last part of their path, after a check that no path is repeated."""
    found = spark.read.format("delta").load(str(table)).collect()
    assert len({row.path for row in found}) == len(found)
    return {row.path.rpartition("/")[2]: row for row in found}


def version(spark: SparkSession, table: Path) -> int:
    return int(spark.sql(f"DESCRIBE HISTORY delta.`{table}` LIMIT 1").collect()[0].version)


def id_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# Some names have letters that Spark takes for a pattern, that a URL escapes, or that are not ASCII.
FILES = {
    "chelsea.png": photographs()["chelsea.png"],
    "china.jpg": photographs()["china.jpg"],
    "ünï [1] {a,b}*?\\日本.webp": noise_image(1, file_format="WEBP"),
    "50%20 of #1 & more.gif": noise_image(2, file_format="GIF"),
    "sub folder/k=v/a copy.jpg": photographs()["china.jpg"],
    "cut off.jpg": photographs()["china.jpg"][:60_000],
    "wrong name.png": noise_image(3, file_format="TIFF"),
    "header cut off.png": noise_image(4, file_format="PNG")[:20],
    "notes.txt": b"no image",
    "also no image.txt": b"no image",
    "large.bmp": noise_image(5, width=600, height=400, file_format="BMP"),
    # Hadoop lists this name on a local disk and cannot open the file. Python can.
    "a:b.jpg": noise_image(8),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, data in FILES.items():
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "in"


def test_a_folder_becomes_a_table_and_later_what_is_new_in_it(
    spark: SparkSession, folder: Path, tmp_path: Path
) -> None:
    table = tmp_path / "table"

    def ingest() -> IngestSummary:
        return sa.ingest_images(spark, str(folder), str(table), max_file_bytes="512k", max_files_per_chunk=5)

    done = ingest()
    reasons = {
        "decode: truncated PNG": 1,
        "decode: not an image": 2,
        "fetch: more bytes than max_file_bytes": 1,
    }
    assert (done.listed, done.skipped, done.added, done.replaced, done.chunks) == (12, 0, 12, 0, 3)
    assert (done.failed, done.failed_by_reason) == (4, reasons)
    assert done.passed_over == 0
    # A photograph and a text have a copy each.
    assert (done.duplicates, done.left_out) == (2, 0)
    found = rows(spark, table)
    assert len(found) == len(FILES)
    for place, data in FILES.items():
        row = found[place.rpartition("/")[2]]
        assert row.path == f"file:{folder}/{place}"
        assert row.length == len(data)
        if place == "large.bmp":
            assert (row.image, row.image_id) == (None, id_of(row.path.encode()))
            continue
        assert bytes(row.image) == data
        assert row.image_id == id_of(data)
        if row.error is None:
            with Image.open(io.BytesIO(data)) as image:
                assert (row.width, row.height, row.format) == (*image.size, image.format)
        else:
            assert (row.width, row.height, row.format) == (None, None, None)
    # The header of this file is whole. Only scoring finds that the rest is cut off.
    assert found["cut off.jpg"].error is None
    assert found["wrong name.png"].format == "TIFF"

    before, since = version(spark, table), last_query(spark)
    again = ingest()
    assert (again.listed, again.skipped, again.added, again.failed, again.chunks) == (12, 12, 0, 0, 0)
    assert version(spark, table) == before
    assert not any("content:" in node.desc().partition("ReadSchema")[2] for node, *_ in plan_metrics(spark, since))

    (folder / "new.jpg").write_bytes(noise_image(6))
    # Spark skips the next two files, and the summary counts them.
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "_hidden.jpg").write_bytes(noise_image(6))
    (folder / "notes.txt").write_bytes(noise_image(7))
    # Only the time of this file changes, so the file is read again.
    os.utime(folder / "china.jpg", (1_000_000_000, 1_000_000_000))
    more = ingest()
    assert (more.listed, more.skipped, more.added, more.replaced, more.failed) == (13, 10, 1, 2, 0)
    assert (more.passed_over, set(more.passed_over_by_reason.values())) == (2, {1})
    # china.jpg is replaced and still has a copy.
    assert more.duplicates == 1
    found = rows(spark, table)
    assert len(found) == 13
    assert (bytes(found["notes.txt"].image), found["notes.txt"].error) == (noise_image(7), None)
    assert found["china.jpg"].modified_at.timestamp() == 1_000_000_000


@pytest.mark.long
def test_copies_are_kept_once_and_listed(spark: SparkSession, tmp_path: Path) -> None:
    folder, table = tmp_path / "in", tmp_path / "table"
    folder.mkdir()
    for name, seed in {"b": 1, "c": 1, "d": 2, "e": 1, "f": 3}.items():
        (folder / f"{name}.jpg").write_bytes(noise_image(seed))

    def ingest() -> IngestSummary:
        return sa.ingest_images(spark, str(folder), str(table), keep_once=True, max_files_per_chunk=2)

    done = ingest()
    # b and c are in one chunk, and e is in a later one.
    assert (done.added, done.duplicates, done.left_out, done.chunks) == (3, 2, 2, 3)
    assert set(rows(spark, table)) == {"b.jpg", "d.jpg", "f.jpg"}
    left = spark.read.format("delta").load(f"{table}_duplicates")
    assert "image" not in left.columns
    assert {row.path.rpartition("/")[2]: row.image_id for row in left.collect()} == {
        "c.jpg": id_of(noise_image(1)), "e.jpg": id_of(noise_image(1)),
    }  # fmt: skip
    # The files that were left out are known too, so they are skipped.
    assert (ingest().skipped, version(spark, table)) == (5, 5 - 1)
    # a.jpg is a later copy with a lesser path. f.jpg becomes a copy of d.jpg, d.jpg keeps its content, and c.jpg gets a
    # new one.
    (folder / "a.jpg").write_bytes(noise_image(1))
    (folder / "f.jpg").write_bytes(noise_image(2))
    os.utime(folder / "d.jpg", (1_000_000_000, 1_000_000_000))
    (folder / "c.jpg").write_bytes(noise_image(9))
    done = ingest()
    assert (done.skipped, done.added, done.replaced, done.left_out) == (2, 1, 1, 2)
    assert set(rows(spark, table)) == {"b.jpg", "c.jpg", "d.jpg"}
    scored = sa.score_table(
        spark, source=str(table), key=["image_id"], image_col="image", scores=str(tmp_path / "scores"),
        predictor=small_predictor(),
    )  # fmt: skip
    assert (scored.scored, scored.failed) == (3, 0)
    # The kept file b.jpg gets a different content, so its copies are new to the next run.
    (folder / "b.jpg").write_bytes(noise_image(10))
    done = ingest()
    assert (done.replaced, done.left_out) == (1, 0)
    done = ingest()
    assert (done.skipped, done.added, done.left_out) == (4, 1, 1)
    assert set(rows(spark, table)) == {"a.jpg", "b.jpg", "c.jpg", "d.jpg"}


def make_shard(path: Path, samples: dict[str, int]) -> None:
    with tarfile.open(path, "w") as tar:
        for key, seed in samples.items():
            add(
                tar,
                f"{key}.{'png' if seed % 2 else 'jpg'}",
                noise_image(seed, file_format="PNG" if seed % 2 else "JPEG"),
            )
            add(tar, f"{key}.txt", f"caption of {seed} ü".encode())
            add(tar, f"{key}.json", json.dumps({"seed": seed}).encode())


def test_shards_become_rows_with_their_texts(spark: SparkSession, tmp_path: Path) -> None:
    # A notebook that reads shards itself has registered the data source already.
    spark.dataSource.register(WebDataset)
    table = tmp_path / "table"
    make_shard(tmp_path / "00000.tar", {"a": 0, "b": 1})
    make_shard(tmp_path / "00001.tar", {"a": 2, "b": 0})
    with tarfile.open(tmp_path / "00001.tar", "a") as tar:
        add(tar, "c.txt", b"a caption without an image")
    make_shard(tmp_path / "00002.tar", {"a": 3})
    make_shard(tmp_path / "00003.tar", {"a": 4, "b": 5, "c": 6})
    whole = (tmp_path / "00003.tar").read_bytes()
    (tmp_path / "00003.tar").write_bytes(whole[:-12_000])
    source = str(tmp_path / "*.tar")
    done = sa.ingest_images(spark, source, str(table))
    assert (done.listed, done.skipped, done.duplicates) == (4, 0, 1)
    found = rows(spark, table)
    assert {"00000.tar#a", "00000.tar#b", "00001.tar#a", "00001.tar#b", "00001.tar#c", "00003.tar"} <= set(found)
    row = found["00000.tar#b"]
    assert (bytes(row.image), row.format) == (noise_image(1, file_format="PNG"), "PNG")
    assert (row["__key__"], row["__url__"], row.txt) == ("b", str(tmp_path / "00000.tar"), "caption of 1 ü")
    assert json.loads(row.json) == {"seed": 1}
    assert found["00001.tar#c"].error == "sample: no image"
    assert "found damage at byte" in found["00003.tar"].error
    assert done.failed == 2
    # One shard has an image of a different format from the first samples, and one has no sample.
    with tarfile.open(tmp_path / "00004.tar", "w") as tar:
        add(tar, "a.bmp", noise_image(7))
    with tarfile.open(tmp_path / "00005.tar", "w"):
        pass
    more = sa.ingest_images(spark, source, str(table))
    assert (more.listed, more.skipped, more.added, more.failed) == (6, 4, 2, 1)
    assert rows(spark, table)["00005.tar"].error == "shard: no sample"
    assert sa.ingest_images(spark, source, str(table)).chunks == 0
    # The data source can write these rows to shards again.
    columns = ["`__key__`", "image", "txt", "json"]
    kept = spark.read.format("delta").load(str(table)).where("path LIKE '%00000.tar#%'").selectExpr(*columns)
    kept.coalesce(1).write.format("webdataset").mode("append").save(str(tmp_path / "out"))
    back = spark.read.format("webdataset").load(str(tmp_path / "out"))
    assert {row["__key__"]: row.txt for row in back.collect()} == {"a": "caption of 0 ü", "b": "caption of 1 ü"}


class Images(BaseHTTPRequestHandler):
    """A server that sends the noise of seed N for /N.jpg, in two pieces, and treats other paths by their names."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        name = self.path.strip("/")
        if name == "gone":
            self.send_error(404)
        elif name == "forbidden":
            self.send_error(403)
        elif name == "breaks":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"x" * 10)
        else:
            data = b"x" * 600_000 if name == "large" else noise_image(int(name.removesuffix(".jpg")))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(data[:100])
            self.wfile.flush()
            time.sleep(0.05)
            self.wfile.write(data[100:])

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    Images.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Images) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_address[1]}"
        served.shutdown()


def test_addresses_in_a_table_are_fetched_once(spark: SparkSession, tmp_path: Path, server: str) -> None:
    source, table = str(tmp_path / "source"), tmp_path / "table"
    (tmp_path / "ünï 1.jpg").write_bytes(noise_image(100))
    places = [f"{server}/{seed}.jpg" for seed in range(20)]
    odd = [f"{server}/{name}" for name in ("gone", "forbidden", "breaks", "large")]
    (tmp_path / "no image.jpg").write_bytes(b"a secret")
    local = [str(tmp_path / name) for name in ("ünï 1.jpg", "not there.jpg", "no image.jpg")]
    listed = [*places, places[0], None, *odd, *local, "/etc/passwd", "http://localhost/x", "sftp://h/x", "zip://x::/y"]
    spark.createDataFrame([(place, 1) for place in listed], "url string, n int").coalesce(1).write.parquet(source)

    def ingest(**options: bool) -> IngestSummary:
        allow = [f"{server}/", str(tmp_path), "s3://bucket/"]
        return sa.ingest_images(
            spark, source, str(table), uri_col="url", max_file_bytes="500k", allow=allow, **options
        )  # fmt: skip

    done = ingest()
    assert (done.listed, done.added, done.failed) == (31, 31, 10)
    found = rows(spark, table)
    assert done.failed_by_reason == {
        "fetch: connection cut off": 1, "fetch: HTTP 404": 1, "fetch: not found": 1, "fetch: HTTP 403": 1,
        "fetch: more bytes than max_file_bytes": 1, "fetch: refused address": 4, "decode: not an image": 1,
    }  # fmt: skip
    # Bytes that are no image are not kept in the table.
    assert (found["no image.jpg"].image, found["no image.jpg"].error) == (None, "decode: not an image")
    assert found["passwd"].image_id == id_of(b"/etc/passwd")
    assert all(bytes(found[f"{seed}.jpg"].image) == noise_image(seed) for seed in range(20))
    assert bytes(found["ünï 1.jpg"].image) == noise_image(100)
    assert found["gone"].image_id == id_of(f"{server}/gone".encode())
    assert len(Images.asked) == len(set(Images.asked)) == 24
    more = spark.createDataFrame([(f"{server}/30.jpg", 1)], "url string, n int")
    more.write.mode("append").parquet(source)
    again = ingest()
    assert (again.listed, again.skipped, again.added) == (32, 31, 1)
    assert len(Images.asked) == 25
    (tmp_path / "not there.jpg").write_bytes(noise_image(101))
    tried = ingest(retry_failed=True)
    assert (tried.skipped, tried.added, tried.replaced, tried.failed) == (22, 0, 10, 9)
    assert bytes(rows(spark, table)["not there.jpg"].image) == noise_image(101)


def test_addresses_are_found_as_spark_writes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spark_aesthetic.files._MOUNT", f"{tmp_path}/")
    (tmp_path / "ü 1.jpg").write_bytes(b"escaped")
    (tmp_path / "2%20.jpg").write_bytes(b"as it is")
    allowed, limits = Allowed.of([f"{tmp_path}/"]), Limits(file_bytes=10)
    for folder in (f"file:{tmp_path}/", f"file://{tmp_path}/", "dbfs:/"):
        assert fetch(f"{folder}%C3%BC%201.jpg", allowed, limits) == b"escaped"
        assert fetch(f"{folder}2%20.jpg", allowed, limits) == b"as it is"
        assert fetch(f"{folder}3%20.jpg", allowed, limits) == "fetch: not found"


def test_addresses_come_from_delta_tables_too(spark: SparkSession, tmp_path: Path) -> None:
    path, name = str(tmp_path / "source"), "default.addresses"
    addresses = spark.createDataFrame([("a",)], "url string").coalesce(1).write.format("delta")
    addresses.save(path)
    addresses.saveAsTable(name)
    for source in (path, name):
        opened = open_source(spark, source, format=None, uri_col="URL", glob=None, max_file_bytes=1)
        assert isinstance(opened, Addresses)
        assert opened.column == "url"
        assert [row.url for row in opened.rows.collect()] == ["a"]


@own_session
@pytest.mark.long
def test_a_run_that_is_killed_goes_on_where_it_stopped(spark: SparkSession, tmp_path: Path) -> None:
    folder, table = tmp_path / "in", tmp_path / "table"
    folder.mkdir()
    for at in range(40):
        (folder / f"{at:02d}.jpg").write_bytes(noise_image(at))
    # With this limit, a chunk has two files.
    size = str(2 * max(path.stat().st_size for path in folder.iterdir()))
    arguments = ["--source", str(folder), "--table", str(table), "--max-bytes-per-chunk", size]
    job = Job(tmp_path / "log", *arguments, script="jobs/ingest_images.py")
    try:
        # Four commits are the new table, the end of older runs, and two chunks. The third chunk is in progress.
        until(lambda: len(list((table / "_delta_log").glob("*.json"))) >= 4, job)
    finally:
        job.kill()
    there = rows(spark, table)
    assert 4 <= len(there) < 40
    done = sa.ingest_images(spark, str(folder), str(table))
    assert (done.listed, done.skipped, done.added, done.duplicates) == (40, len(there), 40 - len(there), 0)
    found = rows(spark, table)
    assert {name: row.image_id for name, row in found.items()} == {
        f"{at:02d}.jpg": id_of(noise_image(at)) for at in range(40)
    }
    # The rows from before the kill are unchanged.
    assert {name: found[name].ingested_at for name in there} == {name: row.ingested_at for name, row in there.items()}


def test_of_two_runs_at_once_the_older_one_stops(spark: SparkSession, tmp_path: Path) -> None:
    folder, table = tmp_path / "in", tmp_path / "table"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(noise_image(0))
    older = _run(spark, folder, table)
    older.table.make()
    _, new = older.list_new()
    done = sa.ingest_images(spark, str(folder), str(table))
    assert done.added == 1
    with pytest.raises(TableError, match="found that a later one has begun"):
        older.write(list(new), 1)
    assert set(rows(spark, table)) == {"a.jpg"}


def test_of_two_runs_that_replace_rows_the_older_one_stops(spark: SparkSession, tmp_path: Path) -> None:
    folder, table = tmp_path / "in", tmp_path / "table"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(noise_image(0))
    sa.ingest_images(spark, str(folder), str(table))
    (folder / "a.jpg").write_bytes(noise_image(1))
    os.utime(folder / "a.jpg", (1_000_000_000, 1_000_000_000))
    older = _run(spark, folder, table)
    _, new = older.list_new()
    assert sa.ingest_images(spark, str(folder), str(table)).replaced == 1
    with pytest.raises(TableError, match="found that a later one has begun"):
        older.write(list(new), 1)
    assert rows(spark, table)["a.jpg"].image_id == id_of(noise_image(1))


def _run(spark: SparkSession, folder: Path, table: Path) -> Run:
    source = open_source(spark, str(folder), format=None, uri_col=None, glob=None, max_file_bytes=1 << 20)
    into = ImageTable(spark, str(table))
    return Run(source=source, name=str(folder), table=into, keep_once=False, retry_failed=False)


def test_a_table_by_name_and_a_pattern_of_names(spark: SparkSession, folder: Path) -> None:
    done = sa.ingest_images(spark, str(folder), "default.`ingested`", glob="*.{jpg,gif}", keep_once=True)
    assert (done.listed, done.added, done.left_out) == (5, 4, 1)
    assert spark.table("default.ingested").count() == 4
    assert spark.table("default.ingested_duplicates").count() == 1
    comments = {row.col_name: row.comment for row in spark.sql("DESCRIBE default.ingested").collect()}
    assert "SHA-256" in comments["image_id"]
    spark.sql("DROP TABLE default.ingested")
    spark.sql("DROP TABLE default.ingested_duplicates")


def test_metadata_is_written_without_reading_an_image(spark: SparkSession, tmp_path: Path) -> None:
    table, out = str(tmp_path / "table"), str(tmp_path / "out")
    images = [(at, bytearray(noise_image(at)), bytearray(b"mask"), (bytearray(b"x"), 1), [0.5]) for at in range(3)]
    schema = "id int, image binary, `a.mask` binary, nested struct<data: binary, n: int>, embedding array<float>"
    spark.createDataFrame(images, schema).coalesce(1).write.format("delta").save(table)
    frame = spark.read.format("delta").load(table)
    since = last_query(spark)
    sa.save_metadata(frame, out)
    assert spark.read.parquet(out).columns == ["id", "embedding"]
    assert bytes_read(spark, since, "embedding") > 0
    assert [bytes_read(spark, since, name) for name in ("image", "a.mask", "nested")] == [0, 0, 0]
    sa.save_metadata(frame, out, image_cols="IMAGE", mode="overwrite")
    assert spark.read.parquet(out).columns == ["id", "a.mask", "nested", "embedding"]
    with pytest.raises(TableError, match="did you mean 'image'"):
        sa.save_metadata(frame, out, image_cols=["imag"])
    with pytest.raises(TableError, match="expected columns beside those of images"):
        sa.save_metadata(frame.select("image"), out)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"format": "foldr"}, "did you mean 'folder'"),
        ({"format": "uris"}, "expected --uri-col"),
        ({"glob": "*.jpg", "uri_col": "url"}, "--glob: expected --format folder"),
        ({"allow": ["/x"]}, "^allow: expected --format uris, found --format folder"),
        ({"uri_col": "url", "allow": ["x"]}, "^allow 'x': expected .* found neither a scheme nor an absolute path"),
        ({"uri_col": "url", "allow": "s3://bucket/"}, "^allow: expected a list of prefixes"),
        ({"max_file_bytes": "much"}, "expected a number of bytes"),
        ({"max_files_per_chunk": 0}, "expected a whole number of files from 1"),
    ],
)
def test_options_that_do_not_fit_are_errors(
    spark: SparkSession, tmp_path: Path, options: dict[str, Any], match: str
) -> None:
    with pytest.raises(OptionError, match=match):
        sa.ingest_images(spark, str(tmp_path), str(tmp_path / "table"), **options)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--uri-col", "url", "--allow", "s3://bucket/", "--allow", "../x"], "^--allow '../x': expected "),
        (["--allow", "/x"], "^--allow: expected --format uris, found --format folder"),
    ],
)
def test_a_wrong_prefix_of_a_command_line_is_named_before_a_session_is_made(
    arguments: list[str], match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curation, "session", lambda _: pytest.fail("a session was made"))
    monkeypatch.setattr("sys.argv", ["ingest_images.py", "--source", "a", "--table", "b", *arguments])
    with pytest.raises(OptionError, match=match):
        curation.ingest_once()


def test_a_folder_is_left_by_no_link_and_a_circle_ends(spark: SparkSession, tmp_path: Path) -> None:
    folder, outside, table = tmp_path / "in", tmp_path / "out", tmp_path / "table"
    for at, name in enumerate(("in/a.jpg", "in/sub/b.jpg", "in/we[i]rd, {x} ü/c.jpg", "in/k=1/d.jpg", "out/e.jpg")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(noise_image(at))
    (folder / "sub" / "a:b.jpg").write_bytes(noise_image(9))
    (folder / "within.jpg").symlink_to("a.jpg")
    (folder / "itself.jpg").symlink_to("itself.jpg")
    mine = {"a.jpg", "b.jpg", "c.jpg", "d.jpg", "a:b.jpg", "within.jpg"}

    def ingest(**options: Any) -> IngestSummary:
        return sa.ingest_images(spark, str(folder), str(table), **options)

    assert (ingest().listed, set(rows(spark, table))) == (6, mine)
    # Spark lists the folder despite a link to a file, and the link is left out.
    (folder / "file.jpg").symlink_to(outside / "e.jpg")
    done = ingest()
    assert (done.listed, done.skipped, done.chunks) == (6, 6, 0)
    assert done.passed_over_by_reason == {listing.LINK: 1, listing.NO_FILE: 1}
    # Spark does not list the folder if it has links to folders, because it would follow them without end.
    (folder / "folder").symlink_to(outside)
    for at in range(3):
        (folder / "sub" / f"up{at}").symlink_to(folder)
        (folder / "k=1" / f"up{at}").symlink_to("..")
    done = ingest()
    assert (done.listed, done.skipped, done.chunks) == (6, 6, 0)
    assert done.passed_over_by_reason == {listing.LINK: 2, listing.NO_FILE: 1}
    (folder / "sub" / "f.jpg").write_bytes(noise_image(6))
    done = ingest(glob="*.jpg")
    assert (done.listed, done.skipped, done.added) == (7, 6, 1)
    assert set(rows(spark, table)) == {*mine, "f.jpg"}
    assert ingest(glob="[ab]*.jpg").listed == 3
    # The folder that the caller names may be a link. A link that a pattern matches is left out.
    (tmp_path / "link").symlink_to(outside)
    named = sa.ingest_images(spark, str(tmp_path / "link"), str(tmp_path / "named"))
    assert (named.listed, named.passed_over) == (1, 0)
    (folder / "sub" / "up0").unlink()
    matched = sa.ingest_images(spark, f"{folder}/{{folder,sub}}", str(tmp_path / "matched"))
    assert (matched.listed, matched.added, matched.passed_over_by_reason) == (3, 3, {listing.LINK: 1})


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"source": "s3://bucket/images"}, "--source 's3://bucket/images': .* found: No FileSystem for scheme"),
        ({"source": "s3://bucket/urls", "uri_col": "url"}, "found: No FileSystem for scheme"),
        ({"source": "nosuch://bucket/{0..1}.tar"}, "Protocol not known: nosuch"),
        ({"source": "http://127.0.0.1:9/0.tar"}, "found: ConnectionError"),
        ({"source": "~/images?/none"}, "found nothing there"),
    ],
)
def test_a_place_that_cannot_be_reached_is_one_line(
    spark: SparkSession, tmp_path: Path, options: dict[str, Any], match: str
) -> None:
    with pytest.raises(TableError, match=match) as caught:
        sa.ingest_images(spark, table=str(tmp_path / "table"), **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "table").exists()


def test_a_folder_is_first_what_is_called_so(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for seed, name in enumerate(("a[1]", "a1", "{b,c}", "b", "c")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.jpg").write_bytes(noise_image(seed))
    found = {
        source: {row.path for row in open_source(
            spark, source, format=None, uri_col=None, glob=None, max_file_bytes=1
        ).listed.collect()}  # type: ignore[attr-defined]
        for source in ("~/a[1]", "~/{b,c}", "~/[ab]", f"{tmp_path}/{{a1,c}}")
    }  # fmt: skip
    of = {name: f"file:{tmp_path}/{name}/x.jpg" for name in ("a[1]", "a1", "{b,c}", "b", "c")}
    assert list(found.values()) == [{of["a[1]"]}, {of["{b,c}"]}, {of["b"]}, {of["a1"], of["c"]}]


def test_what_is_not_there_or_another_table_is_an_error(spark: SparkSession, tmp_path: Path) -> None:
    table = str(tmp_path / "table")
    wrong = {
        "found nothing there": {"source": str(tmp_path / "nowhere")},
        "Parquet table of paths, found none": {"source": str(tmp_path / "nowhere"), "uri_col": "url"},
        "expected the shard": {"source": str(tmp_path / "{0..1}.tar")},
        "no column 'ur': did you mean 'url'": {"source": str(tmp_path / "urls"), "uri_col": "ur"},
    }
    spark.createDataFrame([("a",)], "url string").write.parquet(str(tmp_path / "urls"))
    for match, options in wrong.items():
        with pytest.raises(AestheticError, match=match):
            sa.ingest_images(spark, table=table, **options)
    make_shard(tmp_path / "0.tar", {"a": 0})
    (tmp_path / "0.parquet").touch()
    with pytest.raises(TableError, match=r"found 1 shards\. Use --format webdataset"):
        sa.ingest_images(spark, str(tmp_path), table)
    assert not Path(table).exists()
    spark.range(1).write.format("delta").save(str(tmp_path / "other"))
    with pytest.raises(TableError, match="was not created by ingest_images"):
        sa.ingest_images(spark, str(tmp_path), str(tmp_path / "other"), glob="*.jpg")
