"""Check that the rows of a job can be written to a table: column types, column names and table properties."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql.types import (
    ByteType,
    DataType,
    DateType,
    DecimalType,
    DoubleType,
    FloatType,
    IntegerType,
    LongType,
    ShortType,
    TimestampNTZType,
)

from spark_aesthetic.delta.access import reaching
from spark_aesthetic.delta.naming import identifier, name_parts, path_of, quoted, unusual
from spark_aesthetic.delta.schemas import field_type
from spark_aesthetic.delta.tables import _is_set
from spark_aesthetic.errors import TableError

# The types to which Delta's type widening can change a type.
_WIDER: Mapping[type[DataType], Sequence[type[DataType]]] = {
    ByteType: (ShortType, IntegerType, LongType),
    ShortType: (IntegerType, LongType),
    IntegerType: (LongType,),
    FloatType: (DoubleType,),
    DateType: (TimestampNTZType,),
}


def check_columns(rows: DataFrame, expected: dict[str, DataType], table: str, *, required: Sequence[str]) -> None:
    """Check the types of the columns that the job is going to write.

    Args:
        rows: The rows of the table.
        expected: Types by column name.
        table: The table's name in errors.
        required: Columns that must already exist.

    Raises:
        TableError: A column has another type, or a required column is missing.
    """
    schema = rows.schema
    for name, data_type in expected.items():
        there = field_type(schema, name)
        if there is None and name not in required:
            continue
        if there is not None and _widens(there, data_type):
            raise TableError(
                f"table {table!r}, column {name}: expected {data_type.simpleString()}, which the source has now, found "
                f"{there.simpleString()}. Run ALTER TABLE {identifier(table)} SET TBLPROPERTIES "
                f"('delta.enableTypeWidening' = 'true'), then ALTER TABLE {identifier(table)} "
                f"ALTER COLUMN {quoted(name)} TYPE {data_type.simpleString()}"
            )
        if there != data_type:
            raise TableError(
                f"table {table!r}, column {name}: expected {data_type.simpleString()}, "
                f"found {'none' if there is None else there.simpleString()}. Rename the column or choose another table."
            )


def _widens(there: DataType, wanted: DataType) -> bool:
    """Whether Delta can change a column from one type to the other and keep all of its values."""
    if isinstance(there, DecimalType) and isinstance(wanted, DecimalType):
        more = wanted.scale - there.scale
        return there != wanted and more >= 0 and wanted.precision - there.precision >= more
    return type(wanted) in _WIDER.get(type(there), ())


def check_names(found: Row, names: Sequence[str], option: str) -> None:
    """Raise TableError if a table, given by its DESCRIBE DETAIL, cannot have columns of these names."""
    if unusual(names) and str(found.properties.get("delta.columnMapping.mode", "none")).lower() == "none":
        raise TableError(
            f"{option}: expected a table with column mapping, which a column such as {names[0]!r} needs, found one "
            "without it. Run ALTER TABLE … SET TBLPROPERTIES ('delta.columnMapping.mode' = 'name'), or choose another "
            "table."
        )


def check_updates(found: Row, option: str, remedy: str) -> None:
    """Raise TableError if Delta refuses updates of a table, given by its DESCRIBE DETAIL."""
    if _is_set(found, "delta.appendOnly"):
        raise TableError(
            f"{option}: expected a table that allows updates, found the property delta.appendOnly = true. Unset the "
            f"property, or {remedy}"
        )


def check_schema(spark: SparkSession, table: str, option: str) -> None:
    """Raise TableError if a new table cannot have this name. Paths are not checked."""
    if path_of(table) is None:
        check_name(spark, table, option)


def check_name(spark: SparkSession, table: str, option: str) -> None:
    """Raise TableError if a new table or view cannot have this name in the catalog."""
    parts = name_parts(table)
    if parts is None:
        raise TableError(
            f"{option}: expected a name or a path with a slash, found {table!r}. Put backquotes around "
            "name parts with other characters than letters, digits and _."
        )
    schema = ".".join(map(quoted, parts[:-1]))
    with reaching(option):
        if schema and not spark.catalog.databaseExists(schema):
            raise TableError(f"{option}: expected a schema that exists, found no {schema}. Run CREATE SCHEMA {schema}")
    # Spark's own catalog accepts only ASCII letters, digits and _, and would raise its error only after all the work.
    catalog = parts[0] if len(parts) > 2 else spark.catalog.currentCatalog()
    if catalog == "spark_catalog" and re.fullmatch(r"\w+", parts[-1], re.ASCII) is None:
        raise TableError(
            f"{option}: expected ASCII letters, digits and _ as the only characters in Spark's own catalog, found "
            f"{parts[-1]!r}. Choose another name."
        )
