"""What a run over a scores table does next: decisions over what is known, which have no part in Spark.

`next_step` names a step; the run does it and `after` takes in what it found. So each case can be read, and tested, as a
value, and a simulated run takes the same decisions as a real one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, IntEnum, auto
from typing import Any, TypeAlias

from spark_aesthetic.scoring.ledger import Progress


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the user asks of a run.

    Attributes:
        reconcile: To compare all keys of source and scores.
        by_version: To compare versions of the rows too (`--version-col`).
        retry_failed: To score again what has failed.
        endless: To look for new rows for ever (`--every`).
    """

    reconcile: bool = False
    by_version: bool = False
    retry_failed: bool = False
    endless: bool = False


@dataclass(frozen=True, kw_only=True)
class Others:
    """What other writers did to the scores since a run of this model and source looked last.

    Attributes:
        took: They may have taken scores away.
        restored: They brought an older version back, so a score may be that of an older image.
        until: The version of the source that the restored scores had been read until; None where no chunk tells.
        current: No row of the source was updated or deleted since then, or the model has no score there.
        read_all: The last chunk read the source to its end, and the source still has that version.
    """

    took: bool = False
    restored: bool = False
    until: int | None = None
    current: bool = True
    read_all: bool = False


@dataclass(frozen=True, kw_only=True)
class Lost:
    """What two histories tell in the place of a checkpoint that is gone.

    Attributes:
        scored: The model has rows in the scores table.
        until: The version of the source that was read last; None where no chunk was.
        known: The history of the scores is whole, or has a chunk.
        only_grown: No row of the source was updated or deleted since that version.
    """

    scored: bool = True
    until: int | None = None
    known: bool = True
    only_grown: bool = True


class Phase(IntEnum):
    """Where a run is. It goes from each to the next, and through each of them once."""

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
    """What a run knows.

    Attributes:
        asked: What its user asked for.
        version: The version of the source that the run has opened.
        progress: How far the model has come with the source, as the scores table notes it; None if it never began.
        replaced: The scores table knows an earlier table in the source's place.
        phase: Where the run is.
        stopping: It is to end.
        others: What other writers did to the scores; None before the run looked.
        checkpoint: That of `progress` is there; None before the run looked.
        lost: What is known in its place; None before the run looked.
        fresh: `progress` was begun by this run and was not read from yet.
        followed: All that the feed tells was taken over before the comparison.
        reopened: The source was opened again, for the comparison or for what is missing.
        checked: The keys of the source were checked in this phase.
        compared: The comparison was made.
        missing: Rows of the source that have neither a score nor a reason; None before they were counted.
        repaired: They were scored.
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
    """A question to the tables; what it finds is the type of the field that it fills."""

    OTHERS = auto()
    CHECKPOINT = auto()
    LOST = auto()


class Do(Enum):
    """Something that needs no more than its name.

    Attributes:
        STREAM: Score chunk after chunk until nothing is left, or for ever. Finds whether it could be read to its end.
        REOPEN: Open the source at its current version. Finds that.
        CHECK_KEYS: Raise an error unless each row of the source has a key of its own.
        COMPARE: Drop scores of rows that are gone, score rows without a score, or of another version.
        END_COMPARISON: Note that it has ended.
        RETRY: Score again what has failed.
        SCORE_MISSING: Score the rows that have neither a score nor a reason.
        COUNT: Count what the run wrote and left alone. Finds the rows that have neither a score nor a reason.
        NOTE: Tell of rows that no score can be told apart for, and note that the history has been looked at.
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
    """Begin anew, which ends every other run of this model over the source. Finds the new progress.

    Attributes:
        starting_version: Of the source; None is all of its rows and what comes after.
        feed: Read the change data feed; None where the source has one.
        comparing: A comparison has begun and has not ended.
    """

    starting_version: int | None = None
    feed: bool | None = None
    comparing: bool = False


@dataclass(frozen=True)
class Wait:
    """Wait for a version of the source, which Delta refuses to begin at sooner. Finds the version that is there."""

    version: int


class Refuse(Enum):
    """Why a run stops: nothing tells which scores are those of older images."""

    RESTORED = auto()
    COMPARISON_STOPPED = auto()
    REPLACED = auto()
    NO_HISTORY = auto()
    CHECKPOINT_LOST = auto()


Step: TypeAlias = Look | Do | Begin | Wait | Refuse


def next_step(state: State) -> tuple[State, Step | None]:
    """What comes next, and the state with the phase that asks for it; None is that the run has ended."""
    while state.phase is not Phase.END:
        step = _STEPS[state.phase](state)
        if step is not None:
            return state, step
        state = _passed(state)
    return state, None


def after(state: State, step: Step, found: Any = None) -> State:
    """The state once a step was done that `next_step` named, with what it found."""
    match step:
        case Look():
            return replace(state, **{step.name.lower(): found})
        case Begin():
            begun = replace(state, progress=found, checkpoint=False, lost=None, fresh=True)
            if state.phase is Phase.LOOK_BACK and state.others is not None:
                return replace(begun, others=replace(state.others, restored=False))
            return _passed(begun) if state.compared and state.phase is Phase.COMPARE else begun
        case Wait() | Do.REOPEN:
            return replace(state, version=found, reopened=state.reopened or step is Do.REOPEN)
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
    return replace(state, phase=Phase(state.phase + 1), checked=False)


def _look_back(state: State) -> Step | None:
    """Go back to where the scores were restored to."""
    others, progress = state.others, state.progress
    if others is None:
        return Look.OTHERS
    if not others.restored or progress is None:
        return None
    compares = state.asked.reconcile and state.asked.by_version
    if progress.feed and others.until is not None:
        # The feed tells again of every row that was updated since.
        return Begin(starting_version=others.until + 1, feed=True, comparing=progress.comparing)
    if progress.feed and others.current:
        return Begin(feed=True, comparing=progress.comparing) if state.checked else Do.CHECK_KEYS
    return None if compares or others.current else Refuse.RESTORED


def _follow(state: State) -> Step | None:
    """Before a comparison, take over what the feed tells of updates, which keys do not."""
    progress = state.progress
    if not state.asked.reconcile or progress is None or not progress.feed:
        return None
    if progress.starting_version is None and not state.fresh:
        # Of a comparison that was stopped: nothing was read under it.
        if progress.comparing:
            return None
        if state.checkpoint is None:
            return Look.CHECKPOINT
        if not state.checkpoint:
            if state.lost is None:
                return Look.LOST
            if not state.lost.known or state.lost.until is None:
                return None
            # Rows that it had not come to have no score, so the comparison finds them.
            return Begin(starting_version=state.lost.until + 1, feed=True, comparing=True)
    return _stream(state)


def _compare(state: State) -> Step | None:
    """Compare the keys, and leave a mark meanwhile, for without its end nothing would ask for what it had to find."""
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
    return Do.RETRY if state.asked.retry_failed else None


def _repair(state: State) -> Step | None:
    """A run without end never comes to count, so it looks for missing scores before."""
    took = state.others is not None and state.others.took
    return Do.SCORE_MISSING if state.asked.endless and took else None


def _stream(state: State) -> Step | None:
    """Go on where the checkpoint says, or begin anew where that is sound."""
    progress = state.progress
    if progress is not None and not state.fresh:
        # A stream that has nothing to read would take half of the run's time to start.
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
        # From there again, and under another name, for chunks are known by it. The keys that are there are found.
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
    # Later a chunk's keys are looked up in the scores; of the first rows all are looked at here, once.
    return Begin() if state.checked else Do.CHECK_KEYS


def _count(state: State) -> Step | None:
    """Count, and score what is missing: what a run says of itself is counted."""
    if state.asked.endless or state.stopping:
        return None
    if state.missing is None:
        return Do.COUNT
    took = state.others is not None and state.others.took
    if state.repaired or not (state.missing or took):
        return Do.NOTE
    # A row that was deleted before the stream came to it has no score, and is to get none.
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
    """How the rows of a chunk get into the scores.

    Attributes:
        APPEND: As they are: their keys are new.
        MERGE_NEW: Those whose keys have no score.
        MERGE_CHANGES: Each key's last change.
    """

    APPEND = auto()
    MERGE_NEW = auto()
    MERGE_CHANGES = auto()


def begins_empty(*, chunk: int, known: int, others: bool) -> bool:
    """Whether a beginning meets no row of its own, so that its keys need not be looked up.

    Args:
        chunk: The number of the run's first chunk; 0 is the first of the beginning.
        known: Rows that the model has in the scores table.
        others: Other sources have rows there too, of which some may have equal keys.
    """
    return chunk == 0 and known == 0 and not others


def way_of_chunk(*, initial: bool, began_empty: bool) -> Way:
    """How a chunk is written.

    Args:
        initial: Its rows are those that the source had at the beginning.
        began_empty: The model had no row when its first chunk was begun, and no other run has begun since.
    """
    if not initial:
        return Way.MERGE_CHANGES
    # Merged, not appended: of two runs that add one key at the same time, Delta lets an append pass.
    return Way.APPEND if began_empty else Way.MERGE_NEW
