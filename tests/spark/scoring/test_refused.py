"""Errors that can be known before the work come before it, and unusual but valid arguments are accepted."""

from __future__ import annotations

import _thread
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import CONNECT, RunHere
from pyspark.sql import DataFrame, SparkSession

import spark_aesthetic as sa
from spark_aesthetic.errors import AestheticError, TableError
from spark_aesthetic.testing import PUBLISHED_SCORES, published_embeddings

pytestmark = pytest.mark.usefixtures("interpreted")
PUBLISHED = [row.astype(float).tolist() for row in published_embeddings()]
MAPPED, FEED = {"delta.columnMapping.mode": "name"}, "delta.enableChangeDataFeed"


def embeddings(spark: SparkSession, *columns: str) -> DataFrame:
    rows = spark.createDataFrame([(at, row) for at, row in enumerate(PUBLISHED)], "id int, e array<float>")
    return rows.selectExpr(*columns) if columns else rows


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., str]:
    """Return a function that writes a Delta table and returns its path."""

    def write(frame: DataFrame, name: str = "source", **properties: str) -> str:
        path = str(tmp_path / name)
        frame.coalesce(1).write.format("delta").options(**properties).save(path)
        return path

    return write


def score(spark: SparkSession, source: str, scores: str | None, **options: Any) -> sa.Summary:
    return sa.score_table(spark, **{"source": source, "key": "id", "embedding_col": "e", "scores": scores} | options)


def versions(spark: SparkSession, path: str) -> int:
    return spark.sql(f"DESCRIBE HISTORY delta.`{path}`").count()


def assert_published(spark: SparkSession, path: str, key: str = "id") -> None:
    found = {row[key]: row.aesthetic_score for row in spark.read.format("delta").load(path).collect()}
    assert [found[at] for at in range(10)] == pytest.approx(PUBLISHED_SCORES, abs=6e-4)


@pytest.mark.parametrize(
    ("columns", "properties", "options", "message"),
    [
        (["id", "e"], {"delta.appendOnly": "true"}, {}, r"delta\.appendOnly = true\. Score into .*--scores"),
        (["map(id, 1) AS m", "id", "e"], {}, {"key": "m"}, "--key: expected columns of simple types.*'m' of type map"),
        (["struct(id) AS s", "id", "e"], {}, {"key": ["id", "s"]}, "--key: expected columns of simple types.*'s'"),
        (["array(id) AS a", "id", "e"], {}, {"key": "a"}, "--key: expected columns of simple types.*'a' of type array"),
        (["id AS `_aesthetic_x`", "e"], {}, {"key": "_aesthetic_x"}, "--key: expected a name that does not begin with"),
        (["id", "e"], {}, {"scores": "nosuch.scores"}, "--scores 'nosuch.scores': expected a schema that exists"),
        (["id", "e"], {}, {"scores": "default.`it's`"}, "--scores .*expected ASCII letters, digits and _"),
        (["id", "e"], {}, {"scores": "a b"}, "table 'a b': expected a name or a path with a slash"),
        (["id", "e"], {}, {"scores": "NEW", "view": "`it's`"}, "--view: expected ASCII letters, digits and _"),
        (["id", "e"], {}, {"scores": "NEW", "view": "default.`a/b`"}, "--view: expected ASCII letters, digits and _"),
        (["id", "e"], {}, {"scores": "NEW", "view": "nosuch.`a/b`"}, "--view: expected a schema that exists"),
        (["id", "e"], {}, {"scores": "NEW", "view": "delta.`/data/v`"}, "--view: expected a schema that exists"),
        (["id", "e"], {}, {"scores": "NEW", "model_path": 5}, "model_path=5: expected a path, or None"),
        (["id", "e"], {}, {"scores": "NEW", "max_files_per_chunk": 10**400}, "max_files_per_chunk=1000.* …: expected"),
        (["id", "e"], {}, {"scores": "NEW", "view": "nosuch.v"}, "--view: expected a schema that exists"),
        (["id", "e"], {}, {"scores": "NEW", "view": "`v"}, "--view: expected a name for a view"),
        (["id", "e"], {}, {"scores": "NEW", "version_col": "id"}, "--version-col: expected a column that is neither"),
        (["id", "e"], {}, {"scores": "NEW", "version_col": "none"}, "--version-col: no column 'none'"),
        (["id", "e"], {}, {"scores": "NEW", "version_col": "e"}, "expected other columns than the scored one"),
        (["id", "e"], {}, {"scores": "s3://no-such-bucket/x"}, "No FileSystem for scheme|S3FileSystem|s3"),
        (["id", "e"], {}, {"scores": "NEW", "checkpoint": "nosuch://x/y"}, "--checkpoint 'nosuch:.*No FileSystem"),
        (["id", "e"], {}, {"shared_keys": True}, "--shared-keys: expected --scores with it"),
    ],
)  # fmt: skip
def test_what_can_be_known_is_refused_before_any_work(
    spark: SparkSession, table: Callable[..., str], tmp_path: Path, columns: list[str], properties: dict[str, str],
    options: dict[str, Any], message: str,
) -> None:  # fmt: skip
    source = table(embeddings(spark, *columns), **properties)
    options = {"scores": None} | options
    if options["scores"] == "NEW":
        options["scores"] = str(tmp_path / "new")
    with pytest.raises(AestheticError, match=message) as raised:
        score(spark, source, **options)
    assert "An error occurred while calling" not in str(raised.value)
    assert raised.value.__cause__ is not raised.value
    assert versions(spark, source) == 1
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(CONNECT, reason="there an error of a file system has no class of its own")
@pytest.mark.parametrize(("option", "message"), [("scores", "scores '/proc/"), ("checkpoint", "checkpoint '/proc/")])
def test_a_folder_that_cannot_be_made_is_one_line(
    spark: SparkSession, table: Callable[..., str], tmp_path: Path, option: str, message: str
) -> None:
    places = {"scores": str(tmp_path / "new"), option: "/proc/nosuch/x"}
    with pytest.raises(TableError, match=f"^{message}.*: expected a place that Spark can reach.*; grant access"):
        score(spark, table(embeddings(spark)), **places)


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_scores_table_of_another_shape_is_refused_also_in_a_dry_run(
    spark: SparkSession, table: Callable[..., str], dry_run: bool
) -> None:
    source = table(embeddings(spark))
    for name, columns, properties, message in (
        ("shape", ["id AS other"], {}, "column id: expected int, found none"),
        ("text", ["CAST(id AS string) AS id"], {}, "column id: expected int, found string"),
        ("closed", ["id", "1F AS aesthetic_score", "'' AS aesthetic_error", "'' AS aesthetic_model",
                    "now() AS aesthetic_scored_at"], {"delta.appendOnly": "true"}, "delta.appendOnly = true"),
    ):  # fmt: skip
        scores = table(embeddings(spark, *columns), name, **properties)
        with pytest.raises(TableError, match=message):
            score(spark, source, scores, dry_run=dry_run)
        assert versions(spark, scores) == 1


@pytest.mark.parametrize(
    "given",
    [["--dry-run"], ["--source", "/x"], ["--max-pixels", "7"], ["--view", "v", "--retry-failed"], ["--shared-keys"]],
)
def test_options_that_rescoring_ignores_are_refused(
    spark: SparkSession, run_here: RunHere, tmp_path: Path, given: list[str]
) -> None:
    arguments = ["--rescore-from-embeddings", "--scores", str(tmp_path / "scores"), "--key", "id", *given]
    with pytest.raises(SystemExit) as ended:
        run_here("score_table.py", *arguments)
    assert ended.value.code == 2


def test_a_key_that_is_too_short_or_too_long_is_refused(
    spark: SparkSession, table: Callable[..., str], tmp_path: Path
) -> None:
    source, scores = table(embeddings(spark, "id % 3 AS shard", "id", "'x' AS x", "e")), str(tmp_path / "scores")
    assert score(spark, source, scores, key=["shard", "id"]).scored == 10
    before = versions(spark, scores)
    for key in ("id", ["shard"], ["shard", "id", "x"]):
        for dry_run in (False, True):
            with pytest.raises(TableError, match=r"expected shard, id, the key of the scores .*, found another"):
                score(spark, source, scores, key=key, dry_run=dry_run)
    assert versions(spark, scores) == before
    # The order and the case of the key columns do not matter.
    assert score(spark, source, scores, key=["ID", "shard"]).skipped == 10


def test_a_table_of_an_earlier_release_is_asked_for_its_key_by_its_rows(
    spark: SparkSession, table: Callable[..., str], tmp_path: Path
) -> None:
    source = table(embeddings(spark, "id % 3 AS shard", "id", "e"))
    scores = str(tmp_path / "scores")
    score(spark, source, scores, key=["shard", "id"])
    names = [row.key for row in spark.sql(f"SHOW TBLPROPERTIES delta.`{scores}`").collect()]
    mine = [name for name in names if name == "spark_aesthetic.key" or name.startswith("spark_aesthetic.source/")]
    spark.sql(f"ALTER TABLE delta.`{scores}` UNSET TBLPROPERTIES ({', '.join(map(repr, mine))})")
    with pytest.raises(TableError, match="--key shard: expected a unique key"):
        score(spark, source, scores, key="shard")
    assert score(spark, source, scores, key=["shard", "id"]).skipped == 10
    names = [row.key for row in spark.sql(f"SHOW TBLPROPERTIES delta.`{scores}`").collect()]
    # The run has recorded the key. The sources are known by their progress.
    assert "spark_aesthetic.key" in names


def test_keys_that_need_column_mapping_get_it_in_the_scores(
    spark: SparkSession, table: Callable[..., str], tmp_path: Path
) -> None:
    key = ["id nr", "a;b", "(x)", "a=b"]
    columns = ["id AS `id nr`", *(f"'x' AS `{name}`" for name in key[1:]), "e"]
    source, scores = table(embeddings(spark, *columns), **MAPPED), str(tmp_path / "scores")
    for target in (scores, None):
        assert score(spark, source, target, key=key, max_files_per_chunk=1).scored == 10
        assert score(spark, source, target, key=key, max_files_per_chunk=1).skipped == 10
    assert_published(spark, scores, "id nr")
    assert_published(spark, source, "id nr")


def test_a_version_that_needs_column_mapping_names_the_statement(
    spark: SparkSession, table: Callable[..., str], tmp_path: Path
) -> None:
    source, scores = table(embeddings(spark, "id", "e", "'v' AS `the version`"), **MAPPED), str(tmp_path / "scores")
    score(spark, source, scores)
    with pytest.raises(TableError, match=r"column mapping.*'the version'.*ALTER TABLE .*columnMapping"):
        score(spark, source, scores, version_col="the version")


def test_a_widened_key_names_the_statements_and_goes_on_after_them(
    spark: SparkSession, table: Callable[..., str], tmp_path: Path
) -> None:
    source = table(embeddings(spark), **{"delta.enableTypeWidening": "true"})
    scores = str(tmp_path / "scores")
    score(spark, source, scores)
    spark.sql(f"ALTER TABLE delta.`{source}` ALTER COLUMN id TYPE bigint")
    with pytest.raises(TableError, match="column id: expected bigint, which the source has now, found int") as raised:
        score(spark, source, scores)
    first, second = str(raised.value).split("Run ")[1].split(", then ")
    spark.sql(first)
    spark.sql(second)
    rows = spark.createDataFrame([(2**40, PUBLISHED[0])], "id bigint, e array<float>")
    rows.write.format("delta").mode("append").save(source)
    assert score(spark, source, scores).scored == 1
    assert spark.read.format("delta").load(scores).count() == 11
    assert score(spark, source, scores).skipped == 11


# Names that this package uses itself


@pytest.mark.long
def test_keys_may_be_called_as_steps_of_ours(spark: SparkSession, table: Callable[..., str], tmp_path: Path) -> None:
    key = ["copies", "row", "last", "scored", "newest", "target", "source", "_changed", "_metadata", "where"]
    columns = ["id AS copies", *(f"'x' AS `{name}`" for name in key[1:]), "e"]
    source, scores = table(embeddings(spark, *columns), **{FEED: "true"}), str(tmp_path / "scores")
    assert score(spark, source, scores, key=key).scored == 10
    spark.sql(f"DELETE FROM delta.`{source}` WHERE copies = 3")
    spark.sql(f"UPDATE delta.`{source}` SET e = array(1F) WHERE copies = 4")
    done = score(spark, source, scores, key=key)
    assert (done.failed, done.dropped) == (1, 1)
    assert score(spark, source, scores, key=key, reconcile=True, retry_failed=True).failed == 1
    assert score(spark, source, None, key=key).failed == 1


# A sample may lead to a warning, but it does not decide


def test_rows_of_the_right_length_behind_many_others_are_scored(
    spark: SparkSession, table: Callable[..., str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = spark.range(1000, 2100).selectExpr("CAST(id AS int) AS id", "array_repeat(0.1F, 512) AS e")
    source = table(wrong)
    with pytest.raises(TableError, match=r"expected 768 numbers .* found 512\. Choose"):
        score(spark, source, str(tmp_path / "scores"))
    embeddings(spark).write.format("delta").mode("append").save(source)
    done = score(spark, source, str(tmp_path / "scores"))
    assert (done.scored, done.failed_by_reason) == (10, {"embedding: wrong length": 1100})
    if "found 512 in the first" not in caplog.text:
        # Without this warning, Delta has returned the rows of the right length first.
        assert spark.read.format("delta").load(source).limit(1000).where("size(e) = 768").count() > 0


# Paths


@pytest.mark.parametrize(
    "name",
    ["a[1] {x,y}?*~", *(pytest.param(name, marks=pytest.mark.long) for name in ("12:30", "100%", "*", "~", "a,b\\c"))],
)
def test_every_letter_of_a_path_stands_for_itself(spark: SparkSession, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "places" / name
    source, scores, checkpoint = (str(folder / part) for part in ("source", "scores", "checkpoint"))
    embeddings(spark).repartition(2).write.format("delta").save(source)
    assert score(spark, source, scores, max_files_per_chunk=1, checkpoint=checkpoint).scored == 10
    assert score(spark, source, scores, checkpoint=checkpoint).skipped == 10
    assert_published(spark, scores)
    spark.sql(f"DELETE FROM delta.`{scores}` WHERE id < 3")
    assert score(spark, source, scores, checkpoint=checkpoint).scored == 3
    assert score(spark, source, None, max_files_per_chunk=1).scored == 10
    assert [path.name for path in (tmp_path / "places").iterdir()] == [name]


@pytest.mark.skipif(CONNECT, reason="the home folder is that of the server's process, which has started before")
def test_a_tilde_is_the_home_folder(spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    embeddings(spark).write.format("delta").save(str(tmp_path / "home" / "source"))
    monkeypatch.chdir(tmp_path)
    assert score(spark, "~/source", "~/scores", checkpoint="~/state").scored == 10
    assert sorted(path.name for path in (tmp_path / "home").iterdir()) == ["scores", "source", "state"]
    assert not (tmp_path / "~").exists()


def test_a_table_named_as_sql_names_a_path_is_that_path(
    spark: SparkSession, table: Callable[..., str], tmp_path: Path
) -> None:
    source, scores = table(embeddings(spark)), str(tmp_path / "scores")
    assert score(spark, f"delta.`{source}`", f"delta.`{scores}`").scored == 10
    assert score(spark, source, scores).skipped == 10


def test_a_job_that_cannot_reach_a_place_says_why_in_one_line(
    spark: SparkSession, run_here: RunHere, table: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    source = table(embeddings(spark))
    with pytest.raises(SystemExit) as ended:
        run_here(
            "score_table.py", "--source", source, "--key", "id", "--embedding-col", "e", "--scores", "nosuch://b/x"
        )
    assert ended.value.code == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("score_table:")]
    assert len(told) == 1
    assert "'nosuch://b/x'" in told[0]
    assert 'No FileSystem for scheme "nosuch"' in told[0]


@pytest.mark.skipif(CONNECT, reason="there PySpark's handler of an interrupt ends the server that it has started")
def test_a_cell_that_is_interrupted_leaves_no_stream_at_work(
    spark: SparkSession, table: Callable[..., str], tmp_path: Path
) -> None:
    source, scores = table(embeddings(spark)), tmp_path / "scores"

    def interrupt() -> None:
        # The ledger makes three commits before the commit of the first chunk.
        while len(list(scores.glob("_delta_log/*.json"))) < 4:
            time.sleep(0.05)
        _thread.interrupt_main()

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        score(spark, source, str(scores), every="1 second")
    before = versions(spark, str(scores))
    embeddings(spark).selectExpr("id + 50 AS id", "e").write.format("delta").mode("append").save(source)
    time.sleep(5)
    assert versions(spark, str(scores)) == before
    done = score(spark, source, str(scores))
    assert spark.read.format("delta").load(str(scores)).count() == 20
    assert (done.rows_read, done.skipped) == (20, 20 - done.scored)
