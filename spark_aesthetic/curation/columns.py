"""Columns as their user names them."""

from __future__ import annotations

from collections.abc import Sequence

from pyspark.sql import DataFrame
from pyspark.sql.types import NumericType

from spark_aesthetic.errors import TableError, nearest
from spark_aesthetic.preflight import column_type, quoted


def has_column(df: DataFrame, name: str) -> bool:
    """Whether there is such a column, as Spark sees it, which is blind to case."""
    return name.lower() in (known.lower() for known in df.columns)


def check_columns(df: DataFrame, columns: Sequence[str], option: str) -> None:
    """Raise TableError unless the columns are there."""
    for name in columns:
        if not has_column(df, name):
            raise TableError(f"{option}: no column {name!r} in the table: {nearest(name, df.columns)}")


def check_score(df: DataFrame, score_col: str) -> None:
    """Raise TableError unless the column of scores is there and has numbers."""
    found = column_type(df, quoted(score_col), "score_col")
    if not isinstance(found, NumericType):
        raise TableError(
            f"score_col {score_col!r}: expected numbers, found {found.simpleString()}; name the scores, or cast them"
        )
