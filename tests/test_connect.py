"""Jobs on Spark Connect, where a process beside the server writes the chunks; functions pass their own tests there."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import CONNECT
from pyspark.sql import SparkSession

import spark_aesthetic as sa
from spark_aesthetic import weights
from spark_aesthetic.errors import SourceChangedError, TableError
from spark_aesthetic.testing import noise_image, published_embeddings, small_predictor

pytestmark = [
    pytest.mark.skipif(not CONNECT, reason="a session of Spark Connect: make unit runs it the second time"),
    pytest.mark.usefixtures("interpreted"),
]

EMBEDDINGS = published_embeddings().astype(float).tolist()

Add = Callable[..., None]


@pytest.fixture
def source(tmp_path: Path) -> str:
    return str(tmp_path / "source")


@pytest.fixture
def add(spark: SparkSession, source: str) -> Add:
    """Append rows of published embeddings, one of them of a wrong length where it is 10."""

    def append(*ids: int) -> None:
        rows = [(at, EMBEDDINGS[at] if at < 10 else [1.0]) for at in ids]
        frame = spark.createDataFrame(rows, "id int, e array<float>").repartition(len(ids))
        frame.write.format("delta").mode("append").save(source)

    return append


def run(spark: SparkSession, source: str, **options: object) -> sa.Summary:
    scores = None if options.pop("in_place", False) else f"{source}-scores"
    return sa.score_table(
        spark, source=source, key=["id"], embedding_col="e", scores=scores, progress_file=io.StringIO(), **options
    )  # type: ignore[misc]


def found(spark: SparkSession, table: str) -> dict[int, tuple[float | None, str | None]]:
    rows = spark.read.format("delta").load(table).collect()
    assert len({row.id for row in rows}) == len(rows)
    return {row.id: (row.aesthetic_score, row.aesthetic_error) for row in rows}


def test_the_session_is_one_of_connect(spark: SparkSession) -> None:
    assert type(spark).__module__ == "pyspark.sql.connect.session"


def test_chunks_are_scored_once_and_counted(spark: SparkSession, source: str, add: Add) -> None:
    add(0, 1, 2, 10)
    done = run(spark, source, max_files_per_chunk=2)
    assert (done.rows_read, done.scored, done.failed, done.chunks) == (4, 3, 1, 2)
    assert done.failed_by_reason == {"embedding: wrong length": 1}
    assert set(found(spark, f"{source}-scores")) == {0, 1, 2, 10}
    again = run(spark, source)
    assert (again.scored, again.skipped, again.chunks) == (0, 4, 0)
    add(3)
    more = run(spark, source)
    assert (more.scored, more.failed, more.skipped, more.chunks) == (1, 0, 4, 1)
    scores = found(spark, f"{source}-scores")
    expected = spark.read.format("delta").load(source).select("id", sa.aesthetic_score_from_embedding("e").alias("s"))
    assert {row.id: row.s for row in expected.collect()} == {at: score for at, (score, _) in scores.items()}
    told = sa.history(spark, f"{source}-scores").where("chunk IS NOT NULL").collect()
    assert [row.rows_written for row in told][::-1] == [2, 2, 1]


def test_images_are_scored_by_a_udf_that_travels(spark: SparkSession, source: str) -> None:
    rows = [(0, bytearray(noise_image(0))), (1, None), (2, bytearray(b"no image"))]
    spark.createDataFrame(rows, "id int, image binary").coalesce(1).write.format("delta").save(source)
    done = sa.score_table(
        spark, source=source, key=["id"], image_col="image", scores=f"{source}-scores", predictor=small_predictor(),
        with_embedding=True, progress_file=io.StringIO(),
    )  # fmt: skip
    assert done.scored == 1
    assert done.failed_by_reason == {"null": 1, "decode: not an image": 1}


def test_an_encoder_embeds_and_a_head_scores_what_a_table_has_kept(spark: SparkSession, source: str) -> None:
    frame = spark.createDataFrame([(0, bytearray(noise_image(0))), (1, None)], "id int, image binary").coalesce(1)
    frame.write.format("delta").save(source)
    made = frame.select(sa.image_embedding("image", model_name="vit_tiny_patch16_224", pretrained=False).alias("e"))
    assert [None if row.e is None else len(row.e) for row in made.collect()] == [192, None]
    first, scores = small_predictor(), f"{source}-scores"
    sa.score_table(
        spark, source=source, key=["id"], image_col="image", scores=scores, predictor=first, with_embedding=True,
        progress_file=io.StringIO(),
    )  # fmt: skip
    other = replace(first, name="untrained-other-head", head_weights="untrained:7:384")
    done = sa.rescore_from_embeddings(spark, scores=scores, key=["id"], predictor=other)
    assert (done.rows_read, done.scored, done.failed) == (1, 1, 0)


def test_shards_are_written_and_read(spark: SparkSession, tmp_path: Path) -> None:
    sa.register(spark)
    samples = spark.createDataFrame([("a", bytearray(noise_image(0))), ("b", None)], "__key__ string, image binary")
    samples.coalesce(1).write.format("webdataset").mode("overwrite").save(str(tmp_path / "shards"))
    back = spark.read.format("webdataset").load(str(tmp_path / "shards"))
    assert {row["__key__"]: row.jpg and bytes(row.jpg) for row in back.collect()} == {"a": noise_image(0)}


def test_a_head_is_fitted_to_ratings(spark: SparkSession, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    unit = draw.standard_normal((80, 6))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    weight = draw.standard_normal(6)
    rows = list(zip(unit.tolist(), (unit @ weight + 5).tolist(), strict=True))
    rated = spark.createDataFrame(rows, "clip_embedding array<double>, rating double").coalesce(1)
    estimator = sa.AestheticEstimator(
        path=str(tmp_path), backbone="ViT-B-32", backboneWeights="/none.safetensors", backboneSha256="0" * 64,
        regParams=[1e-12],
    )  # fmt: skip
    scorer = estimator.fit(rated)
    assert weights.load_head(scorer.getPredictor()).weight == pytest.approx(weight, abs=1e-5)
    assert scorer.report is not None
    assert scorer.report.own.spearman == pytest.approx(1, abs=1e-3)
    assert all(row.aesthetic_score == pytest.approx(row.rating, abs=1e-4) for row in scorer.transform(rated).collect())


@pytest.mark.long
def test_rows_that_are_tried_again_are_counted_with_the_new_ones(spark: SparkSession, source: str, add: Add) -> None:
    add(0, 10)
    assert run(spark, source).failed == 1
    add(1)
    again = run(spark, source, retry_failed=True)
    assert (again.scored, again.failed, again.chunks) == (1, 1, 2)


@pytest.mark.long
def test_a_change_data_feed_is_followed(spark: SparkSession, source: str, add: Add) -> None:
    add(0, 1, 2)
    spark.sql(f"ALTER TABLE delta.`{source}` SET TBLPROPERTIES (delta.enableChangeDataFeed = true)")
    # A feed that is on from the first run on.
    run(spark, source)
    spark.sql(f"UPDATE delta.`{source}` SET e = array(1.0F) WHERE id = 1")
    spark.sql(f"DELETE FROM delta.`{source}` WHERE id = 2")
    add(3)
    done = run(spark, source, reconcile=True)
    assert (done.dropped, done.scored, done.failed) == (1, 1, 1)
    scores = found(spark, f"{source}-scores")
    assert set(scores) == {0, 1, 3}
    assert scores[1] == (None, "embedding: wrong length")


def test_an_error_of_a_chunk_comes_as_what_it_is(spark: SparkSession, source: str, add: Add) -> None:
    add(0, 1)
    run(spark, source)
    add(0)
    add(0)
    with pytest.raises(TableError, match=r"--key id: .* of several rows"):
        run(spark, source)


def test_a_changed_source_is_told_as_one(spark: SparkSession, source: str, add: Add) -> None:
    add(0, 1)
    run(spark, source)
    spark.sql(f"DELETE FROM delta.`{source}` WHERE id = 0")
    with pytest.raises(SourceChangedError, match="no change data feed"):
        run(spark, source)


@pytest.mark.long
def test_in_place_in_one_commit_or_staged(spark: SparkSession, source: str, add: Add) -> None:
    add(0, 1)
    assert run(spark, source, in_place=True).scored == 2
    add(2, 3, 10)
    done = run(spark, source, in_place=True, max_files_per_chunk=1)
    assert (done.scored, done.failed, done.skipped) == (2, 1, 2)
    assert found(spark, source)[10] == (None, "embedding: wrong length")


def test_images_are_taken_in(spark: SparkSession, tmp_path: Path) -> None:
    folder, table = tmp_path / "in", str(tmp_path / "table")
    folder.mkdir()
    for name, seed in {"a": 0, "b": 0, "c": 1}.items():
        (folder / f"{name}.jpg").write_bytes(noise_image(seed))
    done = sa.ingest_images(spark, str(folder), table, keep_once=True, max_files_per_chunk=2)
    assert (done.added, done.left_out, done.chunks) == (2, 1, 2)
    os.utime(folder / "a.jpg", (1_000_000_000, 1_000_000_000))
    more = sa.ingest_images(spark, str(folder), table, keep_once=True)
    assert (more.skipped, more.replaced) == (2, 1)
    assert {bytes(row.image) for row in spark.read.format("delta").load(table).collect()} == {
        noise_image(0), noise_image(1),
    }  # fmt: skip
    sa.save_metadata(spark.read.format("delta").load(table), str(tmp_path / "metadata"))
    assert "image" not in spark.read.parquet(str(tmp_path / "metadata")).columns
