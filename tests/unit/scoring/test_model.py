"""No sequence of events on two sources and their scores ends in a row with two scores, a stale score or none.

`SPARK_AESTHETIC_SEQUENCES=2000 pytest tests/unit/scoring/test_model.py -s` tries more sequences than `make test` and
prints their number.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from simulation import RefusedError, Run, Source, World, finished

from spark_aesthetic.scoring.plan import Asked

ASKED = os.environ.get("SPARK_AESTHETIC_SEQUENCES")
SEQUENCES = int(ASKED or 300)

PLAIN, REMEDY = Asked(), Asked(reconcile=True, by_version=True)
WAYS = st.sampled_from([PLAIN, PLAIN, PLAIN, Asked(retry_failed=True), REMEDY])
# An endless run never counts its rows, so they are checked in the next run that has an end.
ENDLESS = Asked(endless=True)
KEYS = st.integers(0, 3)


class Tables(RuleBasedStateMachine):
    """Each rule is an event that a user, another writer or a power cut may cause."""

    tried: ClassVar[int] = 0

    @initialize(feed=st.booleans(), shared=st.booleans(), begun=st.booleans())
    def begin(self, feed: bool, shared: bool, begun: bool) -> None:
        Tables.tried += 1
        self.world, self.images = World(), 0
        self.source = self.world.sources["a"] = Source("a", "/a", feed)
        # In the second source, equal keys mean the same image.
        self.other = Source("b", "/b", feed) if shared else None
        self.paused: list[Iterator[None]] = []
        # The latest image of each key in the first source. The second source has no other images.
        self.shown: dict[int, int] = {}
        self.updated = set[int]()
        if begun:
            self.append({0, 1, 2})
            self.run(PLAIN)

    def image(self) -> int:
        self.images += 1
        return self.images

    @rule(keys=st.sets(KEYS, min_size=1, max_size=4))
    def append(self, keys: set[int]) -> None:
        known, keys = {}, keys - set(self.source.rows)
        if self.other is not None:
            known = self.other.rows
            if not self.source.feed:
                # Without a feed, a deleted key must come back with the same image, because nothing reports the change.
                known, keys = self.shown | known, keys - self.updated
        new = [("insert", key, known.get(key, self.image())) for key in sorted(keys)]
        if new:
            self.source.commit("add", new)
            # If a deleted key returns with a different image, the two commits are an update.
            self.updated |= {key for _, key, image in new if self.shown.get(key, image) != image}
            self.shown |= self.source.rows

    @rule(key=KEYS, run=st.booleans())
    def update(self, key: int, run: bool) -> None:
        # Two sources must have the same image for a shared key, so such a key is not updated.
        if key in self.source.rows and (self.other is None or key not in self.other.rows):
            self.source.commit("update", [("update", key, self.image())])
            self.updated.add(key)
            self.shown |= self.source.rows
            if run:
                self.run(PLAIN)

    @rule(key=KEYS)
    def delete(self, key: int) -> None:
        if key in self.source.rows:
            self.source.commit("delete", [("delete", key, self.source.rows[key])])

    @rule()
    def optimize(self) -> None:
        self.source.commit("optimize", [])
        self.world.scores.commit(ours=False, adds_only=True)

    @precondition(lambda self: self.other is not None)
    @rule(keys=st.sets(KEYS, min_size=1, max_size=3))
    def append_to_the_other(self, keys: set[int]) -> None:
        assert self.other is not None
        # A run over one source does not see updates in the other source, so updated keys are left out.
        new = [
            ("insert", key, self.shown.get(key, self.image()))
            for key in sorted(keys - set(self.other.rows) - self.updated)
        ]
        if new:
            self.other.commit("add", new)

    @rule(back=st.integers(1, 6))
    def restore_the_scores(self, back: int) -> None:
        self.world.restore(max(0, len(self.world.scores.history) - 1 - back))

    @rule(keys=st.sets(KEYS, min_size=1, max_size=3))
    def take_scores_away(self, keys: set[int]) -> None:
        self.world.take_away(keys)

    @rule()
    def lose_the_checkpoints(self) -> None:
        self.world.checkpoints = {}

    @rule()
    def lose_the_scores(self) -> None:
        self.world.lose_scores()

    @rule()
    def make_the_source_anew(self) -> None:
        made = Source(f"a{self.world.tick()}", "/a", self.source.feed)
        if self.source.rows:
            made.commit("add", [("insert", key, image) for key, image in self.source.rows.items()])
        self.source = made

    @rule(asked=WAYS)
    def run(self, asked: Asked) -> None:
        if finished(Run(self.world, self.source, asked)) is None:
            self.check(self.source)

    @rule(asked=WAYS | st.just(ENDLESS), steps=st.integers(1, 25), other=st.booleans())
    def run_and_be_killed(self, asked: Asked, steps: int, other: bool) -> None:
        """Start a run and pause it after some steps, unless it has ended.

        It counts as killed if no later step resumes it.
        """
        source = self.other if other and self.other is not None else self.source
        self.paused.append(Run(self.world, source, asked).go())
        self.go_on(steps)

    @precondition(lambda self: self.paused)
    @rule(steps=st.integers(1, 25), last=st.booleans())
    def go_on(self, steps: int, last: bool = True) -> None:
        """Resume a paused run, the last or the first one."""
        at = -1 if last else 0
        try:
            for _ in range(steps):
                if next(self.paused[at], "ended") == "ended":
                    self.paused.pop(at)
                    return
        except RefusedError:
            self.paused.pop(at)

    @precondition(lambda self: self.other is not None)
    @rule()
    def run_over_the_other(self) -> None:
        assert self.other is not None
        if finished(Run(self.world, self.other, PLAIN)) is None:
            self.check(self.other)

    def check(self, source: Source) -> None:
        faults = self.world.faults(source)
        assert not faults, faults

    def teardown(self) -> None:
        """Check that the next run, or the remedy that it names, brings all scores up to date after any sequence."""
        if not hasattr(self, "world"):
            return
        for source in filter(None, (self.source, self.other)):
            if finished(Run(self.world, source, PLAIN)) is not None:
                assert finished(Run(self.world, source, REMEDY)) is None
            self.check(source)
            assert finished(Run(self.world, source, PLAIN)) is None
            self.check(source)


# The sequences are the same each time, unless SPARK_AESTHETIC_SEQUENCES asks for a number of new ones.
def test_no_sequence_of_twelve_steps_breaks_the_scores() -> None:
    Tables.tried = 0
    run_state_machine_as_test(
        Tables,
        settings=settings(
            max_examples=SEQUENCES, derandomize=ASKED is None,
            report_multiple_bugs=False, stateful_step_count=12, deadline=None, database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip
    print(f"{Tables.tried} sequences of up to 12 steps")
    assert Tables.tried >= SEQUENCES


Steps = Callable[[Tables], None]


def a_checkpoint_is_deleted_while_a_run_begins(tables: Tables) -> None:
    tables.run_and_be_killed(asked=PLAIN, steps=1, other=False)
    tables.go_on(steps=2)
    tables.update(key=0, run=False)
    tables.lose_the_checkpoints()
    tables.go_on(steps=1)


def a_row_is_deleted_before_the_stream_begins(tables: Tables) -> None:
    tables.append({0})
    tables.run_and_be_killed(asked=PLAIN, steps=4, other=False)
    tables.delete(key=0)
    tables.go_on(steps=4)
    tables.append({0})


def scores_are_dropped_under_a_slow_run(tables: Tables) -> None:
    tables.lose_the_checkpoints()
    tables.restore_the_scores(back=2)
    tables.run_and_be_killed(asked=PLAIN, steps=15, other=False)
    tables.lose_the_scores()
    tables.go_on(steps=1)
    tables.update(key=0, run=True)


def scores_are_restored_twice(tables: Tables) -> None:
    tables.update(key=1, run=True)
    tables.restore_the_scores(back=1)
    tables.run(asked=PLAIN)
    tables.update(key=0, run=False)
    tables.run(asked=PLAIN)
    tables.restore_the_scores(back=4)


def a_shared_key_comes_again_and_the_checkpoint_is_lost(tables: Tables) -> None:
    tables.delete(key=0)
    tables.run_and_be_killed(asked=PLAIN, steps=1, other=True)
    tables.run(asked=PLAIN)
    tables.append({0})
    tables.lose_the_checkpoints()


def a_first_load_is_killed_and_a_run_without_end_repairs(tables: Tables) -> None:
    tables.append({0, 1, 2, 3})
    tables.run_and_be_killed(asked=PLAIN, steps=10, other=False)
    tables.take_scores_away({0})
    tables.run_and_be_killed(asked=ENDLESS, steps=25, other=False)
    tables.go_on(steps=25)


def a_row_is_updated_and_scored_between_the_reopening_and_the_comparison(tables: Tables) -> None:
    tables.run_and_be_killed(asked=REMEDY, steps=6, other=False)
    tables.update(key=0, run=True)
    tables.go_on(steps=25)


@pytest.mark.parametrize(
    ("steps", "began"),
    [
        (a_checkpoint_is_deleted_while_a_run_begins, {"feed": False, "shared": False, "begun": True}),
        (a_row_is_deleted_before_the_stream_begins, {"feed": False, "shared": False, "begun": False}),
        (scores_are_dropped_under_a_slow_run, {"feed": False, "shared": False, "begun": True}),
        (scores_are_restored_twice, {"feed": True, "shared": False, "begun": True}),
        (a_first_load_is_killed_and_a_run_without_end_repairs, {"feed": False, "shared": False, "begun": False}),
        (
            a_row_is_updated_and_scored_between_the_reopening_and_the_comparison,
            {"feed": True, "shared": False, "begun": True},
        ),
        (a_shared_key_comes_again_and_the_checkpoint_is_lost, {"feed": True, "shared": True, "begun": True}),
    ],
)
def test_sequences_that_once_left_a_stale_score(steps: Steps, began: dict[str, bool]) -> None:
    tables = Tables()
    tables.begin(**began)
    steps(tables)
    tables.teardown()
