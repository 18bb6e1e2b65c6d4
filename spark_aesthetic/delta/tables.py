"""Open, read, write and describe Delta tables."""

from __future__ import annotations

from dataclasses import dataclass

from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, DataFrameWriter, Row, SparkSession

from spark_aesthetic.delta.access import is_missing
from spark_aesthetic.delta.java import Py4JJavaError, first_line
from spark_aesthetic.delta.naming import identifier, name_parts, path_of
from spark_aesthetic.delta.sessions import statement
from spark_aesthetic.errors import TableError


@dataclass(frozen=True)
class Origin:
    """The Delta table that rows come from, as a value that can be serialised.

    Attributes:
        table: The table as the user names it.
        id: Delta's unique id of the table.
        location: The table's folder.
    """

    table: str
    id: str
    location: str

    @property
    def identifier(self) -> str:
        """The table as an SQL identifier."""
        return identifier(self.table)


@dataclass(frozen=True)
class Source(Origin):
    """A Delta table at one version, so that every pass of a run reads the same rows.

    Attributes:
        size: Size of its files in bytes.
        files: Number of its files.
        feed: Whether it has a change data feed.
        append_only: Whether Delta refuses updates of its rows.
        partitions: Partition columns, which its files do not contain.
        plain: Whether its files can be read directly as Parquet: no deletion vectors and no column mapping.
        version: The version that was current when the table was opened.
        rows: All rows and columns of that version.
    """

    size: int
    files: int
    feed: bool
    append_only: bool
    partitions: tuple[str, ...]
    plain: bool
    version: int
    rows: DataFrame

    @property
    def origin(self) -> Origin:
        """The table without its rows."""
        return Origin(table=self.table, id=self.id, location=self.location)


def open_source(spark: SparkSession, table: str, called: str = "source") -> Source:
    """Open a Delta table at its current version.

    Raises:
        TableError: The table does not exist or is not a Delta table, or the session has no Delta Lake.
    """
    name, found = identifier(table), detail(spark, table)
    if found is None:
        hint = ""
        if path_of(table) is None and spark.conf.get("spark.sql.catalogImplementation", "in-memory") == "in-memory":
            hint = " (a name from an earlier run needs a metastore: --conf spark.sql.catalogImplementation=hive)"
        raise TableError(f"{called} {table!r}: expected a Delta table, found none. Check the name or path{hint}")
    version = current_version(spark, name)
    return Source(
        table=table,
        id=found.id,
        location=found.location,
        size=found.sizeInBytes,
        files=found.numFiles,
        partitions=tuple(found.partitionColumns),
        plain=found.properties.get("delta.columnMapping.mode", "none").lower() == "none"
        # The table property is no proof: deletion vectors remain after it is switched off, until DROP FEATURE.
        and "deletionVectors" not in found.tableFeatures,
        feed=_is_set(found, "delta.enableChangeDataFeed"),
        append_only=_is_set(found, "delta.appendOnly"),
        version=version,
        rows=read_table(spark, table, version),
    )


def _is_set(found: Row, name: str) -> bool:
    return str(found.properties.get(name, "false")).lower() == "true"


def read_table(spark: SparkSession, table: str, version: int | None = None) -> DataFrame:
    """Return the rows of a Delta table at a version; None reads the version that is current at each read."""
    reader = spark.read if version is None else spark.read.option("versionAsOf", version)
    # A path is not read as delta.`path`, because Spark's parser substitutes ${env:HOME} in a name.
    path = path_of(table)
    return reader.table(table) if path is None else reader.format("delta").load(path)


def write_table(writer: DataFrameWriter, table: str) -> None:
    """Write rows to a Delta table, by its name or its path."""
    path = path_of(table)
    if path is None:
        writer.saveAsTable(table)
    else:
        writer.save(path)


def current_version(spark: SparkSession, name: str) -> int:
    """Return the number of a table's newest version."""
    version: int = statement(spark, f"DESCRIBE HISTORY {name} LIMIT 1")[0].version
    return version


def is_delta(spark: SparkSession, table: str) -> bool:
    """Whether a Delta table has this name or path; raises the errors of `detail`."""
    return detail(spark, table) is not None


def detail(spark: SparkSession, table: str) -> Row | None:
    """Return the DESCRIBE DETAIL of a Delta table, or None if nothing exists there.

    Raises:
        TableError: Something other than a Delta table exists there, or the session cannot read Delta tables.
    """
    if path_of(table) is None and name_parts(table) is None:
        raise TableError(
            f"table {table!r}: expected a name or a path with a slash, found neither. Put backquotes around name parts "
            "with other characters than letters, digits and _."
        )
    try:
        found = statement(spark, f"DESCRIBE DETAIL {identifier(table)}")[0]
    # A file system raises Py4JJavaError for an unknown scheme or missing access rights.
    except (PySparkException, Py4JJavaError) as error:
        if is_missing(error):
            return None
        raise TableError(
            f"table {table!r}: expected a Delta table, found: {first_line(error)}{_delta_hint(spark)}"
        ) from error
    if found.format != "delta":
        raise TableError(
            f"table {table!r}: expected a Delta table, found format {found.format!r}. Run CONVERT TO DELTA or copy it."
        )
    return found


def _delta_hint(spark: SparkSession) -> str:
    if "delta" in (spark.conf.get("spark.sql.extensions", "") or "").lower():
        return ". Check the name or path, and that this session can read it"
    return ". This session has no Delta Lake. Submit with --properties-file conf/local.conf"
