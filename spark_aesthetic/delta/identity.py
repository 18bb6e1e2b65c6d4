"""Keys: the columns that together identify a row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import AtomicType

from spark_aesthetic.delta.naming import are_distinct, check_own_name, has_column, names, quoted
from spark_aesthetic.delta.schemas import column_type
from spark_aesthetic.errors import TableError, nearest


def key_names(key: str | Sequence[str]) -> tuple[str, ...]:
    """Return the names of the key columns; raise TableError if there are none."""
    if not key:
        raise TableError("--key: expected the columns that together identify a row, found none. Name them.")
    return names(key)


def check_key_columns(rows: DataFrame, key: Sequence[str], reserved: Sequence[str]) -> None:
    """Raise TableError unless the key columns exist, are distinct, have simple types and are not written by the job."""
    if not are_distinct(key):
        raise TableError(f"--key {', '.join(key)}: expected each column once. Leave out the repeated one.")
    for column in key:
        if not has_column(rows.columns, column):
            raise TableError(f"--key: no column {column!r} in the table: {nearest(column, rows.columns)}")
        if has_column(reserved, column):
            raise TableError(
                f"--key: expected a column of your own, found {column!r}, which the job writes. Rename the column."
            )
        check_own_name(column, "--key")
        found = column_type(rows, quoted(column), "--key")
        if not isinstance(found, AtomicType):
            raise TableError(
                f"--key: expected columns of simple types, found {column!r} of type {found.simpleString()}. Use its "
                "fields or a hash of it as key columns."
            )


def has_null(key: Sequence[str]) -> Column:
    """Whether any key column is null."""
    return reduce(Column.__or__, [F.col(quoted(column)).isNull() for column in key])


def key_text(columns: Iterable[str]) -> Column:
    """Join the values of quoted key columns to one text, for a message."""
    return F.array_join(F.array(*[F.col(name).cast("string") for name in columns]), ", ")


def check_key_values(rows: DataFrame, key: Sequence[str], *, beside: Sequence[str] = ()) -> None:
    """Check that each row has a unique key without nulls, reading only the key columns.

    Args:
        rows: The rows of the table.
        key: The key columns.
        beside: Columns that identify a row together with the key.

    Raises:
        TableError: The key has nulls or duplicates.
    """
    named = ", ".join(key)
    size = "_aesthetic_rows"
    groups = rows.groupBy(*[F.col(quoted(column)) for column in (*key, *beside)]).agg(F.count(F.lit(1)).alias(size))
    found = groups.agg(
        F.coalesce(F.sum(size), F.lit(0)).alias("rows"),
        F.coalesce(F.sum(F.when(has_null(key), F.col(size))), F.lit(0)).alias("null_rows"),
        F.coalesce(F.sum(F.when(F.col(size) > 1, F.col(size))), F.lit(0)).alias("repeated_rows"),
    ).collect()[0]
    if found.null_rows or found.repeated_rows:
        faults = ((found.null_rows, "with a null"), (found.repeated_rows, "with a duplicate key"))
        counts = " and ".join(f"{rows} {fault}" for rows, fault in faults if rows)
        raise TableError(
            f"--key {named}: expected a unique key in each of the {found.rows} rows, found {counts}. Add a column to "
            "the key or drop those rows."
        )
