"""Score chunk by chunk: Structured Streaming from a Delta table of images or embeddings to a scores table.

A chunk is one micro-batch. Spark's checkpoint records the next chunk, and Delta's txnAppId and txnVersion prevent a
second commit of a chunk. Both survive a kill at any moment: the next run scores the interrupted chunk again from the
same rows, and commits it unless it was already committed.
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

# Spark Connect gives the process that writes the chunks ten seconds to start, and no setting changes this. On a busy
# machine that is too short. A retry is safe, because no chunk has started by then.
_SLOW, _STARTS = "Python worker failed to connect back", 3

# Delta writes the changes of these operations to files of their own, and a chunk takes all of them. A DELETE of whole
# files may take several chunks, but it inserts no row.
_READ_AS_A_WHOLE = ("MERGE", "UPDATE", "DELETE")


class Stopped(Exception):  # noqa: N818 (it is not an error)
    """Raised in place of a chunk, because the run is to stop."""


def started(start: Callable[[], StreamingQuery]) -> StreamingQuery:
    """Start a query; try again if Spark Connect's process for the chunks did not start in time."""
    for _ in range(_STARTS - 1):
        try:
            return start()
        except PySparkException as error:
            if _SLOW not in str(error):
                raise
    return start()


def never() -> bool:
    """Return False, so that the run never stops early."""
    return False


@dataclass(kw_only=True)
class Chunks:
    """The chunks of one stream, each written in one commit.

    Attributes:
        writer: Scores rows and writes them.
        progress: The progress of the stream, which no other run may have replaced.
        checkpoint: The folder of the stream's checkpoint.
        tally: Counts of the run.
        stopping: Called before each chunk; returns whether to stop.
    """

    writer: Writer
    progress: Progress
    checkpoint: str
    tally: Tally
    stopping: Callable[[], bool]

    def start(
        self, spark: SparkSession, *, where: Column | None, limits: dict[str, str], every: str | None
    ) -> StreamingQuery:
        """Start the stream, or continue from its checkpoint.

        Args:
            spark: The session.
            where: Which rows of the source are scored; None scores all.
            limits: Delta's options that limit a chunk.
            every: Look for new rows at this interval until the run is stopped; None ends when no row is left.
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
                # Spark passes only the text of the error on to the driver's main thread.
                self.tally.failure = error
                raise

        return write

    def _written_elsewhere(self) -> Callable[[DataFrame, int], None]:
        """Return the function for Spark Connect, which sends it once per query to a process beside the server.

        The counts of that process are lost; see `count_committed`.
        """
        sent = replace(self, tally=Tally(), stopping=never)

        def write(batch: DataFrame, number: int) -> None:
            sent._write(batch, number)

        return write

    def count_committed(self, spark: SparkSession, since: int) -> None:
        """Count this run's chunks from the commits of the scores table after a version."""
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
        """Return the progress that the table records now.

        Raises:
            TableError: Another run has started a new stream.
        """
        return self._alone(load(spark, self.writer.target.table))

    def _alone(self, ledger: Ledger) -> Progress:
        target = self.writer.target
        current = ledger.progress.get((target.model, self.writer.source.id))
        if current is None or current.checkpoint != self.progress.checkpoint:
            raise TableError(
                f"scores {target.table!r}: expected only this run to write {target.model}, found that "
                "another run has started a new stream. Let that run finish, then run again."
            )
        return current

    def _write(self, batch: DataFrame, number: int) -> None:
        spark, writer, tally = batch.sparkSession, self.writer, self.tally
        source, target = writer.source, writer.target
        sessions.describe(spark, f"spark-aesthetic: chunk {number} of {source.identifier}")
        ledger = load(spark, target.table)
        progress = self._alone(ledger)
        before, last = self._offsets(spark, number)
        end = _end_of(before, last, progress)
        time = now()
        told = {"checkpoint": progress.checkpoint, "chunk": number, "whole": end.is_whole}
        commit = replace(
            writer.commit(end.version, **told, scored_at=time.isoformat()),
            # All streams of a model and source share this id. Delta therefore ignores a late chunk of an earlier
            # stream, or reports it as a conflict.
            application=f"spark_aesthetic.{target.model}/{source.id}",
            number=(progress.generation << 20) + number,
        )
        if tally.known is None:
            tally.known = target.rows(spark).count()
            stream = self._stream(spark, progress)
            # A killed run may have committed this chunk. Delta would ignore it, but only after it was scored again.
            if tally.known > 0 and target.has(spark, progress.checkpoint, number):
                return
            if begins_empty(chunk=number, known=tally.known, others=bool(ledger.others(source))):
                progress = self._note_empty(spark, progress, stream)
            elif progress.stream is None:
                progress = self._save(spark, progress, replace(progress, stream=stream))
        match way_of_chunk(initial=end.is_initial, began_empty=progress.began_empty):
            case Way.APPEND:
                still_new = partial(self._check_unchanged, spark, progress)
                writer.append(batch, commit, tally, scored_at=time, still_new=still_new)
            case Way.MERGE_NEW:
                keys = target.keys(spark)
                new = without(batch, keys, target.key, keys.count())
                writer.merge(spark, new, commit, tally, scored_at=time, alone=partial(self.check_alone, spark))
            case Way.MERGE_CHANGES:
                # Another source may still have a row that was deleted from this one.
                drops, alone = not ledger.others(source), partial(self.check_alone, spark)
                in_part = self._versions_in_part(spark, before, last) if drops else []
                writer.merge(spark, batch, commit, tally, scored_at=time, drops=drops, in_part=in_part, alone=alone)

    def _offsets(self, spark: SparkSession, number: int) -> tuple[_Offset | None, _Offset]:
        """Read where the chunk before and this one end; None if this is the first, or belongs to the snapshot."""
        last = _read_offset(spark, self.checkpoint, number)
        if number == 0 or last.is_initial:
            return None, last
        return _read_offset(spark, self.checkpoint, number - 1), last

    def _versions_in_part(self, spark: SparkSession, before: _Offset | None, last: _Offset) -> list[int]:
        """Return the source versions from which this chunk may have deletes without the inserts, or the reverse."""
        if not self.progress.feed:
            return []
        ends = [last] if before is None else [before, last]
        inside = sorted({end.version for end in ends if end.file >= 0 and not end.is_initial})
        if not inside:
            return []
        found = logged(spark, self.writer.source.identifier, since=inside[0] - 1)
        whole = {commit.version for commit in found if commit.adds_only or commit.operation in _READ_AS_A_WHOLE}
        return [version for version in inside if version not in whole]

    def _stream(self, spark: SparkSession, progress: Progress) -> str:
        """Return Spark's id of the running stream.

        Raises:
            TableError: Another stream created this checkpoint, or the checkpoint does not exist.
        """
        stream = stream_of(spark, self.checkpoint)
        if stream is None or progress.stream not in (None, stream):
            raise TableError(
                f"scores {self.writer.target.table!r}: expected the checkpoint {self.checkpoint}, found that it was "
                "deleted while this run began; this run wrote nothing. Run again."
            )
        return stream

    def _note_empty(self, spark: SparkSession, known: Progress, stream: str) -> Progress:
        """Record that the model had no row before its first chunk, unless another source was added."""
        progress = self._save(spark, known, replace(known, began_empty=True, stream=stream))
        # A run that added another source before this save did not reset `began_empty`, which was still false.
        if load(spark, self.writer.target.table).others(self.writer.source):
            progress = self._save(spark, progress, replace(progress, began_empty=False))
        return progress

    def _save(self, spark: SparkSession, known: Progress, progress: Progress) -> Progress:
        id = self.writer.source.id
        save_progress(spark, self.writer.target, {id: progress}, known={id: known})
        return progress

    def _check_unchanged(self, spark: SparkSession, progress: Progress) -> None:
        """Raise TableError if another run has added rows, because this chunk may have the same keys."""
        if self.check_alone(spark) != progress:
            target = self.writer.target
            raise TableError(
                f"scores {target.table!r}: expected only this run to add rows of {target.model}, found "
                "that another run has added some; no row was lost or written twice. Run again."
            )


def stream_of(spark: SparkSession, checkpoint: str) -> str | None:
    """Return Spark's id of the stream that created a checkpoint; None if there is no checkpoint."""
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
        version: The source version up to which the scores contain every change once the chunk is written. Rows of the
            initial snapshot that are not read yet have no score.
        is_whole: The chunk reads that version to its end.
        is_initial: All rows of the chunk belong to the snapshot that the stream began with.
    """

    version: int
    is_whole: bool
    is_initial: bool


class _Offset(NamedTuple):
    """Delta's offset: up to which file of which version a chunk reads.

    Attributes:
        version: A version of the source.
        file: The index of the last file; a negative number is before the first file.
        is_initial: Whether the version is the snapshot that the stream began with.
    """

    version: int
    file: int
    is_initial: bool


def _read_offset(spark: SparkSession, checkpoint: str, number: int) -> _Offset:
    # The lines are the version of the format, the metadata of the batch and Delta's offset.
    lines = access.files_reader(spark).text(f"{checkpoint}/offsets/{number}").collect()
    offset = json.loads(lines[2][0])
    return _Offset(int(offset["reservoirVersion"]), int(offset["index"]), bool(offset["isStartingVersion"]))


def _end_of(before: _Offset | None, last: _Offset, progress: Progress) -> _End:
    """Return where a chunk ends, from its own offset and that of the chunk before it."""
    version, file, initial = last
    if initial:
        return _End(version, is_whole=False, is_initial=True)
    # If the offset is after a file, the rest of the version may be unread, and may replace rows of the chunk. Only the
    # version before is certain to be read to its end.
    is_whole, ends_snapshot = file < 0, False
    if is_whole and progress.starting_version is None:
        # The chunk ends the initial snapshot if it is the first one, or if the chunk before it belongs to the snapshot.
        ends_snapshot = before is None or (before.is_initial and version == before.version + 1)
    return _End(version - 1, is_whole, is_initial=ends_snapshot)


def wait(chunks: Chunks, query: StreamingQuery, poll_seconds: float = 1.0) -> None:
    """Wait for a query to end; stop it between two chunks if the run is to stop, or at once after an interrupt.

    Raises:
        TableError: The source's changed rows cannot be identified, or another run is writing the same scores.
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
        # Otherwise an interrupted notebook cell would leave the query running.
        _stop(query)


def _stop(query: StreamingQuery, attempts: int = 3) -> None:
    for left in reversed(range(attempts)):
        try:
            if query.isActive:
                query.stop()
            return
        except Py4JNetworkError:
            # An interrupt makes py4j close its connections, and the JVM may close the next one too.
            if not left:
                raise
