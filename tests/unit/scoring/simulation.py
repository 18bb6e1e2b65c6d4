"""Simulate Delta tables, checkpoints and runs in memory, as far as the decisions of a run depend on them.

Images are numbers. A row's score is right if it was made from the number that the row has now. A run is a generator
that yields wherever a real run can be killed or another run can come between.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

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

ROWS_A_CHUNK = 2

Kind = Literal["add", "update", "delete", "optimize"]


class RefusedError(Exception):
    """A run has ended with an error that states the remedy."""


@dataclass
class Version:
    """One version of a source."""

    kind: Kind
    rows: dict[int, int]
    changes: list[tuple[str, int, int]]


@dataclass
class Source:
    """A source with all of its versions."""

    id: str
    location: str
    feed: bool
    versions: list[Version] = field(default_factory=lambda: [Version("add", {}, [])])

    @property
    def current(self) -> int:
        return len(self.versions) - 1

    @property
    def rows(self) -> dict[int, int]:
        return self.versions[-1].rows

    def commit(self, kind: Kind, changes: list[tuple[str, int, int]]) -> None:
        rows = dict(self.rows)
        for what, key, image in changes:
            if what == "delete":
                del rows[key]
            else:
                rows[key] = image
        self.versions.append(Version(kind, rows, changes))

    def only_grown_since(self, version: int) -> bool:
        return all(later.kind in ("add", "optimize") for later in self.versions[version + 1 :])


@dataclass
class Committed:
    """A commit of the scores table, and the table after it."""

    ours: bool
    adds_only: bool
    restored: int | None
    told: dict[str, Any]
    rows: list[tuple[int, int]]
    sources: dict[str, str]
    progress: dict[str, Progress]


@dataclass
class Scores:
    """A scores table of one model. A row is a key and the number from which its score was made."""

    history: list[Committed] = field(default_factory=list)
    rows: list[tuple[int, int]] = field(default_factory=list)
    # Both are keyed by the source's id. `sources` has its location, and `progress` the model's progress in it.
    sources: dict[str, str] = field(default_factory=dict)
    progress: dict[str, Progress] = field(default_factory=dict)
    # Each source's last Delta transaction. A RESTORE does not take it back.
    transactions: dict[str, int] = field(default_factory=dict)

    def commit(self, *, ours: bool = True, adds_only: bool = False, restored: int | None = None, **told: Any) -> None:
        self.history.append(
            Committed(ours, adds_only, restored, told, list(self.rows), dict(self.sources), dict(self.progress))
        )

    def others(self, source: Source) -> bool:
        return any(id != source.id and location != source.location for id, location in self.sources.items())

    def put(self, key: int, image: int) -> None:
        """Insert or replace a row, as a MERGE by the key does."""
        self.rows = [row for row in self.rows if row[0] != key] + [(key, image)]


# A chunk: its rows, whether they belong to the initial load, and their source version.
Pending = tuple[list[tuple[str, int, int]], bool, int]


@dataclass
class Checkpoint:
    """The state that Spark keeps of a stream."""

    id: str
    left: list[tuple[str, int, int]]
    initial: int
    next: int
    chunk: int = 0
    # The chunk that is logged and not yet known to be committed.
    pending: Pending | None = None


class World:
    """Sources, one scores table and its checkpoints."""

    def __init__(self) -> None:
        self.sources: dict[str, Source] = {}
        self.scores = Scores()
        self.scores.commit(adds_only=True)
        self.checkpoints: dict[str, Checkpoint] = {}
        self.clock = 0

    def tick(self) -> int:
        self.clock += 1
        return self.clock

    def lose_scores(self) -> None:
        """Drop the scores table, and with it the folder of its checkpoints."""
        self.scores = Scores()
        self.scores.commit(adds_only=True)
        self.checkpoints = {}

    def restore(self, version: int) -> None:
        there = self.scores.history[version]
        self.scores.rows, self.scores.sources = list(there.rows), dict(there.sources)
        # Delta also restores a table's properties.
        self.scores.progress = dict(there.progress)
        self.scores.commit(ours=False, restored=version)

    def take_away(self, keys: set[int]) -> None:
        self.scores.rows = [row for row in self.scores.rows if row[0] not in keys]
        self.scores.commit(ours=False)

    def faults(self, source: Source) -> list[str]:
        """Return the faults of the scores of a source."""
        copies = Counter(key for key, _ in self.scores.rows)
        made_of = dict(self.scores.rows)
        return [
            *[f"row {key} has {count} scores" for key, count in copies.items() if count > 1],
            *[f"row {key} has none" for key in source.rows if key not in made_of],
            *[
                f"row {key} has that of {made_of[key]}, not of {image}"
                for key, image in source.rows.items()
                if key in made_of and made_of[key] != image
            ],
        ]


class Run:
    """A run that makes the same decisions as a real one."""

    def __init__(self, world: World, source: Source, asked: Asked, *, changes: bool = True) -> None:
        self.world, self.source, self.asked = world, source, asked
        self.opened = source.current
        self.looked_at: int | None = None
        self.known: int | None = None
        self.id = world.tick()
        self.told: dict[str, Any] = {}

    @property
    def scores(self) -> Scores:
        return self.world.scores

    @property
    def mine(self) -> Progress | None:
        return self.scores.progress.get(self.source.id)

    def go(self) -> Iterator[None]:
        scores, source = self.scores, self.source
        scores.sources.setdefault(source.id, source.location)
        scores.commit(adds_only=True)
        replaced = any(
            progress.location == source.location and id != source.id for id, progress in scores.progress.items()
        )
        state = State(asked=self.asked, version=self.opened, progress=self.mine, replaced=replaced)
        while True:
            yield
            state, step = next_step(state)
            if step is None:
                return
            if step is Do.STREAM:
                found: object = True
                try:
                    yield from self.stream(state)
                except RefusedError:
                    if state.phase is not Phase.FOLLOW:
                        raise
                    found = False
            elif step is Do.COMPARE:
                found = yield from self.compare()
            elif step is Do.SCORE_MISSING:
                self.end_beginnings()
                yield
                found = yield from self.score(self.missing())
            else:
                found = self.done(state, step)
            state = after(state, step, found)

    def done(self, state: State, step: Step) -> object:
        scores, source = self.scores, self.source
        match step:
            case Look.OTHERS:
                return self.others()
            case Look.CHECKPOINT:
                assert state.progress is not None
                there = self.world.checkpoints.get(state.progress.checkpoint)
                return there is not None and state.progress.stream in (None, there.id)
            case Look.LOST:
                until = self.read_until(len(scores.history))
                if not scores.rows:
                    return Lost(scored=False)
                shared = (source.feed or ((progress := self.mine) is not None and progress.feed)) and scores.others(
                    source
                )
                told = until is None or (source.current == until if shared else source.only_grown_since(until))
                return Lost(until=until, only_grown=told)
            case Begin():
                return self.begin(step)
            case Wait():
                return source.current
            case Refuse():
                raise RefusedError(step.name)
            case Do.REOPEN:
                self.watch()
                self.opened = source.current
                return self.opened
            case Do.CHECK_KEYS:
                return None
            case Do.END_COMPARISON:
                return self.note(comparing=False)
            case Do.RETRY:
                return None
            case Do.COUNT:
                return len(self.missing())
            case Do.NOTE:
                return None if self.looked_at is None else self.note(checked=self.looked_at)
            case _:
                raise AssertionError(step)

    def note(self, **changed: Any) -> None:
        if self.mine is not None:
            self.scores.progress[self.source.id] = replace(self.mine, **changed)
            self.scores.commit(adds_only=True)

    def missing(self) -> dict[int, int]:
        there = {key for key, _ in self.scores.rows}
        return {key: image for key, image in self.source.versions[self.opened].rows.items() if key not in there}

    def watch(self) -> None:
        self.watched, self.since, self.checkpoint = (
            self.scores,
            len(self.scores.history),
            self.mine and self.mine.checkpoint,
        )

    def check_alone(self) -> None:
        others = [
            commit for commit in self.scores.history[self.since:]
            if commit.told.get("source") == self.source.id and commit.told["run"] != self.id
        ]  # fmt: skip
        if self.scores is not self.watched or others or (self.mine and self.mine.checkpoint) != self.checkpoint:
            raise RefusedError("another run has written")

    def end_beginnings(self) -> None:
        for id, progress in self.scores.progress.items():
            if progress.began_empty:
                self.scores.progress[id] = replace(progress, began_empty=False)
                self.scores.commit(adds_only=True)

    def score(self, rows: dict[int, int]) -> Iterator[None]:
        """Commit one row at a time.

        Other runs may commit between the look-up of the keys and each commit.
        """
        for key, image in rows.items():
            yield
            self.check_alone()
            self.scores.put(key, image)
            self.scores.commit(**self.told, source_version=self.opened)

    def read_until(self, until: int) -> int | None:
        chunks = [
            commit.told["source_version"]
            for commit in self.scores.history[:until]
            if commit.told.get("source") == self.source.id and "chunk" in commit.told
        ]
        return max(chunks, default=None)

    def read_all(self, progress: Progress) -> bool:
        own = [commit.told for commit in self.scores.history if commit.told.get("source") == self.source.id]
        last = next((told for told in reversed(own) if "chunk" in told), {})
        wanted = (progress.checkpoint, self.opened, True)
        return (last.get("checkpoint"), last.get("source_version"), last.get("whole")) == wanted

    def others(self) -> Others:
        history, progress = self.scores.history, self.mine
        if progress is None:
            self.told = {"source": self.source.id, "run": self.id, "checked": len(history) - 1}
            return Others()
        own = [(at, commit) for at, commit in enumerate(history) if commit.told.get("source") == self.source.id]
        told = [commit.told["checked"] for _, commit in own]
        if progress.checked is not None:
            told.append(progress.checked)
        since = max(told, default=max((at for at, _ in own), default=0))
        taken = [
            (at, commit) for at, commit in enumerate(history) if at > since and not commit.ours and not commit.adds_only
        ]
        self.told = {"source": self.source.id, "run": self.id, "checked": since if taken else len(history) - 1}
        read_all = self.read_all(progress)
        if not taken:
            return Others(read_all=read_all)
        self.looked_at = len(history) - 1
        restored = [commit.restored for _, commit in taken if commit.restored is not None]
        if not restored:
            return Others(took=True, read_all=read_all)
        version: int | None = min(restored)
        while version is not None:
            there = version
            version = next((commit.restored for commit in history[there::-1] if commit.restored is not None), None)
        until = self.read_until(there + 1)
        grown = until is not None and self.source.only_grown_since(until)
        return Others(took=True, restored=True, until=until, current=grown or not self.scores.rows)

    def begin(self, step: Begin) -> Progress:
        scores, source, before = self.scores, self.source, self.mine
        for id, progress in scores.progress.items():
            scores.progress[id] = replace(progress, began_empty=False)
        scores.sources.setdefault(source.id, source.location)
        scores.progress[source.id] = Progress(
            checkpoint=f"c{self.world.tick()}",
            generation=max(self.world.clock, 0 if before is None else before.generation + 1),
            began_empty=False,
            feed=source.feed if step.feed is None else step.feed,
            starting_version=step.starting_version,
            backbone="",
            location=source.location,
            comparing=step.comparing,
            checked=self.told.get("checked") if before is None else before.checked,
        )
        scores.commit(adds_only=True)
        self.checkpoint = scores.progress[source.id].checkpoint
        return scores.progress[source.id]

    def compare(self) -> Iterator[None]:
        scores, rows = self.scores, self.source.versions[self.opened].rows
        for id, progress in list(scores.progress.items()):
            if progress.location == self.source.location and id != self.source.id:
                del scores.progress[id]
                scores.sources.pop(id, None)
        there = dict(scores.rows)
        wanted = {
            key: image
            for key, image in rows.items()
            if key not in there or (self.asked.by_version and there[key] != image)
        }
        gone = set() if scores.others(self.source) else there.keys() - rows.keys()
        if gone:
            yield
            self.check_alone()
            scores.rows = [row for row in scores.rows if row[0] not in gone]
            scores.commit(**self.told)
        yield from self.score(wanted)

    def stream(self, state: State) -> Iterator[None]:
        world, source, progress = self.world, self.source, state.progress
        assert progress is not None
        self.known = None
        name = progress.checkpoint
        if name not in world.checkpoints:
            start = source.current if progress.starting_version is None else progress.starting_version - 1
            first = source.versions[start].rows if progress.starting_version is None else {}
            left = [("insert", key, image) for key, image in first.items()]
            world.checkpoints[name] = Checkpoint(id=f"s{world.tick()}", left=left, initial=start, next=start + 1)
        there = world.checkpoints[name]
        end = source.current
        while True:
            if there.pending is None:
                if there.left:
                    there.pending = there.left[:ROWS_A_CHUNK], True, there.initial
                    there.left = there.left[ROWS_A_CHUNK:]
                elif there.next <= end:
                    version = source.versions[there.next]
                    if not progress.feed and version.kind in ("update", "delete"):
                        raise RefusedError("the source was updated")
                    there.pending = version.changes, False, there.next
                    there.next += 1
                else:
                    break
            pending, chunk = there.pending, there.chunk
            yield
            # Spark ends a query if its checkpoint is gone.
            if world.checkpoints.get(name) is not there:
                raise RefusedError("the checkpoint is gone")
            yield from self.write_chunk(progress, there, pending, chunk)
            yield
            # Spark also ends a query that is not the first to note the end of a chunk in the checkpoint.
            if there.chunk != chunk:
                raise RefusedError("another run is at work on the same rows")
            there.pending, there.chunk = None, chunk + 1
        self.alone(progress)

    def alone(self, progress: Progress) -> Progress:
        current = self.mine
        if current is None or current.checkpoint != progress.checkpoint:
            raise RefusedError("another run has begun anew")
        return current

    def write_chunk(self, progress: Progress, there: Checkpoint, pending: Pending, chunk: int) -> Iterator[None]:
        scores, source, stream = self.scores, self.source, there.id
        rows, initial, version = pending
        whole = not initial or not there.left
        current = self.alone(progress)
        number = (current.generation << 20) + chunk
        told = {
            **self.told, "chunk": chunk, "checkpoint": current.checkpoint, "source_version": version, "whole": whole
        }  # fmt: skip
        if self.known is None:
            self.known = len(scores.rows)
            if current.stream not in (None, stream):
                raise RefusedError("the checkpoint was deleted")
            last = [(commit.told.get("checkpoint"), commit.told.get("chunk")) for commit in scores.history]
            if self.known > 0 and (current.checkpoint, chunk) in last:
                return
            if begins_empty(chunk=chunk, known=self.known, others=scores.others(source)):
                current = replace(current, began_empty=True, stream=stream)
                scores.progress[source.id] = current
                scores.commit(adds_only=True)
                yield
                if self.scores is not scores:
                    raise RefusedError("the scores are gone")
                current = self.alone(progress)
                if scores.others(source):
                    current = replace(current, began_empty=False)
                    scores.progress[source.id] = current
                    scores.commit(adds_only=True)
            elif current.stream is None:
                current = replace(current, stream=stream)
                scores.progress[source.id] = current
                scores.commit(adds_only=True)
        if not rows:
            return
        way = way_of_chunk(initial=initial, began_empty=current.began_empty)
        drops = not scores.others(source)
        # Delta compares a commit with those made since this look-up. After a conflict, the keys are looked up again,
        # except for an append.
        found = {key for key, _ in scores.rows}
        seen = len(scores.history)
        yield
        if self.scores is not scores:
            raise RefusedError("the scores are gone")
        if self.alone(progress) != current:
            raise RefusedError("another run has added rows")
        if len(scores.history) != seen:
            found = {key for key, _ in scores.rows} if way is not Way.APPEND else found
        if scores.transactions.get(source.id, -1) >= number:
            return
        scores.transactions[source.id] = number
        for what, key, image in rows:
            if what == "delete":
                if drops:
                    scores.rows = [row for row in scores.rows if row[0] != key]
            elif way is Way.APPEND:
                scores.rows.append((key, image))
            elif key not in found or (way is Way.MERGE_CHANGES and (what == "update" or (current.feed and not drops))):
                scores.put(key, image)
        scores.commit(adds_only=way is Way.APPEND, **told)


def finished(run: Run) -> str | None:
    """Let a run go on to its end. Return None, or the reason why it was refused."""
    try:
        for _ in run.go():
            pass
    except RefusedError as error:
        return str(error)
    return None


def copied(world: World) -> World:
    return copy.deepcopy(world)
