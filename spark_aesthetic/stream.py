"""Chunk by chunk: Structured Streaming from a Delta table of images or embeddings to a scores table.

Spark's checkpoint says which chunk comes next, Delta's transaction numbers let each be committed once, and both survive
a kill at any moment: the interrupted chunk is scored again, from the same rows, and committed if it was not.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from pyspark import StorageLevel
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, Observation, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.streaming.query import StreamingQuery

from spark_aesthetic import preflight
from spark_aesthetic.errors import AestheticError, SourceChangedError, TableError
from spark_aesthetic.preflight import Source, quoted
from spark_aesthetic.scores import (
    EMBEDDING,
    ERROR,
    MODEL,
    SCORE,
    SCORED_AT,
    Commit,
    Progress,
    Target,
    load_progress,
    merge_into,
    same_key,
)
from spark_aesthetic.worker import STAGES

# What the change data feed says of a row; other sources are read as nothing but inserts.
_CHANGE, _VERSION = "_change_type", "_commit_version"


class Stopped(Exception):  # noqa: N818 (nothing is wrong)
    """A chunk was not begun, because the run is to end."""


@dataclass(kw_only=True)
class Chunks:
    """How rows of one source become rows of one scores table, and what a run has done so far.

    Attributes:
        source: The table of images or embeddings.
        target: The scores table.
        struct: Makes score, error and perhaps embedding and costs of a row.
        column: The source's column that `struct` scores.
        where: Rows of the source that are to be scored at all, or None for all of them.
        info: What every commit says of itself.
        stopping: Asked before each chunk whether to end.
        rows: Rows that this run has scored or failed on.
        failed: The latter by their reason.
        dropped: Scores that this run has dropped.
        written: Commits of this run.
        costs: What the images of this run have cost, by `worker.STAGES`.
        failure: The error that ended the run, as it was raised.
    """

    source: Source
    target: Target
    struct: Column
    column: str
    where: Column | None
    info: dict[str, object]
    stopping: Callable[[], bool]
    rows: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    dropped: int = 0
    written: int = 0
    costs: dict[str, float] = field(default_factory=dict)
    failure: Exception | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        """The source's columns that are read."""
        return (*self.target.kept, self.column)

    def start(
        self, spark: SparkSession, progress: Progress, checkpoint: str, limits: dict[str, str], every: str | None
    ) -> StreamingQuery:
        """Begin, or go on where the checkpoint says; with `every` for ever."""
        reader = spark.readStream.format("delta").options(**limits)
        if progress.feed:
            reader = reader.option("readChangeFeed", "true")
        if progress.starting_version is not None:
            reader = reader.option("startingVersion", str(progress.starting_version))
        table = self.source.table
        rows = reader.load(preflight.whole(table)) if "/" in table else reader.table(table)
        if self.where is not None:
            rows = rows.where(self.where)
        change = [_CHANGE, _VERSION] if progress.feed else []
        rows = rows.select(*map(quoted, self.inputs), *change)
        first = True

        def write(batch: DataFrame, number: int) -> None:
            nonlocal first
            try:
                if self.stopping():
                    raise Stopped
                self._write_chunk(batch, number, progress, checkpoint, first)
            except Exception as error:
                # Spark makes text of it on its way to the driver's main thread.
                self.failure = error
                raise
            first = False

        writer = rows.writeStream.foreachBatch(write).option("checkpointLocation", checkpoint)
        if every is None:
            return writer.trigger(availableNow=True).start()
        return writer.trigger(processingTime=every).start()

    def _write_chunk(self, batch: DataFrame, number: int, progress: Progress, checkpoint: str, first: bool) -> None:
        spark = batch.sparkSession
        preflight.describe(spark, f"spark-aesthetic: chunk {number} of {self.source.identifier}")
        current = load_progress(spark, self.target, self.source.id)
        if current is None or current.checkpoint != progress.checkpoint:
            raise TableError(
                f"scores {self.target.table!r}: expected this run alone to write {self.target.model}, found that "
                "another one has begun anew; let that one finish, then run again"
            )
        version, initial = _offset(spark, checkpoint, number)
        told = {"source_version": version, "checkpoint": progress.checkpoint, "chunk": number}
        application = f"spark_aesthetic.{progress.checkpoint}"
        commit = Commit(info=json.dumps({**self.info, **told}), application=application, number=number)
        # Committed by a run that was killed before it could note that: Delta would drop it after all the work.
        if first and self.target.has(spark, progress.checkpoint, number):
            return
        if not initial:
            self.merge(spark, batch, commit)
        elif progress.began_empty:
            self._append(spark, batch, commit)
        else:
            self._append(spark, batch.join(self.target.keys(spark), list(self.target.key), "left_anti"), commit)

    def _append(self, spark: SparkSession, rows: DataFrame, commit: Commit) -> None:
        """Score rows whose keys are new, in one pass."""
        seen, now = Observation(), datetime.now(timezone.utc)
        scored = self._scored(rows)
        self.target.append(self._made(scored.observe(seen, *_counts(scored)), now), commit)
        counts = seen.get
        self.written += 1
        self.rows += counts["rows"]
        self._add_costs(counts)
        if counts["failed"]:
            # Only where there are any, and from the newest files alone, of whose times Delta has statistics.
            self._count_reasons(self.target.rows(spark).where(F.col(SCORED_AT) == F.lit(now)), ERROR)

    def merge(self, spark: SparkSession, rows: DataFrame, commit: Commit) -> None:
        """Score rows whose keys may be there, in one pass, then take over what they are now.

        Args:
            spark: The session.
            rows: The columns of `inputs` and, of changes, `_change_type` and `_commit_version` as in a change data
                feed. Without those a key that is there stays as it is.
            commit: What the commit says of itself.
        """
        has_changes = _CHANGE in rows.columns
        if not has_changes:
            rows = rows.withColumns({_CHANGE: F.lit("insert"), _VERSION: F.lit(0)})
        # Of a row that is gone there is nothing to score.
        rows = rows.withColumn(self.column, F.when(_present(), F.col(quoted(self.column))))
        # Narrow, and on the executors' disks: whatever looks at them again scores nothing again.
        kept = self._scored(rows, _CHANGE, _VERSION).persist(StorageLevel.DISK_ONLY)
        try:
            self._add_costs(kept.agg(*_counts(kept)).collect()[0].asDict())
            latest = self._latest(self._made(kept, datetime.now(timezone.utc), _CHANGE, _VERSION))
            self._check_key(latest)
            inserted, updated, deleted = self.target.merge(spark, latest, commit, inserts_only=not has_changes)
            self.written += 1
            self.rows += inserted + updated
            self.dropped += deleted
            self._count_reasons(kept.where(_present()), "scored.error")
        finally:
            kept.unpersist()

    def merge_into_source(self, spark: SparkSession, rows: DataFrame) -> None:
        """Score rows of the source and write what comes of it into their columns, in one commit."""
        kept = self._scored(rows.select(*map(quoted, self.inputs))).persist(StorageLevel.DISK_ONLY)
        try:
            counts = kept.agg(*_counts(kept)).collect()[0].asDict()
            self._add_costs(counts)
            self.rows, self.written = counts["rows"], 1
            self._count_reasons(kept, "scored.error")
            self.take_over(spark, self._made(kept, datetime.now(timezone.utc)))
        finally:
            kept.unpersist()

    def take_over(self, spark: SparkSession, scored: DataFrame) -> None:
        """Write scores into the source's own columns: a commit of narrow rows, which can be repeated."""
        info = json.dumps({**self.info, "source_version": self.source.version})
        names = [name for name in self.target.written if name != SCORED_AT]
        updates = ", ".join(f"{name} = scored.{name}" for name in names)
        clauses = f"ON {same_key(self.target.key, 'target')} WHEN MATCHED THEN UPDATE SET {updates}"
        merge_into(spark, self.source.identifier, scored, clauses, Commit(info=info))

    def _latest(self, made: DataFrame) -> DataFrame:
        """What each key has come to: its last row, or that it is gone, and whether it is another than before."""
        key = list(map(quoted, self.target.key))
        row = F.struct(*[F.col(quoted(name)) for name in self.target.types if name not in self.target.key]).alias("row")
        # A delete or the old side of an update beside a new row in one version: the row that is there counts.
        versions = made.groupBy(*key, _VERSION).agg(
            F.count_if(_present()).alias("copies"),
            F.bool_or(F.col(_CHANGE) != "insert").alias("_changed"),
            F.max_by(row, _present()).alias("row"),
        )
        last = F.max_by(F.struct("copies", "row"), _VERSION).alias("last")
        keys = versions.groupBy(*key).agg(last, F.bool_or("_changed").alias("_changed"))
        copies = F.col("last.copies")
        return keys.select(*key, "last.row.*", "_changed", (copies == 0).alias("_deleted"), copies.alias("_copies"))

    def _check_key(self, latest: DataFrame) -> None:
        nulls = preflight.has_null(self.target.key)
        found = latest.agg(F.count_if(nulls).alias("nulls"), F.count_if(F.col("_copies") > 1).alias("repeated"))
        counts = found.collect()[0]
        if counts.nulls or counts.repeated:
            raise TableError(
                f"--key {', '.join(self.target.key)}: expected a value of its own in each row, found {counts.nulls} "
                f"new keys with a null and {counts.repeated} of several rows; add a column to the key, or repair the "
                "source and run with --reconcile"
            )

    def score_keys(self, spark: SparkSession, wanted: DataFrame, count: int, gone: DataFrame, commit: Commit) -> None:
        """Score the rows of `count` keys at the source's version, replacing what is there, and drop other keys."""
        rows = preflight.rows_of(self.source.rows, wanted, self.target.key, count).select(*map(quoted, self.inputs))
        rows = rows.withColumns({_CHANGE: F.lit("update_postimage"), _VERSION: F.lit(0)})
        deleted = gone.withColumns({_CHANGE: F.lit("delete"), _VERSION: F.lit(0)})
        self.merge(spark, rows.unionByName(deleted, allowMissingColumns=True), commit)

    def _add_costs(self, costs: dict[str, Any]) -> None:
        for name in STAGES:
            if name in costs:
                value, before = costs[name] or 0.0, self.costs.get(name, 0.0)
                self.costs[name] = max(before, value) if name == "peak_memory_bytes" else before + value

    def _count_reasons(self, rows: DataFrame, error: str) -> None:
        reasons = rows.where(F.col(error).isNotNull()).groupBy(F.col(error).alias("error")).count().collect()
        self.failed.update({row.error: row["count"] for row in reasons})

    def _scored(self, rows: DataFrame, *also: str) -> DataFrame:
        return rows.select(*map(quoted, self.target.kept), *also, self.struct.alias("scored"))

    def _made(self, scored: DataFrame, now: datetime, *also: str) -> DataFrame:
        made = {
            SCORE: F.col("scored.score"),
            ERROR: F.col("scored.error"),
            MODEL: F.lit(self.target.model),
            SCORED_AT: F.lit(now),
            EMBEDDING: F.col("scored.embedding"),
        }
        names = [made[name].alias(name) for name in self.target.written]
        return scored.select(*map(quoted, self.target.kept), *also, *names)


def _present() -> Column:
    return F.col(_CHANGE).isin("insert", "update_postimage")


def _counts(scored: DataFrame) -> list[Column]:
    counts = [F.count(F.lit(1)).alias("rows"), F.count("scored.error").alias("failed")]
    if STAGES[0] in scored.select("scored.*").columns:
        counts += [(F.max if name == "peak_memory_bytes" else F.sum)(f"scored.{name}").alias(name) for name in STAGES]
    return counts


def _offset(spark: SparkSession, checkpoint: str, number: int) -> tuple[int, bool]:
    """Which version of the source a chunk ends in, and whether all of it belongs to the rows of the beginning."""

    def read(number: int) -> tuple[int, int, bool]:
        # A version of the format, the batch's metadata, and Delta's own offset.
        lines = spark.read.text(f"{checkpoint}/offsets/{number}").collect()
        offset = json.loads(lines[2][0])
        return int(offset["reservoirVersion"]), int(offset["index"]), bool(offset["isStartingVersion"])

    version, index, initial = read(number)
    if not initial and index < 0 and number > 0:
        # The last of the beginning ends where the next version has not begun.
        before, _, before_initial = read(number - 1)
        initial = before_initial and version == before + 1
        return (before, True) if initial else (version, False)
    return version, initial


def wait(chunks: Chunks, query: StreamingQuery, poll_seconds: float = 1.0) -> None:
    """Wait for a query's end, and stop it between two chunks once it is to stop.

    Raises:
        TableError: The source has changed in a way that its files do not tell, or another run is at work.
    """
    try:
        while not query.awaitTermination(poll_seconds):  # type: ignore[arg-type]
            if chunks.stopping() and not query.status["isTriggerActive"]:
                query.stop()
    except PySparkException as error:
        if isinstance(chunks.failure, Stopped):
            return
        if isinstance(chunks.failure, AestheticError):
            raise chunks.failure from error
        raise explained(error, chunks) from error


def explained(error: Exception, chunks: Chunks) -> Exception:
    """The same error, or what to do about it where that is known."""
    text, source = str(error), chunks.source.identifier
    if any(name in text for name in ("DELTA_SOURCE_TABLE_IGNORE_CHANGES", "DELTA_SOURCE_IGNORE_DELETE")):
        return SourceChangedError(
            f"source {source}: expected nothing but new rows, found rows that were updated, deleted or overwritten, "
            "and no change data feed that tells which; run once with --reconcile, before it, so that the feed tells "
            "from then on, ALTER TABLE … SET TBLPROPERTIES (delta.enableChangeDataFeed = true)"
        )
    if any(name in text for name in ("SCHEMA_CHANGE", "POST_SCHEMA_EVOLUTION")):
        return TableError(
            f"source {source}: expected the columns of the last run, found some added, renamed or dropped; run "
            "again, and if this comes again, once with --reconcile"
        )
    # By condition, or by the name of the class where there is none.
    concurrent = (
        "CONCURRENT_STREAM_LOG_UPDATE", "CONCURRENT_QUERY", "DELTA_CONCURRENT", "io.delta.exceptions.Concurrent",
        "DELTA_METADATA_CHANGED", "MetadataChangedException", "DELTA_PROTOCOL_CHANGED", "ProtocolChangedException",
    )  # fmt: skip
    if any(name in text for name in concurrent):
        return TableError(
            f"scores {chunks.target.table!r}: expected one run at a time, found another at work on the same rows; "
            "nothing is lost and nothing twice: run again when it has ended"
        )
    return error
