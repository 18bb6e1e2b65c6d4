"""Chunk by chunk: Structured Streaming from a Delta table of images or embeddings to a scores table.

Spark's checkpoint says which chunk comes next, Delta's transaction numbers let each be committed once, and both survive
a kill at any moment: the interrupted chunk is scored again, from the same rows, and committed if it was not.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from pyspark.errors import AnalysisException, PySparkException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.streaming.query import StreamingQuery

from spark_aesthetic.delta import access, naming, sessions
from spark_aesthetic.delta.commits import logged, scored_at
from spark_aesthetic.delta.connect import batches_run_elsewhere
from spark_aesthetic.delta.frames import without
from spark_aesthetic.delta.java import Py4JNetworkError
from spark_aesthetic.delta.naming import quoted
from spark_aesthetic.errors import TableError
from spark_aesthetic.scoring.changes import FEED
from spark_aesthetic.scoring.explained import raise_explained
from spark_aesthetic.scoring.ledger import Ledger, Progress, load, save_progress
from spark_aesthetic.scoring.plan import Way, begins_empty, way_of_chunk
from spark_aesthetic.scoring.tally import Tally
from spark_aesthetic.scoring.target import ERROR, SCORED_AT
from spark_aesthetic.scoring.writer import Writer, now

# Spark gives that process ten seconds, whatever its settings: too few on a busy machine. Nothing has begun by then.
_SLOW, _STARTS = "Python worker failed to connect back", 3


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
    """The chunks of one stream, each written in one commit.

    Attributes:
        writer: How rows become scores.
        progress: Of the stream, which no other run may have replaced.
        checkpoint: The folder of the stream's state.
        tally: What the run has done so far.
        stopping: Asked before each chunk whether to end.
    """

    writer: Writer
    progress: Progress
    checkpoint: str
    tally: Tally
    stopping: Callable[[], bool]

    def start(
        self, spark: SparkSession, *, where: Column | None, limits: dict[str, str], every: str | None
    ) -> StreamingQuery:
        """Begin, or go on where the checkpoint says.

        Args:
            spark: The session.
            where: Which rows of the source are scored; None is all.
            limits: Delta's, of a chunk.
            every: Go on for ever, and look for new rows so often; None is until nothing is left.
        """
        progress, source = self.progress, self.writer.source
        reader = spark.readStream.format("delta").options(**limits)
        if progress.feed:
            reader = reader.option("readChangeFeed", "true")
        if progress.starting_version is not None:
            reader = reader.option("startingVersion", str(progress.starting_version))
        path = naming.path_of(source.table)
        rows = reader.table(source.table) if path is None else reader.load(path)
        if where is not None:
            rows = rows.where(where)
        change = [F.col(name).alias(own) for name, own in FEED.items()] if progress.feed else []
        rows = rows.select(*map(quoted, self.writer.inputs), *change)
        self.tally.known = None
        write = self._written_elsewhere() if batches_run_elsewhere() else self._written_here()
        stream = rows.writeStream.foreachBatch(write).option("checkpointLocation", self.checkpoint)
        triggered = stream.trigger(availableNow=True) if every is None else stream.trigger(processingTime=every)
        return started(triggered.start)

    def _written_here(self) -> Callable[[DataFrame, int], None]:
        def write(batch: DataFrame, number: int) -> None:
            try:
                if self.stopping():
                    raise Stopped
                self._write(batch, number)
            except Exception as error:
                # Spark makes text of it on its way to the driver's main thread.
                self.tally.failure = error
                raise

        return write

    def _written_elsewhere(self) -> Callable[[DataFrame, int], None]:
        """For Spark Connect, which runs it in a process beside the server, once sent there for all chunks of a query.

        What that process counts stays there; see `count_committed`.
        """
        sent = replace(self, tally=Tally(), stopping=never)

        def write(batch: DataFrame, number: int) -> None:
            sent._write(batch, number)

        return write

    def count_committed(self, spark: SparkSession, since: int) -> None:
        """Count what the commits of the scores table after one of its versions tell of this run's chunks."""
        target, tally = self.writer.target, self.tally
        commits = [
            commit for commit in logged(spark, target.identifier, since=since)
            if commit.told.get("checkpoint") == self.progress.checkpoint and commit.told.get("chunk") is not None
        ]  # fmt: skip
        tally.commits += len(commits)
        tally.rows += sum(commit.rows_written for commit in commits)
        tally.dropped += sum(commit.metric("numTargetRowsDeleted") for commit in commits)
        times = [time for time in map(scored_at, commits) if time is not None]
        tally.times += times
        if times:
            tally.add_reasons(target.rows(spark).where(F.col(SCORED_AT).isin(*times)), ERROR)

    def check_alone(self, spark: SparkSession) -> Progress:
        """The progress as the table has it now.

        Raises:
            TableError: Another run has begun anew.
        """
        return self._alone(load(spark, self.writer.target.table))

    def _alone(self, ledger: Ledger) -> Progress:
        target = self.writer.target
        current = ledger.progress.get((target.model, self.writer.source.id))
        if current is None or current.checkpoint != self.progress.checkpoint:
            raise TableError(
                f"scores {target.table!r}: expected this run alone to write {target.model}, found that "
                "another one has begun anew; let that one finish, then run again"
            )
        return current

    def _write(self, batch: DataFrame, number: int) -> None:
        spark, writer, tally = batch.sparkSession, self.writer, self.tally
        source, target = writer.source, writer.target
        sessions.describe(spark, f"spark-aesthetic: chunk {number} of {source.identifier}")
        ledger = load(spark, target.table)
        progress = self._alone(ledger)
        end = _offset(spark, self.checkpoint, number, progress)
        time = now()
        told = {"checkpoint": progress.checkpoint, "chunk": number, "whole": end.is_whole}
        commit = replace(
            writer.commit(end.version, **told, scored_at=time.isoformat()),
            # Of all beginnings: so a chunk of an earlier one is refused, or conflicts with one of a later.
            application=f"spark_aesthetic.{target.model}/{source.id}",
            number=(progress.generation << 20) + number,
        )
        if tally.known is None:
            tally.known = target.rows(spark).count()
            stream = self._stream(spark, progress)
            # Committed by a run that was killed before it could note that: Delta would drop it after all the work.
            if tally.known > 0 and target.has(spark, progress.checkpoint, number):
                return
            if begins_empty(chunk=number, known=tally.known, others=bool(ledger.others(source))):
                progress = self._note_empty(spark, replace(progress, stream=stream))
            elif progress.stream is None:
                progress = replace(progress, stream=stream)
                save_progress(spark, target, {source.id: progress})
        match way_of_chunk(initial=end.is_initial, began_empty=progress.began_empty):
            case Way.APPEND:
                still_new = partial(self._check_unchanged, spark, progress)
                writer.append(batch, commit, tally, scored_at=time, still_new=still_new)
            case Way.MERGE_NEW:
                keys = target.keys(spark)
                new = without(batch, keys, target.key, keys.count())
                writer.merge(spark, new, commit, tally, scored_at=time, alone=partial(self.check_alone, spark))
            case Way.MERGE_CHANGES:
                # Another source may still have the row that is gone from this one.
                drops, alone = not ledger.others(source), partial(self.check_alone, spark)
                writer.merge(spark, batch, commit, tally, scored_at=time, drops=drops, alone=alone)

    def _stream(self, spark: SparkSession, progress: Progress) -> str:
        """Spark's id of the stream at work.

        Raises:
            TableError: It is not the one that has begun this checkpoint.
        """
        stream = stream_of(spark, self.checkpoint)
        if stream is None or progress.stream not in (None, stream):
            raise TableError(
                f"scores {self.writer.target.table!r}: expected the checkpoint {self.checkpoint}, found that it was "
                "deleted while this run began; nothing was written by this run. Run again"
            )
        return stream

    def _note_empty(self, spark: SparkSession, progress: Progress) -> Progress:
        """Note that the model had no row before its first chunk, unless another source has come in."""
        source, target = self.writer.source, self.writer.target
        progress = replace(progress, began_empty=True)
        save_progress(spark, target, {source.id: progress})
        # One that came in before this was saved does not know of it.
        if load(spark, target.table).others(source):
            progress = replace(progress, began_empty=False)
            save_progress(spark, target, {source.id: progress})
        return progress

    def _check_unchanged(self, spark: SparkSession, progress: Progress) -> None:
        """Raise TableError if another run has added rows, whose keys then may be those of this chunk."""
        if self.check_alone(spark) != progress:
            target = self.writer.target
            raise TableError(
                f"scores {target.table!r}: expected this run alone to add rows of {target.model}, found "
                "that another one has added some; no row was lost or written twice. Run again"
            )


def stream_of(spark: SparkSession, checkpoint: str) -> str | None:
    """Spark's id of the stream that has begun a checkpoint; None if there is no checkpoint."""
    try:
        lines = access.files_reader(spark).text(f"{checkpoint}/metadata").collect()
    except AnalysisException as error:
        if error.getCondition() == "PATH_NOT_FOUND":
            return None
        raise
    return str(json.loads(lines[0][0])["id"]) if lines else None


class _End(NamedTuple):
    """Where a chunk ends.

    Attributes:
        version: The last version of the source that the chunk reads.
        is_whole: The chunk reads that version to its end.
        is_initial: All rows of the chunk belong to the snapshot that the stream began with.
    """

    version: int
    is_whole: bool
    is_initial: bool


def _offset(spark: SparkSession, checkpoint: str, number: int, progress: Progress) -> _End:
    """Read where a chunk ends from the checkpoint."""

    def read(number: int) -> tuple[int, int, bool]:
        # A version of the format, the batch's metadata, and Delta's own offset.
        lines = access.files_reader(spark).text(f"{checkpoint}/offsets/{number}").collect()
        offset = json.loads(lines[2][0])
        return int(offset["reservoirVersion"]), int(offset["index"]), bool(offset["isStartingVersion"])

    version, index, initial = read(number)
    # A negative index is before the first file of a version, so the version before it was read to its end.
    is_whole = index < 0 and not initial
    if initial or index >= 0 or progress.starting_version is not None:
        return _End(version - is_whole, is_whole, initial)
    # The end of the snapshot, if the chunk before belongs to it, or if there is no chunk before.
    if number > 0:
        before, _, before_initial = read(number - 1)
        initial = before_initial and version == before + 1
    else:
        initial = True
    return _End(version - 1, True, initial)


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
        if isinstance(failure := chunks.tally.failure, Stopped):
            return
        source, target = chunks.writer.source, chunks.writer.target
        raise_explained(error, source=source.identifier, scores=target.table, failure=failure)
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
