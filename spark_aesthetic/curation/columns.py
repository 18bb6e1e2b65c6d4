"""Check the columns that a user names, and convert a user's numbers to the type of the scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import ROUND_CEILING, Context, Decimal

import numpy as np
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import (
    ByteType,
    DataType,
    DecimalType,
    DoubleType,
    FloatType,
    IntegerType,
    LongType,
    NumericType,
    ShortType,
)

from spark_aesthetic.delta.naming import has_column, quoted
from spark_aesthetic.delta.schemas import column_path, column_type, holder
from spark_aesthetic.errors import TableError, nearest
from spark_aesthetic.functions.inputs import check_image_type

_BITS: dict[DataType, int] = {ByteType(): 8, ShortType(): 16, IntegerType(): 32, LongType(): 64}


def check_columns(df: DataFrame, columns: Sequence[str], option: str) -> None:
    """Raise TableError if a column is missing."""
    for name in columns:
        if not has_column(df.columns, name):
            raise TableError(f"{option}: no column {name!r} in the table: {nearest(name, df.columns)}")


def image_column(rows: DataFrame, column: str, option: str) -> tuple[str, str]:
    """Find a column of image bytes, which may be a field of a struct such as `image.bytes`.

    Returns:
        The column as `F.col` takes it, and the top-level column that contains it.

    Raises:
        TableError: The column is missing or has the wrong type. For a struct, the message names the fields with bytes.
    """
    path = column_path(rows, column)
    check_image_type(column_type(rows, path, option), f"{option} {column}")
    return path, holder(rows, column)


def check_score(df: DataFrame, score_col: str) -> DataType:
    """Return the type of the score column; raise TableError if it is missing or not numeric."""
    found = column_type(df, quoted(score_col), "score_col")
    if not isinstance(found, NumericType):
        raise TableError(
            f"score_col {score_col!r}: expected numbers, found {found.simpleString()}. Name the score column, or cast "
            "it."
        )
    return found


def reaches(df: DataFrame, score_col: str, number: float) -> Column:
    """Return a condition: the score is at least the user's number, compared in the type of the scores.

    Spark would widen both to double, where a FLOAT of 5.1 is less than 5.1, and drop the rows that equal the number.
    The constant has the column's type, so Spark can skip files by their statistics.
    """
    kind, (least,) = in_type(check_score(df, score_col), [number])
    return F.col(quoted(score_col)) >= F.lit(least).cast(kind)


def in_type(kind: DataType, numbers: Sequence[float]) -> tuple[DataType, list[float | int | Decimal]]:
    """Convert numbers to the type of the scores: each to the lowest score that counts as reaching it.

    Args:
        kind: The type of the scores.
        numbers: The user's numbers: 5.1 means the decimal number, not the nearest double.

    Returns:
        The type and the values. The type is DoubleType if one of the numbers is outside the range of `kind`.

    Examples:
        >>> in_type(FloatType(), [5.1])[1], in_type(DecimalType(3, 1), [5.14])[1], in_type(IntegerType(), [5.1])[1]
        ([5.099999904632568], [Decimal('5.2')], [6])
        >>> in_type(ByteType(), [5.1, 1000])
        (DoubleType(), [5.1, 1000.0])
    """
    values: list[float | int | Decimal] = []
    for number in map(float, numbers):
        value: float | int | Decimal = number
        if isinstance(kind, FloatType):
            # A number beyond the range of float becomes infinite, and no score reaches it.
            with np.errstate(over="ignore"):
                value = float(np.float32(number))
        elif isinstance(kind, DecimalType):
            # This precision suffices for every double and every Spark decimal.
            value = Decimal(repr(number)).quantize(Decimal(1).scaleb(-kind.scale), ROUND_CEILING, Context(prec=400))
            if abs(value) >= Decimal(10) ** (kind.precision - kind.scale):
                return DoubleType(), [float(each) for each in numbers]
        elif kind in _BITS:
            value = math.ceil(number)
            if not -(2 ** (_BITS[kind] - 1)) <= value < 2 ** (_BITS[kind] - 1):
                return DoubleType(), [float(each) for each in numbers]
        values.append(value)
    return kind, values
