"""Scores that other writers delete, overwrite or restore are found missing, scored again and counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import CONNECT
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

import spark_aesthetic as sa
from spark_aesthetic.errors import SourceChangedError, TableError
from spark_aesthetic.scoring.writer import Writer
from spark_aesthetic.testing import PUBLISHED_SCORES, published_embeddings

pytestmark = pytest.mark.usefixtures("interpreted")
PUBLISHED = [row.astype(float).tolist() for row in published_embeddings()]


def rows(spark: SparkSession, ids: range, shift: int = 0) -> DataFrame:
    return spark.createDataFrame(
        [(at, PUBLISHED[(at + shift) % 10], f"v{shift}") for at in ids], "id int, e array<float>, v string"
    )


@pytest.fixture
def tables(spark: SparkSession, tmp_path: Path) -> Callable[..., tuple[str, str]]:
    """Return a function that writes a source of 15 rows, scores it, and returns both paths."""

    def make(*, feed: bool = False, **options: Any) -> tuple[str, str]:
        source, scores = str(tmp_path / "source"), str(tmp_path / "scores")
        writer = rows(spark, range(15)).repartitionByRange(3, "id").write.format("delta")
        writer.option("delta.enableChangeDataFeed", str(feed).lower()).save(source)
        assert score(spark, source, scores, **options).scored == 15
        return source, scores

    return make


def score(spark: SparkSession, source: str, scores: str, **options: Any) -> sa.Summary:
    return sa.score_table(spark, source=source, key="id", embedding_col="e", scores=scores, **options)


def update(spark: SparkSession, source: str, changed: DataFrame) -> None:
    changed.createOrReplaceTempView("changed_rows")
    merge = f"MERGE INTO delta.`{source}` t USING changed_rows s ON t.id = s.id"
    spark.sql(f"{merge} WHEN MATCHED THEN UPDATE SET e = s.e, v = s.v")


def found(spark: SparkSession, scores: str) -> dict[int, float]:
    kept = spark.read.format("delta").load(scores).select("id", "aesthetic_score").collect()
    assert len({row.id for row in kept}) == len(kept)
    return {row.id: round(row.aesthetic_score, 2) for row in kept}


def expected(ids: range, shift: int = 0) -> dict[int, float]:
    return {at: round(PUBLISHED_SCORES[(at + shift) % 10], 2) for at in ids}


@pytest.mark.parametrize(
    ("statement", "missing"),
    [
        ("DELETE FROM {} WHERE id % 3 = 1", 5),
        *(
            pytest.param(statement, missing, marks=pytest.mark.long)
            for statement, missing in (
                ("INSERT OVERWRITE {} SELECT * FROM {} WHERE id < 4", 11),
                ("DELETE FROM {}", 15),
                ("TRUNCATE TABLE {}", 15),
                ("MERGE INTO {} t USING (SELECT 3 AS id) s ON t.id = s.id WHEN MATCHED THEN DELETE", 1),
            )
        ),
    ],
)
def test_scores_that_others_take_away_are_scored_again_and_counted(
    spark: SparkSession,
    tables: Callable[..., tuple[str, str]],
    statement: str,
    missing: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    source, scores = tables()
    spark.sql(statement.replace("{}", f"delta.`{scores}`"))
    done = score(spark, source, scores)
    assert (done.rows_read, done.scored, done.skipped) == (15, missing, 15 - missing)
    assert "other writers may have removed scores" in caplog.text
    assert found(spark, scores).keys() == set(range(15))
    versions = spark.sql(f"DESCRIBE HISTORY delta.`{scores}`").count()
    again = score(spark, source, scores)
    assert (again.scored, again.skipped) == (0, 15)
    # A later run does not look again for scores that were repaired.
    assert spark.sql(f"DESCRIBE HISTORY delta.`{scores}`").count() == versions


@pytest.mark.long
def test_scores_that_are_deleted_while_new_rows_come_in_are_scored_too(
    spark: SparkSession, tables: Callable[..., tuple[str, str]]
) -> None:
    source, scores = tables()
    spark.sql(f"DELETE FROM delta.`{scores}` WHERE id < 2")
    rows(spark, range(15, 18)).write.format("delta").mode("append").save(source)
    done = score(spark, source, scores)
    assert (done.rows_read, done.scored, done.skipped) == (18, 5, 13)
    assert found(spark, scores).keys() == set(range(18))


def test_maintenance_and_appends_of_others_are_no_loss(
    spark: SparkSession, tables: Callable[..., tuple[str, str]]
) -> None:
    source, scores = tables()
    spark.sql(f"OPTIMIZE delta.`{scores}`")
    spark.sql(f"ALTER TABLE delta.`{scores}` SET TBLPROPERTIES ('team' = 'images')")
    versions = spark.sql(f"DESCRIBE HISTORY delta.`{scores}`").count()
    assert score(spark, source, scores).skipped == 15
    assert spark.sql(f"DESCRIBE HISTORY delta.`{scores}`").count() == versions


@pytest.mark.parametrize(
    "by_time", [False, pytest.param(True, marks=pytest.mark.long)], ids=["to a version", "to a time"]
)
def test_after_a_restore_rows_that_were_updated_meanwhile_get_their_new_scores_again(
    spark: SparkSession, tables: Callable[..., tuple[str, str]], by_time: bool
) -> None:
    source, scores = tables(feed=True)
    state = spark.sql(f"DESCRIBE HISTORY delta.`{scores}` LIMIT 1").collect()[0]
    rows(spark, range(20, 25)).write.format("delta").mode("append").save(source)
    update(spark, source, rows(spark, range(3), shift=4))
    assert score(spark, source, scores).scored == 8
    whole = found(spark, scores)
    to = f"TIMESTAMP AS OF '{state.timestamp.isoformat()}'" if by_time else f"VERSION AS OF {state.version}"
    spark.sql(f"RESTORE TABLE delta.`{scores}` TO {to}")
    assert found(spark, scores) == expected(range(15))
    done = score(spark, source, scores)
    assert found(spark, scores) == whole == expected(range(15)) | expected(range(20, 25)) | expected(range(3), 4)
    assert done.scored >= 8
    assert done.scored + (done.skipped or 0) == 20


def test_after_a_restore_updates_that_nothing_tells_are_an_error_with_the_way_out(
    spark: SparkSession, tables: Callable[..., tuple[str, str]]
) -> None:
    source, scores = tables(version_col="v")
    version = spark.sql(f"DESCRIBE HISTORY delta.`{scores}` LIMIT 1").collect()[0].version
    update(spark, source, rows(spark, range(4), shift=5))
    assert score(spark, source, scores, reconcile=True, version_col="v").scored == 4
    spark.sql(f"RESTORE TABLE delta.`{scores}` TO VERSION AS OF {version}")
    with pytest.raises(SourceChangedError, match=r"RESTORE .*--reconcile and --version-col"):
        score(spark, source, scores, version_col="v")
    done = score(spark, source, scores, reconcile=True, version_col="v")
    assert (done.scored, done.skipped) == (4, 11)
    assert found(spark, scores) == expected(range(15)) | expected(range(4), 5)
    assert score(spark, source, scores, version_col="v").skipped == 15


@pytest.mark.long
def test_what_is_skipped_is_counted_when_rows_are_scored_a_second_time(
    spark: SparkSession, tables: Callable[..., tuple[str, str]]
) -> None:
    source, scores = tables(feed=True)
    spark.createDataFrame([(50, [1.0], "v0"), (51, [2.0], "v0")], "id int, e array<float>, v string").write.format(
        "delta"
    ).mode("append").save(source)
    assert score(spark, source, scores).failed == 2
    # The row that is retried is also updated in the source. It counts as one row and not as skipped.
    spark.sql(f"UPDATE delta.`{source}` SET v = 'v1' WHERE id = 50")
    done = score(spark, source, scores, retry_failed=True)
    assert (done.rows_read, done.skipped) == (17, 15)


def interposed(monkeypatch: pytest.MonkeyPatch, name: str, other: Callable[[], object]) -> None:
    """Call `other` right before the next call of a method of the writer."""
    method = getattr(Writer, name)

    def call(self: Writer, *args: Any, **options: Any) -> Any:
        monkeypatch.setattr(Writer, name, method)
        other()
        return method(self, *args, **options)

    monkeypatch.setattr(Writer, name, call)


def test_a_retry_does_not_bring_back_the_image_that_another_run_has_replaced(
    spark: SparkSession, tables: Callable[..., tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, scores = tables(feed=True)
    broken = rows(spark, range(3, 5)).withColumn("e", F.array(F.lit(1.0).cast("float")))
    update(spark, source, broken)
    assert score(spark, source, scores).failed == 2

    def mend() -> None:
        update(spark, source, rows(spark, range(3, 5), shift=2))
        assert score(spark, source, scores).scored == 2

    interposed(monkeypatch, "replace_rows", mend)
    with pytest.raises(TableError, match=r"another run has written some rows.*Run again when that run has finished"):
        score(spark, source, scores, retry_failed=True)
    assert found(spark, scores) == expected(range(15)) | expected(range(3, 5), shift=2)
    assert score(spark, source, scores, retry_failed=True).scored == 0


@pytest.mark.skipif(CONNECT, reason="there another process writes the chunks")
def test_a_first_load_adds_no_key_that_a_reconcile_has_scored_meanwhile(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, scores = str(tmp_path / "source"), str(tmp_path / "scores")
    rows(spark, range(15)).write.format("delta").save(source)
    interposed(monkeypatch, "made", lambda: score(spark, source, scores, reconcile=True))
    with pytest.raises(TableError, match="another"):
        score(spark, source, scores)
    assert found(spark, scores) == expected(range(15))
    assert score(spark, source, scores).scored == 0
