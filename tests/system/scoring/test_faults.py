"""After a kill, a full disk or two runs at once, the scores are those of a run that nothing disturbed.

`make test-faults` kills ten times and runs all of these tests. `make test` kills once and leaves out the longest.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from processes import Job, commits, until
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

import spark_aesthetic as sa
from spark_aesthetic.testing import noise_image, published_embeddings, small_predictor

KILLS = int(os.environ.get("SPARK_AESTHETIC_KILLS", "1"))
# There are more chunks than the kills interrupt.
FILES = 2 + 4 * KILLS
ROWS = 10 * FILES
# Each kill takes a spark-submit of its own.
pytestmark = pytest.mark.timeout(300 + 60 * KILLS)
PUBLISHED = [row.astype(float).tolist() for row in published_embeddings()]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Job]]:
    """Return a function that starts a job by the name of its log.

    All jobs are killed at the end, so that none disturbs the next test.
    """
    jobs: list[Job] = []

    def start(name: str, *arguments: str, **options: str) -> Job:
        jobs.append(Job(tmp_path / f"{name}.log", *arguments, **options))
        return jobs[-1]

    yield start
    for job in jobs:
        job.kill()


@pytest.fixture
def source(spark: SparkSession, tmp_path: Path) -> str:
    """Write a table with ten rows in each file, so that each file can be a chunk."""
    rows = [(at, PUBLISHED[at % 10]) for at in range(ROWS)]
    path = str(tmp_path / "source")
    frame = spark.createDataFrame(rows, "id bigint, e array<float>")
    frame.repartitionByRange(FILES, "id").write.format("delta").save(path)
    return path


def assert_undisturbed(spark: SparkSession, source: str, scores: str) -> None:
    expected = spark.read.format("delta").load(source).select("id", sa.aesthetic_score_from_embedding("e"))
    found = spark.read.format("delta").load(scores).select("id", "aesthetic_score")
    assert sorted((at, round(score, 5)) for at, score in found.collect()) == sorted(
        (at, round(score, 5)) for at, score in expected.collect()
    )


def arguments(source: str, scores: str) -> tuple[str, ...]:
    return ("--source", source, "--key", "id", "--embedding-col", "e", "--scores", scores, "--max-files-per-chunk", "1")


def test_a_driver_that_is_killed_at_any_moment_goes_on_where_it_stopped(
    spark: SparkSession, source: str, tmp_path: Path, start: Callable[..., Job]
) -> None:
    scores, chance = str(tmp_path / "scores"), random.Random(20261124)
    for number in range(KILLS):
        job = start(f"{number}", *arguments(source, scores))
        begun = commits(scores)
        until(lambda begun=begun: commits(scores) > begun, job)  # type: ignore[misc]
        # Two to four chunks take this time, so the kill comes while one is read, scored, committed or recorded.
        time.sleep(chance.uniform(0.0, 2.5))
        job.kill()
        found = spark.read.format("delta").load(scores).groupBy("id").count()
        assert found.where("count > 1").count() == 0
        assert found.count() < ROWS
    job = start("last", *arguments(source, scores))
    assert job.wait() == 0, job.log.read_text()[-3000:]
    assert_undisturbed(spark, source, scores)
    # No chunk was committed a second time.
    history = sa.history(spark, scores).where("rows_written > 0")
    assert history.count() == history.select("chunk").distinct().count() == FILES


@pytest.mark.long
def test_two_runs_at_once_leave_what_one_would(
    spark: SparkSession, source: str, tmp_path: Path, start: Callable[..., Job]
) -> None:
    scores = str(tmp_path / "scores")
    jobs = [start(f"{number}", *arguments(source, scores)) for number in range(2)]
    codes = [job.wait() for job in jobs]
    logs = [job.log.read_text()[-3000:] for job in jobs]
    assert set(codes) <= {0, 2}, logs
    for code, log in zip(codes, logs, strict=True):
        assert code == 0 or "score_table: scores" in log, log
    job = start("last", *arguments(source, scores))
    assert job.wait() == 0, job.log.read_text()[-3000:]
    assert_undisturbed(spark, source, scores)


@pytest.mark.long
def test_a_worker_and_an_executor_that_are_killed_cost_no_row(
    spark: SparkSession, tmp_path: Path, start: Callable[..., Job]
) -> None:
    source, scores, predictor = str(tmp_path / "images"), str(tmp_path / "scores"), tmp_path / "small.json"
    small = small_predictor()
    small.save(predictor)
    images = [(at, bytearray(noise_image(at, width=640, height=480))) for at in range(160)]
    spark.createDataFrame(images, "id bigint, image binary").repartitionByRange(8, "id").write.format("delta").save(
        source
    )
    job = start(
        "job", "--source", source, "--key", "id", "--image-col", "image", "--scores", scores,
        "--max-files-per-chunk", "2", "--predictor", str(predictor), master="local-cluster[2,1,1024]",
    )  # fmt: skip
    until(lambda: commits(scores) > 2, job)
    until(lambda: job.children("pyspark.daemon"), job)
    job.children("pyspark.daemon")[-1].kill()
    until(lambda: commits(scores) > 3, job)
    job.children("CoarseGrainedExecutorBackend")[0].kill()
    job.wait()
    # The exit code is not checked. At its end a local-cluster may take its own shutdown for failing executors and exit
    # with 1.
    assert '"scored": 160, "failed": 0' in job.log.read_text(), job.log.read_text()[-3000:]
    found = spark.read.format("delta").load(scores)
    expected = spark.read.format("delta").load(source)
    expected = expected.select("id", sa.score_image("image", predictor=small).getField("score").alias("score"))
    both = found.join(expected, "id", "full").select(F.abs(F.col("aesthetic_score") - F.col("score")).alias("off"))
    assert [row.off for row in both.where("off IS NULL OR off > 1e-4").collect()] == []
    assert found.count() == 160


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("a small file system cannot be mounted here: that needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.long
def test_a_disk_that_is_full_at_a_commit_loses_nothing(
    spark: SparkSession, source: str, small_disk: Path, start: Callable[..., Job]
) -> None:
    scores = str(small_disk / "scores")
    job = start("full", *arguments(source, scores))
    assert job.wait() == 2
    line = r"^score_table: expected room on disk .*No space left on device"
    assert re.search(line, job.log.read_text(), re.MULTILINE)
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    job = start("last", *arguments(source, scores))
    assert job.wait() == 0, job.log.read_text()[-3000:]
    assert_undisturbed(spark, source, scores)


@pytest.mark.long
def test_files_that_are_rewritten_while_a_run_is_at_work_are_no_new_rows(
    spark: SparkSession, source: str, tmp_path: Path, start: Callable[..., Job]
) -> None:
    scores = str(tmp_path / "scores")
    job = start("job", *arguments(source, scores))
    until(lambda: commits(scores) > 4, job)
    spark.sql(f"OPTIMIZE delta.`{source}`")
    assert job.wait() == 0, job.log.read_text()[-3000:]
    assert_undisturbed(spark, source, scores)


@pytest.mark.long
def test_a_stream_ends_after_its_chunk_on_sigterm_and_goes_on_later(
    spark: SparkSession, source: str, tmp_path: Path, start: Callable[..., Job]
) -> None:
    scores = str(tmp_path / "scores")
    for number, expected in enumerate((ROWS, ROWS + 10)):
        if number:
            more = [(at, PUBLISHED[at % 10]) for at in range(ROWS, ROWS + 10)]
            spark.createDataFrame(more, "id bigint, e array<float>").write.format("delta").mode("append").save(source)
        stream = ("--every", "1 second", *arguments(source, scores))
        job = start(f"{number}", *stream, script="jobs/score_stream.py")

        def all_scored(expected: int = expected) -> bool:
            return commits(scores) > 0 and spark.read.format("delta").load(scores).count() == expected

        until(all_scored, job)
        job.process.send_signal(signal.SIGTERM)
        assert job.wait() == 0, job.log.read_text()[-3000:]
        assert f'"scored": {ROWS if number == 0 else 10},' in job.log.read_text()
    assert_undisturbed(spark, source, scores)


def kill_after_a_commit(job: Job, table: str, chance: random.Random) -> None:
    """Kill a job after its next commit to a table, while a further one is read, scored, made or recorded."""
    begun = commits(table)
    until(lambda: commits(table) > begun, job)
    time.sleep(chance.uniform(0.0, 1.0))
    assert job.process.poll() is None, "it ended before it could be killed"
    job.kill()


def change(spark: SparkSession, source: str, scores: str, way: str) -> tuple[str, ...]:
    """Give a later run work for many commits, and return the options that the run needs."""
    if way == "feed":
        for number in range(8):
            spark.sql(f"UPDATE delta.`{source}` SET e = array_repeat({number + 1}F, 768) WHERE id % 8 = {number}")
        spark.sql(f"DELETE FROM delta.`{source}` WHERE id % 8 = 3")
        return ()
    if way == "reconcile":
        spark.sql(f"DELETE FROM delta.`{scores}` WHERE id % 2 = 0")
        spark.sql(f"DELETE FROM delta.`{source}` WHERE id % 10 = 7")
    else:
        failed = "aesthetic_score = NULL, aesthetic_error = 'decode: out of memory'"
        spark.sql(f"UPDATE delta.`{scores}` SET {failed} WHERE id % 2 = 0")
    # With this limit, each part of the keys has the rows of one file.
    return (f"--{way}", "--max-bytes-per-chunk", "1000")


@pytest.mark.long
# The limit is for three runs and the preparation of the source.
@pytest.mark.timeout(900)
@pytest.mark.parametrize("way", ["feed", "reconcile", "retry-failed"])
def test_a_later_run_that_is_killed_ends_as_if_nothing_had_been(
    spark: SparkSession, source: str, tmp_path: Path, start: Callable[..., Job], way: str
) -> None:
    scores, chance = str(tmp_path / "scores"), random.Random(20261125)
    if way == "feed":
        spark.sql(f"ALTER TABLE delta.`{source}` SET TBLPROPERTIES (delta.enableChangeDataFeed = true)")
    sa.score_table(spark, source=source, key=["id"], embedding_col="e", scores=scores)
    options = change(spark, source, scores, way)
    for number in range(2):
        kill_after_a_commit(start(f"{number}", *arguments(source, scores), *options), scores, chance)
        found = spark.read.format("delta").load(scores)
        assert found.count() == found.select("id").distinct().count()
    job = start("last", *arguments(source, scores), *options)
    assert job.wait() == 0, job.log.read_text()[-3000:]
    assert_undisturbed(spark, source, scores)
    assert spark.read.format("delta").load(scores).where("aesthetic_error IS NOT NULL").isEmpty()


@pytest.mark.long
# The limit is for three runs and the preparation of the source.
@pytest.mark.timeout(900)
@pytest.mark.parametrize("way", ["staged", "at once"])
def test_in_place_a_run_that_is_killed_ends_as_if_nothing_had_been(
    spark: SparkSession, source: str, start: Callable[..., Job], way: str
) -> None:
    chance, staged = random.Random(20261126), f"{source}_spark_aesthetic/staged"
    before = spark.read.format("delta").load(source).collect()
    given = ("--source", source, "--key", "id", "--embedding-col", "e")
    if way == "staged":
        given = (*given, "--max-files-per-chunk", "1")
        kill_after_a_commit(start("a chunk", *given), staged, chance)
    # The columns are added in a commit right before the MERGE. The job is killed after that commit.
    job, begun = start("the MERGE", *given), commits(source)
    until(lambda: commits(source) > begun, job)
    job.kill()
    job = start("last", *given)
    assert job.wait() == 0, job.log.read_text()[-3000:]
    assert_undisturbed(spark, source, source)
    assert sorted(spark.read.format("delta").load(source).select("id", "e").collect()) == sorted(before)
