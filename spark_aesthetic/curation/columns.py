"""Columns as their user names them, and values of them as their user means them."""

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
    """Raise TableError unless the columns are there."""
    for name in columns:
        if not has_column(df.columns, name):
            raise TableError(f"{option}: no column {name!r} in the table: {nearest(name, df.columns)}")


def image_column(rows: DataFrame, column: str, option: str) -> tuple[str, str]:
    """Find a column of image bytes, which may be a field of a struct such as `image.bytes`.

    Returns:
        The column as `F.col` takes it, and the top-level column that holds it.

    Raises:
        TableError: No such column, or one of another type; of a struct the message names the fields with bytes.
    """
    path = column_path(rows, column)
    check_image_type(column_type(rows, path, option), f"{option} {column}")
    return path, holder(rows, column)


def check_score(df: DataFrame, score_col: str) -> DataType:
    """Give the type of the column of scores; TableError unless it is there and has numbers."""
    found = column_type(df, quoted(score_col), "score_col")
    if not isinstance(found, NumericType):
        raise TableError(
            f"score_col {score_col!r}: expected numbers, found {found.simpleString()}; name the scores, or cast them"
        )
    return found


def reaches(df: DataFrame, score_col: str, number: float) -> Column:
    """Whether a score is at least a number that a user gave, compared in the type of the scores.

    Spark would widen both to double, where a FLOAT of 5.1 is less than 5.1, and drop the rows that equal the number.
    The comparison is with a constant of the column's type, so Spark passes it down to the files' statistics.
    """
    kind, (least,) = in_type(check_score(df, score_col), [number])
    return F.col(quoted(score_col)) >= F.lit(least).cast(kind)


def in_type(kind: DataType, numbers: Sequence[float]) -> tuple[DataType, list[float | int | Decimal]]:
    """Give numbers as values of the type of the scores: each the least value that a score must have to reach it.

    Args:
        kind: The type of the scores.
        numbers: As users gave them: 5.1 means the decimal number, not the double next to it.

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
            # Beyond its range it is an infinity, which no score reaches.
            with np.errstate(over="ignore"):
                value = float(np.float32(number))
        elif isinstance(kind, DecimalType):
            # Places enough for every double and every decimal of Spark's.
            value = Decimal(repr(number)).quantize(Decimal(1).scaleb(-kind.scale), ROUND_CEILING, Context(prec=400))
            if abs(value) >= Decimal(10) ** (kind.precision - kind.scale):
                return DoubleType(), [float(each) for each in numbers]
        elif kind in _BITS:
            value = math.ceil(number)
            if not -(2 ** (_BITS[kind] - 1)) <= value < 2 ** (_BITS[kind] - 1):
                return DoubleType(), [float(each) for each in numbers]
        values.append(value)
    return kind, values
