"""The parts that all runs share: starting streams, scoring chunks and given keys, and showing progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TextIO, cast
from uuid import uuid4

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from spark_aesthetic.delta import access, naming, sessions, tables
from spark_aesthetic.delta.commits import Commit, logged
from spark_aesthetic.delta.connect import batches_run_elsewhere
from spark_aesthetic.delta.frames import on_disk
from spark_aesthetic.delta.java import Py4JJavaError
from spark_aesthetic.delta.naming import quoted
from spark_aesthetic.delta.rows import rows_of_keys
from spark_aesthetic.delta.tables import Source
from spark_aesthetic.errors import TableError
from spark_aesthetic.scoring import ledger
from spark_aesthetic.scoring.chunks import Chunks, stream_of, wait
from spark_aesthetic.scoring.disturbances import of_other_runs
from spark_aesthetic.scoring.ledger import Ledger, Progress
from spark_aesthetic.scoring.live import ProgressListener
from spark_aesthetic.scoring.plan import Begin
from spark_aesthetic.scoring.tally import Tally
from spark_aesthetic.scoring.target import ERROR, Target
from spark_aesthetic.scoring.writer import Writer

# A folder inside the scores table's folder. Delta ignores names that begin with an underscore.
FOLDER = "_spark_aesthetic"


@dataclass(kw_only=True)
class Run:
    """One run over one source.

    Attributes:
        spark: The session.
        source: The source as it was last opened.
        writer: Scores rows and writes them.
        where: For a run in place, the condition for source rows to score; None for a run with a scores table.
        stopping: Called before each chunk (not on Spark Connect) and between chunks; returns whether to stop.
        folder: Folder for checkpoints; None puts them inside the scores table's folder.
        max_bytes_per_chunk: Delta's maxBytesPerTrigger.
        max_files_per_chunk: Delta's maxFilesPerTrigger, or None.
        rows_read: Number of rows of the source when they were last counted.
        every: Interval between two checks for new rows, in a run that continues until it is stopped, or None.
        backbone: The architecture and checksum of the backbone, which determine the embeddings of the model.
        shared_keys: Whether equal keys mean the same image in all sources of the scores table.
        progress_file: Stream for the progress.
        tally: Counts of the run.
        since: The version of the scores table at the last call of `watch`.
        checkpoint: The name of the checkpoint at that time, or of one that this run has started since.
    """

    spark: SparkSession
    source: Source
    writer: Writer
    where: Column | None
    stopping: Callable[[], bool]
    folder: str | None
    max_bytes_per_chunk: int
    max_files_per_chunk: int | None
    rows_read: int
    every: str | None
    backbone: str
    shared_keys: bool
    progress_file: TextIO | None
    tally: Tally = field(default_factory=Tally)
    since: int = -1
    checkpoint: str | None = None

    @property
    def target(self) -> Target:
        """The part of the scores table that the run fills."""
        return self.writer.target

    def count_unscored(self, *, retry_failed: bool) -> int:
        """Count the rows that a run would score, reading only narrow columns."""
        spark, target, rows = self.spark, self.target, self.source.rows
        if self.where is not None:
            return rows.where(self.where).count()
        if not tables.is_delta(spark, target.table):
            return self.rows_read
        known = target.rows(spark)
        if retry_failed:
            known = known.where(F.col(ERROR).isNull())
        keys = list(target.key)
        return rows.select(*map(quoted, keys)).join(known.select(*map(quoted, keys)), keys, "left_anti").count()

    def checkpoints(self, location: str) -> str:
        """Return the folder of all checkpoints."""
        if self.folder is not None:
            return naming.whole(self.folder).rstrip("/")
        if "__unitystorage" in location:
            raise TableError(
                f"scores {self.target.table!r}: expected --checkpoint, because Unity Catalog allows no other "
                "files in the table's folder, found none. Pass a folder such as /Volumes/…"
            )
        return f"{location}/{FOLDER}"

    def known(self) -> Progress | None:
        """Return the model's current progress over the source, as the scores table records it."""
        return self.ledger().of_model(self.target.model).get(self.source.id)

    def ledger(self) -> Ledger:
        """Load the current ledger of the scores table."""
        return ledger.load(self.spark, self.target.table)

    def current_version(self) -> int:
        """Return the current version of the source."""
        return tables.current_version(self.spark, self.source.identifier)

    def only_grown_since(self, version: int) -> bool:
        """Whether the history proves that no source row was updated or deleted since a version.

        Call it right before a MERGE. The MERGE reads the newest version, and Delta reports later changes as a conflict.
        """
        commits = logged(self.spark, self.source.identifier, since=version)
        # Delta removes the oldest commits from the history after a while.
        is_whole = len(commits) == (commits[0].version if commits else self.current_version()) - version
        return is_whole and all(commit.adds_only for commit in commits)

    def reopen(self) -> None:
        """Open the source at its current version."""
        self.source = tables.open_source(self.spark, self.source.table)

    def watch(self) -> None:
        """Remember the state of the scores, so that `check_alone` detects what other runs write after this call."""
        self.since, self.checkpoint = tables.current_version(self.spark, self.target.identifier), self._checkpoint()

    def has_begun(self, folder: str, progress: Progress) -> bool:
        """Whether the checkpoint exists, and is not one that Spark created again after somebody deleted it."""
        there = stream_of(self.spark, f"{folder}/{progress.checkpoint}")
        return there is not None and progress.stream in (None, there)

    def begin(self, step: Begin) -> Progress:
        """Start a new stream: from all rows of the source, or from one of its versions."""
        source, known = self.source, self.ledger().of_model(self.target.model)
        before = known.get(source.id)
        # Before its first stream, the model had no scores that other writers could have removed.
        looked_at = cast("int | None", self.writer.info.get("checked"))
        progress = Progress(
            checkpoint=uuid4().hex[:12],
            # Generations start at the time in milliseconds, because a staging table does not keep its last generation.
            generation=max(int(1000 * time.time()), 0 if before is None else before.generation + 1),
            # The first chunk decides this. By then, no run that this one replaces can commit.
            began_empty=False,
            # In place, the feed would report every row that the run itself has scored.
            feed=source.feed and self.where is None if step.feed is None else step.feed,
            starting_version=step.starting_version,
            backbone=self.backbone,
            location=source.location,
            comparing=step.comparing,
            checked=looked_at if before is None else before.checked,
            column=self.writer.column,
        )
        changed = {**ledger.ended_beginnings(known, but=source.id), source.id: progress}
        ledger.save_progress(self.spark, self.target, changed, known=known)
        self.checkpoint = progress.checkpoint
        return progress

    def note(self, **changed: Any) -> None:
        """Update fields of the recorded progress, if there is any."""
        progress, id = self.known(), self.source.id
        if progress is not None:
            noted = {id: replace(progress, **changed)}
            ledger.save_progress(self.spark, self.target, noted, known={id: progress})

    def wait_for(self, version: int) -> int:
        """Wait until the source has a version, or the run is to stop; return the current version."""
        while (current := self.current_version()) < version and not self.stopping():
            time.sleep(1)
        return current

    def stream(self, folder: str, progress: Progress) -> None:
        """Score chunk after chunk until no row is left, or with `every` until the run is stopped.

        Args:
            folder: The folder of all checkpoints.
            progress: Where to start or continue.

        Raises:
            TableError: The source's changed rows cannot be identified, or another run is writing the same scores.
        """
        spark = self.spark
        limits = {"maxBytesPerTrigger": str(self.max_bytes_per_chunk)}
        if self.max_files_per_chunk is not None:
            limits["maxFilesPerTrigger"] = str(self.max_files_per_chunk)
        chunks = Chunks(
            writer=self.writer, progress=progress, checkpoint=f"{folder}/{progress.checkpoint}", tally=self.tally,
            stopping=self.stopping,
        )  # fmt: skip
        listener = self._listener("scoring", self._rows_to_do)
        spark.streams.addListener(listener)
        before = tables.current_version(spark, self.target.identifier) if batches_run_elsewhere() else 0
        try:
            remedy = "grant access to it, or choose another folder (--checkpoint)"
            with access.reaching(f"checkpoint {folder!r}", remedy, errors=(Py4JJavaError,)):
                query = chunks.start(spark, where=self.where, limits=limits, every=self.every)
            listener.follow(str(query.runId))
            try:
                wait(chunks, query)
            finally:
                if batches_run_elsewhere():
                    chunks.count_committed(spark, before)
            # If another run replaced this one before its last chunk, Delta ignored that chunk without an error.
            chunks.check_alone(spark)
        finally:
            listener.close()
            spark.streams.removeListener(listener)

    def _rows_to_do(self) -> int | None:
        return None if self.tally.known is None else self.rows_read - self.tally.known

    def commit(self) -> Commit:
        """Return the metadata of a commit outside of a stream."""
        return self.writer.commit(self.source.version)

    def score_missing(self) -> None:
        """Score the rows that have neither a score nor a reason."""
        ledger.end_beginnings(self.spark, self.target)
        key = list(self.target.key)
        keys = self.source.rows.select(*map(quoted, key))
        self.score_keys(keys.join(self.target.keys(self.spark), key, "left_anti"), self.commit())

    def retry_failed(self) -> None:
        """Score the failed rows again."""
        failed = self.target.rows(self.spark).where(F.col(ERROR).isNotNull())
        self.score_keys(failed.select(*map(quoted, self.target.key)), self.commit())

    def check_alone(self) -> None:
        """Raise TableError if another run of the model over the source has written since the call of `watch`.

        Rows are looked up long before they are written. Another run may score them in between, from a newer image.
        """
        target = self.target
        commits = logged(self.spark, target.identifier, since=self.since)
        if self._checkpoint() != self.checkpoint or of_other_runs(commits, self.writer.info):
            raise TableError(
                f"scores {target.table!r}: expected only this run to write {target.model}, found that another run "
                "has written some rows; no row was lost or written twice. Run again when that run has finished."
            )

    def _checkpoint(self) -> str | None:
        """Return the name of the checkpoint that the scores table records now."""
        progress = self.known()
        return None if progress is None else progress.checkpoint

    def score_keys(self, wanted: DataFrame, commit: Commit) -> None:
        """Score the rows of some keys in parts of a chunk's size, so that the next run repeats little after a kill.

        Args:
            wanted: The keys.
            commit: The metadata of the commits.

        Raises:
            TableError: `check_alone` found another run.
        """
        writer, tally = self.writer, self.tally
        with on_disk(wanted) as wanted:
            count = wanted.count()
            if count == 0:
                return
            parts = rows_of_keys(
                self.spark, self.source, wanted, count, key=self.target.key, kept=tuple(self.target.kept),
                column=writer.column, max_bytes=self.max_bytes_per_chunk,
            )  # fmt: skip
            with self.shown("scoring keys of", count) as listener:
                for rows in parts:
                    before = tally.rows
                    writer.replace_rows(self.spark, rows, commit, tally, alone=self.check_alone)
                    listener.add(tally.rows - before)

    def _listener(self, doing: str, rows_to_do: Callable[[], int | None], *, in_one: bool = False) -> ProgressListener:
        source, rows = self.source, self.rows_read
        share = self.max_bytes_per_chunk / max(source.size, 1)
        if self.max_files_per_chunk is not None:
            share = min(share, self.max_files_per_chunk / max(source.files, 1))
        return ProgressListener(
            f"{doing} {source.identifier}",
            rows_to_do=rows_to_do,
            bytes_a_row=source.size / max(rows, 1),
            rows_a_chunk=rows * (1.0 if in_one else min(share, 1.0)),
            tasks=self.tally.tasks,
            failed=self.tally.failed,
            file=self.progress_file,
        )

    @contextmanager
    def shown(self, doing: str, rows_to_do: int, *, in_one: bool = False) -> Iterator[ProgressListener]:
        """Show the progress of work outside of a stream, and describe its jobs in the Spark UI."""
        listener = self._listener(doing, lambda: rows_to_do, in_one=in_one)
        try:
            with sessions.described(self.spark, f"spark-aesthetic: {doing} {self.source.identifier}"):
                yield listener
        finally:
            listener.close()
