"""Chunk by chunk: Structured Streaming from a Delta table of images or embeddings to a scores table.

Spark's checkpoint says which chunk comes next, Delta's transaction numbers let each be committed once, and both survive
a kill at any moment: the interrupted chunk is scored again, from the same rows, and committed if it was not.

Each way from rows to a commit is one pass over their bytes: what comes of them is narrow, is kept on the executors'
disks, and is counted, checked and written from there.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import NoReturn

from pyspark import StorageLevel
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, Row, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.streaming.query import StreamingQuery
from pyspark.sql.types import IntegralType, StringType
from pyspark.sql.utils import is_remote

from spark_aesthetic import errors, preflight
from spark_aesthetic.commits import ATTEMPTS, Commit, committed, is_conflict, logged, merge_into, scored_at
from spark_aesthetic.errors import AestheticError, SourceChangedError, TableError
from spark_aesthetic.java import Py4JNetworkError
from spark_aesthetic.ledger import Ledger, Progress, load, save_progress
from spark_aesthetic.preflight import Source, quoted
from spark_aesthetic.progress import Tasks
from spark_aesthetic.scores import (
    CHANGED,
    DELETED,
    EMBEDDING,
    ERROR,
    MODEL,
    SCORE,
    SCORED_AT,
    TYPES,
    Target,
    add_columns,
    same_key,
)
from spark_aesthetic.worker import STAGES

# Spark gives that process ten seconds, whatever its settings: too few on a busy machine. Nothing has begun by then.
_SLOW, _STARTS = "Python worker failed to connect back", 3

# What the change data feed says of a row, by the name that it gets here; other sources are read as inserts alone.
_CHANGE, _VERSION = "_aesthetic_change", "_aesthetic_version"
_FEED = {"_change_type": _CHANGE, "_commit_version": _VERSION}

# What comes of a row, and steps on the way from the changes of a key to its last row.
_SCORED, _COPIES, _ROW, _LAST = "_aesthetic_scored", "_aesthetic_copies", "_aesthetic_row", "_aesthetic_last"


class Stopped(Exception):  # noqa: N818 (nothing is wrong)
    """A chunk was not begun, because the run is to end."""


def started(start: Callable[[], StreamingQuery]) -> StreamingQuery:
    """A query by its `start`, again where Spark Connect's process for the chunks did not come up in time."""
    for _ in range(_STARTS - 1):
        try:
            return start()
        except PySparkException as error:
            if _SLOW not in str(error):
                raise
    return start()


def never() -> bool:
    """Do not stop."""
    return False


@dataclass(kw_only=True)
class Chunks:
    """How rows of one source become rows of one scores table, and what a run has done so far.

    Attributes:
        source: The table of images or embeddings.
        target: The scores table.
        struct: Makes score, error and perhaps embedding and costs of a row.
        column: The source's column that `struct` scores.
        where: In place, the rows of the source that are to be scored; None where scores have a table of their own.
        info: What every commit says of itself.
        stopping: Asked before each chunk whether to end.
        progress: Of the stream at work, which no other run may have replaced.
        known: Rows that the model had when the stream's first chunk began; None before that.
        times: When its commits began to be scored, which is what their rows have in `aesthetic_scored_at`.
        rows: Rows that this run has scored or failed on.
        failed: The latter by their reason.
        dropped: Scores that this run has dropped.
        written: Commits of this run.
        costs: What the images of this run have cost, by `worker.STAGES`.
        tasks: Those of the rows that are being scored.
        failure: The error that ended the run, as it was raised.
    """

    source: Source
    target: Target
    struct: Column
    column: str
    where: Column | None
    info: dict[str, object]
    stopping: Callable[[], bool]
    progress: Progress | None = None
    known: int | None = None
    times: list[datetime] = field(default_factory=list)
    rows: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    dropped: int = 0
    written: int = 0
    costs: dict[str, float] = field(default_factory=dict)
    tasks: Tasks = field(default_factory=Tasks)
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
        path = preflight.path_of(self.source.table)
        rows = reader.table(self.source.table) if path is None else reader.load(path)
        if self.where is not None:
            rows = rows.where(self.where)
        change = [F.col(name).alias(own) for name, own in _FEED.items()] if progress.feed else []
        rows = rows.select(*map(quoted, self.inputs), *change)
        self.progress, self.known = progress, None
        write = self._written_elsewhere(checkpoint) if is_remote() else self._written_here(checkpoint)
        writer = rows.writeStream.foreachBatch(write).option("checkpointLocation", checkpoint)
        triggered = writer.trigger(availableNow=True) if every is None else writer.trigger(processingTime=every)
        return started(triggered.start)

    def _written_here(self, checkpoint: str) -> Callable[[DataFrame, int], None]:
        def write(batch: DataFrame, number: int) -> None:
            try:
                if self.stopping():
                    raise Stopped
                self._write_chunk(batch, number, checkpoint)
            except Exception as error:
                # Spark makes text of it on its way to the driver's main thread.
                self.failure = error
                raise

        return write

    def _written_elsewhere(self, checkpoint: str) -> Callable[[DataFrame, int], None]:
        """For Spark Connect, which runs it in a process beside the server, once sent there for all chunks of a query.

        What that process counts stays there; see `count_committed`.
        """
        # What does not travel, and is not asked for there.
        source = replace(self.source, rows=None)  # type: ignore[arg-type]
        sent = replace(self, source=source, stopping=never)

        def write(batch: DataFrame, number: int) -> None:
            sent._write_chunk(batch, number, checkpoint)

        return write

    def count_committed(self, spark: SparkSession, since: int) -> None:
        """Count what the commits of the scores table after one of its versions tell of this run's chunks."""
        assert self.progress is not None, "asked while a stream is at work"
        checkpoint = self.progress.checkpoint
        commits = [
            commit for commit in logged(spark, self.target.identifier, since=since)
            if commit.told.get("checkpoint") == checkpoint and commit.told.get("chunk") is not None
        ]  # fmt: skip
        self.written += len(commits)
        self.rows += sum(commit.rows_written for commit in commits)
        self.dropped += sum(commit.metric("numTargetRowsDeleted") for commit in commits)
        times = [time for time in map(scored_at, commits) if time is not None]
        self.times += times
        if times:
            self._count_reasons(self.target.rows(spark).where(F.col(SCORED_AT).isin(*times)), ERROR)

    def check_alone(self, spark: SparkSession) -> Progress:
        """The progress as the table has it now.

        Raises:
            TableError: Another run has begun anew.
        """
        return self._alone(load(spark, self.target.table))

    def _alone(self, ledger: Ledger) -> Progress:
        current = ledger.progress.get((self.target.model, self.source.id))
        if current is None or self.progress is None or current.checkpoint != self.progress.checkpoint:
            raise TableError(
                f"scores {self.target.table!r}: expected this run alone to write {self.target.model}, found that "
                "another one has begun anew; let that one finish, then run again"
            )
        return current

    def _write_chunk(self, batch: DataFrame, number: int, checkpoint: str) -> None:
        spark = batch.sparkSession
        preflight.describe(spark, f"spark-aesthetic: chunk {number} of {self.source.identifier}")
        ledger = load(spark, self.target.table)
        progress = self._alone(ledger)
        first = self.known is None
        version, initial = _offset(spark, checkpoint, number, progress)
        now = _now()
        told = {
            "source_version": version, "checkpoint": progress.checkpoint, "chunk": number, "scored_at": now.isoformat(),
        }  # fmt: skip
        commit = Commit(
            info=json.dumps({**self.info, **told}),
            # Of all beginnings: so a chunk of an earlier one is refused, or conflicts with one of a later.
            application=f"spark_aesthetic.{self.target.model}/{self.source.id}",
            number=(progress.generation << 20) + number,
        )
        if first:
            self.known = self.target.rows(spark).count()
            # Committed by a run that was killed before it could note that: Delta would drop it after all the work.
            if self.known > 0 and self.target.has(spark, progress.checkpoint, number):
                return
            # Rows of several sources may have equal keys, so each chunk of theirs looks its keys up.
            if number == 0 and self.known == 0 and not ledger.others(self.source):
                progress = replace(progress, began_empty=True)
                save_progress(spark, self.target, {self.source.id: progress})
                # Another source that came in before this was saved does not know of it.
                if load(spark, self.target.table).others(self.source):
                    progress = replace(progress, began_empty=False)
                    save_progress(spark, self.target, {self.source.id: progress})
        if not initial:
            # Another source may still have the row that is gone from this one.
            self.merge(spark, batch, commit, now, drops=not ledger.others(self.source))
        elif progress.began_empty:
            self._append(spark, batch, commit, now, progress)
        else:
            keys = self.target.keys(spark)
            # Merged, not appended: of two runs that add one key at the same time, Delta lets an append pass.
            self.merge(spark, preflight.without(batch, keys, self.target.key, keys.count()), commit, now)

    def _append(self, spark: SparkSession, rows: DataFrame, commit: Commit, now: datetime, progress: Progress) -> None:
        """Score rows whose keys are new."""

        def still_new() -> None:
            if self.check_alone(spark) != progress:
                raise TableError(
                    f"scores {self.target.table!r}: expected this run alone to add rows of {self.target.model}, found "
                    "that another one has added some; no row was lost or written twice. Run again"
                )

        with self._kept(rows) as (kept, counts):
            made = self._made(kept, now)
            committed(lambda: self.target.append(made, commit), still_new)
            self._note(now)
            self.rows += counts.rows
            if counts.failed:
                self._count_reasons(kept, f"{_SCORED}.error")

    def _note(self, now: datetime) -> None:
        """Count a commit."""
        self.written += 1
        self.times.append(now)

    @contextmanager
    def _kept(self, rows: DataFrame, *also: str) -> Iterator[tuple[DataFrame, Row]]:
        """What comes of rows, scored once, and how many there are and have failed."""
        kept = self._scored(rows, *also).persist(StorageLevel.DISK_ONLY)
        try:
            with self.tasks.counted(rows.sparkSession):
                counts = kept.agg(*_counts(kept)).collect()[0]
            self._add_costs(counts)
            yield kept, counts
        finally:
            kept.unpersist()

    def merge(
        self, spark: SparkSession, rows: DataFrame, commit: Commit, now: datetime | None = None, *, drops: bool = True
    ) -> None:
        """Score rows whose keys may be there, in one pass, then take over what they are now.

        Args:
            spark: The session.
            rows: The columns of `inputs` and, for changes, `_CHANGE` and `_VERSION` as a change data feed has them.
                Without those, rows that exist already are left alone.
            commit: What the commit says of itself.
            now: The time that the rows get; None is that of the clock.
            drops: Whether the scores of deleted rows are dropped.
        """
        now = _now() if now is None else now
        has_changes = _CHANGE in rows.columns
        if not has_changes:
            rows = rows.withColumns({_CHANGE: F.lit("insert"), _VERSION: F.lit(0)})
        # The images of deleted rows are not scored.
        rows = rows.withColumn(self.column, F.when(_present(), F.col(quoted(self.column))))
        with self._kept(rows, _CHANGE, _VERSION) as (kept, counts):
            latest = self._latest(self._made(kept, now, _CHANGE, _VERSION))
            if not drops:
                # A row that is gone keeps its score here, so one that comes again under its key may be another.
                latest = latest.where(~F.col(DELETED)).withColumn(CHANGED, F.lit(has_changes))
            bounds = self._check_key(latest)
            merged = committed(
                lambda: self.target.merge(spark, latest, commit, inserts_only=not has_changes, bounds=bounds),
                # Again if another commit came between, unless that was another run's beginning.
                lambda: None if self.progress is None else self.check_alone(spark),
            )
            if merged is None:
                return
            inserted, updated, deleted = merged
            self._note(now)
            self.rows += inserted + updated
            self.dropped += deleted
            if counts.failed:
                # Of those that were written, which a key that was there already is not; Delta has statistics of times.
                self._count_reasons(self.target.rows(spark).where(F.col(SCORED_AT) == F.lit(now)), ERROR)

    def merge_into_source(self, spark: SparkSession, rows: DataFrame, unchanged: Callable[[], bool]) -> bool:
        """Score rows of the source and write what comes of them into it, in one commit; see `take_over`."""
        with self._kept(rows.select(*map(quoted, self.inputs))) as (kept, counts):
            if not self.take_over(spark, self._made(kept, _now()), unchanged):
                return False
            self.rows, self.written = counts.rows, 1
            if counts.failed:
                self._count_reasons(kept, f"{_SCORED}.error")
            return True

    def take_over(self, spark: SparkSession, scored: DataFrame, unchanged: Callable[[], bool]) -> bool:
        """Write scores into the source's own columns: a commit of narrow rows, which can be repeated.

        Args:
            spark: The session.
            scored: The key, and the columns that are made.
            unchanged: Whether the scores are still those of the source's rows; asked before each attempt. An update
                that is committed after that and before Delta has begun its MERGE, within a second, is not seen.

        Returns:
            Whether it was so, and the scores are written.
        """
        if not unchanged():
            return False
        info = json.dumps({**self.info, "source_version": self.source.version})
        names = [name for name in self.target.written if name != SCORED_AT]
        add_columns(spark, self.source.identifier, self.source.rows, {name: TYPES[name] for name in names})
        updates = ", ".join(f"{name} = scored.{name}" for name in map(quoted, names))
        clauses = f"ON {same_key(self.target.key, 'target')} WHEN MATCHED THEN UPDATE SET {updates}"

        def write() -> bool:
            if not unchanged():
                return False
            merge_into(spark, self.source.identifier, scored, clauses, Commit(info=info))
            return True

        return committed(write)

    def forget_counts(self) -> None:
        """Begin to count anew, where what has been scored is thrown away."""
        self.rows, self.written, self.failed = 0, 0, Counter()

    def _latest(self, made: DataFrame) -> DataFrame:
        """Reduce the changes to one row per key: the latest values, whether it was deleted, and whether it changed."""
        key = list(map(quoted, self.target.key))
        row = F.struct(*[F.col(quoted(name)) for name in self.target.types if name not in self.target.key]).alias(_ROW)
        # A version may hold the delete or the old side of an update beside the new row, which is the one that counts.
        versions = made.groupBy(*key, _VERSION).agg(
            F.count_if(_present()).alias(_COPIES),
            F.bool_or(F.col(_CHANGE) != "insert").alias(CHANGED),
            F.max_by(row, _present()).alias(_ROW),
        )
        last = F.max_by(F.struct(_COPIES, _ROW), _VERSION).alias(_LAST)
        keys = versions.groupBy(*key).agg(last, F.bool_or(CHANGED).alias(CHANGED))
        copies = F.col(_LAST)[_COPIES]
        return keys.select(*key, f"{_LAST}.{_ROW}.*", CHANGED, (copies == 0).alias(DELETED), copies.alias(_COPIES))

    def _check_key(self, latest: DataFrame) -> tuple[int | str, int | str] | None:
        """Raise TableError unless each key is one row's; give the least and greatest of its first column."""
        nulls, first = preflight.has_null(self.target.key), F.col(quoted(self.target.key[0]))
        kind = latest.schema[self.target.key[0]].dataType
        # Python and Delta's statistics hold other text in place of bytes that are no UTF-8.
        altered = ~F.is_valid_utf8(first) if kind == StringType() else F.lit(not isinstance(kind, IntegralType))
        found = latest.agg(
            F.count_if(nulls).alias("nulls"), F.count_if(F.col(_COPIES) > 1).alias("repeated"),
            F.min(first).alias("least"), F.max(first).alias("greatest"), F.count_if(altered).alias("altered"),
        )  # fmt: skip
        counts = found.collect()[0]
        if counts.nulls or counts.repeated:
            raise TableError(
                f"--key {', '.join(self.target.key)}: expected a value of its own in each row, found {counts.nulls} "
                f"new keys with a null and {counts.repeated} of several rows; add a column to the key, or repair the "
                "source and run with --reconcile"
            )
        return None if counts.altered or counts.least is None else (counts.least, counts.greatest)

    def replace_rows(self, spark: SparkSession, rows: DataFrame, commit: Commit) -> None:
        """Score rows of the source, replacing what is there."""
        self.merge(spark, rows.withColumns({_CHANGE: F.lit("update_postimage"), _VERSION: F.lit(0)}), commit)

    def drop_keys(self, spark: SparkSession, gone: DataFrame, commit: Commit) -> None:
        """Drop the scores of rows that are no longer in the source."""
        column = F.lit(None).cast(self.source.rows.schema[self.column].dataType).alias(self.column)
        rest = [F.lit(None).cast(self.target.kept[n]).alias(n) for n in self.target.kept if n not in self.target.key]
        deleted = gone.select("*", *rest, column)
        self.merge(spark, deleted.withColumns({_CHANGE: F.lit("delete"), _VERSION: F.lit(0)}), commit)

    def _add_costs(self, counts: Row) -> None:
        costs = counts.asDict()
        for name in STAGES:
            if name in costs:
                value, before = costs[name] or 0.0, self.costs.get(name, 0.0)
                self.costs[name] = max(before, value) if name == "peak_memory_bytes" else before + value

    def _count_reasons(self, rows: DataFrame, error: str) -> None:
        reasons = rows.where(F.col(error).isNotNull()).groupBy(F.col(error).alias("error")).count().collect()
        self.failed.update({row.error: row["count"] for row in reasons})

    def _scored(self, rows: DataFrame, *also: str) -> DataFrame:
        return rows.select(*map(quoted, self.target.kept), *also, self.struct.alias(_SCORED))

    def _made(self, scored: DataFrame, now: datetime, *also: str) -> DataFrame:
        made = {
            SCORE: F.col(_SCORED)["score"],
            ERROR: F.col(_SCORED)["error"],
            MODEL: F.lit(self.target.model),
            SCORED_AT: F.lit(now),
            EMBEDDING: F.col(_SCORED)["embedding"],
        }
        names = [made[name].alias(name) for name in self.target.written]
        return scored.select(*map(quoted, self.target.kept), *also, *names)


def _now() -> datetime:
    # In milliseconds, which every spark.sql.parquet.outputTimestampType keeps: rows are found again by their time.
    now = datetime.now(timezone.utc)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)


def _present() -> Column:
    return F.col(_CHANGE).isin("insert", "update_postimage")


def _counts(scored: DataFrame) -> list[Column]:
    of_row = F.col(_SCORED)
    counts = [F.count(F.lit(1)).alias("rows"), F.count(of_row["error"]).alias("failed")]
    if STAGES[0] in scored.select(f"{_SCORED}.*").columns:
        counts += [(F.max if name == "peak_memory_bytes" else F.sum)(of_row[name]).alias(name) for name in STAGES]
    return counts


def _offset(spark: SparkSession, checkpoint: str, number: int, progress: Progress) -> tuple[int, bool]:
    """Which version of the source a chunk ends in, and whether all of it belongs to the rows of the beginning."""

    def read(number: int) -> tuple[int, int, bool]:
        # A version of the format, the batch's metadata, and Delta's own offset.
        lines = preflight.files_reader(spark).text(f"{checkpoint}/offsets/{number}").collect()
        offset = json.loads(lines[2][0])
        return int(offset["reservoirVersion"]), int(offset["index"]), bool(offset["isStartingVersion"])

    version, index, initial = read(number)
    if initial or index >= 0 or progress.starting_version is not None:
        return version, initial
    # Nothing of the next version yet: the end of the beginning, if the chunk before belongs to that, or there is none.
    if number > 0:
        before, _, before_initial = read(number - 1)
        initial = before_initial and version == before + 1
    else:
        initial = True
    return (version - 1, True) if initial else (version, False)


def wait(chunks: Chunks, query: StreamingQuery, poll_seconds: float = 1.0) -> None:
    """Wait for a query's end, and stop it between two chunks once it is to stop, or at once if this is interrupted.

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
        raise_explained(error, chunks)
    finally:
        # A notebook's cell that is interrupted would leave it at work.
        _stop(query)


def _stop(query: StreamingQuery, attempts: int = 3) -> None:
    for left in reversed(range(attempts)):
        try:
            if query.isActive:
                query.stop()
            return
        except Py4JNetworkError:
            # An interrupt makes py4j close its connections, and the JVM may close the one that is opened next, too.
            if not left:
                raise


def raise_explained(error: Exception, chunks: Chunks) -> NoReturn:
    """Raise an error of ours in place of one of Spark's, where it is known what to do about it; else that one again."""
    ours = chunks.failure if isinstance(chunks.failure, AestheticError) else _told(error) or explained(error, chunks)
    if ours is None:
        raise error
    raise ours from error


def _told(error: Exception) -> AestheticError | None:
    """An error of ours of which Spark Connect has but the text, from the process that a chunk ran in."""
    found = re.search(rf"{errors.__name__}\.(\w+): (.+)", str(error))
    kind = getattr(errors, found[1], None) if found is not None else None
    return kind(found[2]) if found is not None and kind is not None else None


_CHANGED = ("DELTA_SOURCE_TABLE_IGNORE_CHANGES", "DELTA_SOURCE_IGNORE_DELETE")
_GONE = (
    "FILE_NOT_EXIST", "DELTA_FILE_NOT_FOUND", "DELTA_LOG_FILE_NOT_FOUND", "DELTA_MISSING_CHANGE_DATA",
    "DELTA_CHANGE_TABLE_FEED_DISABLED", "DELTA_VERSIONS_NOT_CONTIGUOUS", "DELTA_VERSION_NOT_FOUND",
)  # fmt: skip
_OTHER_COLUMNS = (
    "DELTA_SCHEMA_CHANGED", "DELTA_STREAMING_INCOMPATIBLE_SCHEMA_CHANGE", "POST_SCHEMA_EVOLUTION",
    "DELTA_CHANGE_DATA_FEED_INCOMPATIBLE", "DELTA_STREAMING_CANNOT_CONTINUE_PROCESSING",
)  # fmt: skip


def explained(error: Exception, chunks: Chunks) -> AestheticError | None:
    """What to do about an error of Spark's or Delta's, where that is known."""
    text, source = str(error), chunks.source.identifier
    if any(name in text for name in _CHANGED):
        return SourceChangedError(
            f"source {source}: expected nothing but new rows, found rows that were updated, deleted or overwritten, "
            "and no change data feed that tells which; run once with --reconcile, which finds updated rows by "
            "--version-col alone, before it, so that the feed tells from then on, ALTER TABLE … SET TBLPROPERTIES "
            "(delta.enableChangeDataFeed = true)"
        )
    if any(name in text for name in _GONE):
        return SourceChangedError(
            f"source {source}: expected the files and the log since the last run, found some gone (VACUUM, or the "
            f"clean-up of the log); run once with --reconcile. Delta says: {text.splitlines()[0]}"
        )
    if any(name in text for name in _OTHER_COLUMNS):
        return SourceChangedError(
            f"source {source}: expected the columns of the last run, found some added, renamed or dropped; run "
            "again, and if this comes again, once with --reconcile"
        )
    if is_conflict(error):
        return TableError(
            f"scores {chunks.target.table!r}: expected to commit between the commits of others, found one before each "
            f"of {ATTEMPTS} attempts; nothing is lost and nothing twice: run again"
        )
    if any(name in text for name in ("CONCURRENT_STREAM_LOG_UPDATE", "CONCURRENT_QUERY")):
        return TableError(
            f"scores {chunks.target.table!r}: expected one run at a time, found another at work on the same rows; "
            "nothing is lost and nothing twice: run again when it has ended"
        )
    return None
