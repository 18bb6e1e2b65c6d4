"""A short test of `score_table` on Spark Connect. `make test-long` runs all tests of tables there."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import CONNECT
from pyspark.sql import SparkSession

import spark_aesthetic as sa
from spark_aesthetic.errors import SourceChangedError, TableError
from spark_aesthetic.testing import noise_image, published_embeddings, small_predictor

pytestmark = [
    pytest.mark.connect,
    pytest.mark.skipif(not CONNECT, reason="a session of Spark Connect: make test-spark runs it the second time"),
    pytest.mark.usefixtures("interpreted"),
]

EMBEDDINGS = published_embeddings().astype(float).tolist()

Add = Callable[..., None]


@pytest.fixture
def source(tmp_path: Path) -> str:
    return str(tmp_path / "source")


@pytest.fixture
def add(spark: SparkSession, source: str) -> Add:
    """Return a function that appends rows of published embeddings.

    Rows with an id of 10 or more have a wrong length.
    """

    def append(*ids: int) -> None:
        rows = [(at, EMBEDDINGS[at] if at < 10 else [1.0]) for at in ids]
        frame = spark.createDataFrame(rows, "id int, e array<float>").repartition(len(ids))
        frame.write.format("delta").mode("append").save(source)

    return append


def run(spark: SparkSession, source: str, **options: object) -> sa.Summary:
    given = {"key": ["id"], "embedding_col": "e", "scores": f"{source}-scores", "progress_file": io.StringIO()}
    return sa.score_table(spark, source=source, **given, **options)  # type: ignore[arg-type]


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


def test_an_error_of_a_chunk_comes_as_what_it_is(spark: SparkSession, source: str, add: Add) -> None:
    add(0, 1)
    run(spark, source)
    add(0)
    add(0)
    with pytest.raises(TableError, match=r"--key id: .* shared by several rows"):
        run(spark, source)


def test_a_changed_source_is_told_as_one(spark: SparkSession, source: str, add: Add) -> None:
    add(0, 1)
    run(spark, source)
    spark.sql(f"DELETE FROM delta.`{source}` WHERE id = 0")
    with pytest.raises(SourceChangedError, match="no change data feed"):
        run(spark, source)
