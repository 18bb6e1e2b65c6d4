"""Without a metastore, tables in Spark's own catalog end with the run."""

from __future__ import annotations

import pytest

from spark_aesthetic.cli.scoring import _is_in_session_catalog


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("scores", True), ("default.scores", True), ("`a b`.`c.d`", True), ("main.default.scores", False),
        ("/data/scores", False), ("s3a://bucket/scores", False), ("delta.`/data/scores`", False), ("a b", False),
    ],
)  # fmt: skip
def test_names_of_sparks_own_catalog_end_with_a_run(name: str, ends: bool) -> None:
    assert _is_in_session_catalog(name) == ends
