"""Columns of a schema by the names that users give them, and what their types hold."""

from __future__ import annotations

import re

from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame
from pyspark.sql.types import BinaryType, DataType, StructType

from spark_aesthetic.delta.datatypes import holds
from spark_aesthetic.delta.naming import quoted
from spark_aesthetic.errors import TableError, nearest


def spelled(rows: DataFrame, column: str) -> str:
    """A top-level column as the schema spells it, by which alone a schema finds it; as it is given if there is none."""
    return (
        column if column in rows.columns else {name.lower(): name for name in rows.columns}.get(column.lower(), column)
    )


def column_type(rows: DataFrame, column: str, option: str) -> DataType:
    """The type of a column, which may be a field of a struct.

    Raises:
        TableError: There is no such column.
    """
    try:
        return rows.select(column).schema[0].dataType
    except AnalysisException as error:
        name = column.strip("`")
        raise TableError(f"{option}: no column {name!r} in the table: {nearest(name, rows.columns)}") from error


def column_path(rows: DataFrame, column: str) -> str:
    """Give a column as `F.col` takes it: a field of a struct by its path, such as `image.bytes`.

    A top-level column wins, whatever characters its name has, dots among them.
    """
    top = spelled(rows, column)
    return quoted(top) if top in rows.columns else column


def type_at(schema: StructType, column: str) -> DataType | None:
    """Give the type of a column of a schema, found as `column_path` finds it, or None if there is no such column.

    Examples:
        >>> type_at(StructType().add("photo", StructType().add("bytes", BinaryType())), "Photo.bytes")
        BinaryType()
    """
    found: DataType | None = _field(schema, column)
    if found is None:
        found = schema
        for part in path_parts(column):
            found = _field(found, part) if isinstance(found, StructType) else None
    return found


def _field(schema: StructType, name: str) -> DataType | None:
    types = {field.name.lower(): field.dataType for field in schema} | {field.name: field.dataType for field in schema}
    return types.get(name, types.get(name.lower()))


def path_parts(path: str) -> list[str]:
    """Split the path of a field at its dots, except at those between backquotes.

    Examples:
        >>> path_parts("photo.`of 1.5`.bytes")
        ['photo', 'of 1.5', 'bytes']
    """
    parts = re.findall(r"`(?:[^`]|``)*`|[^.`]+", path)
    return [part[1:-1].replace("``", "`") if part.startswith("`") else part for part in parts]


def holds_bytes(found: DataType) -> bool:
    """Whether a type is binary, or a struct, an array or a map with binary values inside."""
    return holds(found, BinaryType)
