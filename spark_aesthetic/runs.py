"""What a run does with its chunks: go on or begin anew, compare keys first, stage for the source itself."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TextIO, cast
from uuid import uuid4

from pyspark import StorageLevel
from pyspark.errors import AnalysisException, PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.streaming.query import StreamingQuery
from pyspark.sql.utils import is_remote

from spark_aesthetic import ledger, preflight
from spark_aesthetic.commits import Commit, logged, merge_into
from spark_aesthetic.disturbances import checked_until, read_until, restored_to, restored_until, taken_away
from spark_aesthetic.errors import SourceChangedError, TableError
from spark_aesthetic.fetch import rows_of_keys
from spark_aesthetic.java import Py4JJavaError
from spark_aesthetic.ledger import Progress
from spark_aesthetic.preflight import quoted
from spark_aesthetic.progress import ProgressListener
from spark_aesthetic.scores import ERROR, MODEL, SCORED_AT, same_key
from spark_aesthetic.sessions import text_literal
from spark_aesthetic.stream import Chunks, raise_explained, wait

_log = logging.getLogger("spark_aesthetic")

# In the folder of the table that scores go to; Delta leaves alone what begins with an underscore.
FOLDER = "_spark_aesthetic"

# As far back the history of the scores is read at first; Delta reads a file for each commit.
_LAST_COMMITS = 50

# So often a run in place begins again where the source was updated meanwhile.
_ATTEMPTS = 3

# Keys that a warning shows.
_SHOWN_KEYS = 3


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
        if not preflight.is_delta(spark, target.table):
            return self.rows_read
        known = target.rows(spark)
        if retry_failed:
            known = known.where(F.col(ERROR).isNull())
        keys = list(target.key)
        return rows.select(*map(quoted, keys)).join(known.select(*map(quoted, keys)), keys, "left_anti").count()

    def beside(self, *, reconcile: bool, version_col: str | None, retry_failed: bool) -> int | None:
        """Bring a scores table up to date with the source.

        Returns:
            Rows of the source that this run found with a score or a reason, and left alone; None for a run that was
            told to end.

        Raises:
            TableError: The source has changed in a way that it does not tell, or another run is at work.
        """
        spark, source, target = self.spark, self.chunks.source, self.chunks.target
        try:
            folder = self._checkpoints(target.make(spark, ledger.described(source, target.key)))
            ledger.register(spark, target.table, source, target.key, shared_keys=self.shared_keys)
            taken = self._look_back(may_compare=reconcile and version_col is not None)
            if reconcile:
                self._reconcile(folder, version_col)
            else:
                self._check_compared()
            if retry_failed:
                self._retry()
            if self.every is not None and taken is not None:
                self._score_missing()
            self._stream(folder)
            if self.every is not None or self.chunks.stopping():
                return None
            # Whether other sources have rows in the scores table, too.
            shared = bool(ledger.load(spark, target.table).others(source))
            skipped, missing = self._count_left(shared)
            if taken is not None or missing:
                self._score_missing()
                skipped, missing = self._count_left(shared)
            if missing or shared:
                self._tell_of_repeated_keys(missing)
            if taken is not None:
                self._note_checked(taken)
        # The second is how Delta's conflicts arrive that have no condition of their own.
        except (PySparkException, Py4JJavaError) as error:
            raise_explained(error, self.chunks)
        return skipped

    def in_place(self) -> tuple[int, int]:
        """Bring the source's own columns up to date.

        Returns:
            Bytes of the files that hold rows to be scored, which the commit rewrites, and rows that were left alone.

        Raises:
            TableError: The source is updated faster than it is scored, or another run is at work.
        """
        todo = self._todo()
        metadata = todo.metadataColumn("_metadata")
        files = todo.select(metadata["file_path"].alias("path"), metadata["file_size"].alias("size"))
        found = files.groupBy("path", "size").count().agg(F.sum("size").alias("size"), F.sum("count").alias("rows"))
        unscored = found.collect()[0]
        size, skipped = unscored.size or 0, self.rows_read - (unscored.rows or 0)
        if size == 0:
            return 0, skipped
        _log.info(
            "%s: the commit will rewrite %.1f MB of files in place; a scores table (--scores) rewrites none, and suits "
            "tables of images", self.chunks.source.identifier, size / 1e6,
        )  # fmt: skip
        # One chunk: to stage it would save nothing from a kill.
        directly = size <= self.max_bytes_per_chunk and self.max_files_per_chunk is None
        try:
            for _ in range(_ATTEMPTS):
                if self._score_directly() if directly else self._score_staged():
                    return size, skipped
                _log.warning(
                    "%s: rows were updated or deleted meanwhile; scoring begins again", self.chunks.source.identifier
                )
                self.chunks.forget_counts()
                self.chunks.source = preflight.open_source(self.spark, self.chunks.source.table)
        except (PySparkException, Py4JJavaError) as error:
            raise_explained(error, self.chunks)
        raise TableError(
            f"source {self.chunks.source.identifier}: expected no updates while it is scored in place, found some in "
            f"each of {_ATTEMPTS} attempts; pause them, or score into a table of its own (--scores)"
        )

    def _todo(self) -> DataFrame:
        assert self.chunks.where is not None, "in place there is a condition"
        return self.chunks.source.rows.where(self.chunks.where)

    def _score_directly(self) -> bool:
        """Score and commit at once; whether the source allowed it."""
        source = self.chunks.source
        preflight.check_key_values(source.rows, self.chunks.target.key)
        todo = self._todo()
        with self._shown("scoring in place", todo.count(), in_one=True) as listener:
            done = self.chunks.merge_into_source(self.spark, todo, partial(self._only_grown_since, source.version))
            listener.add(self.chunks.rows)
            return done

    def _score_staged(self) -> bool:
        """Score chunk by chunk beside the source, then commit; whether the source allowed it."""
        spark, source, target = self.spark, self.chunks.source, self.chunks.target
        folder = self._checkpoints(target.make(spark, ledger.described(source, target.key)))
        try:
            version = preflight.current_version(spark, source.identifier)
            self._stream(folder)
            unchanged = self._only_grown_since(version)
        except SourceChangedError:
            unchanged = False
        if unchanged:
            # Rows may have come meanwhile, or since a run that was killed: two of one key would get one score.
            preflight.check_key_values(preflight.read_table(spark, source.table), target.key)
            unchanged = self.chunks.take_over(spark, target.rows(spark), partial(self._only_grown_since, version))
        # A staged score may else be that of an image which is no longer there.
        self._forget()
        return unchanged

    def _only_grown_since(self, version: int) -> bool:
        """Whether the history tells that no row of the source was updated or deleted since one of its versions.

        Asked right before a MERGE, which reads the newest version: what comes after its beginning is a conflict.
        """
        commits = logged(self.spark, self.chunks.source.identifier, since=version)
        # Delta forgets its oldest commits after a while.
        is_whole = len(commits) == (commits[0].version if commits else self._current_version()) - version
        return is_whole and all(commit.adds_only for commit in commits)

    def _current_version(self) -> int:
        return preflight.current_version(self.spark, self.chunks.source.identifier)

    def _look_back(self, *, may_compare: bool) -> int | None:
        """Look whether others took scores away since the last run, and go back to where they were restored to.

        Args:
            may_compare: The run compares versions anyway.

        Returns:
            The version of the scores table that was looked at, if scores may be missing there; None if not.

        Raises:
            SourceChangedError: The scores were restored, and nothing tells which rows of the source were updated since.
        """
        source, target, progress = self.chunks.source, self.chunks.target, self._known()
        commits = logged(self.spark, target.identifier, last=_LAST_COMMITS)
        if progress is None:
            # The model has no scores of this source that could be missing.
            self.chunks.info["checked"] = commits[0].version
            return None
        since = checked_until(commits, target.model, source.id, progress.checked)
        if since is None or commits[-1].version > since + 1:
            commits = logged(self.spark, target.identifier, since=-1 if since is None else since)
            since = checked_until(commits, target.model, source.id, progress.checked)
        taken = taken_away(commits, 0 if since is None else since)
        self.chunks.info["checked"] = since if taken else commits[0].version
        if not taken:
            return None
        _log.warning(
            "%s: other writers may have taken scores away (%s); the rows whose scores are missing are scored again",
            target.identifier, ", ".join(f"{commit.operation} in version {commit.version}" for commit in taken[::-1]),
        )  # fmt: skip
        version = restored_to(taken)
        if version is not None:
            self._go_back(version, progress, may_compare=may_compare)
        return commits[0].version

    def _go_back(self, version: int, progress: Progress, *, may_compare: bool) -> None:
        """Read the source again from where the scores that were restored ended.

        Rows that were updated since then have the scores of their old images again, which no key tells.
        """
        source, target = self.chunks.source, self.chunks.target
        until = restored_until(logged(self.spark, target.identifier), target.model, source.id, version)
        if progress.feed and until is not None:
            self._begin(until + 1, feed=True, comparing=progress.comparing)
        elif not may_compare and not self._is_current(until):
            raise SourceChangedError(
                f"scores {target.table!r}: expected scores that nobody restored to an older version, found RESTORE and "
                f"a source whose rows were updated or deleted since its version {until}. Run once with --reconcile and "
                "--version-col, a column that differs where the image does, or delete the scores of this model, which "
                "scores all rows again"
            )
        elif progress.feed:
            self._begin(None, feed=True, comparing=progress.comparing)

    def _is_current(self, until: int | None) -> bool:
        """Whether no score can be that of an older image, if the source was read until one of its versions."""
        if until is not None and self._only_grown_since(until):
            return True
        return self.chunks.target.rows(self.spark).isEmpty()

    def _count_left(self, shared: bool) -> tuple[int, int]:
        """Count what this run wrote, in the scores: a row that it scored twice is one row.

        Args:
            shared: Other sources have rows there, too.

        Returns:
            Rows of the source that had their score before this run, and rows that have none after it.
        """
        source, target, times = self.chunks.source, self.chunks.target, self.chunks.times
        rows, is_new = target.rows(self.spark), F.col(SCORED_AT).isin(*times) if times else F.lit(False)
        key = list(map(quoted, target.key))
        counted = rows.select(*(key if shared else []), is_new.alias("_aesthetic_new"), F.col(ERROR))
        if shared:
            # Other sources have rows there too, so only the keys tell which are this one's.
            counted = source.rows.select(*key).join(counted, list(target.key), "left")
        found = counted.groupBy("_aesthetic_new", ERROR).agg(F.count(F.lit(1)).alias("_aesthetic_rows")).collect()
        by_age: Counter[bool | None] = Counter()
        failed: Counter[str] = Counter()
        for row in found:
            by_age[row["_aesthetic_new"]] += row["_aesthetic_rows"]
            if row["_aesthetic_new"] and row[ERROR] is not None:
                failed[row[ERROR]] += row["_aesthetic_rows"]
        self.chunks.rows, self.chunks.failed = by_age[True], failed
        return by_age[False], by_age[None] if shared else max(self.rows_read - by_age.total(), 0)

    def _tell_of_repeated_keys(self, missing: int) -> None:
        """Warn of rows without a score of their own: each key has one, of the row that came first."""
        source, key = self.chunks.source, list(map(quoted, self.chunks.target.key))
        groups = source.rows.groupBy(*key).agg(F.count(F.lit(1)).alias("_aesthetic_rows")).where("_aesthetic_rows > 1")
        repeated = groups.count()
        if repeated:
            text = preflight.key_text(key).alias("_aesthetic_key")
            first = groups.orderBy(*key).limit(_SHOWN_KEYS).select(text, "_aesthetic_rows").collect()
            _log.warning(
                "%s: %d keys are of several rows (%s), and each of them has the score of its first row alone; add a "
                "column to --key, or drop those rows", source.identifier, repeated,
                ", ".join(f"{row[1]} of {row[0]!r}" for row in first),
            )  # fmt: skip
        elif missing:
            _log.warning("%s: %d rows have neither a score nor a reason", source.identifier, missing)

    def _score_missing(self) -> None:
        """Score the rows that have neither a score nor a reason."""
        key = list(self.chunks.target.key)
        keys = self.chunks.source.rows.select(*map(quoted, key))
        self._score_keys(keys.join(self.chunks.target.keys(self.spark), key, "left_anti"), self._commit())

    def _note_checked(self, version: int) -> None:
        progress = self._known()
        if progress is not None:
            noted = {self.chunks.source.id: replace(progress, checked=version)}
            ledger.save_progress(self.spark, self.chunks.target, noted)

    def _stream(self, folder: str) -> None:
        """Score chunk after chunk until nothing is left, or for ever."""
        spark, target = self.spark, self.chunks.target
        progress = self._go_on(folder)
        if progress is None:
            return
        limits = {"maxBytesPerTrigger": str(self.max_bytes_per_chunk)}
        if self.max_files_per_chunk is not None:
            limits["maxFilesPerTrigger"] = str(self.max_files_per_chunk)
        listener = self._listener(
            "scoring", lambda: None if self.chunks.known is None else self.rows_read - self.chunks.known
        )
        spark.streams.addListener(listener)
        before = preflight.current_version(spark, target.identifier) if is_remote() else 0
        try:
            query = self._start(progress, folder, limits)
            listener.follow(str(query.runId))
            try:
                wait(self.chunks, query)
            finally:
                if is_remote():
                    self.chunks.count_committed(spark, before)
            # A run that was replaced before its last chunk had it refused without a word.
            self.chunks.check_alone(spark)
        finally:
            self.chunks.progress = None
            listener.close()
            spark.streams.removeListener(listener)

    def _start(self, progress: Progress, folder: str, limits: dict[str, str]) -> StreamingQuery:
        remedy = "grant access to it, or name another (--checkpoint)"
        with preflight.reaching(f"checkpoint {folder!r}", remedy, errors=(Py4JJavaError,)):
            return self.chunks.start(self.spark, progress, f"{folder}/{progress.checkpoint}", limits, self.every)

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
    def _shown(self, doing: str, rows_to_do: int, *, in_one: bool = False) -> Iterator[ProgressListener]:
        """Progress of what no stream does, and its name in the Spark UI."""
        listener = self._listener(doing, lambda: rows_to_do, in_one=in_one)
        try:
            with preflight.described(self.spark, f"spark-aesthetic: {doing} {self.chunks.source.identifier}"):
                yield listener
        finally:
            listener.close()

    def _waits_for(self, version: int) -> bool:
        """Whether a version is still to come, which Delta's source refuses to begin at."""
        while self._current_version() < version:
            if self.every is None or self.chunks.stopping():
                return True
            time.sleep(1)
        return False

    def _go_on(self, folder: str) -> Progress | None:
        """Where to go on; another beginning where there is nothing to go on from. None is that nothing is to be done.

        Raises:
            SourceChangedError: Nothing records which rows have changed since the last run.
        """
        source, target = self.chunks.source, self.chunks.target
        progress = self._known()
        if progress is not None and self._has_begun(f"{folder}/{progress.checkpoint}"):
            return progress
        if progress is not None and progress.starting_version is not None:
            # From there again, and under another name, for chunks are known by it. The keys that are there are found.
            if self._waits_for(progress.starting_version):
                return None
            return self._begin(progress.starting_version, feed=progress.feed, comparing=progress.comparing)
        if progress is None and self._replaced():
            raise SourceChangedError(
                f"source {source.identifier}: expected the table of the last run, found one that was made anew in its "
                "place; run once with --reconcile, which drops the scores of rows that are gone, and finds rows that "
                "are others under the same key by --version-col alone"
            )
        if progress is not None and not target.rows(self.spark).isEmpty():
            version = self._read_until()
            if version is not None and not self._only_grown_since(version):
                raise SourceChangedError(
                    f"scores {target.table!r}: expected the checkpoint {folder}/{progress.checkpoint}, found none, and "
                    f"a source whose rows were updated or deleted since version {version}, which was scored last; run "
                    "once with --reconcile"
                )
        # Later a chunk's keys are looked up in the scores; of the first rows all are looked at here, once.
        preflight.check_key_values(source.rows, target.key)
        return self._begin(None)

    def _known(self) -> Progress | None:
        return self._all_known().get(self.chunks.source.id)

    def _all_known(self) -> dict[str, Progress]:
        return ledger.load(self.spark, self.chunks.target.table).of_model(self.chunks.target.model)

    def _replaced(self) -> list[str]:
        """The ids of earlier tables in the source's place."""
        source = self.chunks.source
        known = self._all_known().items()
        return [name for name, progress in known if progress.location == source.location and name != source.id]

    def _read_until(self) -> int | None:
        """The version of the source that the last chunk ended in, as the scores' history tells it; None is no chunk.

        Raises:
            SourceChangedError: The history is not whole, and has no chunk.
        """
        source, target = self.chunks.source, self.chunks.target
        commits = logged(self.spark, target.identifier)
        version = read_until(commits, target.model, source.id)
        if version is None and commits[-1].version > 0:
            raise SourceChangedError(
                f"scores {target.table!r}: expected a checkpoint, or a history that tells how far {source.identifier} "
                "was read, found neither; run once with --reconcile"
            )
        return version

    def _begin(self, starting_version: int | None, *, feed: bool | None = None, comparing: bool = False) -> Progress:
        """Another beginning: from all rows of the source, or from one of its versions on."""
        source, before = self.chunks.source, self._known()
        # What others did before a first beginning took nothing away that this model has written.
        looked_at = cast("int | None", self.chunks.info.get("checked"))
        progress = Progress(
            checkpoint=uuid4().hex[:12],
            # Milliseconds of the clock, for a staged table has forgotten its last one.
            generation=max(int(1000 * time.time()), 0 if before is None else before.generation + 1),
            # Its first chunk looks, when no run that this one replaces can commit any more.
            began_empty=False,
            # In place the run's own commit would be a change of every row.
            feed=source.feed and self.chunks.where is None if feed is None else feed,
            starting_version=starting_version,
            backbone=self.backbone,
            location=source.location,
            comparing=comparing,
            checked=looked_at if before is None else before.checked,
        )
        target = self.chunks.target
        ended = ledger.ended_beginnings(self.spark, target, but=source.id)
        ledger.save_progress(self.spark, target, {**ended, source.id: progress})
        return progress

    def _checkpoints(self, location: str) -> str:
        """The folder of all checkpoints."""
        if self.folder is not None:
            return preflight.whole(self.folder).rstrip("/")
        if "__unitystorage" in location:
            raise TableError(
                f"scores {self.chunks.target.table!r}: expected --checkpoint, a folder such as /Volumes/…, for a "
                "table whose own folder Unity Catalog keeps to itself"
            )
        return f"{location}/{FOLDER}"

    def _has_begun(self, checkpoint: str) -> bool:
        """Whether the checkpoint is still there."""
        try:
            return not preflight.files_reader(self.spark).text(f"{checkpoint}/metadata").isEmpty()
        except AnalysisException as error:
            if error.getCondition() == "PATH_NOT_FOUND":
                return False
            raise

    def _check_compared(self) -> None:
        """Raise SourceChangedError if a comparison was killed: without it nothing would ask for what it had to find."""
        progress = self._known()
        if progress is not None and progress.comparing:
            raise SourceChangedError(
                f"scores {self.chunks.target.table!r}: expected the last --reconcile to have ended, found that it was "
                "stopped before; run with --reconcile, and the --version-col of that run, again"
            )

    def _reconcile(self, folder: str, version_col: str | None) -> None:
        """Compare the keys of source and scores, score what is missing or changed, and drop what is gone."""
        spark, target = self.spark, self.chunks.target
        followed = self._follow(folder)
        source = self.chunks.source = preflight.open_source(spark, self.chunks.source.table)
        preflight.check_key_values(source.rows, target.key)
        if not followed:
            # Ends another run that is at work.
            self._begin(None, comparing=True)
        replaced = self._replaced()
        if replaced:
            ledger.forget_sources(spark, target, replaced)
            if version_col is None:
                _log.warning(
                    "%s: the table was made anew since the last run; rows whose keys it had before keep their scores, "
                    "for without --version-col nothing tells which are others", source.identifier,
                )  # fmt: skip
        key = list(target.key)
        there, known = source.rows.select(*map(quoted, target.kept)), target.rows(spark)
        keys = there.select(*map(quoted, key))
        wanted = keys.join(target.keys(spark), key, "left_anti")
        if version_col is not None:
            wanted = wanted.union(self._changed(there, known, version_col))
        gone = target.keys(spark).join(keys, key, "left_anti")
        others = ledger.load(spark, target.table).others(source)
        if others:
            _log.warning(
                "%s: the scores of rows that are gone from %s are kept, because %s has scores here too",
                target.identifier, source.identifier, " and ".join(other.table for other in others),
            )  # fmt: skip
            gone = gone.limit(0)
        commit = self._commit()
        gone = gone.persist(StorageLevel.DISK_ONLY)
        try:
            if not gone.isEmpty():
                self.chunks.drop_keys(spark, gone, commit)
        finally:
            gone.unpersist()
        self._score_keys(wanted, commit)
        if version_col is not None:
            self._fill_in(there, version_col)
        progress = self._known()
        if not followed:
            self._begin(source.version + 1)
        elif progress is not None and progress.comparing:
            ledger.save_progress(spark, target, {source.id: replace(progress, comparing=False)})

    def _follow(self, folder: str) -> bool:
        """First take over what the feed tells of updates, which keys do not; whether it could be read."""
        progress = self._known()
        if progress is None or not progress.feed:
            return False
        if progress.starting_version is None and progress.comparing:
            return False
        try:
            if progress.starting_version is None and not self._has_begun(f"{folder}/{progress.checkpoint}"):
                version = self._read_until()
                if version is None:
                    return False
                # Rows that it had not come to have no score, so the comparison finds them.
                self._begin(version + 1, feed=True, comparing=True)
            self._stream(folder)
        except SourceChangedError as error:
            _log.warning("%s; rows that were updated since then are found by --version-col alone", error)
            return False
        return True

    def _changed(self, there: DataFrame, known: DataFrame, version_col: str) -> DataFrame:
        """Keys of rows whose version is another one than that of their score."""
        key, version = list(self.chunks.target.key), quoted(version_col)
        before = known.select(*map(quoted, key), F.col(version).alias("_aesthetic_before"))
        before = before.where(F.col("_aesthetic_before").isNotNull())
        both = there.select(*map(quoted, key), F.col(version).alias("_aesthetic_now")).join(before, key)
        changed = ~F.col("_aesthetic_now").eqNullSafe(F.col("_aesthetic_before"))
        return both.where(changed).select(*map(quoted, key))

    def _fill_in(self, there: DataFrame, version_col: str) -> None:
        """Note the version of rows that were scored without it: from now on they can be compared."""
        target, name = self.chunks.target, quoted(version_col)
        if target.rows(self.spark).where(F.col(name).isNull()).isEmpty():
            return
        clauses = (
            f"ON {same_key(target.key, 'target')} AND target.{MODEL} = {text_literal(target.model)} "
            f"AND target.{name} IS NULL AND scored.{name} IS NOT NULL "
            f"WHEN MATCHED THEN UPDATE SET {name} = scored.{name}"
        )
        merge_into(self.spark, target.identifier, there, clauses, self._commit())

    def _retry(self) -> None:
        """Score the rows again that have failed."""
        failed = self.chunks.target.rows(self.spark).where(F.col(ERROR).isNotNull())
        self._score_keys(failed.select(*map(quoted, self.chunks.target.key)), self._commit())

    def _commit(self) -> Commit:
        return Commit(info=json.dumps({**self.chunks.info, "source_version": self.chunks.source.version}))

    def _score_keys(self, wanted: DataFrame, commit: Commit) -> None:
        """Score the rows of some keys, in parts of a chunk's size: a run that is killed finds fewer the next time."""
        chunks = self.chunks
        wanted = wanted.persist(StorageLevel.DISK_ONLY)
        try:
            count = wanted.count()
            if count == 0:
                return
            parts = rows_of_keys(
                self.spark, chunks.source, wanted, count, key=chunks.target.key, kept=tuple(chunks.target.kept),
                column=chunks.column, max_bytes=self.max_bytes_per_chunk,
            )  # fmt: skip
            with self._shown("scoring keys of", count) as listener:
                for rows in parts:
                    before = chunks.rows
                    chunks.replace_rows(self.spark, rows, commit)
                    listener.add(chunks.rows - before)
        finally:
            wanted.unpersist()

    def _forget(self) -> None:
        """Empty the staged table of this model; the next run begins anew."""
        target = self.chunks.target
        ledger.forget_sources(self.spark, target, self._all_known())
        model = self.spark.createDataFrame([(target.model,)], f"{MODEL} string")
        clauses = f"ON target.{MODEL} = scored.{MODEL} WHEN MATCHED THEN DELETE"
        merge_into(self.spark, target.identifier, model, clauses, self._commit())
