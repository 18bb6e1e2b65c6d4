"""What a run does with its chunks: go on or begin anew, compare keys first, stage for the source itself."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass
from typing import TextIO
from uuid import uuid4

from py4j.protocol import Py4JJavaError
from pyspark import StorageLevel
from pyspark.errors import AnalysisException, PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from spark_aesthetic import preflight
from spark_aesthetic.errors import SourceChangedError, TableError
from spark_aesthetic.preflight import quoted
from spark_aesthetic.progress import ProgressListener
from spark_aesthetic.scores import (
    ERROR,
    Commit,
    Progress,
    load_progress,
    same_key,
    save_progress,
    sources_of,
)
from spark_aesthetic.stream import Chunks, explained, wait

_log = logging.getLogger("spark_aesthetic")

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
        every: Interval of a run without end, or None.
        backbone: What the embeddings of the model depend on.
        progress_file: Where progress is shown.
    """

    spark: SparkSession
    chunks: Chunks
    folder: str | None
    max_bytes_per_chunk: int
    max_files_per_chunk: int | None
    every: str | None
    backbone: str
    progress_file: TextIO | None

    def count_unscored(self, *, retry_failed: bool) -> int:
        """Rows that a run would score; reads narrow columns alone."""
        spark, target, rows = self.spark, self.chunks.target, self.chunks.source.rows
        if self.chunks.where is not None:
            return rows.where(self.chunks.where).count()
        if not preflight.is_delta(spark, target.table):
            return rows.count()
        known = target.rows(spark)
        if retry_failed:
            known = known.where(F.col(ERROR).isNull())
        keys = list(target.key)
        return rows.select(*map(quoted, keys)).join(known.select(*map(quoted, keys)), keys, "left_anti").count()

    def beside(self, *, reconcile: bool, version_col: str | None, retry_failed: bool) -> None:
        """Bring a scores table up to date with the source.

        Raises:
            TableError: The source has changed in a way that it does not tell, or another run is at work.
        """
        try:
            folder = self._checkpoints(self.chunks.target.make(self.spark))
            if reconcile:
                self._reconcile(version_col)
            if retry_failed:
                self._retry()
            self._stream(folder)
        # The second is how Delta's conflicts arrive that have no condition of their own.
        except (PySparkException, Py4JJavaError) as error:
            raise explained(error, self.chunks) from error

    def in_place(self) -> int:
        """Bring the source's own columns up to date.

        Returns:
            Bytes of the files that hold rows to be scored, which the commit rewrites.
        """
        spark, source, target, where = self.spark, self.chunks.source, self.chunks.target, self.chunks.where
        todo = source.rows if where is None else source.rows.where(where)
        files = todo.select("_metadata.file_path", "_metadata.file_size").distinct()
        size = int(files.agg(F.coalesce(F.sum("file_size"), F.lit(0))).collect()[0][0])
        if size == 0:
            return 0
        _log.info(
            "%s: the commit will rewrite %.1f MB of files in place; a scores table (--scores) rewrites none, and suits "
            "tables of images", source.identifier, size / 1e6,
        )  # fmt: skip
        if size <= self.max_bytes_per_chunk and self.max_files_per_chunk is None:
            # One chunk: to stage it would save nothing from a kill.
            preflight.check_key_values(source.rows, target.key)
            self.chunks.merge_into_source(spark, todo)
            return size
        folder = self._checkpoints(target.make(spark))
        while True:
            before = preflight.current_version(spark, source.identifier)
            try:
                self._stream(folder)
            except SourceChangedError:
                # A staged score may be that of an image which is no longer there.
                _log.warning("%s: rows were updated or deleted meanwhile; scoring begins again", source.identifier)
                self._forget()
                continue
            if preflight.current_version(spark, source.identifier) == before:
                break
        self.chunks.take_over(spark, target.rows(spark))
        self._forget()
        return size

    def _stream(self, folder: str) -> None:
        """Score chunk after chunk until nothing is left, or for ever."""
        spark, source, target = self.spark, self.chunks.source, self.chunks.target
        progress = load_progress(spark, target, source.id)
        lost = progress is not None and not self._has_begun(f"{folder}/{progress.checkpoint}")
        # One that begins at a version begins there again, and finds the keys that are there.
        if progress is None or (progress.starting_version is None and lost):
            # Later a chunk's keys are looked up in the scores; of the first rows all are looked at here, once.
            preflight.check_key_values(source.rows, target.key)
            progress = self._begin(None)
        if progress.starting_version is not None and self._waits_for(progress.starting_version):
            return
        limits = {"maxBytesPerTrigger": str(self.max_bytes_per_chunk)}
        if self.max_files_per_chunk is not None:
            limits["maxFilesPerTrigger"] = str(self.max_files_per_chunk)
        listener = ProgressListener(f"scoring {source.identifier}", self.chunks.failed, self.progress_file)
        spark.streams.addListener(listener)
        try:
            query = self.chunks.start(spark, progress, f"{folder}/{progress.checkpoint}", limits, self.every)
            wait(self.chunks, query)
        finally:
            spark.streams.removeListener(listener)
            listener.close()

    def _waits_for(self, version: int) -> bool:
        """Whether a version is still to come, which Delta's source refuses to begin at."""
        while preflight.current_version(self.spark, self.chunks.source.identifier) < version:
            if self.every is None or self.chunks.stopping():
                return True
            time.sleep(1)
        return False

    def _begin(self, starting_version: int | None) -> Progress:
        """Another beginning: from all rows of the source, or from one of its versions on."""
        spark, target, source = self.spark, self.chunks.target, self.chunks.source
        progress = Progress(
            checkpoint=uuid4().hex[:12],
            began_empty=target.rows(spark).isEmpty(),
            # In place the run's own commit would be a change of every row.
            feed=source.feed and self.chunks.where is None,
            starting_version=starting_version,
            backbone=self.backbone,
        )
        save_progress(spark, target, source.id, progress)
        return progress

    def _checkpoints(self, location: str) -> str:
        """The folder of all checkpoints."""
        if self.folder is not None:
            return self.folder.rstrip("/")
        if "__unitystorage" in location:
            raise TableError(
                f"scores {self.chunks.target.table!r}: expected --checkpoint, a folder such as /Volumes/…, for a "
                "table whose own folder Unity Catalog keeps to itself"
            )
        return f"{location}/{FOLDER}"

    def _has_begun(self, checkpoint: str) -> bool:
        """Whether the checkpoint is still there."""
        try:
            return not self.spark.read.text(f"{checkpoint}/metadata").isEmpty()
        except AnalysisException as error:
            if error.getCondition() == "PATH_NOT_FOUND":
                return False
            raise

    def _reconcile(self, version_col: str | None) -> None:
        """Compare the keys of source and scores, score what is missing or changed, and drop what is gone."""
        spark, source, target = self.spark, self.chunks.source, self.chunks.target
        preflight.check_key_values(source.rows, target.key)
        key = list(target.key)
        there, known = source.rows.select(*map(quoted, target.kept)), target.rows(spark)
        keys = there.select(*map(quoted, key))
        wanted = keys.join(target.keys(spark), key, "left_anti")
        if version_col is not None and version_col in known.columns:
            version = quoted(version_col)
            changed = f"scored.{version} IS NOT NULL AND NOT source.{version} <=> scored.{version}"
            both = there.alias("source").join(
                known.alias("scored"), F.expr(f"{same_key(key, 'source')} AND {changed}"), "left_semi"
            )
            wanted = wanted.union(both.select(*map(quoted, key)))
        gone = target.keys(spark).join(keys, key, "left_anti")
        if sources_of(spark, target) - {source.id}:
            _log.warning("%s: other sources have scores here too, so none is dropped", target.identifier)
            gone = gone.limit(0)
        self._score_keys(wanted, gone)
        self._begin(source.version + 1)

    def _retry(self) -> None:
        """Score the rows again that have failed."""
        failed = self.chunks.target.rows(self.spark).where(F.col(ERROR).isNotNull())
        keys = failed.select(*map(quoted, self.chunks.target.key))
        self._score_keys(keys, keys.limit(0))

    def _score_keys(self, wanted: DataFrame, gone: DataFrame) -> None:
        wanted, gone = wanted.persist(StorageLevel.DISK_ONLY), gone.persist(StorageLevel.DISK_ONLY)
        try:
            count = wanted.count()
            if count or not gone.isEmpty():
                info = json.dumps({**self.chunks.info, "source_version": self.chunks.source.version})
                self.chunks.score_keys(self.spark, wanted, count, gone, Commit(info=info))
        finally:
            wanted.unpersist()
            gone.unpersist()

    def _forget(self) -> None:
        """Empty the staged table of this model; the next run begins anew."""
        target = self.chunks.target
        save_progress(self.spark, target, self.chunks.source.id, None)
        self.spark.sql(f"DELETE FROM {target.identifier} WHERE aesthetic_model = '{target.model}'")
