"""Decide the next step of a run that fills a scores table. These are pure functions of a `State`, without Spark.

`next_step` returns a step, the run executes it, and `after` adds the result to the state. Each case can be read and
tested as a value, and a simulated run makes the same decisions as a real one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, IntEnum, auto
from typing import Any, TypeAlias

from spark_aesthetic.scoring.ledger import Progress


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The user's options that decide the steps of a run.

    Attributes:
        reconcile: Compare all keys of source and scores.
        by_version: Also compare the versions of the rows (`--version-col`).
        retry_failed: Score failed rows again.
        endless: Look for new rows until the run is stopped (`--every`).
    """

    reconcile: bool = False
    by_version: bool = False
    retry_failed: bool = False
    endless: bool = False


@dataclass(frozen=True, kw_only=True)
class Others:
    """Effects of other writers on the scores since the last check by a run of this model and source.

    Attributes:
        took: They may have removed scores.
        restored: They restored an older version, so a score may be of an older image.
        until: The source version up to which the restored scores include every change; None if the history does not
            show it.
        current: No source row was updated or deleted since that version, or the model has no score.
        read_all: The last chunk read the source to its end, and the source has had no commit since.
    """

    took: bool = False
    restored: bool = False
    until: int | None = None
    current: bool = True
    read_all: bool = False


@dataclass(frozen=True, kw_only=True)
class Lost:
    """Facts from the Delta histories of source and scores, used in place of a lost checkpoint.

    Attributes:
        scored: The model has rows in the scores table.
        until: The source version up to which the last chunk read; None if the history has no chunk.
        known: The history of the scores table is complete or has a chunk, so it shows how far the source was read.
        only_grown: No source row was updated or deleted since that version.
    """

    scored: bool = True
    until: int | None = None
    known: bool = True
    only_grown: bool = True


class Phase(IntEnum):
    """The phases of a run. A run passes each of them once, in this order."""

    LOOK_BACK = auto()
    FOLLOW = auto()
    COMPARE = auto()
    RETRY = auto()
    REPAIR = auto()
    STREAM = auto()
    COUNT = auto()
    END = auto()


@dataclass(frozen=True, kw_only=True)
class State:
    """The state of a run, which decides its next step.

    Attributes:
        asked: The user's options.
        version: The source version that the run has opened.
        progress: The model's progress over the source in the scores table; None if it never started.
        replaced: The model has scored an earlier table at the source's location.
        phase: The current phase.
        stopping: The run was asked to stop.
        others: Effects of other writers on the scores; None before the check.
        checkpoint: The checkpoint of `progress` exists; None before the check.
        lost: Facts that replace a lost checkpoint; None before the check.
        fresh: This run started the stream of `progress` and has not read from it yet.
        followed: All changes in the feed were applied before the comparison.
        reopened: In this phase, the source was opened again at its current version.
        checked: The keys of the source were checked in this phase.
        compared: The keys of source and scores were compared.
        missing: Number of source rows that have neither a score nor a reason; None before they were counted.
        repaired: The missing rows were scored.
    """

    asked: Asked
    version: int
    progress: Progress | None
    replaced: bool = False
    phase: Phase = Phase.LOOK_BACK
    stopping: bool = False
    others: Others | None = None
    checkpoint: bool | None = None
    lost: Lost | None = None
    fresh: bool = False
    followed: bool = False
    reopened: bool = False
    checked: bool = False
    compared: bool = False
    missing: int | None = None
    repaired: bool = False


class Look(Enum):
    """A check of the tables. Its result goes into the field of `State` with the same name."""

    OTHERS = auto()
    CHECKPOINT = auto()
    LOST = auto()


class Do(Enum):
    """A step without parameters.

    Attributes:
        STREAM: Score chunk after chunk until no row is left, or with `--every` until the run is stopped. Returns
            False if the stream cannot read the source's changes before a comparison, otherwise True.
        REOPEN: Open the source at its current version. Returns that version.
        CHECK_KEYS: Raise an error unless each source row has a unique key.
        COMPARE: Drop scores of deleted rows, and score rows that have no score or a changed version.
        END_COMPARISON: Record that the comparison has finished.
        RETRY: Score failed rows again.
        SCORE_MISSING: Score the rows that have neither a score nor a reason.
        COUNT: Count the rows that the run wrote and those that it left alone. Returns the number of rows that have
            neither a score nor a reason.
        NOTE: Warn of repeated keys, and record how far the history was checked.
    """

    STREAM = auto()
    REOPEN = auto()
    CHECK_KEYS = auto()
    COMPARE = auto()
    END_COMPARISON = auto()
    RETRY = auto()
    SCORE_MISSING = auto()
    COUNT = auto()
    NOTE = auto()


@dataclass(frozen=True, kw_only=True)
class Begin:
    """Start a new stream, which ends every other run of this model over the source. Returns the new progress.

    Attributes:
        starting_version: The source version at which it starts; None reads all current rows and then later changes.
        feed: Whether to read the change data feed; None reads it if the source has one.
        comparing: A comparison has started and has not finished.
    """

    starting_version: int | None = None
    feed: bool | None = None
    comparing: bool = False


@dataclass(frozen=True)
class Wait:
    """Wait for a source version, because Delta cannot start a stream before it exists. Returns the current version."""

    version: int


class Refuse(Enum):
    """Why a run stops with an error: scores may be of older images, and nothing records which."""

    RESTORED = auto()
    COMPARISON_STOPPED = auto()
    REPLACED = auto()
    NO_HISTORY = auto()
    CHECKPOINT_LOST = auto()


Step: TypeAlias = Look | Do | Begin | Wait | Refuse


def next_step(state: State) -> tuple[State, Step | None]:
    """Advance the state to the next phase that has a step; return both, and None as the step if the run has ended."""
    while state.phase is not Phase.END:
        step = _STEPS[state.phase](state)
        if step is not None:
            return state, step
        state = _passed(state)
    return state, None


def after(state: State, step: Step, found: Any = None) -> State:
    """Return the state after a step that `next_step` returned; `found` is the result of the step."""
    match step:
        case Look():
            return replace(state, **{step.name.lower(): found})
        case Begin():
            begun = replace(state, progress=found, checkpoint=False, lost=None, fresh=True)
            if state.phase is Phase.LOOK_BACK and state.others is not None:
                return replace(begun, others=replace(state.others, restored=False))
            return _passed(begun) if state.compared and state.phase is Phase.COMPARE else begun
        case Wait() | Do.REOPEN:
            reopened = replace(state, version=found, reopened=state.reopened or step is Do.REOPEN)
            if state.others is None or found == state.version:
                return reopened
            return replace(reopened, others=replace(state.others, read_all=False))
        case Do.STREAM:
            return _passed(replace(state, checkpoint=True, fresh=False, followed=bool(found)))
        case Do.CHECK_KEYS:
            return replace(state, checked=True)
        case Do.COMPARE:
            return replace(state, compared=True, replaced=False)
        case Do.COUNT:
            return replace(state, missing=found)
        case Do.SCORE_MISSING if state.phase is Phase.COUNT:
            return replace(state, missing=None, repaired=True)
        case _:
            return _passed(state)


def _passed(state: State) -> State:
    return replace(state, phase=Phase(state.phase + 1), checked=False, reopened=False)


def _look_back(state: State) -> Step | None:
    """After a RESTORE of the scores table, read the source again from the version that its scores include."""
    others, progress = state.others, state.progress
    if others is None:
        return Look.OTHERS
    if not others.restored or progress is None:
        return None
    compares = state.asked.reconcile and state.asked.by_version
    if progress.feed and others.until is not None:
        # The feed repeats every change since that version.
        return Begin(starting_version=others.until + 1, feed=True, comparing=progress.comparing)
    if progress.feed and others.current:
        return Begin(feed=True, comparing=progress.comparing) if state.checked else Do.CHECK_KEYS
    return None if compares or others.current else Refuse.RESTORED


def _follow(state: State) -> Step | None:
    """Before a comparison, apply the updates in the feed, because a comparison of keys does not detect them."""
    progress = state.progress
    if not state.asked.reconcile or progress is None or not progress.feed:
        return None
    if progress.starting_version is None and not state.fresh:
        # An interrupted comparison started this stream, and nothing has been read from it.
        if progress.comparing:
            return None
        if state.checkpoint is None:
            return Look.CHECKPOINT
        if not state.checkpoint:
            if state.lost is None:
                return Look.LOST
            if not state.lost.known or state.lost.until is None:
                return None
            # Rows that the lost stream did not reach have no score, so the comparison detects them.
            return Begin(starting_version=state.lost.until + 1, feed=True, comparing=True)
    return _stream(state)


def _compare(state: State) -> Step | None:
    """Compare the keys. The progress has `comparing` until the end, so later runs repeat an interrupted comparison."""
    progress = state.progress
    if not state.asked.reconcile:
        return Refuse.COMPARISON_STOPPED if progress is not None and progress.comparing else None
    if not state.reopened:
        return Do.REOPEN
    if not state.checked:
        return Do.CHECK_KEYS
    if not state.compared:
        is_marked = progress is not None and progress.comparing and state.fresh
        return Do.COMPARE if state.followed or is_marked else Begin(comparing=True)
    if not state.followed:
        return Begin(starting_version=state.version + 1)
    return Do.END_COMPARISON if progress is not None and progress.comparing else None


def _retry(state: State) -> Step | None:
    if not state.asked.retry_failed:
        return None
    return Do.RETRY if state.reopened else Do.REOPEN


def _repair(state: State) -> Step | None:
    """In a run with `--every`, score missing rows now, because it never reaches the phase COUNT."""
    took = state.others is not None and state.others.took
    if not state.asked.endless or not took:
        return None
    return Do.SCORE_MISSING if state.reopened else Do.REOPEN


def _stream(state: State) -> Step | None:
    """Continue from the checkpoint, or start a new stream if that misses no change."""
    progress = state.progress
    if progress is not None and not state.fresh:
        # Starting a stream that has nothing to read would take half of the run's time.
        read_all = state.others is not None and state.others.read_all
        if read_all and state.phase is Phase.STREAM and not state.asked.endless:
            return None
        if state.checkpoint is None:
            return Look.CHECKPOINT
        if state.checkpoint:
            return Do.STREAM
    if progress is not None and progress.starting_version is not None:
        if state.version < progress.starting_version:
            return Wait(progress.starting_version) if state.asked.endless and not state.stopping else None
        # Start again at that version. The checkpoint gets a new name, because the name identifies chunks. Rows with
        # existing keys are merged.
        again = Begin(starting_version=progress.starting_version, feed=progress.feed, comparing=progress.comparing)
        return Do.STREAM if state.fresh else again
    if state.fresh:
        return Do.STREAM
    if progress is None and state.replaced:
        return Refuse.REPLACED
    if progress is not None:
        if state.lost is None:
            return Look.LOST
        if state.lost.scored and not state.lost.known:
            return Refuse.NO_HISTORY
        if state.lost.scored and state.lost.until is not None and not state.lost.only_grown:
            return Refuse.CHECKPOINT_LOST
    # All keys of the source are checked once, here. Later chunks look up their keys in the scores table.
    return Begin() if state.checked else Do.CHECK_KEYS


def _count(state: State) -> Step | None:
    """Count the rows in the scores table for the summary, and score what is missing."""
    if state.asked.endless or state.stopping:
        return None
    if state.missing is None:
        return Do.COUNT
    took = state.others is not None and state.others.took
    if state.repaired or not (state.missing or took):
        return Do.NOTE
    # A row that was deleted before the stream reached it must not get a score, so open the source again first.
    return Do.SCORE_MISSING if state.reopened else Do.REOPEN


_STEPS = {
    Phase.LOOK_BACK: _look_back,
    Phase.FOLLOW: _follow,
    Phase.COMPARE: _compare,
    Phase.RETRY: _retry,
    Phase.REPAIR: _repair,
    Phase.STREAM: _stream,
    Phase.COUNT: _count,
}


class Way(Enum):
    """How the rows of a chunk are written to the scores table.

    Attributes:
        APPEND: Append all rows, because their keys are new.
        MERGE_NEW: Merge only rows that have a new key.
        MERGE_CHANGES: Merge the latest change of each key.
    """

    APPEND = auto()
    MERGE_NEW = auto()
    MERGE_CHANGES = auto()


def begins_empty(*, chunk: int, known: int, others: bool) -> bool:
    """Whether a new stream meets no existing row, so that its keys need no lookup.

    Args:
        chunk: The number of the run's first chunk; 0 is the first chunk of the stream.
        known: Number of rows that the model has in the scores table.
        others: Whether other sources have rows there too, possibly with equal keys.
    """
    return chunk == 0 and known == 0 and not others


def way_of_chunk(*, initial: bool, began_empty: bool) -> Way:
    """Decide how a chunk is written.

    Args:
        initial: Whether its rows are from the initial snapshot of the source.
        began_empty: Whether the model had no row before the stream's first chunk, and no other run has started since.
    """
    if not initial:
        return Way.MERGE_CHANGES
    # Merge, because Delta reports no conflict if two runs append the same key at the same time.
    return Way.APPEND if began_empty else Way.MERGE_NEW
