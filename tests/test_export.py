"""Tables to shards: the function and its job."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import RunHere, last_query, plan_metrics
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

import spark_aesthetic as sa
from spark_aesthetic.curation.export import ExportSummary
from spark_aesthetic.errors import AestheticError
from spark_aesthetic.testing import noise_image

FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "avif": "AVIF"}
IMAGES = {f"i{at}": noise_image(at, file_format=kind) for at, kind in enumerate(FORMATS.values())}


@pytest.fixture(scope="module")
def tables(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("tables")
    rows = [(key, f"{key}.x", bytearray(image), "a cat") for key, image in IMAGES.items()] + [("none", "n", None, None)]
    images = spark.createDataFrame(rows, "image_id string, path string, photo binary, txt string").coalesce(1)
    images.write.format("delta").save(f"{folder}/images")
    scored = [(key, 4.0 + at, model) for at, key in enumerate([*IMAGES, "none"]) for model in ("a@1", "b@2")]
    # Not scored yet, as in a view.
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
        ({"key_col": "path"}, "expected keys without a dot, at which readers cut them, found 'i0.x'"),
        ({"key": []}, "expected --key with it"),
        ({"key": ["id"]}, "--key: no column 'id' in --table"),
        ({"model": None}, "has several; choose from a@1, b@2"),
        ({"model": "c"}, "no model 'c'"),
        ({"mode": "error"}, "Valid: append, overwrite"),
        ({"samples_per_shard": 0}, "expected at least 1"),
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
    # Spark itself sends such a small table to all.
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
