"""A second source of a scores table is refused, or shared on purpose, and no key has two rows of one model."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from conftest import CONNECT, RunHere, own_session
from processes import Job, until
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

import spark_aesthetic as sa
from spark_aesthetic.cli.scoring import score_stream_arguments, score_table_arguments
from spark_aesthetic.errors import SourceChangedError, TableError
from spark_aesthetic.predictors import weights
from spark_aesthetic.testing import PUBLISHED_SCORES, published_embeddings

pytestmark = pytest.mark.usefixtures("interpreted")
PUBLISHED = [row.astype(float).tolist() for row in published_embeddings()]
V2 = weights.pin(sa.resolve("laion-aesthetics-v2"))
_number = count()


def rows(spark: SparkSession, ids: range, shift: int = 0) -> DataFrame:
    """Return rows with embeddings that follow from the ids.

    `shift` gives the same ids different embeddings.
    """
    return spark.createDataFrame([(at, PUBLISHED[(at + shift) % 10]) for at in ids], "id bigint, e array<float>")


@pytest.fixture
def table(spark: SparkSession, tmp_path: Path) -> Callable[..., str]:
    """Return a function that writes a table of some ids in some files."""

    def make(name: str, ids: range, shift: int = 0, files: int = 1, **properties: str) -> str:
        path = str(tmp_path / name)
        frame = rows(spark, ids, shift)
        frame.repartitionByRange(files, "id").write.format("delta").options(**properties).save(path)
        return path

    return make


@pytest.fixture
def scores(tmp_path: Path) -> str:
    return str(tmp_path / "scores")


def score(spark: SparkSession, source: str, scores: str, **options: Any) -> sa.Summary:
    return sa.score_table(spark, source=source, key="id", embedding_col="e", scores=scores, **options)


def append(spark: SparkSession, source: str, ids: range, shift: int = 0) -> None:
    rows(spark, ids, shift).write.format("delta").mode("append").save(source)


def found(spark: SparkSession, scores: str) -> dict[int, int]:
    """Return for each id the number of the published embedding that has its score.

    Fail if an id has two rows of one model.
    """
    listed = spark.read.format("delta").load(scores).collect()
    keys = [(row.id, row.aesthetic_model) for row in listed]
    assert len(set(keys)) == len(keys), sorted(keys)
    assert all(row.aesthetic_score is not None for row in listed)
    return {row.id: min(range(10), key=lambda at: abs(PUBLISHED_SCORES[at] - row.aesthetic_score)) for row in listed}


def expected(ids: Iterable[int], shift: int = 0) -> dict[int, int]:
    return {at: (at + shift) % 10 for at in ids}


def version(spark: SparkSession, scores: str) -> int:
    return int(spark.sql(f"DESCRIBE HISTORY delta.`{scores}` LIMIT 1").collect()[0].version)


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"dry_run": True}, marks=pytest.mark.long),
        pytest.param({"reconcile": True}, marks=pytest.mark.long),
        pytest.param({"predictor": "laion-aesthetics-v1"}, id="another model", marks=pytest.mark.long),
        pytest.param({"view": "of_two_sources"}, marks=pytest.mark.long),
        pytest.param({"retry_failed": True}, marks=pytest.mark.long),
        pytest.param({"checkpoint": "elsewhere"}, marks=pytest.mark.long),
        pytest.param({"every": "1 minute"}, marks=pytest.mark.long),
    ],
    ids=str,
)
def test_a_second_source_is_refused_before_any_work(
    spark: SparkSession, table: Callable[..., str], scores: str, tmp_path: Path, options: dict[str, Any]
) -> None:
    train, other = table("train", range(4)), table("val", range(4), shift=5)
    score(spark, train, scores)
    before = version(spark, scores)
    if "checkpoint" in options:
        options = {"checkpoint": str(tmp_path / options["checkpoint"])}
    with pytest.raises(TableError, match=r"expected .*, found .*--shared-keys") as refused:
        score(spark, other, scores, **options)
    # A different scores table is the second remedy. The message names both sources.
    assert "--scores" in str(refused.value)
    assert "train" in str(refused.value)
    assert "val" in str(refused.value)
    assert not isinstance(refused.value, SourceChangedError)
    assert version(spark, scores) == before
    assert not (tmp_path / "elsewhere").exists()
    append(spark, train, range(4, 6))
    done = score(spark, train, scores)
    assert (done.scored, done.skipped) == (2, 4)
    assert found(spark, scores) == expected(range(6))


def test_the_job_ends_with_exit_code_2_and_one_line(
    spark: SparkSession, table: Callable[..., str], scores: str, run_here: RunHere, capsys: pytest.CaptureFixture[str]
) -> None:
    train, other = table("train", range(4)), table("val", range(2, 6), shift=5)
    given = ("--key", "id", "--embedding-col", "e", "--scores", scores)
    run_here("score_table.py", "--source", train, *given)
    with pytest.raises(SystemExit) as ended:
        run_here("score_table.py", "--source", other, *given)
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    said = [line for line in err.splitlines() if line.startswith("score_table: ")]
    assert len(said) == 1
    assert "--shared-keys" in said[0]
    assert "Traceback" not in err
    summary = run_here("score_table.py", "--source", other, *given, "--shared-keys")
    assert (summary["rows_read"], summary["scored"], summary["skipped"]) == (4, 2, 2)


@pytest.mark.parametrize("arguments", [score_table_arguments, score_stream_arguments])
def test_both_jobs_take_the_option(
    arguments: Callable[[], argparse.Namespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["job", "--source", "a", "--key", "id", "--image-col", "i", "--scores", "s"]
    for more, expected in (["--shared-keys"], True), ([], False):
        monkeypatch.setattr("sys.argv", [*given, *more])
        assert arguments().shared_keys is expected


@pytest.mark.parametrize("feed", ["false", pytest.param("true", marks=pytest.mark.long)])
def test_with_shared_keys_equal_keys_are_skipped_and_counted(
    spark: SparkSession, table: Callable[..., str], scores: str, feed: str
) -> None:
    properties = {"delta.enableChangeDataFeed": feed}
    train, other = table("train", range(5), **properties), table("val", range(3, 9), shift=5, **properties)
    score(spark, train, scores)
    told = score(spark, other, scores, shared_keys=True, dry_run=True)
    assert (told.rows_read, told.to_score, told.skipped) == (6, 4, 2)
    done = score(spark, other, scores, shared_keys=True)
    assert (done.rows_read, done.scored, done.failed, done.skipped) == (6, 4, 0, 2)
    both = expected(range(5)) | expected(range(5, 9), shift=5)
    assert found(spark, scores) == both
    append(spark, train, range(8, 11))
    done = score(spark, train, scores, shared_keys=True)
    # A feed does not show whether a later row existed before and was different, so such a row is scored.
    new = range(8, 11) if feed == "true" else range(9, 11)
    assert (done.rows_read, done.scored, done.skipped) == (8, len(new), 8 - len(new))
    assert found(spark, scores) == both | expected(new)
    assert score(spark, other, scores, shared_keys=True).skipped == 6
    # A third source needs --shared-keys too.
    with pytest.raises(TableError, match="--shared-keys"):
        score(spark, table("test", range(20, 22)), scores)


@pytest.mark.long
def test_a_row_that_comes_again_as_another_one_gets_its_own_score(
    spark: SparkSession, table: Callable[..., str], scores: str
) -> None:
    properties = {"delta.enableChangeDataFeed": "true"}
    train, other = table("train", range(4), **properties), table("val", range(10, 12), **properties)
    score(spark, train, scores)
    score(spark, other, scores, shared_keys=True)
    spark.sql(f"DELETE FROM delta.`{train}` WHERE id = 1")
    score(spark, train, scores)
    append(spark, train, range(1, 2), shift=5)
    score(spark, train, scores)
    assert found(spark, scores) == expected([0, 2, 3, 10, 11]) | expected([1], shift=5)


def test_shared_keys_of_the_first_source_change_nothing(
    spark: SparkSession, table: Callable[..., str], scores: str
) -> None:
    source = table("source", range(4))
    for scored in (4, 0):
        done = score(spark, source, scores, shared_keys=True)
        assert (done.scored, done.skipped) == (scored, 4 - scored)
    assert found(spark, scores) == expected(range(4))


def chunks(scores: str) -> int:
    """Return the number of commits that added files to a table."""
    logs = Path(scores, "_delta_log").glob("*.json")
    return sum('"add":' in log.read_text() for log in logs)


FILES, ROWS = 8, 40


@pytest.fixture
def killed(tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Return a function that starts a job and sends SIGKILL to its driver after some of its chunks."""
    jobs: list[Job] = []

    def run(source: str, scores: str, after: int, *options: str) -> None:
        given = ("--source", source, "--key", "id", "--embedding-col", "e", "--scores", scores)
        job = Job(tmp_path / f"job{len(jobs)}.log", *given, "--max-files-per-chunk", "1", *options)
        jobs.append(job)
        begun = chunks(scores)
        until(lambda: chunks(scores) >= begun + after, job)
        assert job.process.poll() is None, "it ended before it could be killed"
        job.kill()

    yield run
    for job in jobs:
        job.kill()


@own_session
# Each kill needs a driver of its own.
@pytest.mark.timeout(600)
@pytest.mark.long
@pytest.mark.parametrize("feed", ["false", "true"])
def test_a_kill_between_two_sources_leaves_each_key_once(
    spark: SparkSession, table: Callable[..., str], scores: str, killed: Callable[..., None], feed: str
) -> None:
    properties = {"delta.enableChangeDataFeed": feed}
    one = table("one", range(ROWS), files=FILES, **properties)
    other = table("other", range(ROWS), shift=5, files=2, **properties)
    killed(one, scores, 2)
    by_one = found(spark, scores)
    assert 0 < len(by_one) < ROWS
    done = score(spark, other, scores, shared_keys=True)
    assert (done.scored, done.skipped) == (ROWS - len(by_one), len(by_one))
    done = score(spark, one, scores, shared_keys=True)
    assert (done.scored, done.skipped) == (0, ROWS)
    rest = {at: content for at, content in expected(range(ROWS), shift=5).items() if at not in by_one}
    assert found(spark, scores) == by_one | rest


@own_session
@pytest.mark.long
# This test starts two drivers.
@pytest.mark.timeout(900)
def test_both_killed_and_both_resumed_leave_each_key_once(
    spark: SparkSession, table: Callable[..., str], scores: str, killed: Callable[..., None]
) -> None:
    one = table("one", range(ROWS), files=FILES)
    # The order is different, so that each source has chunks with keys of the other one.
    other = table("other", range(ROWS - 1, -1, -1), shift=5, files=FILES)
    killed(one, scores, 1)
    killed(other, scores, 1, "--shared-keys")
    for source in (one, other, one):
        score(spark, source, scores, shared_keys=True)
        assert set(found(spark, scores)) == set(range(ROWS))


@pytest.mark.long
@pytest.mark.skipif(CONNECT, reason="there a run asks once a second whether to stop, not before each chunk")
def test_runs_that_are_stopped_between_chunks_leave_each_key_once(
    spark: SparkSession, table: Callable[..., str], scores: str
) -> None:
    one, other = table("one", range(12), files=3), table("other", range(12), shift=5, files=2)

    def stopped_after(number: int) -> Callable[[], bool]:
        return lambda: Path(scores).exists() and chunks(scores) >= number

    assert score(spark, one, scores, max_files_per_chunk=1, stopping=stopped_after(1)).scored == 4
    done = score(spark, other, scores, max_files_per_chunk=1, shared_keys=True, stopping=stopped_after(2))
    assert 0 < done.scored < 8
    score(spark, one, scores, max_files_per_chunk=1, shared_keys=True)
    assert set(found(spark, scores)) == set(range(12))
    assert score(spark, other, scores, max_files_per_chunk=1, shared_keys=True).scored == 0
    assert set(found(spark, scores)) == set(range(12))


@pytest.mark.skipif(
    CONNECT, reason="Spark gives each run's own process ten seconds to start: two take more on two cores"
)
def test_two_sources_at_once_leave_each_key_once(spark: SparkSession, table: Callable[..., str], scores: str) -> None:
    sources = [table("one", range(12), files=6), table("other", range(12), shift=5, files=6)]
    # The scores table knows both sources first, so that the runs meet at their chunks.
    for source in sources:
        score(spark, source, scores, shared_keys=True, stopping=lambda: True)

    def run(source: str) -> Exception | None:
        try:
            score(spark.newSession(), source, scores, shared_keys=True, max_files_per_chunk=1)
        except TableError as error:
            return error
        return None

    with ThreadPoolExecutor(2) as pool:
        refused = list(pool.map(run, sources))
    assert None in refused, refused
    for source in sources:
        score(spark, source, scores, shared_keys=True)
    assert set(found(spark, scores)) == set(range(12))


def old_scores(spark: SparkSession, source: str, scores: str) -> None:
    """Write a scores table as commit 55e0716 did, with the progress on a source in one property."""
    kinds = {"aesthetic_score": "FLOAT", "aesthetic_error": "STRING", "aesthetic_model": "STRING"}
    columns = ", ".join(f"{name} {kind}" for name, kind in {**kinds, "aesthetic_scored_at": "TIMESTAMP"}.items())
    spark.sql(f"CREATE TABLE delta.`{scores}` (id BIGINT, {columns}) USING delta")
    detail = spark.sql(f"DESCRIBE DETAIL delta.`{source}`").collect()[0]
    checkpoint, generation = "0123456789ab", 1795000000000
    progress = {
        "checkpoint": checkpoint, "generation": generation, "began_empty": False, "feed": False,
        "starting_version": None, "backbone": f"{V2.backbone}@{V2.backbone_sha256}", "location": detail.location,
        "comparing": False,
    }  # fmt: skip
    name = f"spark_aesthetic.{V2.model_id}/{detail.id}"
    spark.sql(f"ALTER TABLE delta.`{scores}` SET TBLPROPERTIES ('{name}' = '{json.dumps(progress)}')")
    now = datetime.now(timezone.utc)
    info = {
        "spark_aesthetic": "0.1.0", "model": V2.model_id, "predictor": V2.to_json(), "options": "{}",
        "source": f"delta.`{source}`", "source_id": detail.id, "source_version": 0, "checkpoint": checkpoint,
        "chunk": 0, "scored_at": now.isoformat(),
    }  # fmt: skip

    def write(batch: DataFrame, number: int) -> None:
        made = {
            "aesthetic_score": sa.aesthetic_score_from_embedding("e"),
            "aesthetic_error": F.lit(None).cast("string"),
            "aesthetic_model": F.lit(V2.model_id),
            "aesthetic_scored_at": F.lit(now),
        }
        options = {
            "userMetadata": json.dumps(info), "txnAppId": name, "txnVersion": str((generation << 20) + number),
        }  # fmt: skip
        batch.withColumns(made).drop("e").write.format("delta").options(**options).mode("append").save(scores)

    stream = spark.readStream.format("delta").option("maxBytesPerTrigger", str(8 << 30)).load(source)
    writer = stream.select("id", "e").writeStream.foreachBatch(write).trigger(availableNow=True)
    writer.option("checkpointLocation", f"{scores}/_spark_aesthetic/{checkpoint}").start().awaitTermination()


@pytest.mark.skipif(CONNECT, reason="its own stream writes with functions of this file, which the server does not have")
def test_a_scores_table_of_an_earlier_version_goes_on_for_its_own_source(
    spark: SparkSession, table: Callable[..., str], scores: str
) -> None:
    source = table("source", range(6))
    old_scores(spark, source, scores)
    assert found(spark, scores) == expected(range(6))
    # The earlier table knows its source too.
    with pytest.raises(TableError, match="--shared-keys"):
        score(spark, table("other", range(6), shift=5), scores)
    done = score(spark, source, scores)
    assert (done.scored, done.skipped) == (0, 6)
    append(spark, source, range(6, 8))
    done = score(spark, source, scores)
    assert (done.scored, done.skipped, done.chunks) == (2, 6, 1)
    assert found(spark, scores) == expected(range(8))
    with pytest.raises(TableError, match="--shared-keys"):
        score(spark, table("third", range(6), shift=5), scores)


@pytest.mark.long
def test_a_source_by_other_names_is_one_source(
    spark: SparkSession, tmp_path: Path, scores: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, path = f"default.two_sources_{next(_number)}", str(tmp_path / "source")
    rows(spark, range(4)).write.format("delta").option("path", path).saveAsTable(name)
    assert score(spark, name, scores).scored == 4
    monkeypatch.chdir(tmp_path)
    for other in (path, f"{path}/", f"file:{path}", f"file://{path}", "./source", f"{tmp_path}/./x/../source"):
        done = score(spark, other, scores)
        assert (other, done.scored, done.skipped) == (other, 0, 4)
    append(spark, path, range(4, 6))
    assert score(spark, f"file:{path}/", scores).scored == 2
    assert score(spark, name.upper(), scores, reconcile=True).scored == 0
    assert found(spark, scores) == expected(range(6))


def test_a_source_that_was_moved_is_the_same_and_a_copy_of_its_files_is_refused(
    spark: SparkSession, table: Callable[..., str], tmp_path: Path, scores: str
) -> None:
    source, moved, copy = table("source", range(4)), str(tmp_path / "moved"), str(tmp_path / "copy")
    score(spark, source, scores)
    # The copy has the id that Delta gave to the source.
    shutil.copytree(source, copy)
    append(spark, copy, range(4, 6), shift=5)
    for shared_keys in (False, True):
        with pytest.raises(TableError, match="a copy of the files of"):
            score(spark, copy, scores, shared_keys=shared_keys)
    Path(source).rename(moved)
    append(spark, moved, range(4, 6))
    assert score(spark, moved, scores).scored == 2
    assert found(spark, scores) == expected(range(6))


@pytest.mark.parametrize("named", [False, pytest.param(True, marks=pytest.mark.long)], ids=["by path", "by name"])
def test_a_source_that_was_made_anew_in_its_place_asks_for_reconcile(
    spark: SparkSession, tmp_path: Path, scores: str, named: bool
) -> None:
    path = str(tmp_path / "source")
    source = f"default.two_sources_{next(_number)}" if named else path

    def make(ids: range) -> None:
        spark.sql(f"DROP TABLE IF EXISTS {source}") if named else None
        shutil.rmtree(path, ignore_errors=True)
        writer = rows(spark, ids).write.format("delta")
        writer.option("path", path).saveAsTable(source) if named else writer.save(path)

    make(range(6))
    score(spark, source, scores)
    make(range(4, 9))
    for options in ({}, {"shared_keys": True}):
        with pytest.raises(SourceChangedError, match=r"a new table in its place.*--reconcile"):
            score(spark, source, scores, **options)
    done = score(spark, source, scores, reconcile=True)
    assert (done.scored, done.dropped) == (3, 4)
    assert found(spark, scores) == expected(range(4, 9))
    assert score(spark, source, scores).skipped == 5
