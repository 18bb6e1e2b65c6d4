"""Whether a table can take what is going to be written: its types, its names, its properties."""

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

# What Delta's type widening changes a type to.
_WIDER: Mapping[type[DataType], Sequence[type[DataType]]] = {
    ByteType: (ShortType, IntegerType, LongType),
    ShortType: (IntegerType, LongType),
    IntegerType: (LongType,),
    FloatType: (DoubleType,),
    DateType: (TimestampNTZType,),
}


def check_columns(rows: DataFrame, expected: dict[str, DataType], table: str, *, required: Sequence[str]) -> None:
    """Check the types of columns that the job is going to write.

    Args:
        rows: The table.
        expected: Types by column name.
        table: Named in errors.
        required: Those that must be there already.

    Raises:
        TableError: A column has another type, or is missing.
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
                f"found {'none' if there is None else there.simpleString()}; rename it or choose another table"
            )


def _widens(there: DataType, wanted: DataType) -> bool:
    """Whether Delta can change a column to a type that holds all of its values."""
    if isinstance(there, DecimalType) and isinstance(wanted, DecimalType):
        more = wanted.scale - there.scale
        return there != wanted and more >= 0 and wanted.precision - there.precision >= more
    return type(wanted) in _WIDER.get(type(there), ())


def check_names(found: Row, names: Sequence[str], option: str) -> None:
    """Raise TableError unless columns of these names can be added to a table that Delta has described."""
    if unusual(names) and str(found.properties.get("delta.columnMapping.mode", "none")).lower() == "none":
        raise TableError(
            f"{option}: expected a table with column mapping, which a column such as {names[0]!r} needs, found one "
            "without. ALTER TABLE … SET TBLPROPERTIES ('delta.columnMapping.mode' = 'name'), or choose another table"
        )


def check_updates(found: Row, option: str, remedy: str) -> None:
    """Raise TableError if Delta refuses updates of a table that it has described."""
    if _is_set(found, "delta.appendOnly"):
        raise TableError(
            f"{option}: expected a table whose rows can be updated, found the property delta.appendOnly = true. Unset "
            f"it, or {remedy}"
        )


def check_schema(spark: SparkSession, table: str, option: str) -> None:
    """Raise TableError unless a table that is yet to be made can go by its name."""
    if path_of(table) is None:
        check_name(spark, table, option)


def check_name(spark: SparkSession, table: str, option: str) -> None:
    """Raise TableError unless a table or a view that is yet to be made can go by a name of the catalog."""
    parts = name_parts(table)
    if parts is None:
        raise TableError(
            f"{option}: expected a name or a path with a slash, found {table!r}. Put other characters than letters, "
            "digits and _ between backquotes"
        )
    schema = ".".join(map(quoted, parts[:-1]))
    with reaching(option):
        if schema and not spark.catalog.databaseExists(schema):
            raise TableError(f"{option}: expected a schema that exists, found no {schema}. CREATE SCHEMA {schema}")
    # Spark's own catalog takes no other names, and would say so after all the work.
    catalog = parts[0] if len(parts) > 2 else spark.catalog.currentCatalog()
    if catalog == "spark_catalog" and re.fullmatch(r"\w+", parts[-1], re.ASCII) is None:
        raise TableError(
            f"{option}: expected ASCII letters, digits and _ alone in a name of Spark's own catalog, found "
            f"{parts[-1]!r}. Rename it"
        )
