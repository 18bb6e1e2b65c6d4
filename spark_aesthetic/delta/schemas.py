"""Columns of a schema by the names that users give them, and what their types hold."""

from __future__ import annotations

import re

from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame
from pyspark.sql.types import BinaryType, DataType, StructType

from spark_aesthetic.delta.datatypes import holds
from spark_aesthetic.delta.naming import column_named, quoted
from spark_aesthetic.errors import TableError, nearest


def spelled(rows: DataFrame, column: str) -> str:
    """A top-level column's name as the schema spells it, or `column` itself if the schema has no such column."""
    return column_named(rows.columns, column) or column


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
    top = column_named(rows.columns, column)
    return column if top is None else quoted(top)


def holder(rows: DataFrame, column: str) -> str:
    """The top-level column that holds a column, which may be a field of a struct, as the schema spells it."""
    top, parts = column_named(rows.columns, column), path_parts(column)
    return spelled(rows, parts[0]) if top is None and parts else top or column


def type_at(schema: StructType, column: str) -> DataType | None:
    """Give the type of a column of a schema, found as `column_path` finds it, or None if there is no such column.

    Examples:
        >>> type_at(StructType().add("photo", StructType().add("bytes", BinaryType())), "Photo.bytes")
        BinaryType()
    """
    found = field_type(schema, column)
    if found is None:
        found = schema
        for part in path_parts(column):
            found = field_type(found, part) if isinstance(found, StructType) else None
    return found


def field_type(schema: StructType, name: str) -> DataType | None:
    """The type of a field by its name, or None if there is no such field."""
    found = column_named(schema.names, name)
    return None if found is None else {field.name: field.dataType for field in schema}[found]


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
