"""Chunks score each row exactly once, whatever happens to the source between them, and their commits record it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from conftest import CONNECT, bytes_read, descriptions, last_query
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

import spark_aesthetic as sa
from spark_aesthetic.cli.scoring import score_once
from spark_aesthetic.delta.commits import merge_into
from spark_aesthetic.errors import SourceChangedError, TableError
from spark_aesthetic.predictors.recipe import Predictor
from spark_aesthetic.scoring.chunks import started
from spark_aesthetic.scoring.runs import Run
from spark_aesthetic.testing import published_embeddings

FEED = "delta.enableChangeDataFeed"
pytestmark = pytest.mark.usefixtures("interpreted")
PUBLISHED = [row.astype(float).tolist() for row in published_embeddings()]


def rows(spark: SparkSession, ids: range, shift: int = 0) -> DataFrame:
    """Return rows with embeddings that follow from the ids.

    `shift` gives the same ids different embeddings.
    """
    made = [(at, f"photo {at}", PUBLISHED[(at + shift) % 10]) for at in ids]
    return spark.createDataFrame(made, "id bigint, title string, e array<float>")


@pytest.mark.parametrize(
    ("said", "failures", "starts"), [("Python worker failed to connect back.", 2, 3), ("Python worker failed", 1, 1)]
)
def test_a_process_for_chunks_that_comes_up_late_is_started_again(said: str, failures: int, starts: int) -> None:
    tried = []

    def start() -> Any:
        tried.append(said)
        if len(tried) <= failures:
            raise PySparkException(said)
        return "query"

    if starts > failures:
        assert started(start) == "query"
    else:
        with pytest.raises(PySparkException, match="failed"):
            started(start)
    assert len(tried) == starts


@pytest.fixture
def source(spark: SparkSession, tmp_path: Path) -> Callable[..., str]:
    """Return a function that writes a table of 20 rows in 4 files."""

    def make(**properties: str) -> str:
        path = str(tmp_path / "source")
        rows(spark, range(20)).repartition(4).write.format("delta").options(**properties).save(path)
        return path

    return make


@pytest.fixture
def scores(tmp_path: Path) -> str:
    return str(tmp_path / "scores")


def score(spark: SparkSession, source: str, scores: str | None, **changed: Any) -> sa.Summary:
    arguments = {"key": ["id"], "embedding_col": "e", "max_files_per_chunk": 4} | changed
    return sa.score_table(spark, source=source, scores=scores, **arguments)


def load(spark: SparkSession, path: str) -> DataFrame:
    return spark.read.format("delta").load(path)


def assert_all_scored(spark: SparkSession, source: str, scores: str) -> None:
    """Check that the scores are those that an undisturbed run would give the current source."""
    expected = load(spark, source).select("id", sa.aesthetic_score_from_embedding("e").alias("score")).collect()
    found = load(spark, scores).select("id", "aesthetic_score").collect()
    assert sorted((row.id, round(row.aesthetic_score, 5)) for row in found) == sorted(
        (row.id, round(row.score, 5)) for row in expected
    )


def append(spark: SparkSession, source: str, ids: range, shift: int = 0) -> None:
    rows(spark, ids, shift).write.format("delta").mode("append").save(source)


def test_a_table_is_scored_in_chunks_and_a_run_reads_what_is_new_alone(
    spark: SparkSession, source: Callable[..., str], scores: str, sample: Callable[[str], int]
) -> None:
    path = source()
    size = embedding_bytes(spark, path)
    before = last_query(spark)
    first = score(spark, path, scores, max_files_per_chunk=2)
    assert (first.rows_read, first.scored, first.chunks) == (20, 20, 2)
    assert bytes_read(spark, before, "e") <= 1.05 * size + sample(path)
    said = {f"spark-aesthetic: chunk {number} of delta.`{path}`" for number in range(2)}
    # On Connect, a separate process runs the chunks with descriptions of its own.
    assert CONNECT or said <= descriptions(spark, before)
    assert_all_scored(spark, path, scores)

    before = last_query(spark)
    assert score(spark, path, scores).chunks == 0
    assert bytes_read(spark, before, "e") <= sample(path)

    append(spark, path, range(40, 43))
    before = last_query(spark)
    third = score(spark, path, scores)
    assert (third.rows_read, third.scored, third.skipped, third.chunks) == (23, 3, 20, 1)
    assert 0 < bytes_read(spark, before, "e") < 0.6 * size
    assert_all_scored(spark, path, scores)


@pytest.fixture
def sample(spark: SparkSession, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], int]:
    """Limit the predictor's check to a sample of one row. Return a function that gives the most bytes that it reads."""
    monkeypatch.setattr("spark_aesthetic.functions.inputs._SAMPLE_ROWS", 1)
    # The Spark UI rounds sizes, so 1 KiB is added.
    return lambda path: (
        1024 + max(Path(file.removeprefix("file:")).stat().st_size for file in load(spark, path).inputFiles())
    )


def embedding_bytes(spark: SparkSession, path: str) -> int:
    before = last_query(spark)
    load(spark, path).selectExpr("sum(e[0])").collect()
    return bytes_read(spark, before, "e")


def test_what_only_rewrites_files_scores_nothing_again(
    spark: SparkSession, source: Callable[..., str], scores: str
) -> None:
    path = source()
    score(spark, path, scores)
    spark.sql(f"OPTIMIZE delta.`{path}`")
    spark.conf.set("spark.databricks.delta.retentionDurationCheck.enabled", "false")
    spark.sql(f"VACUUM delta.`{path}` RETAIN 0 HOURS")
    spark.conf.unset("spark.databricks.delta.retentionDurationCheck.enabled")
    append(spark, path, range(40, 42))
    assert score(spark, path, scores).scored == 2
    assert_all_scored(spark, path, scores)


def change(spark: SparkSession, path: str) -> None:
    """Update, delete and add rows, and delete a row that comes back different, each in its own commit."""
    spark.sql(f"DELETE FROM delta.`{path}` WHERE id IN (3, 4)")
    spark.sql(f"UPDATE delta.`{path}` SET e = array_repeat(0.1F, 768) WHERE id = 5")
    append(spark, path, range(3, 4), shift=1)
    append(spark, path, range(40, 44))
    spark.sql(f"DELETE FROM delta.`{path}` WHERE id = 40")


@pytest.mark.parametrize("files", [1, pytest.param(100, marks=pytest.mark.long)], ids=["many chunks", "one chunk"])
def test_a_change_data_feed_is_followed(
    spark: SparkSession, source: Callable[..., str], scores: str, files: int
) -> None:
    path = source(**{FEED: "true"})
    assert score(spark, path, scores).scored == 20
    change(spark, path)
    done = score(spark, path, scores, max_files_per_chunk=files)
    assert (done.chunks or 0) > 1 if files == 1 else done.chunks == 1
    # Row 4 is dropped. With one file per chunk, rows 3 and 40 are scored in between, so they are dropped too.
    assert done.dropped == (3 if files == 1 else 1)
    assert_all_scored(spark, path, scores)
    assert score(spark, path, scores).chunks == 0


def overwrite(spark: SparkSession, path: str) -> None:
    """Replace most rows by different ones, remove rows 0 to 2, and add rows 20 to 24."""
    rows(spark, range(3, 25), shift=2).repartition(3).write.format("delta").mode("overwrite").save(path)


def go_and_come(spark: SparkSession, path: str) -> None:
    """Overwrite the table, bring removed rows back as different ones, and delete a new row."""
    overwrite(spark, path)
    append(spark, path, range(2), shift=5)
    spark.sql(f"DELETE FROM delta.`{path}` WHERE id IN (5, 24)")
    append(spark, path, range(5, 6), shift=7)


def restore(spark: SparkSession, path: str) -> None:
    """Replace or delete all rows, and then restore version 0."""
    overwrite(spark, path)
    spark.sql(f"DELETE FROM delta.`{path}` WHERE id < 12")
    spark.sql(f"RESTORE TABLE delta.`{path}` TO VERSION AS OF 0")


def truncate(spark: SparkSession, path: str) -> None:
    """Delete all rows, and bring half of them back as different ones."""
    spark.sql(f"TRUNCATE TABLE delta.`{path}`")
    rows(spark, range(10), shift=3).repartition(3).write.format("delta").mode("append").save(path)


@pytest.mark.parametrize(
    ("changed", "files"),
    [
        (go_and_come, 2),
        *(
            pytest.param(changed, files, marks=pytest.mark.long)
            for changed in (overwrite, go_and_come, restore, truncate)
            for files in (1, 3)
        ),
    ],
)
def test_an_overwrite_that_takes_several_chunks_is_followed(
    spark: SparkSession, source: Callable[..., str], scores: str, changed: Callable[..., None], files: int
) -> None:
    # Unless a setting allows it, Delta reads and restores no version that is older than this.
    retention = {} if changed is restore else {"delta.deletedFileRetentionDuration": "interval 0 hours"}
    path = source(**{FEED: "true"}, **retention)
    score(spark, path, scores)
    changed(spark, path)
    done = score(spark, path, scores, max_files_per_chunk=files)
    assert (done.chunks or 0) > 2
    assert_all_scored(spark, path, scores)
    # The stream alone scored the rows. No row was scored a second time because its score was missing.
    commits = sa.history(spark, scores)
    assert commits.where("(rows_written > 0 OR rows_deleted > 0) AND chunk IS NULL").count() == 0
    # Even if the last chunk changes no score, its commit names the version up to which the scores are right.
    assert commits.first().source_version == spark.sql(f"DESCRIBE HISTORY delta.`{path}` LIMIT 1").first().version


@pytest.mark.long
def test_reconcile_takes_over_what_the_feed_tells(spark: SparkSession, source: Callable[..., str], scores: str) -> None:
    path = source(**{FEED: "true"})
    score(spark, path, scores)
    change(spark, path)
    spark.sql(f"DELETE FROM delta.`{scores}` WHERE id = 9")
    done = score(spark, path, scores, max_files_per_chunk=100, reconcile=True)
    # A comparison of keys alone would not find the changes of rows 3 and 5.
    assert done.scored == 3 + 2 + 1
    assert_all_scored(spark, path, scores)
    append(spark, path, range(50, 52))
    assert score(spark, path, scores).scored == 2
    assert_all_scored(spark, path, scores)


def test_changes_without_a_feed_are_an_error_that_names_both_ways_out(
    spark: SparkSession, source: Callable[..., str], scores: str
) -> None:
    path = source()
    score(spark, path, scores)
    change(spark, path)
    with pytest.raises(SourceChangedError, match=r"--reconcile.*enableChangeDataFeed"):
        score(spark, path, scores)
    # Row 3 came back as a different row. Its key has a score, so a comparison of keys does not find the change.
    done = score(spark, path, scores, reconcile=True)
    assert (done.scored, done.dropped) == (3, 1)
    assert {row.id for row in load(spark, scores).collect()} == {row.id for row in load(spark, path).collect()}
    assert score(spark, path, scores).chunks == 0
    append(spark, path, range(50, 52))
    assert score(spark, path, scores).scored == 2


def test_a_version_column_tells_reconcile_what_has_changed(
    spark: SparkSession, source: Callable[..., str], scores: str
) -> None:
    path = source()
    score(spark, path, scores, version_col="title")
    change(spark, path)
    spark.sql(f"UPDATE delta.`{path}` SET title = 'another' WHERE id IN (3, 5)")
    done = score(spark, path, scores, version_col="title", reconcile=True)
    assert (done.scored, done.dropped) == (5, 1)
    assert_all_scored(spark, path, scores)


def test_reconcile_reads_the_bytes_of_missing_rows_alone(
    spark: SparkSession, tmp_path: Path, scores: str, sample: Callable[[str], int]
) -> None:
    # The rows have no order, like rows with hashes as keys, so no file can be skipped by its least and greatest key.
    path = str(tmp_path / "sou rce%")
    rows(spark, range(40)).repartition(8).write.format("delta").save(path)
    size = embedding_bytes(spark, path)
    score(spark, path, scores)
    spark.sql(f"DELETE FROM delta.`{scores}` WHERE id = 7")
    before = last_query(spark)
    assert score(spark, path, scores, reconcile=True).scored == 1
    assert 0 < bytes_read(spark, before, "e") <= 2 * sample(path) < 0.4 * size
    assert_all_scored(spark, path, scores)


@pytest.mark.long
def test_reconcile_commits_in_parts_of_a_chunk(spark: SparkSession, source: Callable[..., str], scores: str) -> None:
    path = source()
    score(spark, path, scores)
    spark.sql(f"DELETE FROM delta.`{scores}` WHERE id != 4")
    done = score(spark, path, scores, reconcile=True, max_bytes_per_chunk=1000)
    assert (done.scored, done.chunks) == (19, 4)
    assert_all_scored(spark, path, scores)


@pytest.mark.long
def test_a_version_column_that_comes_later_tells_from_then_on(
    spark: SparkSession, source: Callable[..., str], scores: str
) -> None:
    path = source()
    score(spark, path, scores)
    assert score(spark, path, scores, version_col="title", reconcile=True).scored == 0
    spark.sql(f"UPDATE delta.`{path}` SET e = array_repeat(0.1F, 768), title = 'another' WHERE id = 5")
    assert score(spark, path, scores, version_col="title", reconcile=True).scored == 1
    assert_all_scored(spark, path, scores)


def chunks_of(spark: SparkSession, scores: str) -> int:
    """Return the number of commits of chunks, or 0 without a table."""
    return sa.history(spark, scores).where("chunk IS NOT NULL").count() if Path(scores).exists() else 0


@pytest.mark.skipif(CONNECT, reason="there a run asks once a second whether to stop, not before each chunk")
def test_files_that_vacuum_removes_before_a_run_went_on_are_told(
    spark: SparkSession, source: Callable[..., str], scores: str
) -> None:
    path = source()
    stopped = score(spark, path, scores, max_files_per_chunk=2, stopping=lambda: chunks_of(spark, scores) == 1)
    assert (stopped.scored, stopped.skipped) == (10, None)
    spark.sql(f"OPTIMIZE delta.`{path}`")
    spark.conf.set("spark.databricks.delta.retentionDurationCheck.enabled", "false")
    spark.sql(f"VACUUM delta.`{path}` RETAIN 0 HOURS")
    spark.conf.unset("spark.databricks.delta.retentionDurationCheck.enabled")
    with pytest.raises(SourceChangedError, match=r"VACUUM.*--reconcile"):
        score(spark, path, scores)
    assert score(spark, path, scores, reconcile=True).scored == 10
    assert_all_scored(spark, path, scores)


@pytest.mark.long
@pytest.mark.skipif(
    CONNECT, reason="Spark gives each run's own process ten seconds to start: three take more on two cores"
)
def test_models_side_by_side_do_not_stop_each_other(
    spark: SparkSession, source: Callable[..., str], scores: str
) -> None:
    path = source()
    models = ["laion-aesthetics-v2", "laion-aesthetics-v1", "laion-aesthetics-v2-ava"]
    with ThreadPoolExecutor(3) as pool:
        runs = [pool.submit(score, spark.newSession(), path, scores, predictor=model) for model in models]
        done = [run.result() for run in runs]
    assert [run.scored for run in done] == [20, 20, 20]
    found = load(spark, scores).groupBy("aesthetic_model").agg(F.count("*"), F.countDistinct("id")).collect()
    assert sorted(map(tuple, found)) == sorted((run.model, 20, 20) for run in done)


@pytest.mark.skipif(CONNECT, reason="there the process that writes the chunks keeps what it knows")
def test_a_live_line_tells_rows_and_bytes_of_all_and_failures(
    spark: SparkSession, source: Callable[..., str], scores: str
) -> None:
    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    path = source(**{FEED: "true"})
    spark.sql(f"UPDATE delta.`{path}` SET e = array(1.0F) WHERE id < 3")
    terminal = Terminal()
    score(spark, path, scores, progress_file=terminal)
    last = terminal.getvalue().split("\r")[-1]
    assert re.search(r"20/20 .*about \d\S+B of \d\S+B, 3 embedding: wrong length", last), last


@pytest.mark.parametrize("lost", ["checkpoint", pytest.param("scores", marks=pytest.mark.long)])
def test_what_is_lost_is_made_again(spark: SparkSession, source: Callable[..., str], tmp_path: Path, lost: str) -> None:
    path, scores, checkpoint = source(), str(tmp_path / "scores"), str(tmp_path / "checkpoint")
    score(spark, path, scores, checkpoint=checkpoint)
    append(spark, path, range(40, 43))
    shutil.rmtree({"checkpoint": checkpoint, "scores": scores}[lost])
    done = score(spark, path, scores, checkpoint=checkpoint)
    assert done.scored == (3 if lost == "checkpoint" else 23)
    assert_all_scored(spark, path, scores)


@pytest.mark.long
def test_a_checkpoint_that_is_lost_after_a_reconcile_costs_no_row(
    spark: SparkSession, source: Callable[..., str], tmp_path: Path
) -> None:
    path, scores, checkpoint = source(), str(tmp_path / "scores"), str(tmp_path / "checkpoint")
    score(spark, path, scores, checkpoint=checkpoint)
    spark.sql(f"DELETE FROM delta.`{path}` WHERE id = 4")
    assert score(spark, path, scores, checkpoint=checkpoint, reconcile=True).dropped == 1
    append(spark, path, range(40, 42))
    assert score(spark, path, scores, checkpoint=checkpoint).scored == 2
    shutil.rmtree(checkpoint)
    append(spark, path, range(50, 53))
    assert score(spark, path, scores, checkpoint=checkpoint).scored == 3
    assert_all_scored(spark, path, scores)


@pytest.mark.long
@pytest.mark.parametrize("feed", ["true", "false"])
def test_a_checkpoint_that_is_lost_before_an_update_is_told(
    spark: SparkSession, source: Callable[..., str], tmp_path: Path, feed: str
) -> None:
    path, scores, checkpoint = source(**{FEED: feed}), str(tmp_path / "scores"), str(tmp_path / "checkpoint")
    score(spark, path, scores, checkpoint=checkpoint, version_col="title")
    shutil.rmtree(checkpoint)
    change(spark, path)
    spark.sql(f"UPDATE delta.`{path}` SET title = 'another' WHERE id IN (3, 5)")
    with pytest.raises(SourceChangedError, match=r"updated or deleted since version 0.*--reconcile"):
        score(spark, path, scores, checkpoint=checkpoint)
    # The feed has all changes since the last chunk. Without a feed, a version column finds them.
    told = {} if feed == "true" else {"version_col": "title"}
    score(spark, path, scores, checkpoint=checkpoint, reconcile=True, **told)
    assert_all_scored(spark, path, scores)
    append(spark, path, range(60, 62))
    assert score(spark, path, scores, checkpoint=checkpoint).scored == 2


@pytest.mark.parametrize("feed", ["true", "false"])
def test_a_chunk_names_the_version_that_it_has_read_to_the_end(
    spark: SparkSession, source: Callable[..., str], tmp_path: Path, feed: str
) -> None:
    """Spark's offset names the next version, which a chunk must not name.

    If it did, an update in that version would count as read after the checkpoint is lost.
    """
    path, scores, checkpoint = source(**{FEED: feed}), str(tmp_path / "scores"), str(tmp_path / "checkpoint")
    score(spark, path, scores, checkpoint=checkpoint, version_col="title")
    append(spark, path, range(40, 43))
    score(spark, path, scores, checkpoint=checkpoint)
    chunks = sa.history(spark, scores).where("chunk IS NOT NULL").orderBy("version").collect()
    assert [commit.source_version for commit in chunks] == [0] * (len(chunks) - 1) + [1]
    new = ", ".join(f"CAST({number} AS FLOAT)" for number in PUBLISHED[9])
    spark.sql(f"UPDATE delta.`{path}` SET e = array({new}), title = 'another' WHERE id = 3")
    shutil.rmtree(checkpoint)
    with pytest.raises(SourceChangedError, match=r"updated or deleted since version 1.*--reconcile"):
        score(spark, path, scores, checkpoint=checkpoint)
    told = {} if feed == "true" else {"version_col": "title"}
    score(spark, path, scores, checkpoint=checkpoint, reconcile=True, **told)
    assert_all_scored(spark, path, scores)


def test_a_checkpoint_that_is_deleted_while_a_run_begins_is_told_and_hides_no_update(
    spark: SparkSession, source: Callable[..., str], tmp_path: Path
) -> None:
    """Spark makes a new checkpoint and numbers its chunks from 0.

    Delta would drop these chunks, and the update with them.
    """
    path, scores, checkpoint = source(), str(tmp_path / "scores"), str(tmp_path / "checkpoint")
    score(spark, path, scores, checkpoint=checkpoint, version_col="title")
    change(spark, path)
    spark.sql(f"UPDATE delta.`{path}` SET title = 'another' WHERE id IN (3, 5)")
    asked = 0

    def deletes() -> bool:
        nonlocal asked
        asked += 1
        # A run calls `stopping` before each step: the look at other writers, the look for the checkpoint, and the
        # stream.
        if asked == 3:
            shutil.rmtree(checkpoint)
        return False

    with pytest.raises(TableError, match=r"deleted while this run began.*Run again"):
        score(spark, path, scores, checkpoint=checkpoint, stopping=deletes)
    # The checkpoint that Spark has made is not the one that the scores came from.
    with pytest.raises(SourceChangedError, match=r"updated or deleted since version 0.*--reconcile"):
        score(spark, path, scores, checkpoint=checkpoint)
    score(spark, path, scores, checkpoint=checkpoint, reconcile=True, version_col="title")
    assert_all_scored(spark, path, scores)
    append(spark, path, range(60, 62))
    assert score(spark, path, scores, checkpoint=checkpoint).scored == 2
    assert_all_scored(spark, path, scores)


@pytest.mark.long
def test_a_table_that_was_made_anew_is_not_taken_for_new_rows(
    spark: SparkSession, source: Callable[..., str], scores: str
) -> None:
    path = source()
    score(spark, path, scores, version_col="title")
    shutil.rmtree(path)
    anew = rows(spark, range(15, 25), shift=3).withColumn("title", F.concat(F.lit("new "), "title"))
    anew.write.format("delta").save(path)
    with pytest.raises(SourceChangedError, match=r"found a new table in its place\. Run once with --reconcile"):
        score(spark, path, scores)
    done = score(spark, path, scores, version_col="title", reconcile=True)
    assert (done.scored, done.dropped) == (10, 15)
    assert_all_scored(spark, path, scores)
    assert score(spark, path, scores, version_col="title").chunks == 0


@pytest.mark.long
def test_a_reconcile_that_is_killed_is_asked_for_again(
    spark: SparkSession, source: Callable[..., str], scores: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = source()
    score(spark, path, scores)
    change(spark, path)

    def dies(*_: object) -> None:
        raise RuntimeError("as if the driver died")

    with monkeypatch.context() as patch:
        patch.setattr(Run, "score_keys", dies)
        with pytest.raises(RuntimeError, match="as if the driver died"):
            score(spark, path, scores, reconcile=True)
    with pytest.raises(SourceChangedError, match="expected the last --reconcile to have finished"):
        score(spark, path, scores)
    assert score(spark, path, scores, reconcile=True).scored == 3
    assert {row.id for row in load(spark, scores).collect()} == {row.id for row in load(spark, path).collect()}
    assert score(spark, path, scores).chunks == 0


def test_rows_that_failed_are_tried_again_where_that_is_asked_for(
    spark: SparkSession, source: Callable[..., str], scores: str
) -> None:
    path = source(**{FEED: "true"})
    spark.sql(f"UPDATE delta.`{path}` SET e = array(1.0F) WHERE id < 3")
    first = score(spark, path, scores)
    assert (first.scored, first.failed_by_reason) == (17, {"embedding: wrong length": 3})
    assert score(spark, path, scores).failed == 0
    again = score(spark, path, scores, retry_failed=True)
    assert (again.scored, again.failed) == (0, 3)
    assert score(spark, path, scores, retry_failed=True, dry_run=True).to_score == 3
    assert load(spark, scores).count() == 20


def test_a_key_that_is_taken_is_never_scored_twice(
    spark: SparkSession, source: Callable[..., str], scores: str
) -> None:
    path = source()
    score(spark, path, scores)
    append(spark, path, range(18, 22))
    assert score(spark, path, scores).scored == 2
    assert load(spark, scores).count() == 22
    bad = rows(spark, range(18, 19)).withColumn("e", F.expr("array(1.0F)"))
    bad.write.format("delta").mode("append").save(path)
    done = score(spark, path, scores)
    assert (done.scored, done.failed) == (0, 0)
    append(spark, path, range(50, 51))
    rows(spark, range(51, 52)).union(rows(spark, range(51, 52))).write.format("delta").mode("append").save(path)
    with pytest.raises(TableError, match="1 shared by several rows"):
        score(spark, path, scores, max_files_per_chunk=100)


@pytest.mark.long
def test_deletion_vectors_outlive_the_property_that_made_them(spark: SparkSession, tmp_path: Path, scores: str) -> None:
    path, property_ = str(tmp_path / "source"), "delta.enableDeletionVectors"
    rows(spark, range(10)).coalesce(1).write.format("delta").option(property_, "true").save(path)
    another = rows(spark, range(3, 4), shift=1).selectExpr("id", "'another' AS title", "e")
    another.write.format("delta").mode("append").save(path)
    spark.sql(f"DELETE FROM delta.`{path}` WHERE id = 3 AND title != 'another'")
    spark.sql(f"ALTER TABLE delta.`{path}` SET TBLPROPERTIES ('{property_}' = 'false')")
    assert score(spark, path, scores).scored == 10
    # Row 2 is in the file of the deleted row, so that file is read again. Row 3 has the key of the deleted row.
    spark.sql(f"DELETE FROM delta.`{scores}` WHERE id IN (2, 3)")
    assert score(spark, path, scores, reconcile=True).scored == 2
    assert_all_scored(spark, path, scores)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["partitioned", "clustered"])
def test_tables_of_every_kind(spark: SparkSession, tmp_path: Path, scores: str, kind: str) -> None:
    path = str(tmp_path / "source")
    how = "PARTITIONED BY (title)" if kind == "partitioned" else "CLUSTER BY (id)"
    properties = "'delta.columnMapping.mode' = 'name', 'delta.enableDeletionVectors' = 'true'"
    spark.sql(
        f"CREATE TABLE delta.`{path}` (id bigint, title string, e array<float>) USING delta {how} "
        f"TBLPROPERTIES ({properties})"
    )
    some = rows(spark, range(20)).selectExpr("id", "'t' || id % 3 AS title", "e")
    some.write.format("delta").mode("append").save(path)
    spark.sql(f"DELETE FROM delta.`{path}` WHERE id = 2")
    assert score(spark, path, scores).scored == 19
    append(spark, path, range(20, 24))
    assert score(spark, path, scores).scored == 4
    spark.sql(f"DELETE FROM delta.`{scores}` WHERE id = 7")
    spark.sql(f"ALTER TABLE delta.`{path}` RENAME COLUMN e TO embedding")
    with pytest.raises(TableError, match="--reconcile"):
        score(spark, path, scores, embedding_col="embedding")
    assert score(spark, path, scores, embedding_col="embedding", reconcile=True).scored == 1
    spark.sql(f"ALTER TABLE delta.`{path}` RENAME COLUMN embedding TO e")
    assert_all_scored(spark, path, scores)


@pytest.mark.long
def test_a_source_that_gains_columns_goes_on(spark: SparkSession, source: Callable[..., str], scores: str) -> None:
    path = source()
    score(spark, path, scores)
    wider = rows(spark, range(40, 45)).selectExpr("*", "1 AS width")
    wider.write.format("delta").mode("append").option("mergeSchema", "true").save(path)
    assert score(spark, path, scores).scored == 5
    assert_all_scored(spark, path, scores)


@pytest.mark.long
def test_in_place_stages_in_chunks_and_says_what_it_rewrites(
    spark: SparkSession, source: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    path = source(**{FEED: "true"})
    size = spark.sql(f"DESCRIBE DETAIL delta.`{path}`").collect()[0].sizeInBytes
    with caplog.at_level("INFO", logger="spark_aesthetic"):
        first = score(spark, path, None, max_files_per_chunk=2)
    assert (first.scored, first.chunks, first.bytes_rewritten) == (20, 2, size)
    assert "--scores" in caplog.text
    append(spark, path, range(40, 43))
    second = score(spark, path, None)
    assert (second.scored, second.skipped) == (3, 20)
    assert second.bytes_rewritten is not None
    assert 0 < second.bytes_rewritten < size
    assert score(spark, path, None).bytes_rewritten == 0
    assert_all_scored(spark, path, path)
    # The source got only its own writes, the new columns and one MERGE for each run.
    operations = [row.operation for row in spark.sql(f"DESCRIBE HISTORY delta.`{path}`").collect()]
    assert operations == ["MERGE", "WRITE", "MERGE", "ADD COLUMNS", "WRITE"]
    comments = {field.name: field.metadata.get("comment") for field in load(spark, path).schema}
    assert "null if aesthetic_error has a reason" in (comments["aesthetic_score"] or "")


@pytest.mark.parametrize("max_files", [pytest.param(2, marks=pytest.mark.long), None], ids=["staged", "at once"])
def test_in_place_an_update_meanwhile_is_scored_as_it_is_then(
    spark: SparkSession, source: Callable[..., str], monkeypatch: pytest.MonkeyPatch, max_files: int | None
) -> None:
    path, updates = source(), iter(["UPDATE delta.`{}` SET e = array_repeat(0.1F, 768) WHERE id = 5"])
    decide = Run.only_grown_since

    def updated_first(run: Run, version: int) -> bool:
        for update in updates:
            spark.sql(update.format(path))
            break
        return decide(run, version)

    monkeypatch.setattr(Run, "only_grown_since", updated_first)
    assert score(spark, path, None, max_files_per_chunk=max_files).scored == 20
    assert_all_scored(spark, path, path)


def test_in_place_an_update_that_comes_before_the_commit_is_scored_as_it_is_then(
    spark: SparkSession, source: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, merges = source(), []

    def conflicts_first(*arguments: Any) -> Any:
        merges.append(arguments)
        if len(merges) == 1:
            spark.sql(f"UPDATE delta.`{path}` SET e = array_repeat(0.1F, 768) WHERE id = 5")
            raise PySparkException("[DELTA_CONCURRENT_APPEND] as Delta says it of two commits at once")
        return merge_into(*arguments)

    monkeypatch.setattr("spark_aesthetic.scoring.in_place.merge_into", conflicts_first)
    assert score(spark, path, None, max_files_per_chunk=None).scored == 20
    assert len(merges) == 2
    assert_all_scored(spark, path, path)


@pytest.mark.long
def test_in_place_a_source_that_never_rests_is_told(
    spark: SparkSession, source: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, decide = source(), Run.only_grown_since

    def updated_first(run: Run, version: int) -> bool:
        spark.sql(f"DELETE FROM delta.`{path}` WHERE id = {version}")
        return decide(run, version)

    monkeypatch.setattr(Run, "only_grown_since", updated_first)
    with pytest.raises(TableError, match="found some in each of 3 attempts"):
        score(spark, path, None, max_files_per_chunk=None)
    assert "aesthetic_score" not in load(spark, path).columns


@pytest.mark.long
def test_in_place_sources_that_share_a_checkpoint_folder_keep_apart(
    spark: SparkSession, source: Callable[..., str], tmp_path: Path
) -> None:
    def crashes() -> bool:
        for staged in (tmp_path / "checkpoints").glob("*/staged"):
            if chunks_of(spark, str(staged)) == 1:
                raise RuntimeError("as if the driver died")
        return False

    one, other = source(), str(tmp_path / "other")
    rows(spark, range(20), shift=5).repartition(4).write.format("delta").save(other)
    with pytest.raises(Exception, match="as if the driver died"):
        score(spark, one, None, checkpoint=str(tmp_path / "checkpoints"), max_files_per_chunk=2, stopping=crashes)
    for path in (other, one):
        assert score(spark, path, None, checkpoint=str(tmp_path / "checkpoints")).bytes_rewritten
        assert_all_scored(spark, path, path)


def test_a_view_shows_one_model_or_all(spark: SparkSession, source: Callable[..., str], scores: str) -> None:
    path = source()
    v2 = score(spark, path, scores).model
    v1 = score(spark, path, scores, predictor="laion-aesthetics-v1", view="both", view_model="all").model
    both = spark.table("both")
    assert [name for name in both.columns if name.startswith("aesthetic_score")] == [
        "aesthetic_score_laion_aesthetics_v1", "aesthetic_score_laion_aesthetics_v2",
    ]  # fmt: skip
    assert both.where("aesthetic_score_laion_aesthetics_v1 IS NULL").count() == 0
    score(spark, path, scores, view="one", view_model=v1)
    assert {row.aesthetic_model for row in spark.table("one").select("aesthetic_model").collect()} == {v1}
    for beside in (scores, f"{scores}-new"):
        with pytest.raises(TableError, match=f"--view-model: no model 'laion@1'.*{v2}"):
            score(spark, path, beside, view="one", view_model="laion@1")
    # The error comes before any work.
    assert not Path(f"{scores}-new").exists()
    assert {row.aesthetic_model for row in load(spark, scores).collect()} == {v1, v2}


def test_the_history_tells_which_run_scored_what(spark: SparkSession, source: Callable[..., str], scores: str) -> None:
    path = source(**{FEED: "true"})
    model = score(spark, path, scores, max_files_per_chunk=2).model
    spark.sql(f"DELETE FROM delta.`{path}` WHERE id < 2")
    append(spark, path, range(40, 43))
    score(spark, path, scores)
    commits = sa.history(spark, scores).collect()
    assert [commit.chunk for commit in commits] == [2, 1, 0]
    assert [commit.source_version for commit in commits][-1] == 0
    assert sum(commit.rows_written for commit in commits) == 23
    assert sum(commit.rows_deleted for commit in commits) == 2
    assert {commit.model for commit in commits} == {model}
    assert {commit.package_version for commit in commits} == {sa.__version__}
    assert len(Predictor.from_json(commits[0].predictor).head_sha256 or "") == 64
    assert json.loads(commits[0].options)["decode"] == "exact"
    comments = {column.name: column.metadata["comment"] for column in load(spark, scores).schema[1:]}
    assert "null if aesthetic_error has a reason" in comments["aesthetic_score"]


@pytest.mark.long
def test_scores_from_embeddings_between_two_chunks_are_not_there_twice(
    spark: SparkSession, source: Callable[..., str], scores: str
) -> None:
    path, head = source(), "laion-aesthetics-v2-ava"
    stopped = score(
        spark, path, scores, predictor=head, max_files_per_chunk=2, stopping=lambda: chunks_of(spark, scores) == 1
    )
    assert stopped.scored == 10
    score(spark, path, scores, with_embedding=False)
    # A run over images of the same backbone with `with_embedding` would leave these embeddings.
    spark.sql(f"ALTER TABLE delta.`{scores}` ADD COLUMNS (clip_embedding ARRAY<FLOAT>)")
    spark.sql(
        f"MERGE INTO delta.`{scores}` t USING delta.`{path}` s ON t.id = s.id AND t.aesthetic_model LIKE '%v2@%' "
        "WHEN MATCHED THEN UPDATE SET clip_embedding = s.e"
    )
    # Rows with an embedding that is newer than their score are scored again.
    assert sa.rescore_from_embeddings(spark, scores=scores, key=["id"], predictor=head).scored == 20
    assert score(spark, path, scores, predictor=head).scored == 0
    assert load(spark, scores).where(f"aesthetic_model = '{stopped.model}'").count() == 20


def test_a_new_head_scores_the_embeddings_that_were_kept(
    spark: SparkSession, tmp_path: Path, scores: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from spark_aesthetic.testing import noise_image, small_predictor

    images = spark.createDataFrame(
        [(seed, bytearray(noise_image(seed))) for seed in range(5)] + [(5, bytearray(b"no image"))],
        "id int, image binary",
    )
    path = str(tmp_path / "images")
    images.coalesce(1).write.format("delta").option(FEED, "true").save(path)
    one = small_predictor()
    other = Predictor(
        name="untrained-other-head",
        backbone=one.backbone,
        backbone_weights=one.backbone_weights,
        head_weights="untrained:7:384",
    )
    sa.score_table(spark, source=path, key=["id"], image_col="image", scores=scores, predictor=one, with_embedding=True)
    kept = load(spark, scores).select("id", "clip_embedding")
    assert {row.id for row in kept.where("clip_embedding IS NULL").collect()} == {5}
    # A row that has changed loses the embedding of its former image.
    spark.sql(f"UPDATE delta.`{path}` SET image = X'00' WHERE id = 4")
    sa.score_table(spark, source=path, key=["id"], image_col="image", scores=scores, predictor=one)
    assert {row.id for row in kept.where("clip_embedding IS NULL").collect()} == {4, 5}
    shutil.rmtree(path)
    # The job runs in this process and uses its session.
    other.save(tmp_path / "other.json")
    arguments = ["--rescore-from-embeddings", "--scores", scores, "--key", "id"]
    monkeypatch.setattr("sys.argv", ["score_table.py", *arguments, "--predictor", str(tmp_path / "other.json")])
    done = score_once()
    assert (done.rows_read, done.scored, done.failed) == (4, 4, 0)

    def made_of_embeddings() -> bool:
        found = load(spark, scores).where(f"aesthetic_model = '{done.model}'").select("id", "aesthetic_score")
        kept = load(spark, scores).where("clip_embedding IS NOT NULL")
        expected = kept.select("id", sa.aesthetic_score_from_embedding("clip_embedding", predictor=other))
        return dict(found.collect()) == pytest.approx(dict(expected.collect()), abs=1e-6)

    assert made_of_embeddings()
    assert sa.rescore_from_embeddings(spark, scores=scores, key=["id"], predictor=other).scored == 0
    # This embedding becomes newer than the score that was made from it.
    newer = "SET clip_embedding = transform(clip_embedding, x -> -x), aesthetic_scored_at = now() WHERE id = 2"
    spark.sql(f"UPDATE delta.`{scores}` {newer} AND clip_embedding IS NOT NULL")
    assert not made_of_embeddings()
    assert sa.rescore_from_embeddings(spark, scores=scores, key=["id"], predictor=other).scored == 1
    assert made_of_embeddings()
    with pytest.raises(TableError, match="other backbones"):
        sa.rescore_from_embeddings(spark, scores=scores, key=["id"], predictor="laion-aesthetics-v2")
