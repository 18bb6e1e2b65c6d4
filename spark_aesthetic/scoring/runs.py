"""What the ways of a run share: beginnings, a stream of chunks, rows of some keys, and what its user sees of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TextIO, cast
from uuid import uuid4

from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.streaming.query import StreamingQuery

from spark_aesthetic.delta import access, naming, sessions, tables
from spark_aesthetic.delta.commits import Commit, logged
from spark_aesthetic.delta.connect import batches_run_elsewhere
from spark_aesthetic.delta.frames import on_disk
from spark_aesthetic.delta.java import Py4JJavaError
from spark_aesthetic.delta.naming import quoted
from spark_aesthetic.delta.rows import rows_of_keys
from spark_aesthetic.errors import TableError
from spark_aesthetic.scoring import ledger
from spark_aesthetic.scoring.chunks import Chunks, wait
from spark_aesthetic.scoring.ledger import Progress
from spark_aesthetic.scoring.live import ProgressListener
from spark_aesthetic.scoring.plan import Begin
from spark_aesthetic.scoring.target import ERROR

# In the folder of the table that scores go to; Delta leaves alone what begins with an underscore.
FOLDER = "_spark_aesthetic"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run over one source.

    Attributes:
        spark: The session.
        chunks: How rows become scores.
        folder: Where checkpoints go; None is beside the scores.
        max_bytes_per_chunk: As Delta's maxBytesPerTrigger.
        max_files_per_chunk: As Delta's maxFilesPerTrigger, or None.
        rows_read: Rows of the source when the run began.
        every: Interval of a run without end, or None.
        backbone: What the embeddings of the model depend on.
        shared_keys: Equal keys mean the same image in all sources of the scores table.
        progress_file: Where progress is shown.
    """

    spark: SparkSession
    chunks: Chunks
    folder: str | None
    max_bytes_per_chunk: int
    max_files_per_chunk: int | None
    rows_read: int
    every: str | None
    backbone: str
    shared_keys: bool
    progress_file: TextIO | None

    def count_unscored(self, *, retry_failed: bool) -> int:
        """Rows that a run would score; reads narrow columns alone."""
        spark, target, rows = self.spark, self.chunks.target, self.chunks.source.rows
        if self.chunks.where is not None:
            return rows.where(self.chunks.where).count()
        if not tables.is_delta(spark, target.table):
            return self.rows_read
        known = target.rows(spark)
        if retry_failed:
            known = known.where(F.col(ERROR).isNull())
        keys = list(target.key)
        return rows.select(*map(quoted, keys)).join(known.select(*map(quoted, keys)), keys, "left_anti").count()

    def checkpoints(self, location: str) -> str:
        """The folder of all checkpoints."""
        if self.folder is not None:
            return naming.whole(self.folder).rstrip("/")
        if "__unitystorage" in location:
            raise TableError(
                f"scores {self.chunks.target.table!r}: expected --checkpoint, a folder such as /Volumes/…, for a "
                "table whose own folder Unity Catalog keeps to itself"
            )
        return f"{location}/{FOLDER}"

    def known(self) -> Progress | None:
        """How far the model has come with the source, as the scores table notes it now."""
        return self.all_known().get(self.chunks.source.id)

    def all_known(self) -> dict[str, Progress]:
        """The same for all of its sources, by their id."""
        return ledger.load(self.spark, self.chunks.target.table).of_model(self.chunks.target.model)

    def replaced(self) -> list[str]:
        """The ids of earlier tables in the source's place."""
        source = self.chunks.source
        known = self.all_known().items()
        return [name for name, progress in known if progress.location == source.location and name != source.id]

    def current_version(self) -> int:
        """The version that the source has now."""
        return tables.current_version(self.spark, self.chunks.source.identifier)

    def only_grown_since(self, version: int) -> bool:
        """Whether the history tells that no row of the source was updated or deleted since one of its versions.

        Asked right before a MERGE, which reads the newest version: what comes after its beginning is a conflict.
        """
        commits = logged(self.spark, self.chunks.source.identifier, since=version)
        # Delta forgets its oldest commits after a while.
        is_whole = len(commits) == (commits[0].version if commits else self.current_version()) - version
        return is_whole and all(commit.adds_only for commit in commits)

    def reopen(self) -> None:
        """Open the source at its current version."""
        self.chunks.source = tables.open_source(self.spark, self.chunks.source.table)

    def has_begun(self, folder: str, progress: Progress) -> bool:
        """Whether the checkpoint is still there."""
        checkpoint = f"{folder}/{progress.checkpoint}"
        try:
            return not access.files_reader(self.spark).text(f"{checkpoint}/metadata").isEmpty()
        except AnalysisException as error:
            if error.getCondition() == "PATH_NOT_FOUND":
                return False
            raise

    def begin(self, step: Begin) -> Progress:
        """Another beginning: from all rows of the source, or from one of its versions on."""
        source, before = self.chunks.source, self.known()
        # What others did before a first beginning took nothing away that this model has written.
        looked_at = cast("int | None", self.chunks.info.get("checked"))
        progress = Progress(
            checkpoint=uuid4().hex[:12],
            # Milliseconds of the clock, for a staged table has forgotten its last one.
            generation=max(int(1000 * time.time()), 0 if before is None else before.generation + 1),
            # Its first chunk looks, when no run that this one replaces can commit any more.
            began_empty=False,
            # In place the run's own commit would be a change of every row.
            feed=source.feed and self.chunks.where is None if step.feed is None else step.feed,
            starting_version=step.starting_version,
            backbone=self.backbone,
            location=source.location,
            comparing=step.comparing,
            checked=looked_at if before is None else before.checked,
        )
        target = self.chunks.target
        ended = ledger.ended_beginnings(self.spark, target, but=source.id)
        ledger.save_progress(self.spark, target, {**ended, source.id: progress})
        return progress

    def note(self, **changed: Any) -> None:
        """Change the progress in some of its fields, if there is any."""
        progress = self.known()
        if progress is not None:
            ledger.save_progress(self.spark, self.chunks.target, {self.chunks.source.id: replace(progress, **changed)})

    def wait_for(self, version: int) -> int:
        """Wait until the source has a version, or the run is to end; give the version that it has."""
        while (current := self.current_version()) < version and not self.chunks.stopping():
            time.sleep(1)
        return current

    def stream(self, folder: str, progress: Progress) -> None:
        """Score chunk after chunk until nothing is left, or for ever.

        Args:
            folder: Of all checkpoints.
            progress: What says where to begin or to go on.

        Raises:
            TableError: The source has changed in a way that it does not tell, or another run is at work.
        """
        spark, target = self.spark, self.chunks.target
        limits = {"maxBytesPerTrigger": str(self.max_bytes_per_chunk)}
        if self.max_files_per_chunk is not None:
            limits["maxFilesPerTrigger"] = str(self.max_files_per_chunk)
        listener = self._listener(
            "scoring", lambda: None if self.chunks.known is None else self.rows_read - self.chunks.known
        )
        spark.streams.addListener(listener)
        before = tables.current_version(spark, target.identifier) if batches_run_elsewhere() else 0
        try:
            query = self._start(progress, folder, limits)
            listener.follow(str(query.runId))
            try:
                wait(self.chunks, query)
            finally:
                if batches_run_elsewhere():
                    self.chunks.count_committed(spark, before)
            # A run that was replaced before its last chunk had it refused without a word.
            self.chunks.check_alone(spark)
        finally:
            self.chunks.progress = None
            listener.close()
            spark.streams.removeListener(listener)

    def _start(self, progress: Progress, folder: str, limits: dict[str, str]) -> StreamingQuery:
        remedy = "grant access to it, or name another (--checkpoint)"
        with access.reaching(f"checkpoint {folder!r}", remedy, errors=(Py4JJavaError,)):
            return self.chunks.start(self.spark, progress, f"{folder}/{progress.checkpoint}", limits, self.every)

    def commit(self) -> Commit:
        """What a commit outside of a stream says of itself."""
        return Commit(info=json.dumps({**self.chunks.info, "source_version": self.chunks.source.version}))

    def score_missing(self) -> None:
        """Score the rows that have neither a score nor a reason."""
        key = list(self.chunks.target.key)
        keys = self.chunks.source.rows.select(*map(quoted, key))
        self.score_keys(keys.join(self.chunks.target.keys(self.spark), key, "left_anti"), self.commit())

    def score_keys(self, wanted: DataFrame, commit: Commit) -> None:
        """Score the rows of some keys, in parts of a chunk's size: a run that is killed finds fewer the next time."""
        chunks = self.chunks
        with on_disk(wanted) as wanted:
            count = wanted.count()
            if count == 0:
                return
            parts = rows_of_keys(
                self.spark, chunks.source, wanted, count, key=chunks.target.key, kept=tuple(chunks.target.kept),
                column=chunks.column, max_bytes=self.max_bytes_per_chunk,
            )  # fmt: skip
            with self.shown("scoring keys of", count) as listener:
                for rows in parts:
                    before = chunks.rows
                    chunks.replace_rows(self.spark, rows, commit)
                    listener.add(chunks.rows - before)

    def _listener(self, doing: str, rows_to_do: Callable[[], int | None], *, in_one: bool = False) -> ProgressListener:
        source, rows = self.chunks.source, self.rows_read
        share = self.max_bytes_per_chunk / max(source.size, 1)
        if self.max_files_per_chunk is not None:
            share = min(share, self.max_files_per_chunk / max(source.files, 1))
        return ProgressListener(
            f"{doing} {source.identifier}",
            rows_to_do=rows_to_do,
            bytes_a_row=source.size / max(rows, 1),
            rows_a_chunk=rows * (1.0 if in_one else min(share, 1.0)),
            tasks=self.chunks.tasks,
            failed=self.chunks.failed,
            file=self.progress_file,
        )

    @contextmanager
    def shown(self, doing: str, rows_to_do: int, *, in_one: bool = False) -> Iterator[ProgressListener]:
        """Progress of what no stream does, and its name in the Spark UI."""
        listener = self._listener(doing, lambda: rows_to_do, in_one=in_one)
        try:
            with sessions.described(self.spark, f"spark-aesthetic: {doing} {self.chunks.source.identifier}"):
                yield listener
        finally:
            listener.close()
