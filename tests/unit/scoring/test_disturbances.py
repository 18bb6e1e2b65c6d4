"""The history of a scores table shows which scores other writers have removed."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import pytest

from spark_aesthetic.delta.commits import Logged
from spark_aesthetic.scoring.disturbances import (
    checked_until,
    has_read_all,
    of_other_runs,
    read_until,
    restored_to,
    restored_until,
    taken_away,
)  # fmt: skip

OWN = {"spark_aesthetic": "1", "model": "m", "source_id": "s"}


def commit(
    number: int, operation: str = "WRITE", *, blind: bool = False, told: Any = None, **parameters: str
) -> Logged:
    return Logged(
        version=number, at=datetime.now(timezone.utc), operation=operation, parameters=parameters, metrics={},
        is_blind=blind, told=told or {},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("found", "is_taken"),
    [
        (commit(3, "DELETE"), True),
        (commit(3, "UPDATE"), True),
        (commit(3, "MERGE"), True),
        (commit(3, "RESTORE", version="1"), True),
        (commit(3, "TRUNCATE"), True),
        (commit(3, "WRITE", mode="Overwrite"), True),
        (commit(3, "CREATE OR REPLACE TABLE AS SELECT"), True),
        (commit(3, "WRITE", mode="Append"), False),
        (commit(3, "STREAMING UPDATE", blind=True), False),
        (commit(3, "OPTIMIZE"), False),
        (commit(3, "VACUUM END"), False),
        (commit(3, "SET TBLPROPERTIES"), False),
        (commit(3, "UPGRADE PROTOCOL"), False),
        (commit(3, "MERGE", told=OWN), False),
        (commit(3, "DELETE", told={"spark_aesthetic": 1}), True),
        (commit(2, "DELETE"), False),
    ],
)
def test_commits_of_others_may_take_scores_away(found: Logged, is_taken: bool) -> None:
    assert bool(taken_away([found], since=2)) is is_taken


@pytest.mark.parametrize(
    ("commits", "noted", "until"),
    [
        ([], None, None),
        ([commit(5, told=OWN | {"checked": 4}), commit(3, told=OWN | {"checked": 2})], None, 4),
        ([commit(5, told=OWN | {"checked": 4})], 9, 9),
        ([commit(5, told=OWN)], None, 5),
        ([commit(5, told=OWN | {"model": "other", "checked": 4})], None, None),
        ([commit(5, told=OWN | {"source_id": "other", "checked": 4})], None, None),
        ([commit(5, told=OWN | {"checked": "4"})], None, 5),
        ([commit(9, "DELETE"), commit(5, told=OWN | {"checked": 2})], None, 2),
    ],
)
def test_a_run_looks_from_where_the_last_one_had_looked(
    commits: list[Logged], noted: int | None, until: int | None
) -> None:
    assert checked_until(commits, "m", "s", noted) == until


@pytest.mark.parametrize(
    ("taken", "version"),
    [
        ([], None),
        ([commit(5, "DELETE")], None),
        ([commit(5, "RESTORE", version="3")], 3),
        ([commit(7, "RESTORE", version="4"), commit(5, "RESTORE", version="2")], 2),
        ([commit(5, "RESTORE", timestamp="2026-01-01")], -1),
    ],
)
def test_a_restore_is_told_from_a_delete(taken: list[Logged], version: int | None) -> None:
    assert restored_to(taken) == version


def test_the_last_chunk_that_a_version_had_tells_how_far_the_source_was_read() -> None:
    chunks = [
        commit(4, told=OWN | {"chunk": 2, "source_version": 8}),
        commit(3, told=OWN | {"source_version": 9}),
        commit(2, told=OWN | {"chunk": 1, "source_version": 6}),
        commit(1, told=OWN | {"chunk": 0, "source_version": 6}),
    ]
    assert read_until(chunks, "m", "s") == 8
    assert read_until(chunks, "other", "s") is None
    assert restored_until(chunks, "m", "s", 3) == 6
    assert restored_until(chunks, "m", "s", 0) is None
    # Version -1 is a restore to a time. If the history is complete, each score is at least as new as the first chunk.
    assert restored_until(chunks, "m", "s", -1) is None
    assert restored_until([*chunks, commit(0)], "m", "s", -1) == 6


@pytest.mark.parametrize(
    ("version", "until"),
    [(2, 8), (3, 6), (4, 6), (6, 6), (7, 6), (0, None)],
)
def test_what_was_restored_before_holds_the_rows_of_that_time(version: int, until: int | None) -> None:
    history = [
        commit(7, "RESTORE", version="4"),
        commit(6, "RESTORE", version="1"),
        # The run that wrote this commit did not see the RESTORE before it.
        commit(4, told=OWN | {"chunk": 2, "source_version": 9}),
        commit(3, "RESTORE", version="1"),
        commit(2, told=OWN | {"chunk": 1, "source_version": 8}),
        commit(1, told=OWN | {"chunk": 0, "source_version": 6}),
        commit(0),
    ]
    assert restored_until(history, "m", "s", version) == until


@pytest.mark.parametrize(
    ("told", "is_other"),
    [
        (OWN | {"run": "mine"}, False),
        (OWN | {"run": "other"}, True),
        # Earlier releases did not name the run.
        (OWN, True),
        (OWN | {"run": "other", "model": "n"}, False),
        (OWN | {"run": "other", "source_id": "t"}, False),
        ({"run": "other", "model": "m", "source_id": "s"}, False),
    ],
)
def test_a_run_knows_the_commits_of_other_runs(told: dict[str, Any], is_other: bool) -> None:
    mine = {"model": "m", "source_id": "s", "run": "mine"}
    assert bool(of_other_runs([commit(3, told=told)], mine)) is is_other


CHUNK = OWN | {"chunk": 3, "checkpoint": "c", "source_version": 7, "whole": True}


@pytest.mark.parametrize(
    ("told", "read_all"),
    [
        ([CHUNK], True),
        # A repair has no chunk.
        ([OWN | {"source_version": 9}, CHUNK], True),
        ([CHUNK | {"whole": False}], False),
        ([CHUNK | {"source_version": 6}], False),
        ([CHUNK | {"source_version": 8}], False),
        ([CHUNK | {"checkpoint": "d"}], False),
        ([CHUNK | {"chunk": 4, "whole": False}, CHUNK], False),
        ([CHUNK | {"model": "other", "whole": False}, CHUNK], True),
        ([OWN | {"chunk": 3, "checkpoint": "c", "source_version": 7}], False),
        ([], False),
    ],
)
def test_a_source_was_read_to_its_end_if_the_newest_chunk_says_so(told: list[dict[str, Any]], read_all: bool) -> None:
    commits = [commit(20 - at, told=some) for at, some in enumerate(told)]
    assert has_read_all(commits, "m", "s", checkpoint="c", version=7) is read_all
