"""Look up columns of a schema by the names that users give, and inspect their types."""

from __future__ import annotations

import re

from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame
from pyspark.sql.types import BinaryType, DataType, StructType

from spark_aesthetic.delta.datatypes import holds
from spark_aesthetic.delta.naming import column_named, quoted
from spark_aesthetic.errors import TableError, nearest


def spelled(rows: DataFrame, column: str) -> str:
    """Return a top-level column's name as the schema spells it, or `column` itself if the schema has no such column."""
    return column_named(rows.columns, column) or column


def column_type(rows: DataFrame, column: str, option: str) -> DataType:
    """Return the type of a column or of a field of a struct.

    Raises:
        TableError: There is no such column.
    """
    try:
        return rows.select(column).schema[0].dataType
    except AnalysisException as error:
        name = column.strip("`")
        raise TableError(f"{option}: no column {name!r} in the table: {nearest(name, rows.columns)}") from error


def column_path(rows: DataFrame, column: str) -> str:
    """Return a column's name for `F.col`; a field of a struct is named by its path, such as `image.bytes`.

    A top-level column takes precedence, even if its name contains dots.
    """
    top = column_named(rows.columns, column)
    return column if top is None else quoted(top)


def holder(rows: DataFrame, column: str) -> str:
    """Return the top-level column, as the schema spells it, that is `column` or contains it as a field."""
    top, parts = column_named(rows.columns, column), path_parts(column)
    return spelled(rows, parts[0]) if top is None and parts else top or column


def type_at(schema: StructType, column: str) -> DataType | None:
    """Return the type of a column, looked up as in `column_path`, or None if there is no such column.

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
    """Return the type of a field by its name, or None if there is no such field."""
    found = column_named(schema.names, name)
    return None if found is None else {field.name: field.dataType for field in schema}[found]


def path_parts(path: str) -> list[str]:
    """Split the path of a field at its dots, except at dots between backquotes.

    Examples:
        >>> path_parts("photo.`of 1.5`.bytes")
        ['photo', 'of 1.5', 'bytes']
    """
    parts = re.findall(r"`(?:[^`]|``)*`|[^.`]+", path)
    return [part[1:-1].replace("``", "`") if part.startswith("`") else part for part in parts]


def holds_bytes(found: DataType) -> bool:
    """Whether a type is binary, or a struct, an array or a map that contains binary values."""
    return holds(found, BinaryType)
