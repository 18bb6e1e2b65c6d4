"""Delta tables as they are: what is there, its rows, its version."""

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
    """Which Delta table rows come from; a value that can be sent anywhere.

    Attributes:
        table: As the user names it.
        id: Delta's own, which no other table ever has.
        location: Its folder.
    """

    table: str
    id: str
    location: str

    @property
    def identifier(self) -> str:
        """The table as SQL takes it."""
        return identifier(self.table)


@dataclass(frozen=True)
class Source(Origin):
    """A Delta table at one version, so that every pass of a run sees the same rows.

    Attributes:
        size: Bytes of its files.
        files: How many those are.
        feed: Whether it has a change data feed.
        append_only: Whether Delta refuses updates of its rows.
        partitions: Columns that are not in its files.
        plain: Whether each file's rows are the table's: no deletion vectors, and no other names for columns.
        version: The version that was current when the run began.
        rows: All of its rows and columns.
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
        """The table alone, without its rows."""
        return Origin(table=self.table, id=self.id, location=self.location)


def open_source(spark: SparkSession, table: str, called: str = "source") -> Source:
    """Open a Delta table at its current version.

    Raises:
        TableError: There is no such table, or it is not a Delta table, or the session has no Delta.
    """
    name, found = identifier(table), detail(spark, table)
    if found is None:
        hint = ""
        if path_of(table) is None and spark.conf.get("spark.sql.catalogImplementation", "in-memory") == "in-memory":
            hint = " (names of earlier runs need a metastore: --conf spark.sql.catalogImplementation=hive)"
        raise TableError(f"{called} {table!r}: expected a Delta table, found none; check the name or path{hint}")
    version = current_version(spark, name)
    return Source(
        table=table,
        id=found.id,
        location=found.location,
        size=found.sizeInBytes,
        files=found.numFiles,
        partitions=tuple(found.partitionColumns),
        plain=found.properties.get("delta.columnMapping.mode", "none").lower() == "none"
        # Not the property: vectors outlive its being switched off, and only DROP FEATURE tells that none are left.
        and "deletionVectors" not in found.tableFeatures,
        feed=_is_set(found, "delta.enableChangeDataFeed"),
        append_only=_is_set(found, "delta.appendOnly"),
        version=version,
        rows=read_table(spark, table, version),
    )


def _is_set(found: Row, name: str) -> bool:
    return str(found.properties.get(name, "false")).lower() == "true"


def read_table(spark: SparkSession, table: str, version: int | None = None) -> DataFrame:
    """The rows of a Delta table as it is when they are read, or as it was at one of its versions."""
    reader = spark.read if version is None else spark.read.option("versionAsOf", version)
    # By its path and not as delta.`path`: the parser takes ${env:HOME} in a name for a variable.
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
    """The number of a table's newest version."""
    version: int = statement(spark, f"DESCRIBE HISTORY {name} LIMIT 1")[0].version
    return version


def is_delta(spark: SparkSession, table: str) -> bool:
    """Whether a Delta table is there; see `detail`."""
    return detail(spark, table) is not None


def detail(spark: SparkSession, table: str) -> Row | None:
    """What DESCRIBE DETAIL says of a Delta table; None where nothing is.

    Raises:
        TableError: Something else is there, or the session cannot read Delta tables.
    """
    if path_of(table) is None and name_parts(table) is None:
        raise TableError(
            f"table {table!r}: expected a name or a path with a slash. Put other characters of a name than letters, "
            "digits and _ between backquotes"
        )
    try:
        found = statement(spark, f"DESCRIBE DETAIL {identifier(table)}")[0]
    # The second is how a file system says that it has no such scheme or grants no access.
    except (PySparkException, Py4JJavaError) as error:
        if is_missing(error):
            return None
        raise TableError(
            f"table {table!r}: expected a Delta table, found: {first_line(error)}{_delta_hint(spark)}"
        ) from error
    if found.format != "delta":
        raise TableError(
            f"table {table!r}: expected a Delta table, found format {found.format!r}; CONVERT TO DELTA or copy it"
        )
    return found


def _delta_hint(spark: SparkSession) -> str:
    if "delta" in (spark.conf.get("spark.sql.extensions", "") or "").lower():
        return ""
    return ". This session has no Delta Lake: submit with --properties-file conf/local.conf"
