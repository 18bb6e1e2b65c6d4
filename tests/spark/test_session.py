"""Calls change nothing in the user's session, not even for a moment, and its settings do not change their results."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import StringIO
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from conftest import CONNECT
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

import spark_aesthetic as sa
from spark_aesthetic.curation.keeping import write_kept
from spark_aesthetic.errors import AestheticError
from spark_aesthetic.testing import noise_image, published_embeddings

pytestmark = pytest.mark.usefixtures("interpreted")
classic = pytest.mark.skipif(CONNECT, reason="looks at the session through its JVM")
PUBLISHED = [row.astype(float).tolist() for row in published_embeddings()]
FEED = {"delta.enableChangeDataFeed": "true"}
_number = count()


class Watcher:
    """A thread that checks, as often as it can, what a call must not change in a session.

    Attributes:
        seen: Each state of the session that differs from the first one.
        looks: The number of checks.
    """

    def __init__(self, spark: SparkSession) -> None:
        self._session = spark._jsparkSession
        self.seen: list[str] = []
        self.looks = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._settings, self._names = self._session.conf().getAll(), self._state()

    def _state(self) -> tuple[str, ...]:
        state = self._session.sessionState()
        catalog = state.catalog()
        return (
            f"database {catalog.getCurrentDatabase()}",
            f"catalog {state.catalogManager().currentCatalog().name()}",
            f"views {catalog.listLocalTempViews('*').mkString(', ')}",
            f"functions {catalog.listTemporaryFunctions().mkString(', ')}",
        )

    def _watch(self) -> None:
        while not self._done.is_set():
            settings = self._session.conf().getAll()
            # The JVM compares the settings, so that a check takes a millisecond.
            if not settings.equals(self._settings):
                self._note(str(settings.toSet().diff(self._settings.toSet()).mkString(", ")) or "a setting is gone")
            if self.looks % 4 == 0 and (names := self._state()) != self._names:
                self._note(*set(names) - set(self._names))
            self.looks += 1

    def _note(self, *what: str) -> None:
        self.seen += [name for name in what if name not in self.seen]

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def properties_of_thread(spark: SparkSession) -> dict[str, str]:
    """Return the properties that Spark keeps for this thread: its job group, description, tags and pool."""
    found = spark.sparkContext._jsc.sc().getLocalProperties()
    return {str(name): str(found.getProperty(name)) for name in found.stringPropertyNames()}


def active(spark: SparkSession) -> tuple[Any, int | None]:
    """Return this thread's active session, as Python knows it and as Java knows it."""
    found = SparkSession._get_j_spark_session_class(spark._jvm).getActiveSession()
    return SparkSession._activeSession, found.get().hashCode() if found.isDefined() else None


@contextmanager
def untouched(spark: SparkSession) -> Iterator[None]:
    """Fail if the session changes during the block, or if this thread's properties or session differ after it."""
    context = spark.sparkContext
    context.setJobGroup("mine", "my own words", interruptOnCancel=True)
    context.addJobTag("my-tag")
    context.setLocalProperty("spark.scheduler.pool", "mine")
    before, session = properties_of_thread(spark), active(spark)
    try:
        with Watcher(spark) as watcher:
            yield
        assert watcher.seen == []
        assert watcher.looks > 10
        assert properties_of_thread(spark) == before
        assert active(spark) == session
    finally:
        context.clearJobTags()
        for name in ("spark.jobGroup.id", "spark.job.description", "spark.job.interruptOnCancel"):
            context.setLocalProperty(name, None)  # type: ignore[arg-type]  # None removes it
        context.setLocalProperty("spark.scheduler.pool", None)  # type: ignore[arg-type]


@classic
def test_the_watcher_sees_what_changes_for_20_milliseconds(spark: SparkSession) -> None:
    def setting() -> Callable[[], None]:
        spark.conf.set("spark.sql.my.own", "1")
        return lambda: spark.conf.unset("spark.sql.my.own")

    def another_value() -> Callable[[], None]:
        before = spark.conf.get("spark.sql.shuffle.partitions")
        spark.conf.set("spark.sql.shuffle.partitions", "3")
        return lambda: spark.conf.set("spark.sql.shuffle.partitions", before)

    def view() -> Callable[[], None]:
        spark.range(1).createTempView("of_somebody")
        return lambda: spark.catalog.dropTempView("of_somebody") and None

    def database() -> Callable[[], None]:
        spark.catalog.setCurrentDatabase("of_somebody")
        return lambda: spark.catalog.setCurrentDatabase("default")

    spark.sql("CREATE DATABASE IF NOT EXISTS of_somebody")
    for change in (setting, another_value, view, database):
        with Watcher(spark) as watcher:
            time.sleep(0.1)
            assert watcher.seen == []
            undo = change()
            # The watcher checks names less often than settings.
            time.sleep(0.02 if change in (setting, another_value) else 0.2)
            undo()
        assert len(watcher.seen) == 1, change


def embeddings(spark: SparkSession, ids: range, shift: int = 0) -> DataFrame:
    rows = [(at, f"v{shift}", PUBLISHED[(at + shift) % 10] if at != 3 else [1.0]) for at in ids]
    return spark.createDataFrame(rows, "id bigint, version string, e array<float>")


class World:
    """Tables in a folder, and a method for each public call that prepares what the call needs."""

    def __init__(self, spark: SparkSession, folder: Path) -> None:
        self.spark, self.folder, self.scores = spark, folder, str(folder / "scores")
        self.source = str(folder / "source")

    def make(self, **properties: str) -> None:
        frame = embeddings(self.spark, range(6)).repartitionByRange(2, "id")
        frame.write.format("delta").options(**properties).save(self.source)

    def score(self, **options: Any) -> sa.Summary:
        arguments = {"key": "id", "embedding_col": "e", "scores": self.scores} | options
        return sa.score_table(self.spark, source=self.source, progress_file=StringIO(), **arguments)

    def update(self) -> None:
        """Delete one row and update another."""
        self.spark.sql(f"DELETE FROM delta.`{self.source}` WHERE id = 1")
        self.spark.sql(f"UPDATE delta.`{self.source}` SET e = array_repeat(0.1F, 768), version = 'x' WHERE id = 2")

    def beside(self) -> Callable[[], object]:
        self.make()
        return lambda: self.score(view=f"session_view_{next(_number)}", view_model="all")

    def in_place(self) -> Callable[[], object]:
        self.make()
        return lambda: self.score(scores=None)

    def in_place_in_chunks(self) -> Callable[[], object]:
        self.make()
        return lambda: self.score(scores=None, max_files_per_chunk=1)

    def a_change_data_feed(self) -> Callable[[], object]:
        self.make(**FEED)
        self.score()
        self.update()
        return self.score

    def reconcile(self) -> Callable[[], object]:
        self.make()
        self.score(version_col="version")
        self.update()
        return lambda: self.score(version_col="version", reconcile=True)

    def retry_failed(self) -> Callable[[], object]:
        self.make()
        self.score()
        return lambda: self.score(retry_failed=True)

    def dry_run(self) -> Callable[[], object]:
        self.make()
        return lambda: self.score(dry_run=True)

    def a_source_that_is_refused(self) -> Callable[[], object]:
        """Prepare a source that is refused after some work, because a later chunk repeats a key."""
        self.make(**FEED)
        self.score()
        twice = embeddings(self.spark, range(8, 9)).union(embeddings(self.spark, range(8, 9)))
        twice.write.format("delta").mode("append").save(self.source)

        def refused() -> None:
            with pytest.raises(AestheticError):
                self.score()

        return refused

    def rescore(self) -> Callable[[], object]:
        self.make()
        self.score()
        self.spark.sql(f"ALTER TABLE delta.`{self.scores}` ADD COLUMNS (clip_embedding ARRAY<FLOAT>)")
        self.spark.sql(
            f"MERGE INTO delta.`{self.scores}` t USING delta.`{self.source}` s ON t.id = s.id AND size(s.e) > 1 "
            "WHEN MATCHED THEN UPDATE SET clip_embedding = s.e"
        )
        other = "laion-aesthetics-v2-ava"
        return lambda: sa.rescore_from_embeddings(self.spark, scores=self.scores, key="id", predictor=other)

    def history(self) -> Callable[[], object]:
        self.make()
        self.score()
        return lambda: sa.history(self.spark, self.scores).collect()

    def photos(self, shift: int = 0, number: int = 3) -> None:
        """Write image files. A second call modifies one of them."""
        (self.folder / "photos").mkdir(exist_ok=True)
        for at in range(number):
            path = self.folder / "photos" / f"{at}.png"
            if not path.exists() or at == 0:
                path.write_bytes(noise_image(10 * at + shift, file_format="PNG"))
                # In Los Angeles the first two times, an hour apart, read alike, and the clock skips an hour shortly
                # before the third.
                os.utime(path, (times := (1762072200, 1762075800, 1772965800)[at % 3] + shift, times))

    def ingest(self, **options: Any) -> Any:
        return sa.ingest_images(self.spark, str(self.folder / "photos"), str(self.folder / "images"), **options)

    def ingest_new(self) -> Callable[[], object]:
        self.photos()
        return self.ingest

    def ingest_modified(self) -> Callable[[], object]:
        self.photos()
        self.ingest()
        self.photos(shift=1)
        return self.ingest

    def ingest_modified_and_keep_once(self) -> Callable[[], object]:
        self.photos()
        (self.folder / "photos" / "copy.png").write_bytes(noise_image(0, file_format="PNG"))
        self.ingest(keep_once=True)
        self.photos(shift=1)
        return lambda: self.ingest(keep_once=True)

    def images_and_scores(self) -> tuple[str, str]:
        images, scores = str(self.folder / "images"), str(self.folder / "of_images")
        pictures = [(at, bytearray(noise_image(at))) for at in range(4)]
        self.spark.createDataFrame(pictures, "id int, image binary").write.format("delta").save(images)
        rows = [(at, 4.0 + at, None, "mine@0123456789ab") for at in range(4)]
        columns = "id int, aesthetic_score float, aesthetic_error string, aesthetic_model string"
        self.spark.createDataFrame(rows, columns).write.format("delta").save(scores)
        return images, scores

    def export(self) -> Callable[[], object]:
        images, scores = self.images_and_scores()
        return lambda: sa.export_webdataset(
            self.spark, table=images, scores=scores, key="id", where="aesthetic_score > 5", key_col="id",
            out=str(self.folder / "shards"),
        )  # fmt: skip

    def calibrate_and_curate(self) -> Callable[[], object]:
        _, scores = self.images_and_scores()
        rows = self.spark.read.format("delta").load(scores)
        return lambda: (sa.calibrate(rows, keep=0.5), sa.curate(rows, top_k=2, key="id").collect())

    def write_kept(self) -> Callable[[], object]:
        images, scores = self.images_and_scores()
        out = str(self.folder / "kept")
        return lambda: write_kept(
            self.spark, scores=scores, out=out, wanted={"min_score": 5.0}, key=["id"], table=images
        )

    def review(self) -> Callable[[], object]:
        images, scores = self.images_and_scores()
        rows, page = self.spark.read.format("delta").load(scores), self.folder / "review.html"
        return lambda: sa.review(rows, images, key="id", out=page, cut=5.0)

    def describe_and_display(self) -> Callable[[], object]:
        images, scores = self.images_and_scores()
        rows = self.spark.read.format("delta").load(scores)
        both = rows.join(self.spark.read.format("delta").load(images), "id")
        return lambda: (sa.describe_scores(rows).collect(), sa.display(both, n=2))

    def transform(self) -> Callable[[], object]:
        scorer = sa.AestheticScorer(inputCol="e", inputKind="embedding")
        return lambda: scorer.transform(embeddings(self.spark, range(4))).collect()


CALLS = [
    World.in_place_in_chunks, World.ingest_modified, World.write_kept, World.export,
]  # fmt: skip
# These calls take the same paths as those above, or run no statement at all.
RARER = [
    World.a_change_data_feed, World.beside, World.in_place, World.reconcile, World.retry_failed,
    World.a_source_that_is_refused, World.rescore,
    World.review, World.calibrate_and_curate,
    World.dry_run, World.history, World.ingest_new, World.ingest_modified_and_keep_once, World.describe_and_display,
    World.transform,
]  # fmt: skip


@classic
@pytest.mark.parametrize(
    "call", [*CALLS, *(pytest.param(call, marks=pytest.mark.long) for call in RARER)], ids=lambda call: call.__name__
)
def test_nothing_in_the_session_changes_during_a_call(
    spark: SparkSession, tmp_path: Path, call: Callable[[World], Callable[[], object]]
) -> None:
    prepared = call(World(spark, tmp_path))
    with untouched(spark):
        prepared()


@classic
def test_register_adds_functions_and_nothing_else(spark: SparkSession) -> None:
    with Watcher(spark) as watcher:
        sa.register(spark, prefix=f"session_{next(_number)}_")
    assert [what for what in watcher.seen if not what.startswith("functions ")] == []


@classic
@pytest.mark.parametrize(
    "call",
    [
        pytest.param(World.ingest_modified, marks=pytest.mark.long),
        World.reconcile,
        pytest.param(World.in_place, marks=pytest.mark.long),
        pytest.param(World.rescore, marks=pytest.mark.long),
        pytest.param(World.a_change_data_feed, marks=pytest.mark.long),
        pytest.param(World.ingest_modified_and_keep_once, marks=pytest.mark.long),
    ],
    ids=lambda call: call.__name__,
)
def test_appends_of_another_thread_are_neither_lost_nor_marked(
    spark: SparkSession, tmp_path: Path, call: Callable[[World], Callable[[], object]]
) -> None:
    prepared = call(World(spark, tmp_path))
    mine, done, appended = tmp_path / "mine", threading.Event(), count()

    def append() -> None:
        while not done.is_set():
            spark.range(1).write.format("delta").mode("append").save(str(mine))
            next(appended)

    thread = threading.Thread(target=append)
    thread.start()
    try:
        prepared()
    finally:
        done.set()
        thread.join()
    number = next(appended)
    assert number > 1
    assert spark.read.format("delta").load(str(mine)).count() == number
    logs = "".join(log.read_text() for log in (mine / "_delta_log").glob("*.json"))
    actions = [json.loads(line) for line in logs.splitlines()]
    assert [action for action in actions if "txn" in action] == []
    assert [action["commitInfo"].get("userMetadata") for action in actions if "commitInfo" in action] == [None] * number


@pytest.mark.long
def test_names_without_a_schema_are_those_of_the_current_one(spark: SparkSession, tmp_path: Path) -> None:
    """This also holds for statements that run in a separate session."""
    spark.sql("CREATE DATABASE IF NOT EXISTS of_the_user")
    spark.catalog.setCurrentDatabase("of_the_user")
    try:
        number = next(_number)
        source, scores, view = f"source_{number}", f"scores_{number}", f"view_{number}"
        embeddings(spark, range(4)).write.format("delta").options(**FEED).saveAsTable(source)
        given: dict[str, Any] = {"source": source, "key": "id", "embedding_col": "e", "scores": scores, "view": view}
        assert sa.score_table(spark, **given).scored == 3
        spark.sql(f"UPDATE {source} SET e = array_repeat(0.1F, 768) WHERE id < 2")
        assert sa.score_table(spark, **given, retry_failed=True).scored == 2
        assert spark.table(f"of_the_user.{scores}").count() == 4
        assert spark.table(f"of_the_user.{view}").count() == 4
        assert sa.score_table(spark, source=source, key="id", embedding_col="e").scored == 3
        assert spark.catalog.currentDatabase() == "of_the_user"
    finally:
        spark.catalog.setCurrentDatabase("default")


# These settings change the meaning of a statement, or what is read or written.
SETTINGS = {
    "spark.sql.timestampType": "TIMESTAMP_NTZ",
    "spark.sql.parser.escapedStringLiterals": "true",
    "spark.sql.ansi.enabled": "false",
    "spark.sql.caseSensitive": "true",
    "spark.sql.session.timeZone": "America/Los_Angeles",
    "spark.sql.parser.quotedRegexColumnNames": "true",
    "spark.sql.storeAssignmentPolicy": "STRICT",
    "spark.sql.legacy.timeParserPolicy": "LEGACY",
    "spark.sql.variable.substitute": "false",
    "spark.databricks.delta.schema.autoMerge.enabled": "true",
    "spark.databricks.delta.properties.defaults.enableChangeDataFeed": "true",
    "spark.databricks.delta.properties.defaults.enableDeletionVectors": "true",
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MILLIS",
    "spark.sql.legacy.createHiveTableByDefault": "true",
    "spark.sql.sources.default": "json",
    "spark.sql.sources.partitionOverwriteMode": "dynamic",
    "spark.sql.files.ignoreMissingFiles": "true",
    "spark.sql.execution.arrow.pyspark.enabled": "true",
    "spark.sql.execution.pythonUDF.arrow.enabled": "true",
    "spark.sql.adaptive.enabled": "false",
    "spark.sql.legacy.sizeOfNull": "true",
    "spark.sql.legacy.typeCoercion.datetimeToString.enabled": "true",
    "spark.sql.mapKeyDedupPolicy": "LAST_WIN",
}
# These settings run separately, because each needs a second setting or is a different value of one above.
OTHERS = [
    {"spark.sql.ansi.enabled": "true", "spark.sql.storeAssignmentPolicy": "ANSI"},
    {"spark.sql.storeAssignmentPolicy": "LEGACY", "spark.sql.ansi.enabled": "false"},
    {"spark.sql.variable.substitute": "true", "spark.sql.session.timeZone": "Asia/Kathmandu"},
    {
        "spark.sql.ansi.enabled": "true",
        "spark.sql.ansi.doubleQuotedIdentifiers": "true",
        "spark.sql.ansi.enforceReservedKeywords": "true",
    },
    {"spark.sql.legacy.timeParserPolicy": "CORRECTED", "spark.sql.parquet.outputTimestampType": "INT96"},
    {"spark.databricks.delta.properties.defaults.columnMapping.mode": "name"},
    {"spark.databricks.delta.commitInfo.userMetadata": "of the user"},
    {"spark.databricks.delta.properties.defaults.appendOnly": "true"},
]


def together(*parts: str) -> dict[str, str]:
    return {name: value for name, value in SETTINGS.items() if any(part in name for part in parts)}


# Combined settings take a tenth of the time of separate ones. `make test-long` also runs each alone, to find the one
# that fails.
COMBINED = [
    together("timestampType", "escaped", "ansi.enabled", "quotedRegex", "timeZone", "caseSensitive"),
    together("timeParser", "storeAssignment", "substitute", "databricks", "outputTimestampType", "Hive", "default"),
]


def named(values: dict[str, str]) -> str:
    return " ".join(f"{name.rpartition('.')[2]}={value}" for name, value in values.items())[:70]


@contextmanager
def under(spark: SparkSession, values: dict[str, str]) -> Iterator[None]:
    before = {name: spark.conf.get(name, None) for name in values}
    try:
        for name, value in values.items():
            spark.conf.set(name, value)
        yield
    finally:
        for name, value in before.items():
            spark.conf.unset(name) if value is None else spark.conf.set(name, value)


TEXTS = ["it's", "a\\b", "1", "01", "${spark.sql.shuffle.partitions}", 'say "x"', "2026-03-08 02:30:00", "A"]


def texts(spark: SparkSession, numbers: range, shift: int = 0) -> DataFrame:
    rows = [(TEXTS[at], PUBLISHED[(at + shift) % 10] if at != 3 else [1.0]) for at in numbers]
    return spark.createDataFrame(rows, "name string, e array<float>")


def outcome(spark: SparkSession, folder: Path, values: dict[str, str]) -> dict[str, Any]:
    """Return the summaries and tables of a run, an update and two ingests under some settings.

    A last run has no settings.
    """
    source, scores, files = str(folder / "source"), str(folder / "scores"), World(spark, folder)
    texts(spark, range(6)).write.format("delta").options(**FEED).save(source)
    said: list[Any] = []

    def score(**options: Any) -> None:
        done = sa.score_table(
            spark, source=source, key="name", embedding_col="e", scores=scores, progress_file=StringIO(), **options
        )
        said.append((done.rows_read, done.scored, done.failed_by_reason, done.skipped, done.dropped))

    began = time.time()
    with under(spark, values):
        score()
    # Rows 0 to 2 are updated, 4 and 5 are deleted, and 6 and 7 are new.
    keep, more = texts(spark, range(3, 4)), texts(spark, range(6, 8))
    updated = texts(spark, range(3), shift=5)
    updated.union(keep).union(more).coalesce(1).write.format("delta").mode("overwrite").save(source)
    with under(spark, values):
        score(retry_failed=True)
        score(reconcile=True)
        files.photos()
        first = files.ingest()
        files.photos(shift=1)
        second = files.ingest()
    said += [(done.listed, done.skipped, done.added, done.replaced, done.failed) for done in (first, second)]
    texts(spark, range(4, 5)).write.format("delta").mode("append").save(source)
    score()
    ended = time.time()
    rows = spark.read.format("delta").load(scores)
    scored_at = rows.select(F.unix_micros("aesthetic_scored_at").alias("at")).collect()
    assert all(1e6 * (began - 1) < row["at"] < 1e6 * (ended + 1) for row in scored_at)
    images = spark.read.format("delta").load(str(folder / "images"))
    return {
        "said": said,
        "kinds": [(field.name, field.dataType.simpleString()) for field in rows.schema],
        "scores": sorted(
            (row.name, row.aesthetic_error, None if row.aesthetic_score is None else round(row.aesthetic_score, 3))
            for row in rows.collect()
        ),
        "image kinds": [(field.name, field.dataType.simpleString()) for field in images.schema],
        "images": sorted(
            (Path(row.path).name, row.image_id, row.width, row.format, row.error, row.length, row["at"])
            for row in images.withColumn("at", F.unix_micros("modified_at")).collect()
        ),
    }


_plain: dict[str, Any] = {}


@pytest.fixture
def plain(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the outcome without any settings."""
    if not _plain:
        _plain.update(outcome(spark, tmp_path_factory.mktemp("plain"), {}))
    return _plain


def test_without_any_setting_the_outcome_is_what_the_tables_hold(plain: dict[str, Any]) -> None:
    """This check ensures that equal outcomes below are not equally wrong."""
    wrong = {"embedding: wrong length": 1}
    assert plain["said"] == [
        (6, 5, wrong, 0, 0), (6, 5, wrong, 0, 2), (6, 0, {}, 6, 0), (3, 0, 3, 0, 0), (3, 2, 0, 1, 0), (7, 1, {}, 6, 0),
    ]  # fmt: skip
    assert [name for name, _, _ in plain["scores"]] == sorted([*TEXTS[:5], *TEXTS[6:]])
    assert [image[-1] // 10**6 for image in plain["images"]] == [1762072201, 1762075800, 1772965800]
    assert ("aesthetic_scored_at", "timestamp") in plain["kinds"]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("values", [COMBINED[0], pytest.param(COMBINED[1], marks=pytest.mark.long)], ids=named)
def test_no_settings_of_the_session_change_what_comes_out(
    spark: SparkSession, tmp_path: Path, plain: dict[str, Any], values: dict[str, str]
) -> None:
    assert outcome(spark, tmp_path, values) == plain


@pytest.mark.long
@pytest.mark.parametrize("values", [*({name: value} for name, value in SETTINGS.items()), *OTHERS], ids=named)
def test_no_setting_of_the_session_changes_what_comes_out(
    spark: SparkSession, tmp_path: Path, plain: dict[str, Any], values: dict[str, str]
) -> None:
    assert outcome(spark, tmp_path, values) == plain
