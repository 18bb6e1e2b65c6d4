"""The next step of a run, case by case."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from spark_aesthetic.scoring.ledger import Progress
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
    Way,
    after,
    begins_empty,
    next_step,
    way_of_chunk,
)  # fmt: skip

PLAIN, COMPARING = Asked(), Asked(reconcile=True, by_version=True)
QUIET = Others()


def progress(*, feed: bool = False, starting: int | None = None, comparing: bool = False) -> Progress:
    return Progress(
        checkpoint="c", generation=1, began_empty=False, feed=feed, starting_version=starting, backbone="b",
        location="/a", comparing=comparing,
    )  # fmt: skip


def state(phase: Phase, known: Progress | None = None, *, asked: Asked = PLAIN, **others: object) -> State:
    return State(asked=asked, version=7, progress=known, phase=phase, **others)  # type: ignore[arg-type]


def restored(until: int | None, *, current: bool) -> Others:
    return Others(took=True, restored=True, until=until, current=current)


@pytest.mark.parametrize(
    ("found", "step"),
    [
        (state(Phase.LOOK_BACK), Look.OTHERS),
        # A first run has no score that could be missing.
        (state(Phase.LOOK_BACK, others=restored(None, current=False)), Look.CHECKPOINT),
        (state(Phase.LOOK_BACK, progress(), others=Others(took=True)), Look.CHECKPOINT),
        (state(Phase.LOOK_BACK, progress(), others=restored(3, current=False)), Refuse.RESTORED),
        (state(Phase.LOOK_BACK, progress(), others=restored(None, current=False)), Refuse.RESTORED),
        (state(Phase.LOOK_BACK, progress(), others=restored(3, current=True)), Look.CHECKPOINT),
        (
            state(Phase.LOOK_BACK, progress(), others=restored(3, current=False), asked=Asked(reconcile=True)),
            Refuse.RESTORED,
        ),
        (state(Phase.LOOK_BACK, progress(), others=restored(3, current=False), asked=COMPARING), Do.REOPEN),
        # The feed's updates are read again, and the mark of a comparison stays.
        (
            state(Phase.LOOK_BACK, progress(feed=True), others=restored(3, current=False)),
            Begin(starting_version=4, feed=True),
        ),
        (
            state(Phase.LOOK_BACK, progress(feed=True, comparing=True), others=restored(3, current=True)),
            Begin(starting_version=4, feed=True, comparing=True),
        ),
        (state(Phase.LOOK_BACK, progress(feed=True), others=restored(None, current=True)), Do.CHECK_KEYS),
        (
            state(Phase.LOOK_BACK, progress(feed=True), others=restored(None, current=True), checked=True),
            Begin(feed=True),
        ),
        (state(Phase.LOOK_BACK, progress(feed=True), others=restored(None, current=False)), Refuse.RESTORED),
    ],
)
def test_what_others_did(found: State, step: Step) -> None:
    # Without progress, a run checks the keys before it begins a stream. Otherwise it looks for the stream's checkpoint.
    named = next_step(found)[1]
    assert named == (Do.CHECK_KEYS if found.progress is None and step is Look.CHECKPOINT else step)


@pytest.mark.parametrize(
    ("found", "step"),
    [
        # Without a feed, only a comparison of the keys finds changes.
        (state(Phase.FOLLOW, progress()), Do.REOPEN),
        (state(Phase.FOLLOW, None), Do.REOPEN),
        (state(Phase.FOLLOW, progress(feed=True)), Look.CHECKPOINT),
        (state(Phase.FOLLOW, progress(feed=True), checkpoint=True), Do.STREAM),
        (state(Phase.FOLLOW, progress(feed=True), checkpoint=False), Look.LOST),
        (state(Phase.FOLLOW, progress(feed=True), checkpoint=False, lost=Lost(scored=False)), Do.REOPEN),
        (state(Phase.FOLLOW, progress(feed=True), checkpoint=False, lost=Lost(known=False)), Do.REOPEN),
        (
            state(Phase.FOLLOW, progress(feed=True), checkpoint=False, lost=Lost(until=3, only_grown=False)),
            Begin(starting_version=4, feed=True, comparing=True),
        ),
        (state(Phase.FOLLOW, progress(feed=True, starting=4, comparing=True), fresh=True), Do.STREAM),
        # The source has no version after those that were read.
        (state(Phase.FOLLOW, progress(feed=True, starting=8, comparing=True), fresh=True), Do.REOPEN),
        # An interrupted comparison without a starting version has read nothing from the feed.
        (state(Phase.FOLLOW, progress(feed=True, comparing=True)), Do.REOPEN),
        (state(Phase.FOLLOW, progress(feed=True, starting=4, comparing=True)), Look.CHECKPOINT),
    ],
)
def test_before_a_comparison_the_feed_is_read(found: State, step: Step) -> None:
    assert next_step(replace(found, asked=COMPARING))[1] == step


def test_a_comparison_is_marked_until_it_has_ended() -> None:
    found = state(Phase.COMPARE, progress(), asked=COMPARING)
    steps: list[Step] = []
    answers = {Do.REOPEN: 9, Begin(comparing=True): progress(comparing=True)}
    for _ in range(5):
        found, step = next_step(found)
        assert step is not None
        steps.append(step)
        found = after(found, step, answers.get(step, progress(starting=10)))  # type: ignore[arg-type]
    assert steps == [Do.REOPEN, Do.CHECK_KEYS, Begin(comparing=True), Do.COMPARE, Begin(starting_version=10)]
    # No version is newer than the compared one.
    assert next_step(found)[1] is Do.COUNT


def test_a_comparison_behind_the_feed_keeps_its_place_in_it() -> None:
    found = state(Phase.COMPARE, progress(feed=True, starting=4, comparing=True), asked=COMPARING, followed=True)
    found = replace(found, reopened=True, checked=True)
    assert next_step(found)[1] is Do.COMPARE
    found = after(found, Do.COMPARE)
    assert next_step(found)[1] is Do.END_COMPARISON


def test_a_comparison_that_was_stopped_is_asked_for_again() -> None:
    found = state(Phase.COMPARE, progress(comparing=True))
    assert next_step(found)[1] is Refuse.COMPARISON_STOPPED


@pytest.mark.parametrize(
    ("found", "step"),
    [
        (state(Phase.STREAM, None), Do.CHECK_KEYS),
        (state(Phase.STREAM, None, checked=True), Begin()),
        (state(Phase.STREAM, None, replaced=True), Refuse.REPLACED),
        (state(Phase.STREAM, progress()), Look.CHECKPOINT),
        (state(Phase.STREAM, progress(), checkpoint=True), Do.STREAM),
        # Nothing is left to read, so no stream is started. An endless run waits for new rows.
        (state(Phase.STREAM, progress(), others=Others(read_all=True)), Do.COUNT),
        (state(Phase.STREAM, progress(), others=Others(read_all=True), asked=Asked(endless=True)), Look.CHECKPOINT),
        (state(Phase.STREAM, progress(), others=Others(read_all=True), fresh=True), Do.STREAM),
        (state(Phase.STREAM, progress(), fresh=True, checkpoint=False), Do.STREAM),
        (state(Phase.STREAM, progress(), checkpoint=False), Look.LOST),
        (state(Phase.STREAM, progress(), checkpoint=False, lost=Lost(known=False)), Refuse.NO_HISTORY),
        (
            state(Phase.STREAM, progress(), checkpoint=False, lost=Lost(until=3, only_grown=False)),
            Refuse.CHECKPOINT_LOST,
        ),
        (state(Phase.STREAM, progress(), checkpoint=False, lost=Lost(until=3)), Do.CHECK_KEYS),
        (state(Phase.STREAM, progress(), checkpoint=False, lost=Lost(until=3), checked=True), Begin()),
        (state(Phase.STREAM, progress(), checkpoint=False, lost=Lost(scored=False), checked=True), Begin()),
        (
            state(Phase.STREAM, progress(starting=5, feed=True), checkpoint=False),
            Begin(starting_version=5, feed=True),
        ),
        (state(Phase.STREAM, progress(starting=7), fresh=True), Do.STREAM),
        # Delta refuses to begin at a version that does not exist yet.
        (state(Phase.STREAM, progress(starting=8), checkpoint=False), Do.COUNT),
        (state(Phase.STREAM, progress(starting=8), fresh=True, asked=Asked(endless=True)), Wait(8)),
        (state(Phase.STREAM, progress(starting=8), fresh=True, asked=Asked(endless=True), stopping=True), None),
    ],
)
def test_a_stream_goes_on_or_begins(found: State, step: Step | None) -> None:
    assert next_step(found)[1] == step


@pytest.mark.parametrize(
    ("found", "step"),
    [
        # The source is opened again first, so that later commits of other writers are detected.
        (state(Phase.RETRY, asked=Asked(retry_failed=True)), Do.REOPEN),
        (state(Phase.RETRY, asked=Asked(retry_failed=True), reopened=True), Do.RETRY),
        (state(Phase.REPAIR, asked=Asked(endless=True), others=Others(took=True)), Do.REOPEN),
        (state(Phase.REPAIR, asked=Asked(endless=True), others=Others(took=True), reopened=True), Do.SCORE_MISSING),
        (state(Phase.COUNT), Do.COUNT),
        (state(Phase.COUNT, missing=0, others=QUIET), Do.NOTE),
        # A row may be missing because it was deleted after the source was opened.
        (state(Phase.COUNT, missing=2, others=QUIET), Do.REOPEN),
        (state(Phase.COUNT, missing=2, others=QUIET, reopened=True), Do.SCORE_MISSING),
        # A different source's run may have scored a removed row again, so a count of 0 is not enough.
        (state(Phase.COUNT, missing=0, others=Others(took=True)), Do.REOPEN),
        (state(Phase.COUNT, missing=0, others=Others(took=True), reopened=True), Do.SCORE_MISSING),
        (state(Phase.COUNT, missing=2, others=QUIET, repaired=True), Do.NOTE),
        (state(Phase.COUNT, asked=Asked(endless=True)), None),
        (state(Phase.COUNT, stopping=True), None),
        (state(Phase.END), None),
    ],
)
def test_the_rest(found: State, step: Step | None) -> None:
    assert next_step(found)[1] == step


def test_every_state_has_a_next_step_and_every_run_an_end() -> None:
    """This holds for any answers of the tables."""
    ends = 0
    for known, feed, starting, comparing, there, reconcile, took, is_current, until, grown, endless in product(
        *[[False, True]] * 2, [None, 3, 8], *[[False, True]] * 6, [False, True], [False, True]
    ):
        before = progress(feed=feed, starting=starting, comparing=comparing) if known else None
        answers = {
            Look.OTHERS: restored(3 if until else None, current=is_current) if took else QUIET,
            Look.CHECKPOINT: there,
            Look.LOST: Lost(until=3 if until else None, only_grown=grown),
            Do.STREAM: grown,
            Do.REOPEN: 7,
            Do.COUNT: 0,
        }
        found = state(Phase.LOOK_BACK, before, asked=Asked(reconcile=reconcile, by_version=True, endless=endless))
        for _ in range(40):
            found, step = next_step(found)
            if step is None or isinstance(step, Refuse):
                ends += 1
                break
            if isinstance(step, Begin):
                answer: object = progress(
                    feed=bool(step.feed), starting=step.starting_version, comparing=step.comparing
                )
            else:
                answer = step.version if isinstance(step, Wait) else answers.get(step)
            found = after(found, step, answer)
    assert ends == 3 * 2**10


@pytest.mark.parametrize(
    ("initial", "began_empty", "way"),
    [
        (True, True, Way.APPEND),
        (True, False, Way.MERGE_NEW),
        (False, True, Way.MERGE_CHANGES),
        (False, False, Way.MERGE_CHANGES),
    ],
)
def test_how_a_chunk_is_written(initial: bool, began_empty: bool, way: Way) -> None:
    assert way_of_chunk(initial=initial, began_empty=began_empty) is way


@pytest.mark.parametrize(
    ("chunk", "known", "others", "empty"),
    [(0, 0, False, True), (1, 0, False, False), (0, 1, False, False), (0, 0, True, False)],
)
def test_a_beginning_is_empty_where_no_row_can_be_met(chunk: int, known: int, others: bool, empty: bool) -> None:
    assert begins_empty(chunk=chunk, known=known, others=others) is empty


def test_rows_that_come_before_the_source_is_opened_again_are_left_to_the_stream() -> None:
    found = state(Phase.RETRY, progress(), asked=Asked(retry_failed=True), others=Others(read_all=True))
    unchanged = after(after(found, Do.REOPEN, 7), Do.RETRY)
    assert next_step(replace(unchanged, phase=Phase.STREAM))[1] is Do.COUNT
    grown = after(after(found, Do.REOPEN, 8), Do.RETRY)
    assert next_step(replace(grown, phase=Phase.STREAM))[1] is Look.CHECKPOINT
