"""Keys that are neither text nor numbers, keys that Python cannot hold as text, and repeated keys."""

from __future__ import annotations

import logging
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from conftest import own_session
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

import spark_aesthetic as sa
from spark_aesthetic.errors import TableError
from spark_aesthetic.testing import PUBLISHED_SCORES, published_embeddings

pytestmark = pytest.mark.usefixtures("interpreted")
PUBLISHED = [row.astype(float).tolist() for row in published_embeddings()]
FEED = {"delta.enableChangeDataFeed": "true"}
# File names may be in Latin-1, which is no valid UTF-8. Two such keys sort after all text, and two within it.
BYTES = [b"apple", b"\xf6ster", b"zebra", b"\xff", b"\x80A", b"\xe4"]


def put(rows: DataFrame, path: str, **options: str) -> None:
    """Append rows, each to a file of its own."""
    rows.repartition(rows.count()).write.format("delta").mode("append").options(**options).save(path)


def keyed(spark: SparkSession, keys: list[Any], kind: str, first: int = 0) -> DataFrame:
    """Return a row for each key, with the published embeddings from `first` on."""
    rows = [(key, PUBLISHED[at]) for at, key in enumerate(keys, start=first)]
    held = "binary" if kind == "text of bytes" else kind
    frame = spark.createDataFrame(rows, f"k {held}, e array<float>")
    return frame.withColumn("k", F.col("k").cast("string")) if kind == "text of bytes" else frame


def scored(spark: SparkSession, scores: str) -> list[tuple[Any, int]]:
    """Return each key, as bytes if it is text, with the number of the published embedding that has its score."""
    rows = spark.read.format("delta").load(scores)
    kind = rows.schema["k"].dataType.simpleString()
    key = F.hex(F.col("k").cast("binary")).alias("k") if kind == "string" else F.col("k")
    found = []
    for row in rows.select(key, "aesthetic_score").collect():
        near = [at for at, value in enumerate(PUBLISHED_SCORES) if abs(value - (row.aesthetic_score or 0)) < 1e-3]
        found.append((bytes.fromhex(row.k) if kind == "string" else row.k, near[0] if near else -1))
    return sorted(found, key=str)


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("text of bytes", BYTES),
        pytest.param("boolean", [False, True], marks=pytest.mark.long),
        pytest.param("decimal(20, 2)", [Decimal("-1.00"), Decimal("7.25")], marks=pytest.mark.long),
        pytest.param("date", [date(1, 1, 1), date(9999, 12, 31)], marks=pytest.mark.long),
    ],
)
def test_each_key_has_one_score_after_an_update_and_an_append(
    spark: SparkSession, tmp_path: Path, kind: str, keys: list[Any]
) -> None:
    source, scores = str(tmp_path / "source"), str(tmp_path / "scores")
    given = {"source": source, "key": "k", "embedding_col": "e", "scores": scores}
    put(keyed(spark, keys[:-1], kind), source, **FEED)
    sa.score_table(spark, **given)
    # Every row changes, and one is new.
    spark.sql(f"UPDATE delta.`{source}` SET e = transform(e, x -> -x)")
    put(keyed(spark, keys[-1:], kind, first=len(keys) - 1), source)
    sa.score_table(spark, **given)
    found = scored(spark, scores)
    assert [key for key, _ in found] == sorted(keys, key=str)
    # No published embedding has the score of an opposite one.
    assert sorted(at for _, at in found) == [-1] * (len(keys) - 1) + [len(keys) - 1]


def test_a_key_that_comes_again_is_named(spark: SparkSession, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source, scores = str(tmp_path / "source"), str(tmp_path / "scores")
    given = {"source": source, "key": "k", "embedding_col": "e", "scores": scores}
    put(keyed(spark, [*range(5)], "int"), source)
    sa.score_table(spark, **given)
    assert "several rows" not in caplog.text
    put(keyed(spark, [3, 7], "int", first=5), source)
    with caplog.at_level(logging.WARNING):
        done = sa.score_table(spark, **given)
    assert (done.scored, done.skipped) == (1, 5)
    assert "1 keys belong to several rows (2 rows of '3'), and each has only the score of its first row" in caplog.text
    assert scored(spark, scores) == [(at, at) for at in range(5)] + [(7, 6)]


@own_session
def test_in_place_a_key_that_came_again_before_the_end_is_refused(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = str(tmp_path / "source")
    given = {"source": source, "key": "k", "embedding_col": "e", "max_files_per_chunk": 1}
    put(keyed(spark, [*range(3)], "int"), source)

    def killed(*_: Any) -> bool:
        raise KeyboardInterrupt

    # The run is killed after the last chunk, before the commit that takes over all chunks.
    with monkeypatch.context() as patched:
        patched.setattr("spark_aesthetic.scoring.in_place._take_over", killed)
        with pytest.raises(KeyboardInterrupt):
            sa.score_table(spark, **given)
    put(keyed(spark, [1], "int", first=8), source)
    with pytest.raises(TableError, match=r"--key k: expected .* in each of the 4 rows, found 2 with"):
        sa.score_table(spark, **given)
    assert "aesthetic_score" not in spark.read.format("delta").load(source).columns
