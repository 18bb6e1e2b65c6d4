"""The export of tables to shards, by the function and by its job."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import RunHere, bytes_read, last_query, plan_metrics
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

import spark_aesthetic as sa
from spark_aesthetic.curation.export import ExportSummary
from spark_aesthetic.errors import AestheticError, TableError
from spark_aesthetic.testing import noise_image
from spark_aesthetic.webdataset import shards, staging

pytestmark = pytest.mark.usefixtures("interpreted")

FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "avif": "AVIF"}
IMAGES = {f"i{at}": noise_image(at, file_format=kind) for at, kind in enumerate(FORMATS.values())}


@pytest.fixture(scope="module")
def tables(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("tables")
    rows = [(key, f"{key}.x", bytearray(image), "a cat") for key, image in IMAGES.items()] + [("none", "n", None, None)]
    images = spark.createDataFrame(rows, "image_id string, path string, photo binary, txt string").coalesce(1)
    images.write.format("delta").save(f"{folder}/images")
    scored = [(key, 4.0 + at, model) for at, key in enumerate([*IMAGES, "none"]) for model in ("a@1", "b@2")]
    # This row is not scored yet, as in a view.
    scored.append(("later", None, None))
    scores = spark.createDataFrame(scored, "image_id string, aesthetic_score float, aesthetic_model string").coalesce(1)
    scores.write.format("delta").save(f"{folder}/scores")
    return f"{folder}/images", f"{folder}/scores"


def read(spark: SparkSession, out: object) -> dict[str, dict[str, object]]:
    sa.register(spark)
    rows = spark.read.format("webdataset").load(str(out)).collect()
    return {row["__key__"]: {k: v for k, v in row.asDict().items() if v is not None} for row in rows}


def test_the_chosen_rows_go_out_with_their_scores_and_their_bytes(
    spark: SparkSession, tables: tuple[str, str], tmp_path: Path
) -> None:
    images, scores = tables
    done = sa.export_webdataset(
        spark, table=images, scores=scores, key="image_id", model="a@1", where="aesthetic_score >= 5 AND path < 'z'",
        image_col="photo", key_col="image_id", columns=["txt", "aesthetic_score"], samples_per_shard=2, sidecar=True,
        out=str(tmp_path / "out"),
    )  # fmt: skip
    chosen = list(IMAGES.items())[1:]
    assert (done.rows, done.without_image, done.shards, done.without_score) == (3, 1, 2, 0)
    assert done.image_bytes == sum(len(image) for _, image in chosen)
    found = read(spark, tmp_path / "out")
    assert list(found) == [key for key, _ in chosen]
    for score, (sample, (_, image), extension) in enumerate(
        zip(found.values(), chosen, list(FORMATS)[1:], strict=True), start=5
    ):
        assert sample[extension] == image
        assert json.loads(str(sample["json"])) == {"aesthetic_score": score}
    assert {sample["txt"] for sample in found.values()} == {"a cat"}
    beside = pq.read_table(tmp_path / "out" / "00000.parquet").to_pylist()
    assert beside[0] == {"key": "i1", "txt": "a cat", "aesthetic_score": 5.0}


def test_keys_are_counted_on_from_one_export_to_the_next(
    spark: SparkSession, tables: tuple[str, str], tmp_path: Path
) -> None:
    def export(mode: str) -> ExportSummary:
        return sa.export_webdataset(spark, table=tables[0], image_col="photo", out=str(tmp_path / "out"), mode=mode)

    assert (export("append").shards, export("append").shards) == (1, 1)
    assert len(read(spark, tmp_path / "out")) == 8
    assert (export("overwrite").shards, len(read(spark, tmp_path / "out"))) == (1, 4)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"table": "/nowhere"}, "--table /nowhere: expected a table, found none"),
        ({"image_col": "foto"}, "no column 'foto'"),
        ({"image_col": "txt"}, "expected binary"),
        ({"where": "aestetic_score > 5"}, "--where 'aestetic_score > 5': "),
        ({"where": "path >"}, "--where 'path >': .PARSE_SYNTAX_ERROR"),
        ({"columns": "pat"}, "did you mean 'path'"),
        ({"key_col": "path"}, "expected keys without a dot .* found 'i0.x', 'i1.x', 'i2.x' and 1 more"),
        ({"key_col": "txt"}, "--key-col txt: expected each key in one row, found several rows for 'a cat'. Choose"),
        ({"key": []}, "expected --key with it"),
        ({"key": ["id"]}, "--key: no column 'id' in --table"),
        ({"model": None}, r"found several\. Choose from a@1, b@2"),
        ({"model": "c"}, "no model 'c'"),
        ({"mode": "ignore"}, "Valid: errorifexists, append, overwrite"),
        ({"samples_per_shard": 0}, "samples_per_shard=0: expected a whole number of at least 1"),
        ({"samples_per_shard": "5"}, "samples_per_shard='5': expected a whole number"),
        ({"samples_per_shard": 2.5}, "samples_per_shard=2.5: expected a whole number"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(
    spark: SparkSession, tables: tuple[str, str], tmp_path: Path, wrong: dict[str, object], said: str
) -> None:
    given = {"table": tables[0], "scores": tables[1], "key": ["image_id"], "model": "a@1", "image_col": "photo"}
    with pytest.raises(AestheticError, match=said.replace("?", r"\?")):
        sa.export_webdataset(spark, out=str(tmp_path / "out"), **given | wrong)
    assert not (tmp_path / "out").exists()


def test_an_ingested_table_of_shards_goes_out_with_keys_of_its_own(
    spark: SparkSession, tables: tuple[str, str], tmp_path: Path
) -> None:
    ingested = spark.read.format("delta").load(tables[0]).selectExpr(
        "'a' AS `__key__`", "'x.tar' AS `__url__`", "image_id AS ID", "path", "photo", "photo AS Image"
    )  # fmt: skip
    ingested.createOrReplaceTempView("ingested")
    scored = spark.read.format("delta").load(tables[1]).where("image_id < 'i3'").withColumnRenamed("image_id", "id")
    scored.createOrReplaceTempView("scored_by_id")

    def export(columns: list[str] | None = None) -> ExportSummary:
        return sa.export_webdataset(
            spark, table="ingested", scores="scored_by_id", key=["id"], model="a@1", image_col="PHOTO", key_col="Id",
            columns=columns, where="rand() >= 0", out=str(tmp_path / "out"),
        )  # fmt: skip

    with pytest.raises(AestheticError, match="expected no column Image beside --image-col photo"):
        export()
    done = export(["__key__", "PATH"])
    assert (done.rows, done.without_score) == (3, 2)
    found = read(spark, tmp_path / "out")
    assert {key: json.loads(str(row["json"])) for key, row in found.items()} == {
        key: {"path": f"{key}.x"} for key in ("i0", "i1", "i2")
    }
    for view in ("ingested", "scored_by_id"):
        spark.catalog.dropTempView(view)


def test_a_second_run_is_refused_unless_it_says_what_to_do(
    spark: SparkSession, tables: tuple[str, str], tmp_path: Path, run_here: RunHere, capsys: pytest.CaptureFixture[str]
) -> None:
    job = ["export_webdataset.py", "--table", tables[0], "--image-col", "photo", "--out", str(tmp_path / "out")]
    # An existing folder without shards is accepted.
    (tmp_path / "out").mkdir()
    assert run_here(*job)["shards"] == 1
    with pytest.raises(SystemExit) as refused:
        run_here(*job)
    assert refused.value.code == 2
    assert "expected no shards there, found 1. Add to them with --mode append, or replace" in capsys.readouterr().err
    assert run_here(*job, "--mode", "append")["shards"] == 1
    assert len(read(spark, tmp_path / "out")) == 8
    assert run_here(*job, "--mode", "overwrite")["shards"] == 1
    assert len(read(spark, tmp_path / "out")) == 4
    for mode in ("errorifexists", "error"):
        with pytest.raises(TableError, match="expected no shards there, found 1"):
            sa.export_webdataset(spark, table=tables[0], image_col="photo", out=str(tmp_path / "out"), mode=mode)


@pytest.mark.parametrize("sidecar", [False, True])
def test_a_key_goes_out_once_in_all_exports_to_a_folder(spark: SparkSession, tmp_path: Path, sidecar: bool) -> None:
    out = str(tmp_path / "out")
    image = bytearray(noise_image(0, width=8, height=8))

    def export(keys: list[str], mode: str = "append", shard: int = 2) -> ExportSummary:
        spark.createDataFrame([(key, image) for key in keys], "key string, image binary").createOrReplaceTempView(
            "keyed"
        )
        return sa.export_webdataset(
            spark, table="keyed", key_col="key", out=out, mode=mode, samples_per_shard=shard, sidecar=sidecar
        )

    with pytest.raises(
        TableError, match=r"--key-col key: .* found several rows for 'b', 'x/c'\. Choose another column"
    ):
        export(["a", "b", "x/c", "x/d", "b", "x/c"])
    assert not (tmp_path / "out").exists()
    assert export(["a", "b", "x/c", "x/d", "e"]).shards >= 3
    with pytest.raises(
        TableError, match=r"the shards at --out do not have, found 'a', 'e', 'x/d'\. Leave those rows out"
    ):
        export(["f", "x/d", "a", "e"])
    assert export(["f", "A", "c"]).rows == 3
    assert sorted(read(spark, tmp_path / "out")) == sorted(["a", "b", "x/c", "x/d", "e", "f", "A", "c"])
    assert export(["a", "g"], mode="overwrite").rows == 2
    assert sorted(read(spark, tmp_path / "out")) == ["a", "g"]
    next((tmp_path / "out").glob("*.parquet"), tmp_path / "none").unlink(missing_ok=True)
    (shard, *_) = sorted((tmp_path / "out").glob("*.tar"))
    shard.write_bytes(shard.read_bytes()[:700])
    with pytest.raises(TableError, match=r"expected shards with readable keys, found a damaged one: .*damage"):
        export(["h"])


@pytest.mark.parametrize(
    "key",
    ["a\0b", "line\nbreak", "line\n", "/root", "a/../b", "..", "a//b", "./a", "a/", "", "a.b", "__x__/a", "tab\tkey"],
)
def test_a_key_that_no_reader_finds_again_is_refused_with_the_key(
    spark: SparkSession, tmp_path: Path, key: str
) -> None:
    rows = [(at, bytearray(noise_image(0, width=8, height=8))) for at in ("good", key, "ü b/c-1", "x.y/z")]
    spark.createDataFrame(rows, "name string, image binary").createOrReplaceTempView("named_so")
    with pytest.raises(TableError, match=r"--key-col name: expected keys without a dot .* found ") as refused:
        sa.export_webdataset(spark, table="named_so", key_col="name", out=str(tmp_path / "out"))
    assert f"found {key!r}. Choose another column" in str(refused.value)
    assert not (tmp_path / "out").exists()
    # The data source has the same rule for writes without an export.
    assert re.match(shards.WHOLE_KEY, key) is None
    assert all(re.match(shards.WHOLE_KEY, good) for good in ("good", "ü b/c-1", "x.y/z", "a..b/c", "__x__"))


def test_an_image_in_a_struct_goes_out_with_the_other_fields(spark: SparkSession, tmp_path: Path) -> None:
    frame = spark.createDataFrame(
        [(key, (bytearray(image), f"{key}.x"), f"c{key}") for key, image in IMAGES.items()]
        + [("none", (None, "n"), None)],
        "id string, image struct<bytes: binary, path: string>, words string",
    )
    frame.repartitionByRange(5, "id").write.format("delta").save(f"{tmp_path}/images")
    scored = spark.createDataFrame([(key, float(at), "a@1") for at, key in enumerate(IMAGES)],
        "id string, aesthetic_score float, aesthetic_model string")  # fmt: skip
    scored.write.format("delta").save(f"{tmp_path}/scores")
    given = {"table": f"{tmp_path}/images", "scores": f"{tmp_path}/scores", "key": "id", "key_col": "id"}
    before = last_query(spark)
    done = sa.export_webdataset(
        spark, image_col="Image.bytes", where="aesthetic_score >= 3", out=f"{tmp_path}/out", **given
    )  # fmt: skip
    assert (
        bytes_read(spark, before, "image") < sum(file.stat().st_size for file in tmp_path.glob("images/*.parquet")) / 2
    )
    assert (done.rows, done.image_bytes) == (1, len(IMAGES["i3"]))
    (sample,) = read(spark, tmp_path / "out").values()
    assert sample["avif"] == IMAGES["i3"]
    assert json.loads(str(sample["json"])) == {
        "image": {"path": "i3.x"}, "words": "ci3", "aesthetic_score": 3, "aesthetic_model": "a@1"
    }  # fmt: skip
    with pytest.raises(
        TableError, match=r"--image-col image: expected binary .* Name its field bytes: --image-col image.byt"
    ):
        sa.export_webdataset(spark, image_col="image", out=f"{tmp_path}/other", **given)
    with pytest.raises(TableError, match=r"--image-col: no column 'image\.byte'"):
        sa.export_webdataset(spark, image_col="image.byte", out=f"{tmp_path}/other", **given)
    # If a column's name has a dot, the column is taken, not the field of a struct.
    spark.createDataFrame(
        [(bytearray(b"first"), (bytearray(b"second"),))], "`image.bytes` binary, image struct<bytes: binary>"
    ).createOrReplaceTempView("dotted")
    sa.export_webdataset(spark, table="dotted", image_col="image.bytes", columns=[], out=f"{tmp_path}/dotted")
    assert next(iter(read(spark, tmp_path / "dotted").values()))["bin"] == b"first"


def test_keys_that_join_no_row_or_several_are_said(
    spark: SparkSession, tables: tuple[str, str], tmp_path: Path
) -> None:
    scores = spark.read.format("delta").load(tables[1]).where("aesthetic_model = 'a@1'")
    scores.union(scores.where("image_id IN ('i1', 'i3')")).createOrReplaceTempView("scored_twice")
    with pytest.raises(TableError, match=r"for each key, found 2 for i1, 2 for i3\. Add a column to the key"):
        sa.export_webdataset(
            spark, table=tables[0], scores="scored_twice", key="image_id", image_col="photo", out=str(tmp_path / "out")
        )


def test_keys_may_be_called_as_columns_of_the_plans(spark: SparkSession, tmp_path: Path) -> None:
    names = ["key", "image", "rows", "text", "hash", "_file"]
    columns = ", ".join(f"{name} string" for name in names)
    images = spark.createDataFrame([(*names, bytearray(IMAGES["i0"]))], f"{columns}, photo binary")
    images.write.format("delta").save(f"{tmp_path}/images")
    scores = spark.createDataFrame([(*names, 5.0, "a@1")], f"{columns}, aesthetic_score float, aesthetic_model string")
    scores.write.format("delta").save(f"{tmp_path}/scores")
    done = sa.export_webdataset(
        spark, table=f"{tmp_path}/images", scores=f"{tmp_path}/scores", key=names, key_col="rows", image_col="photo",
        out=f"{tmp_path}/out",
    )  # fmt: skip
    assert done.rows == 1
    (sample,) = read(spark, tmp_path / "out").values()
    assert (sample["__key__"], sample["jpg"], sample["text"]) == ("rows", IMAGES["i0"], "text")
    told = {name: name for name in names if name not in ("rows", "text")}
    assert json.loads(str(sample["json"])) == told | {"aesthetic_score": 5, "aesthetic_model": "a@1"}


def test_images_are_not_shuffled_to_meet_their_scores(
    spark: SparkSession, tables: tuple[str, str], tmp_path: Path
) -> None:
    before = last_query(spark)
    sa.export_webdataset(
        spark, table=tables[0], scores=tables[1], key=["image_id"], model="a@1", where="aesthetic_score > 5",
        image_col="photo", out=str(tmp_path / "out"),
    )  # fmt: skip
    nodes = {(node.name(), "photo" in node.desc()) for node, *_ in plan_metrics(spark, before)}
    assert ("BroadcastHashJoin", False) in nodes or ("BroadcastHashJoin", True) in nodes
    assert not any(name in ("SortMergeJoin",) or (name == "Exchange" and photo) for name, photo in nodes)


def test_embeddings_of_the_scores_go_out_where_they_are_named_and_are_no_broadcast(
    spark: SparkSession, tables: tuple[str, str], tmp_path: Path
) -> None:
    scored = spark.read.format("delta").load(tables[1]).withColumn("clip_embedding", F.expr("array(1F, 0.5F)"))
    scored.write.format("delta").save(f"{tmp_path}/scores")

    def export(columns: list[str] | None) -> set[str]:
        sa.export_webdataset(
            spark, table=tables[0], scores=f"{tmp_path}/scores", key="image_id", model="a@1",
            where="clip_embedding[0] = 1", image_col="photo", columns=columns, out=str(tmp_path / "out"),
            mode="overwrite",
        )  # fmt: skip
        told = [json.loads(str(row["json"])) for row in read(spark, tmp_path / "out").values()]
        assert len(told) == len(IMAGES)
        assert all(one.get("clip_embedding", [1, 0.5]) == [1, 0.5] for one in told)
        return set(told[0])

    assert export(None) == {"image_id", "path", "aesthetic_score", "aesthetic_model"}
    # Spark itself would broadcast such a small table.
    before, limit = last_query(spark), "spark.sql.autoBroadcastJoinThreshold"
    spark.conf.set(limit, "-1")
    assert export(["clip_embedding"]) == {"clip_embedding"}
    spark.conf.unset(limit)
    assert "SortMergeJoin" in [node.name() for node, *_ in plan_metrics(spark, before)]


def test_the_job_exports_and_prints_one_json_line(tables: tuple[str, str], tmp_path: Path, run_here: RunHere) -> None:
    out = str(tmp_path / "out")
    summary = run_here(
        "export_webdataset.py", "--table", tables[0], "--where", "path < 'i2'", "--image-col", "photo", "--out", out
    )
    del summary["seconds"]
    size = sum(map(len, list(IMAGES.values())[:2]))
    assert summary == {"rows": 2, "without_image": 0, "image_bytes": size, "shards": 1, "out": out}
    assert (tmp_path / "out" / "00000.tar").stat().st_size > size


def test_a_folder_that_another_write_is_at_work_in_is_refused(
    spark: SparkSession, tables: tuple[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    sa.register(spark)
    staged = staging.new(str(out))
    with pytest.raises(
        TableError, match=r"expected one write at a time to a folder, found a second one begun at .*remove "
    ):
        sa.export_webdataset(spark, table=tables[0], image_col="photo", out=str(out))
    rows = spark.sql("SELECT 'a' AS __key__, X'ffd8ff' AS image")
    with pytest.raises(Exception, match="expected one write at a time to a folder, found a second one begun at"):
        rows.write.format("webdataset").mode("append").save(str(out))
    assert [str(path) for path in out.iterdir()] == [staged]
    # This is the remedy that the error states.
    (Path(staged) / "writer.json").unlink()
    assert sa.export_webdataset(spark, table=tables[0], image_col="photo", out=str(out)).shards == 1
    assert [path.name for path in out.iterdir()] == ["00000.tar"]


# No file of this process and its children can be larger than two megabytes.
FULL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, 2 << 20))
from pyspark.sql import SparkSession
import spark_aesthetic as sa
from spark_aesthetic.errors import TableError
spark = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
spark.range(40).selectExpr("id", "CAST(repeat('x', 200000) AS BINARY) AS image").createOrReplaceTempView("large")
try:
    sa.export_webdataset(spark, table="large", out=sys.argv[1], mode=sys.argv[2])
except TableError as error:
    print("told:", error)
"""


@pytest.mark.long
@pytest.mark.parametrize("mode", ["append", "overwrite"])
def test_a_full_disk_is_one_line_and_leaves_what_was_there(tmp_path: Path, mode: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "00000.tar").write_bytes(b"old")
    told = subprocess.run(
        [sys.executable, "-c", FULL, str(out), mode], capture_output=True, text=True, check=True
    ).stdout.splitlines()  # fmt: skip
    assert len(told) == 1
    assert re.search(
        r"told: webdataset: .*OSError: .*File too large\. Free some space .*\. No shard of this write was", told[0]
    )
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {"00000.tar": b"old"}
