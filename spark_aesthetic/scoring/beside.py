"""Bring a scores table up to date with its source by executing the steps that `plan` decides."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, replace

from pyspark.errors import PySparkException
from pyspark.sql import functions as F

from spark_aesthetic.delta import identity
from spark_aesthetic.delta.commits import logged
from spark_aesthetic.delta.java import Py4JJavaError
from spark_aesthetic.delta.naming import quoted
from spark_aesthetic.errors import SourceChangedError
from spark_aesthetic.scoring import ledger
from spark_aesthetic.scoring.compare import compare
from spark_aesthetic.scoring.disturbances import (
    checked_until,
    has_read_all,
    read_until,
    restored_to,
    restored_until,
    taken_away,
)
from spark_aesthetic.scoring.explained import raise_explained
from spark_aesthetic.scoring.ledger import Ledger, Progress
from spark_aesthetic.scoring.plan import (
    Asked,
    Begin,
    Do,
    Look,
    Lost,
    Others,
    Phase,
    Refuse,
    State,
    Step,
    Wait,
    after,
    next_step,
)
from spark_aesthetic.scoring.runs import Run
from spark_aesthetic.scoring.target import ERROR, SCORED_AT

_log = logging.getLogger("spark_aesthetic")

# This many of the newest commits of the scores table are read first. Delta reads one file per commit.
_LAST_COMMITS = 50

# Number of keys in a warning.
_SHOWN_KEYS = 3


def bring_up_to_date(run: Run, asked: Asked, version_col: str | None) -> int | None:
    """Bring a scores table up to date with the source.

    Args:
        run: The run.
        asked: The user's options.
        version_col: The column with the rows' versions, or None.

    Returns:
        The number of source rows that already had a score or a reason and were left alone; None if the run was stopped.

    Raises:
        TableError: The source's changed rows cannot be identified, or another run is writing the same scores.
    """
    spark, source, target = run.spark, run.source, run.target
    try:
        scores = target.make(spark, ledger.described(source, target.key))
        known = Ledger.of(scores.properties)
        ledger.register(spark, target.table, known, source, target.key, shared_keys=run.shared_keys)
        steps = Steps(run=run, folder=run.checkpoints(scores.location), version_col=version_col)
        steps.go(asked, known)
    # Delta's conflicts without an error condition arrive as Py4JJavaError.
    except (PySparkException, Py4JJavaError) as error:
        raise_explained(error, source=source.identifier, scores=target.table, failure=run.tally.failure)
    return steps.skipped


@dataclass(kw_only=True)
class Steps:
    """Executes the steps of a run.

    Attributes:
        run: The run.
        folder: The folder of all checkpoints.
        version_col: The column with the rows' versions, or None.
        looked_at: The version of the scores table up to which its history was checked; None unless other writers may
            have removed scores.
        shared: Whether other sources also have rows in the scores table.
        skipped: Rows that the run left alone; None if it was stopped.
    """

    run: Run
    folder: str
    version_col: str | None = None
    looked_at: int | None = None
    shared: bool = False
    skipped: int | None = None

    def go(self, asked: Asked, known: Ledger, first: Phase = Phase.LOOK_BACK, last: Phase = Phase.END) -> None:
        """Execute the steps from one phase to another.

        Args:
            asked: The user's options.
            known: The ledger of the scores table.
            first: The first phase.
            last: The last phase.
        """
        run, source, model = self.run, self.run.source, self.run.target.model
        state = State(
            asked=asked, version=source.version, progress=known.progress.get((model, source.id)),
            replaced=bool(known.replaced_by(source, model)), phase=first,
        )  # fmt: skip
        while True:
            state, step = next_step(replace(state, stopping=run.stopping()))
            if step is None or state.phase > last:
                return
            state = after(state, step, self._done(state, step))

    def _done(self, state: State, step: Step) -> object:
        """Execute a step and return its result."""
        run = self.run
        match step:
            case Look.OTHERS:
                return self._others(state.progress)
            case Look.CHECKPOINT:
                assert state.progress is not None, "the progress names the checkpoint"
                return run.has_begun(self.folder, state.progress)
            case Look.LOST:
                return self._lost(state)
            case Begin():
                return run.begin(step)
            case Wait():
                return run.wait_for(step.version)
            case Refuse():
                raise self._refused(step, state)
            case Do.STREAM:
                return self._streamed(state)
            case Do.REOPEN:
                # In this order, a row that changes between the two calls is read with its new values, and a score that
                # another run writes for it is detected.
                run.watch()
                run.reopen()
                run.rows_read = run.source.rows.count()
                return run.source.version
            case Do.COUNT:
                return self._counted()
            case Do.CHECK_KEYS:
                identity.check_key_values(run.source.rows, run.target.key)
            case Do.COMPARE:
                compare(run, self.version_col)
            case Do.END_COMPARISON:
                run.note(comparing=False)
            case Do.RETRY:
                run.retry_failed()
            case Do.SCORE_MISSING:
                run.score_missing()
            case Do.NOTE:
                self._note(state.missing or 0)
        return None

    def _streamed(self, state: State) -> bool:
        """Run the stream; before a comparison, warn and return False if it cannot read the source's changes."""
        assert state.progress is not None, "a stream has a progress"
        try:
            self.run.stream(self.folder, state.progress)
        except SourceChangedError as error:
            if state.phase is not Phase.FOLLOW:
                raise
            self._warn_of_updates(error)
            return False
        return True

    def _warn_of_updates(self, error: SourceChangedError) -> None:
        _log.warning("%s (without --version-col, this run does not detect rows that were updated since then)", error)

    def _others(self, progress: Progress | None) -> Others:
        """Check what other writers did to the scores since the last run."""
        run = self.run
        spark, source, target = run.spark, run.source, run.target
        commits = logged(spark, target.identifier, last=_LAST_COMMITS)
        if progress is None:
            # The model has no scores for this source yet, so none can be missing.
            run.writer = run.writer.telling(checked=commits[0].version)
            return Others()
        since = checked_until(commits, target.model, source.id, progress.checked)
        if since is None or commits[-1].version > since + 1:
            commits = logged(spark, target.identifier, since=-1 if since is None else since)
            since = checked_until(commits, target.model, source.id, progress.checked)
        read_all = has_read_all(
            commits, target.model, source.id, checkpoint=progress.checkpoint, version=source.version
        )
        taken = taken_away(commits, 0 if since is None else since)
        run.writer = run.writer.telling(checked=since if taken else commits[0].version)
        if not taken:
            return Others(read_all=read_all)
        _log.warning(
            "%s: other writers may have removed scores (%s); rows without a score are scored again",
            target.identifier, ", ".join(f"{commit.operation} in version {commit.version}" for commit in taken[::-1]),
        )  # fmt: skip
        self.looked_at = commits[0].version
        version = restored_to(taken)
        if version is None:
            return Others(took=True, read_all=read_all)
        until = restored_until(logged(spark, target.identifier), target.model, source.id, version)
        is_current = (until is not None and run.only_grown_since(until)) or target.rows(spark).isEmpty()
        return Others(took=True, restored=True, until=until, current=is_current)

    def _lost(self, state: State) -> Lost:
        """Infer from the histories of source and scores how far the stream of a lost checkpoint had read."""
        run, source, target = self.run, self.run.source, self.run.target
        if target.rows(run.spark).isEmpty():
            return Lost(scored=False)
        commits = logged(run.spark, target.identifier)
        until = read_until(commits, target.model, source.id)
        known = until is not None or commits[-1].version == 0
        lost = Lost(until=until, known=known, only_grown=until is None or self._shows_in_keys(until, state))
        if state.phase is Phase.FOLLOW and not lost.known:
            self._warn_of_updates(self._refused(Refuse.NO_HISTORY, state))
        return lost

    def _shows_in_keys(self, until: int, state: State) -> bool:
        """Whether every row that changed since a version of the source has a key without a score."""
        run = self.run
        has_feed = run.source.feed or (state.progress is not None and state.progress.feed)
        if has_feed and run.ledger().others(run.source):
            # A deleted row keeps its score for the other sources, and a new row may have been inserted with its key.
            return run.current_version() == until
        return run.only_grown_since(until)

    def _refused(self, why: Refuse, state: State) -> SourceChangedError:
        source, target = self.run.source, self.run.target
        match why:
            case Refuse.RESTORED:
                until = None if state.others is None else state.others.until
                changed = "no record of the source version that the restored scores are from"
                if until is not None:
                    changed = f"source rows that were updated or deleted since version {until} of the source"
                return SourceChangedError(
                    f"scores {target.table!r}: expected scores that were not restored to an older version, found a "
                    f"RESTORE and {changed}. Run once with --reconcile and --version-col (a column that changes with "
                    "the image), or delete the scores of this model to score all rows again."
                )
            case Refuse.COMPARISON_STOPPED:
                return SourceChangedError(
                    f"scores {target.table!r}: expected the last --reconcile to have finished, found that it was "
                    "stopped. Run again with --reconcile and with the --version-col of that run."
                )
            case Refuse.REPLACED:
                return SourceChangedError(
                    f"source {source.identifier}: expected the table of the last run, found a new table in its place. "
                    "Run once with --reconcile, which drops the scores of deleted rows; add --version-col to detect "
                    "rows with the same key and another image."
                )
            case Refuse.NO_HISTORY:
                return SourceChangedError(
                    f"scores {target.table!r}: expected a checkpoint, or a history that shows how far "
                    f"{source.identifier} was read, found neither. Run once with --reconcile."
                )
            case Refuse.CHECKPOINT_LOST:
                name = None if state.progress is None else state.progress.checkpoint
                until = None if state.lost is None else state.lost.until
                return SourceChangedError(
                    f"scores {target.table!r}: expected the checkpoint {self.folder}/{name}, found none. Source rows "
                    f"may have been updated or deleted since version {until}, the last version that was scored. Run "
                    "once with --reconcile."
                )

    def _counted(self) -> int:
        """Count this run's rows in the scores table. A row that was scored twice counts once.

        Returns:
            The number of source rows that have neither a score nor a reason.
        """
        run, tally = self.run, self.run.tally
        source, target, times = run.source, run.target, tally.times
        self.shared = bool(run.ledger().others(source))
        rows, is_new = target.rows(run.spark), F.col(SCORED_AT).isin(*times) if times else F.lit(False)
        key, new = list(map(quoted, target.key)), F.col("_aesthetic_new")
        counted = rows.select(*(key if self.shared else []), is_new.alias("_aesthetic_new"), F.col(ERROR))
        if self.shared:
            # Other sources have rows there too, so only the keys show which rows belong to this source.
            counted = source.rows.select(*key).join(counted, list(target.key), "left")
        # Without GROUP BY, no rows are shuffled. Reasons are rare, so they are counted only if a row has failed.
        found = counted.agg(
            F.count_if(new).alias("new"), F.count_if(~new).alias("old"), F.count_if(new.isNull()).alias("missing"),
            F.count_if(new & F.col(ERROR).isNotNull()).alias("failed"),
        ).collect()[0]  # fmt: skip
        tally.rows, tally.failed, self.skipped = found.new, Counter(), found.old
        if found.failed:
            tally.add_reasons(counted.where(new), ERROR)
        missing: int = found.missing if self.shared else max(run.rows_read - found.new - found.old, 0)
        return missing

    def _note(self, missing: int) -> None:
        """Warn of rows without a score of their own, and record how far the history was checked."""
        if missing or self.shared:
            self._tell_of_repeated_keys(missing)
        if self.looked_at is not None:
            self.run.note(checked=self.looked_at)

    def _tell_of_repeated_keys(self, missing: int) -> None:
        """Warn of keys that belong to several rows; if no key does, warn of rows without a score."""
        source, key = self.run.source, list(map(quoted, self.run.target.key))
        groups = source.rows.groupBy(*key).agg(F.count(F.lit(1)).alias("_aesthetic_rows")).where("_aesthetic_rows > 1")
        repeated = groups.count()
        if repeated:
            text = identity.key_text(key).alias("_aesthetic_key")
            first = groups.orderBy(*key).limit(_SHOWN_KEYS).select(text, "_aesthetic_rows").collect()
            _log.warning(
                "%s: %d keys belong to several rows (%s), and each has only the score of its first row; add a column "
                "to --key, or drop those rows", source.identifier, repeated,
                ", ".join(f"{row[1]} rows of {row[0]!r}" for row in first),
            )  # fmt: skip
        elif missing:
            _log.warning("%s: %d rows have neither a score nor a reason", source.identifier, missing)
