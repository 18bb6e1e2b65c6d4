"""Columns are found by their names, in any case of letters."""

from __future__ import annotations

import pytest
from pyspark.sql.types import BinaryType, LongType, StructType

from spark_aesthetic.delta import naming, schemas


@pytest.mark.parametrize(
    ("columns", "name", "expected"),
    [
        (["id", "Photo"], "photo", "Photo"),
        (["id", "Photo"], "PHOTO", "Photo"),
        (["photo", "Photo"], "Photo", "Photo"),
        (["Photo", "photo"], "Photo", "Photo"),
        (["id"], "photo", None),
        ([], "photo", None),
    ],
)
def test_a_column_is_found_by_its_name_and_its_own_spelling_comes_first(
    columns: list[str], name: str, expected: str | None
) -> None:
    assert naming.column_named(columns, name) == expected
    assert naming.has_column(columns, name) == (expected is not None)
    assert naming.lacking(columns, [name]) == ([name] if expected is None else [])


def test_names_that_differ_in_case_alone_are_one_column() -> None:
    assert naming.are_distinct(["a", "b"])
    assert not naming.are_distinct(["a", "A"])
    assert naming.are_same_columns(["a", "B"], ["b", "A"])
    assert not naming.are_same_columns(["a"], ["a", "b"])


def test_a_field_has_the_type_of_its_own_spelling() -> None:
    schema = StructType().add("photo", LongType()).add("Photo", BinaryType())
    assert [schemas.field_type(schema, name) for name in ("photo", "Photo", "caption")] == [
        LongType(), BinaryType(), None,
    ]  # fmt: skip
