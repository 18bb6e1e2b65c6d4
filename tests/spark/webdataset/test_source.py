"""Shards are read and written, and compared with those of the webdataset library."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from conftest import own_session
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import BinaryType, StringType, StructField, StructType
from shard_files import make_shard

import spark_aesthetic as sa
from spark_aesthetic.errors import TableError
from spark_aesthetic.testing import noise_image
from spark_aesthetic.webdataset import shards
from spark_aesthetic.webdataset.source import WebDataset


@pytest.fixture(autouse=True)
def registered(spark: SparkSession) -> None:
    sa.register(spark)


def load(spark: SparkSession, path: object, **options: str) -> DataFrame:
    return spark.read.format("webdataset").options(**options).load(str(path))


def test_a_row_a_sample_and_a_partition_a_shard(spark: SparkSession, tmp_path: Path) -> None:
    make_shard(tmp_path / "00000.tar", 5)
    make_shard(tmp_path / "00001.tar", 4, start=5)
    make_shard(tmp_path / "other.tar.gz", 1, start=9, mode="w:gz")
    frame = load(spark, tmp_path / "{00000..00001}.tar")
    kinds = {"__key__": "string", "__url__": "string", "jpg": "binary", "txt": "string", "json": "string"}
    assert dict(frame.dtypes) == kinds
    rows = sorted(frame.collect(), key=lambda row: row["__key__"])
    assert [row["__key__"] for row in rows] == [f"some/{at:05d}" for at in range(9)]
    assert [bytes(row.jpg) for row in rows] == [bytes([at]) * (700 + at) for at in range(9)]
    assert rows[7].txt == "caption 7 ü"
    assert {row["__url__"] for row in rows} == {str(tmp_path / f"0000{at}.tar") for at in range(2)}
    assert frame.select(F.spark_partition_id()).distinct().count() == 2
    assert load(spark, tmp_path / "*.gz").count() == 1
    assert load(spark, tmp_path / "{00000,00001}.tar").count() == 9
    assert load(spark, tmp_path).count() == 9
    view = f"CREATE TEMPORARY VIEW from_shards USING webdataset OPTIONS (path '{tmp_path}/*.tar')"
    spark.sql(view)
    assert (
        spark.sql("SELECT max(json:number::int) AS n FROM (SELECT parse_json(json) AS json FROM from_shards)").first().n
        == 8
    )  # type: ignore[union-attr]
    spark.catalog.dropTempView("from_shards")


def test_columns_metadata_and_a_schema_of_ones_own(spark: SparkSession, tmp_path: Path) -> None:
    make_shard(tmp_path / "a.tar", 3)
    assert load(spark, tmp_path / "a.tar", columns="txt").columns == ["__key__", "__url__", "txt"]
    told = load(spark, tmp_path / "a.tar", metadataOnly="true")
    assert told.columns == ["__key__", "__url__", "txt", "json"]
    assert told.count() == 3
    own = spark.read.format("webdataset").schema("__key__ string, png binary, txt string").load(str(tmp_path / "a.tar"))
    assert [(row.png, row.txt) for row in own.limit(1).collect()] == [(None, "caption 0 ü")]


def test_a_sidecar_is_joined_on_the_last_part_of_the_key(spark: SparkSession, tmp_path: Path) -> None:
    make_shard(tmp_path / "a.tar", 3)
    pq.write_table(pa.table({"key": ["00000", "00002"], "width": [640, 320]}), tmp_path / "a.parquet")
    rows = sorted(load(spark, tmp_path / "a.tar", sidecar="true").collect(), key=lambda row: row["__key__"])
    assert [row.width for row in rows] == [640, None, 320]


def test_a_schema_of_ones_own_is_blind_to_case_and_has_the_types_of_files(spark: SparkSession, tmp_path: Path) -> None:
    make_shard(tmp_path / "a.tar", 1)
    pq.write_table(pa.table({"Key": ["00000"], "Width": [640]}), tmp_path / "a.parquet")
    reader = spark.read.format("webdataset").options(sidecar="true", sidecarKey="Key")
    names = "__KEY__ string, Jpg binary, TXT string, width bigint"
    (row,) = reader.schema(names).load(str(tmp_path / "a.tar")).collect()
    assert row.asDict() == {"__KEY__": "some/00000", "Jpg": bytes(700), "TXT": "caption 0 ü", "width": 640}
    with pytest.raises(Exception, match=r"column 'CLS': expected string or binary, .* found int\. Read it as string"):
        reader.schema("CLS int").load(str(tmp_path / "a.tar")).collect()
    with pytest.raises(Exception, match="expected the column __error__ in the schema"):
        reader.schema("txt string").option("onDamage", "report").load(str(tmp_path / "a.tar")).collect()


def damaged(path: Path, kind: str) -> None:
    make_shard(path, 6)
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        members = tar.getmembers()
    if kind == "within a file":
        path.write_bytes(whole[: members[12].offset_data + 100])
    elif kind == "within a header":
        path.write_bytes(whole[: members[12].offset + 200])
    elif kind == "between two files":
        path.write_bytes(whole[: members[12].offset])
    elif kind == "overwritten":
        path.write_bytes(whole[: members[12].offset] + b"\xff" * 512 + whole[members[12].offset + 512 :])
    elif kind == "empty":
        path.write_bytes(b"")


@pytest.mark.parametrize(
    ("kind", "kept"),
    # If no later sample has begun, the sample before the damage may lack its last file, so it is not returned.
    [("within a file", 4), ("within a header", 3), ("between two files", 3), ("overwritten", 3), ("empty", 0)],
)
def test_a_damaged_shard_fails_or_is_reported_with_the_place(
    spark: SparkSession, tmp_path: Path, kind: str, kept: int
) -> None:
    make_shard(tmp_path / "whole.tar", 2, start=50)
    damaged(tmp_path / "x.tar", kind)
    schema = "__key__ string, __url__ string, jpg binary, __error__ string"
    reader = spark.read.format("webdataset").schema(schema)
    with pytest.raises(Exception, match=r"x.tar: expected a whole tar file, found damage at byte \d+"):
        reader.load(str(tmp_path / "*.tar")).collect()
    rows = reader.option("onDamage", "report").load(str(tmp_path / "*.tar")).collect()
    (told,) = (row for row in rows if row["__error__"] is not None)
    assert told["__url__"] == str(tmp_path / "x.tar")
    assert told["__key__"] is None
    # The damaged shard has the columns of the other shards.
    assert load(spark, tmp_path / "*.tar", onDamage="report").columns[-1] == "__error__"
    whole = [row["__key__"] for row in rows if row["__error__"] is None and row["__url__"].endswith("x.tar")]
    assert whole == [f"some/{at:05d}" for at in range(kept)]
    assert sum("whole.tar" in row["__url__"] for row in rows) == 2


@pytest.mark.long
def test_ten_thousand_samples_go_out_and_come_back_to_the_byte(spark: SparkSession, tmp_path: Path) -> None:
    rows = spark.range(0, 10_000, numPartitions=3).select(
        F.format_string("k%06d", "id").alias("__key__"),
        F.unhex(F.concat(F.lit("ffd8ffe0"), F.repeat(F.sha2(F.col("id").cast("string"), 256), 8))).alias("image"),
        F.concat(F.lit("a caption of "), "id").alias("txt"),
        (F.col("id") / 1000).cast("float").alias("aesthetic_score"),
    )
    out = str(tmp_path / "out")
    rows.write.format("webdataset").mode("append").option("samplesPerShard", "1500").save(out)
    names = sorted(path.name for path in Path(out).iterdir())
    assert names == [f"{at:05d}.tar" for at in range(9)]
    back = load(spark, out)
    joined = back.join(rows.withColumnRenamed("txt", "caption"), "__key__")
    same = (F.col("jpg") == F.col("image")) & (F.col("txt") == F.col("caption"))
    score = F.get_json_object("json", "$.aesthetic_score").cast("float") == F.col("aesthetic_score")
    assert joined.where(same & score).count() == 10_000
    assert back.count() == 10_000
    rows.write.format("webdataset").mode("overwrite").option("samplesPerShard", "1500").save(str(tmp_path / "again"))
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


# The library does not close its file, so the garbage collector does.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_webdataset_library_reads_ours_and_we_read_its(spark: SparkSession, tmp_path: Path) -> None:
    images = [(f"k{at}", bytearray(noise_image(at)), at / 2) for at in range(4)]
    frame = spark.createDataFrame(images, "__key__ string, image binary, aesthetic_score double").coalesce(1)
    frame.write.format("webdataset").mode("append").save(str(tmp_path / "ours"))
    read = list(webdataset.WebDataset(str(tmp_path / "ours" / "00000.tar"), shardshuffle=False).decode())
    assert [sample["__key__"] for sample in read] == [key for key, _, _ in images]
    assert [sample["json"]["aesthetic_score"] for sample in read] == [score for _, _, score in images]
    # Each shard has two samples.
    with webdataset.ShardWriter(str(tmp_path / "theirs-%03d.tar"), maxcount=2, verbose=0) as sink:
        for key, image, score in images:
            sink.write({"__key__": key, "jpg": bytes(image), "json": {"score": score}, "seg.png": b"mask"})
    rows = load(spark, tmp_path / "theirs-{000..001}.tar").orderBy("__key__").collect()
    assert [(row["__key__"], bytearray(row.jpg)) for row in rows] == [(key, image) for key, image, _ in images]
    assert {bytes(row["seg.png"]) for row in rows} == {b"mask"}
    assert [json.loads(row.json) for row in rows] == [{"score": score} for _, _, score in images]


def test_a_failed_job_leaves_nothing_and_a_second_completes(spark: SparkSession, tmp_path: Path) -> None:
    out = tmp_path / "out"
    rows = spark.range(0, 40, numPartitions=2).selectExpr("CAST(id AS STRING) AS __key__", "X'00' AS jpg")
    failing = rows.selectExpr("IF(__key__ = '39', raise_error('broken'), __key__) AS __key__", "jpg")
    with pytest.raises(Exception, match="broken"):
        failing.write.format("webdataset").mode("append").option("samplesPerShard", "5").save(str(out))
    assert list(out.iterdir()) == []
    rows.write.format("webdataset").mode("append").save(str(out))
    assert load(spark, out).count() == 40
    # An append continues the numbers of the shards.
    rows.write.format("webdataset").mode("append").save(str(out))
    assert sorted(path.name for path in out.glob("*.tar")) == [f"{at:05d}.tar" for at in range(4)]


def test_a_task_that_has_not_heard_of_the_failure_adds_nothing(spark: SparkSession, tmp_path: Path) -> None:
    schema = StructType([StructField("__key__", StringType()), StructField("jpg", BinaryType())])
    writer = WebDataset({"path": str(tmp_path)}).writer(schema, overwrite=False)
    writer.abort([])

    def write(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        writer.write(batches)
        yield from ()

    rows = spark.range(40).coalesce(1).selectExpr("CAST(id AS STRING) AS __key__", "X'00' AS jpg")
    with pytest.raises(Exception, match="Write to a place that driver and executors share"):
        rows.mapInArrow(write, rows.schema).collect()
    assert list(tmp_path.iterdir()) == []


# This job writes shards until it is killed.
WRITER = """
import sys
from pyspark.sql import SparkSession
from spark_aesthetic.webdataset.source import WebDataset
spark = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
spark.dataSource.register(WebDataset)
rows = spark.range(0, 4_000_000, numPartitions=2).selectExpr("CAST(id AS STRING) AS __key__", "X'00' AS jpg")
rows.write.format("webdataset").mode("append").option("samplesPerShard", "100").save(sys.argv[1])
"""


@own_session
def test_a_killed_job_leaves_whole_shards_alone_and_a_second_completes(spark: SparkSession, tmp_path: Path) -> None:
    out = tmp_path / "out"
    rows = spark.range(0, 40, numPartitions=2).selectExpr("CAST(id AS STRING) AS __key__", "X'00' AS jpg")
    rows.write.format("webdataset").mode("append").save(str(out))
    there = {path.name: path.read_bytes() for path in out.iterdir()}
    with subprocess.Popen([sys.executable, "-c", WRITER, str(out)], stderr=subprocess.DEVNULL) as job:
        while len(list(out.rglob("*.tar"))) < 6:
            assert job.poll() is None
            time.sleep(0.05)
        driver = psutil.Process(job.pid)
        for process in [*driver.children(recursive=True), driver]:
            process.kill()
    # The staged shards still exist, but no pattern for shards finds them.
    assert len(list(out.rglob("*.tar"))) > 2
    assert shards.find(str(out)) == [str(out / name) for name in sorted(there)]
    assert load(spark, out).count() == 40
    rows.write.format("webdataset").mode("append").save(str(out))
    assert {path.name for path in out.iterdir()} == {f"{at:05d}.tar" for at in range(4)}
    assert {name: (out / name).read_bytes() for name in there} == there
    assert (out / "00002.tar").read_bytes() == there["00000.tar"]
    # Numbers continue from the greatest. An overwrite removes all earlier shards and their sidecars.
    (out / "00001.tar").unlink()
    rows.write.format("webdataset").mode("append").save(str(out))
    assert {path.name for path in out.iterdir()} == {f"{at:05d}.tar" for at in (0, 2, 3, 4, 5)}
    (out / "00005.parquet").touch()
    (out / "of_another.parquet").touch()
    load(spark, out / "0000{2,3}.tar").write.format("webdataset").mode("overwrite").save(str(out))
    assert {path.name for path in out.iterdir()} == {"00000.tar", "00001.tar", "of_another.parquet"}
    assert (out / "00001.tar").read_bytes() == there["00001.tar"]


def test_shards_are_read_through_fsspec(spark: SparkSession, tmp_path: Path) -> None:
    make_shard(tmp_path / "00000.tar", 2)
    make_shard(tmp_path / "00001.tar", 2, start=2)
    assert load(spark, f"file://{tmp_path}/0000?.tar").count() == 4
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        rows = load(spark, f"{url}/{{00000..00001}}.tar").collect()
        with pytest.raises(TableError, match=r"expected the shard .*/00002.tar"):
            shards.find(f"{url}/{{00000..00002}}.tar")
        server.shutdown()
    assert {row["__url__"] for row in rows} == {f"{url}/0000{at}.tar" for at in range(2)}
    assert sorted(row.txt for row in rows) == [f"caption {at} ü" for at in range(4)]


def test_what_a_sample_cannot_say_is_refused_with_the_remedy(spark: SparkSession, tmp_path: Path) -> None:
    def write(columns: str) -> None:
        frame = spark.range(0, 2, numPartitions=1).selectExpr(columns.split("; "))
        frame.write.format("webdataset").mode("append").save(str(tmp_path / "out"))

    with pytest.raises(Exception, match="expected each key once, found it twice in a shard"):
        write("'a' AS __key__; X'00' AS jpg")
    with pytest.raises(Exception, match="expected one column of each extension, found two of 'jpg'"):
        write("X'FFD8FF' AS image; X'00' AS jpg")


def test_values_that_json_has_not_are_left_out_and_json_stays_as_it_is(spark: SparkSession, tmp_path: Path) -> None:
    row = "'a' AS __key__, double('NaN') AS x, 1.5D AS y, named_struct('b', X'FF') AS s, date'2024-01-02' AS d"
    spark.sql(f"SELECT {row}").write.format("webdataset").mode("append").save(str(tmp_path / "a"))
    (sample,) = shards.read(str(tmp_path / "a" / "00000.tar"), lambda _: True)
    assert json.loads(sample.files["json"]) == {"y": 1.5, "s": {"b": "/w=="}, "d": "2024-01-02"}
    text = '{ "z":1 }'
    spark.sql(f"SELECT 'a' AS __key__, '{text}' AS json").write.format("webdataset").mode("append").save(
        str(tmp_path / "b")
    )
    (sample,) = shards.read(str(tmp_path / "b" / "00000.tar"), lambda _: True)
    assert sample.files == {"json": text.encode()}


def test_a_sidecar_is_written_beside_each_shard(spark: SparkSession, tmp_path: Path) -> None:
    frame = spark.createDataFrame([("f/a", bytearray(b"\x89PNG"), 5.5)], "__key__ string, image binary, score double")
    frame.write.format("webdataset").mode("append").option("sidecar", "true").save(str(tmp_path / "out"))
    assert pq.read_table(tmp_path / "out" / "00000.parquet").to_pylist() == [{"key": "f/a", "score": 5.5}]
    make_shard(tmp_path / "x.tar", 1)
    with pytest.raises(Exception, match=r"expected .*x.parquet beside the shard, found nothing there"):
        load(spark, tmp_path / "x.tar", sidecar="true").collect()
    row = load(spark, tmp_path / "out", sidecar="true").first()
    assert row is not None
    assert (bytes(row.png), row.score) == (b"\x89PNG", 5.5)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"colums": "jpg"}, "did you mean 'columns'"),
        ({"columns": "jpgs"}, "did you mean 'jpg'"),
        ({"onDamage": "reprt"}, "did you mean 'report'"),
        ({"metadataOnly": "yes"}, "expected true or false"),
    ],
)
def test_wrong_options_are_errors(spark: SparkSession, tmp_path: Path, options: dict[str, str], match: str) -> None:
    make_shard(tmp_path / "a.tar", 1)
    with pytest.raises(Exception, match=match):
        load(spark, tmp_path / "a.tar", **options).collect()


def test_a_key_with_a_dot_is_refused_with_the_remedy(spark: SparkSession, tmp_path: Path) -> None:
    frame = spark.createDataFrame([("a.jpg", bytearray(b"x"))], "__key__ string, jpg binary")
    with pytest.raises(Exception, match="expected one without a dot"):
        frame.write.format("webdataset").mode("append").save(str(tmp_path / "out"))


def test_times_keep_their_instant(spark: SparkSession, tmp_path: Path) -> None:
    rows = spark.sql("SELECT 'a' AS name, X'ffd8ff' AS image, TIMESTAMP '2026-11-26 07:00:00.25+02:00' AS at")
    out = str(tmp_path / "out")
    rows.write.format("webdataset").mode("append").option("keyCol", "name").option("sidecar", "true").save(out)
    (row,) = spark.read.format("webdataset").load(f"{out}/*.tar").collect()
    assert datetime.fromisoformat(json.loads(row.json)["at"]) == datetime(2026, 11, 26, 5, 0, 0, 250_000, timezone.utc)
    (beside,) = spark.read.format("webdataset").option("sidecar", "true").load(f"{out}/*.tar").select(
        F.col("at").cast("double").alias("seconds")
    ).collect()  # fmt: skip
    assert beside.seconds == datetime(2026, 11, 26, 5, 0, 0, 250_000, timezone.utc).timestamp()


def test_maps_are_objects_and_lists_of_text_json(spark: SparkSession, tmp_path: Path) -> None:
    rows = spark.sql(
        "SELECT 'a' AS name, map('x', 1) AS m, named_struct('n', array(map(2, double('NaN')))) AS s, "
        "map_filter(map('x', 1), (k, v) -> v > 1) AS e, array('a cat', 'ü') AS caption, X'ffd8ff' AS image"
    )
    out = str(tmp_path / "out")
    rows.write.format("webdataset").mode("append").option("keyCol", "name").option("sidecar", "true").save(out)
    (row,) = load(spark, out).collect()
    assert json.loads(row.json) == {"m": {"x": 1}, "s": {"n": [{"2": None}]}, "e": {}}
    assert json.loads(row.caption) == ["a cat", "ü"]
    (beside,) = pq.read_table(f"{out}/00000.parquet").to_pylist()
    assert (beside["m"], beside["caption"]) == ([("x", 1)], ["a cat", "ü"])


def test_a_variant_is_refused_with_the_remedy(spark: SparkSession, tmp_path: Path) -> None:
    rows = spark.sql("SELECT X'ffd8ff' AS image, array(named_struct('v', parse_json('1'))) AS told")
    with pytest.raises(Exception, match=r"column 'told': expected a type that JSON has, .*\. Apply to_json to"):
        rows.write.format("webdataset").mode("append").save(str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_times_past_those_of_python_are_text(spark: SparkSession, tmp_path: Path) -> None:
    at = "TIMESTAMP '9999-12-31 23:59:59-05:00'"
    rows = spark.sql(f"SELECT 'a' AS name, {at} AS at, named_struct('of', array({at})) AS s")
    out = str(tmp_path / "out")
    rows.write.format("webdataset").mode("append").option("keyCol", "name").option("sidecar", "true").save(out)
    (row,) = load(spark, out).collect()
    text = "10000-01-01 04:59:59.000000Z"
    assert json.loads(row.json) == {"at": text, "s": {"of": [text]}}
    (beside,) = pq.read_table(f"{out}/00000.parquet").column("at")
    assert beside.value == 253_402_318_799_000_000
