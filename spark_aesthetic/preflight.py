"""What must be right before a job does any work: each check raises an error that says what to do."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from importlib.util import find_spec

from pyspark.errors import AnalysisException, PySparkException
from pyspark.ml.functions import vector_to_array
from pyspark.ml.linalg import VectorUDT
from pyspark.sql import Column, DataFrame, DataFrameReader, DataFrameWriter, Row, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import (
    ArrayType,
    AtomicType,
    BinaryType,
    ByteType,
    DataType,
    DateType,
    DecimalType,
    DoubleType,
    FloatType,
    IntegerType,
    LongType,
    ShortType,
    StructType,
    TimestampNTZType,
)
from pyspark.sql.utils import is_remote

from spark_aesthetic.datatypes import holds
from spark_aesthetic.errors import MissingDependencyError, OptionError, ResourceError, TableError, nearest
from spark_aesthetic.files import home
from spark_aesthetic.java import Py4JJavaError, first_line, full_disk_explained
from spark_aesthetic.predictors import Predictor
from spark_aesthetic.sessions import statement

_log = logging.getLogger("spark_aesthetic")

# What Delta's type widening changes a type to.
_WIDER: Mapping[type[DataType], Sequence[type[DataType]]] = {
    ByteType: (ShortType, IntegerType, LongType),
    ShortType: (IntegerType, LongType),
    IntegerType: (LongType,),
    FloatType: (DoubleType,),
    DateType: (TimestampNTZType,),
}

# Delta takes these in the name of a column under column mapping alone.
_UNUSUAL = set(" ,;{}()\n\t=")

# One part of a name of the catalog.
_PART = r"(?:\w+|`(?:[^`]|``)+`)"

# The beginning of the names of all columns that this package adds to a plan.
_ADDED = "_aesthetic_"

# A table at a path as SQL names it, and what an address begins with.
_BY_PATH, _SCHEME = re.compile(r"delta\.`((?:[^`]|``)+)`", re.IGNORECASE), re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")

# As many embeddings are looked at to tell a wrong predictor from a few wrong rows.
_SAMPLE_ROWS = 1000

# Up to as many keys go to every executor, so that image bytes are not shuffled to meet them.
BROADCAST_KEYS = 5_000_000


@dataclass(frozen=True)
class Source:
    """A Delta table at one version, so that every pass of a run sees the same rows.

    Attributes:
        table: As the user names it.
        id: Delta's own, which no other table ever has.
        location: Its folder.
        size: Bytes of its files.
        files: How many those are.
        feed: Whether it has a change data feed.
        append_only: Whether Delta refuses updates of its rows.
        partitions: Columns that are not in its files.
        plain: Whether each file's rows are the table's: no deletion vectors, and no other names for columns.
        version: The version that was current when the run began.
        rows: All of its rows and columns.
    """

    table: str
    id: str
    location: str
    size: int
    files: int
    feed: bool
    append_only: bool
    partitions: tuple[str, ...]
    plain: bool
    version: int
    rows: DataFrame

    @property
    def identifier(self) -> str:
        """The table as SQL takes it."""
        return identifier(self.table)


def identifier(table: str) -> str:
    """A table as SQL takes it: a catalog name as it is, a path (anything with a slash) as delta.`path`.

    Examples:
        >>> identifier("main.default.photos"), identifier("/data/photos"), identifier("s3://bucket/photos")
        ('main.default.photos', 'delta.`/data/photos`', 'delta.`s3://bucket/photos`')
    """
    path = path_of(table)
    return table if path is None else f"delta.{quoted(path)}"


def path_of(table: str) -> str | None:
    """The path of a table that is named by it, as Delta takes it; None for a name of the catalog.

    Examples:
        >>> path_of("/data/photos/"), path_of("delta.`/data/photos`"), path_of("main.default.photos")
        ('/data/photos', '/data/photos', None)
    """
    named = _BY_PATH.fullmatch(table)
    if named is not None:
        return whole(named[1].replace("``", "`"))
    return whole(table) if "/" in table else None


def whole(path: str) -> str:
    """Give a path as Delta takes it: `~` is the home folder, and a relative path begins at the driver's working folder.

    Every other character stands for itself, also those of patterns.
    """
    return path if _SCHEME.match(path) else os.path.abspath(home(path))  # noqa: PTH100 (Path.absolute would keep the "..")


def literal(path: str) -> str:
    r"""Escape a path for Spark's readers of files, which take it for a pattern.

    Examples:
        >>> print(literal("/data/a[1]/{x}"))
        /data/a\[1\]/\{x\}
    """
    return re.sub(r"([\\{}\[\]*?,])", r"\\\1", path)


def files_reader(spark: SparkSession) -> DataFrameReader:
    """A reader of one file or folder that takes its path for what it is, and not for a pattern.

    For one path only: if several look like patterns, Spark 4.2 reads each of them twice. The option is Spark's own: it
    reads the files of its tables with it. An escaped path would not do: Hadoop finds no name with a colon by a pattern.
    """
    return spark.read.option("__globPaths__", "false")


@contextmanager
def reaching(
    place: str,
    remedy: str = "check the address, and that its connector and access are set up",
    *,
    missing: str | None = None,
    errors: tuple[type[Exception], ...] = (PySparkException, Py4JJavaError),
) -> Iterator[None]:
    """Turn what a file system, a connector or a metastore raises into one line about a place.

    Args:
        place: The place, as its user named it: `--source 's3://bucket/x'`.
        remedy: What to do about it.
        missing: What to say, after the place, if nothing is there.
        errors: Those that can only be of the place. Spark's and Delta's own have classes of PySpark, a file system's is
            a Py4JJavaError.

    Raises:
        ResourceError: The disk is full.
        TableError: Nothing is there, or the place cannot be reached, with the first line of the cause.
    """
    try:
        with full_disk_explained():
            yield
    except errors as error:
        if missing is not None and is_missing(error):
            raise TableError(f"{place}: {missing}") from error
        raise TableError(
            f"{place}: expected a place that Spark can reach, found: {first_line(error)}; {remedy}"
        ) from error


def check_gpu_scheduling(spark: SparkSession) -> None:
    """Refuse settings under which Spark would wait for ever.

    Raises:
        ResourceError: A local master with GPU amounts: it has no GPUs to give, and its tasks never start.
    """
    master = spark.conf.get("spark.master", "")
    amount = spark.conf.get("spark.task.resource.gpu.amount", None)
    # Databricks' single-node clusters are local masters that do schedule GPUs.
    if "DATABRICKS_RUNTIME_VERSION" in os.environ:
        return
    if master is not None and master.split("[")[0] == "local" and amount is not None and float(amount) > 0:
        raise ResourceError(
            f"spark.task.resource.gpu.amount: expected no GPU amounts with master {master!r}, found {amount}; a local "
            "master never grants them and would wait for ever. Remove the spark.*.resource.gpu.* settings, or use "
            "a standalone, YARN or Kubernetes master"
        )


def warn_of_large_batches(spark: SparkSession) -> None:
    """Say so where Spark would hand whole columnar batches of images to Python, thousands at once, past its limits."""
    name = "spark.sql.execution.arrow.pythonUDF.columnarInput.enabled"
    if (spark.conf.get(name, None) or "false").lower() == "true":
        _log.warning(
            "%s: expected false, found true: up to 4096 images then go to Python at once, whatever "
            "spark.sql.execution.arrow.maxBytesPerBatch says; set it as conf/local.conf does", name,
        )  # fmt: skip


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


def check_interval(spark: SparkSession, every: str) -> None:
    """Raise OptionError unless Spark takes it for a time between two looks for new rows."""
    start = "TIMESTAMP '2000-01-01'"
    # Months have no length, so the triggers of Spark take none.
    fits = f"{start} + at >= {start} AND extract(MONTH FROM at) = 0 AND extract(YEAR FROM at) = 0"
    found = spark.range(1).select(F.lit(every).try_cast("interval").alias("at")).select(F.expr(fits).alias("fits"))
    if not found.collect()[0].fits:
        raise OptionError(f"every={every!r}: expected an interval without months or years, such as '1 minute'")


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


def is_missing(error: Exception) -> bool:
    """Whether Spark says that a table, a schema or a path does not exist, or that a folder has none of the files."""
    condition = (error.getCondition() or "") if isinstance(error, PySparkException) else ""
    missing = ("NOT_FOUND", "MISSING_DELTA_TABLE", "PATH_DOES_NOT_EXIST", "UNABLE_TO_INFER_SCHEMA")
    return any(name in condition for name in missing)


def _delta_hint(spark: SparkSession) -> str:
    if "delta" in (spark.conf.get("spark.sql.extensions", "") or "").lower():
        return ""
    return ". This session has no Delta Lake: submit with --properties-file conf/local.conf"


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


def check_image_type(found: DataType, given: str) -> None:
    """Check that a column holds bytes.

    Args:
        found: Its type.
        given: The option and the column, as the caller wrote them: `--image-col photo`.

    Raises:
        TableError: Another type. For a struct the message names its fields that hold bytes.
    """
    # In the struct of Spark's image source `data` holds decoded pixels, not the bytes of a file.
    inside = bytes_within(found) if isinstance(found, StructType) and "nChannels" not in found.names else []
    if inside:
        raise TableError(
            f"{given}: expected binary (the bytes of image files), found {found.simpleString()}; name its field "
            f"{' or '.join(inside)}: {given}.{inside[0]}"
        )
    if not isinstance(found, BinaryType):
        raise TableError(
            f"{given}: expected binary (the bytes of image files), found {found.simpleString()}; read files with "
            "format binaryFile, decode base64 with unbase64; embeddings are scored as such, not as images"
        )


def holds_bytes(found: DataType) -> bool:
    """Whether a type is binary, or a struct, an array or a map with binary values inside."""
    return holds(found, BinaryType)


def bytes_within(found: StructType) -> list[str]:
    """List the paths of the fields that hold bytes, those of structs inside it too."""
    paths = []
    for field in found.fields:
        name = field.name if re.fullmatch(r"\w+", field.name) else quoted(field.name)
        if isinstance(field.dataType, BinaryType):
            paths.append(name)
        elif isinstance(field.dataType, StructType):
            paths += [f"{name}.{path}" for path in bytes_within(field.dataType)]
    return paths


def is_vector(found: DataType, given: str) -> bool:
    """Whether the type of a column of embeddings is that of ml Vectors; TableError if it is that of no embeddings."""
    if isinstance(found, VectorUDT):
        return True
    if not isinstance(found, ArrayType) or not isinstance(found.elementType, FloatType | DoubleType):
        raise TableError(
            f"{given}: expected array<float>, array<double> or an ml Vector, found {found.simpleString()}; cast it; "
            "bytes of image files are scored as images, not as embeddings"
        )
    return False


def check_image_column(rows: DataFrame, column: str) -> None:
    """Raise TableError unless the column holds bytes."""
    check_image_type(column_type(rows, column_path(rows, column), "--image-col"), f"--image-col {column}")


def check_embedding_column(rows: DataFrame, column: str, dimension: int, predictor: Predictor) -> bool:
    """Check the type of a column of embeddings, and that some have the predictor's length.

    Returns:
        Whether they are ml Vectors.

    Raises:
        TableError: Another type, or no embedding has the length that the head takes.
    """
    path = column_path(rows, column)
    vector = is_vector(column_type(rows, path, "--embedding-col"), f"--embedding-col {column}")
    embedding = F.col("embedding")
    # A null vector is left out before vector_to_array, which raises on it.
    known = rows.select(F.col(path).alias("embedding")).limit(_SAMPLE_ROWS).where(embedding.isNotNull())
    counted = {row.length: row["count"] for row in _lengths(known, vector).groupBy("length").count().collect()}
    if not counted or dimension in counted:
        return vector
    found = f"expected {dimension} numbers for {predictor.name}, found {max(counted, key=counted.__getitem__)}"
    # The first rows may be the wrong ones, so all are asked; Spark stops at the first that fits.
    every = rows.select(F.col(path).alias("embedding")).where(embedding.isNotNull())
    if _lengths(every, vector).where(F.col("length") == dimension).isEmpty():
        raise TableError(
            f"--embedding-col {column}: {found}; choose the --predictor whose backbone made the embeddings"
        )
    _log.warning(
        "--embedding-col %s: %s in the first %d rows; rows of another length get a reason and no score",
        column, found, sum(counted.values()),
    )  # fmt: skip
    return vector


def _lengths(rows: DataFrame, vector: bool) -> DataFrame:
    embedding = F.col("embedding")
    return rows.select(F.size(vector_to_array(embedding) if vector else embedding).alias("length"))


def names(columns: str | Sequence[str] | None) -> tuple[str, ...]:
    """One name, several or none, as a tuple."""
    if columns is None:
        return ()
    return (columns,) if isinstance(columns, str) else tuple(columns)


def key_names(key: str | Sequence[str]) -> tuple[str, ...]:
    """The same of a key; TableError if it has no column."""
    if not key:
        raise TableError("--key: expected the columns that together identify a row, found none; name them")
    return names(key)


def check_key_columns(rows: DataFrame, key: Sequence[str], reserved: Sequence[str]) -> None:
    """Raise TableError unless the key columns are there, each once, and none is one that the job writes."""
    if len({column.lower() for column in key}) < len(key):
        raise TableError(f"--key {', '.join(key)}: expected each column once; leave out the repeated one")
    for column in key:
        if column.lower() not in [name.lower() for name in rows.columns]:
            raise TableError(f"--key: no column {column!r} in the table: {nearest(column, rows.columns)}")
        if column.lower() in reserved:
            raise TableError(f"--key: expected a column of your own, found {column!r}, which the job writes; rename it")
        check_own_name(column, "--key")
        found = column_type(rows, quoted(column), "--key")
        if not isinstance(found, AtomicType):
            raise TableError(
                f"--key: expected columns of simple types, which identify a row, found {column!r} of type "
                f"{found.simpleString()}. Take fields of it as columns, or a hash of it"
            )


def check_own_name(column: str, option: str) -> None:
    """Raise TableError for a column that is called as those which this package adds to its plans."""
    if column.lower().startswith(_ADDED):
        raise TableError(
            f"{option}: expected a name that does not begin with {_ADDED}, as those of the columns do that the job "
            f"adds, found {column!r}. Rename it"
        )


def has_null(key: Sequence[str]) -> Column:
    """Whether one of the key columns is null."""
    return reduce(Column.__or__, [F.col(quoted(column)).isNull() for column in key])


def key_text(columns: Iterable[str]) -> Column:
    """The values of quoted key columns in one text, for a message."""
    return F.array_join(F.array(*[F.col(name).cast("string") for name in columns]), ", ")


def check_key_values(rows: DataFrame, key: Sequence[str], *, beside: Sequence[str] = ()) -> None:
    """Check that the key columns identify a row each, reading only them.

    Args:
        rows: The table.
        key: The key columns.
        beside: Columns that identify a row together with the key.

    Raises:
        TableError: There are nulls or duplicates.
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
        faults = ((found.null_rows, "with a null"), (found.repeated_rows, "with the key of another"))
        counts = " and ".join(f"{rows} {fault}" for rows, fault in faults if rows)
        raise TableError(
            f"--key {named}: expected a value of its own in each of the {found.rows} rows, found {counts}; add a "
            "column to the key or drop those rows"
        )


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
    found = {field.name.lower(): field.dataType for field in rows.schema}
    for name, data_type in expected.items():
        there = found.get(name.lower())
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


def unusual(names: Iterable[str]) -> bool:
    """Whether a table needs Delta's column mapping to have columns of these names."""
    return any(_UNUSUAL & set(name) for name in names)


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


def name_parts(name: str) -> list[str] | None:
    """The parts of a name of the catalog, without their backquotes; None if it is no such name.

    Examples:
        >>> name_parts("main.default.photos"), name_parts("`a.b`.`c``d`"), name_parts("a b")
        (['main', 'default', 'photos'], ['a.b', 'c`d'], None)
    """
    if re.fullmatch(rf"{_PART}(\.{_PART})*", name) is None:
        return None
    return [part[1:-1].replace("``", "`") if part[0] == "`" else part for part in re.findall(_PART, name)]


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


def check_view(spark: SparkSession, view: str) -> None:
    """Raise TableError unless a view can go by this name."""
    if name_parts(view) is None:
        raise TableError(
            f"--view: expected a name for a view, found {view!r}; put other characters than letters, digits and _ "
            "between backquotes, and a schema that is there before it"
        )
    # Not by check_schema, for a view has no path, whatever is between its backquotes.
    check_name(spark, view, "--view")
    if spark.catalog.tableExists(view) and spark.catalog.getTable(view).tableType != "VIEW":
        raise TableError(f"--view: expected a free name or that of a view, found the table {view!r}; choose another")


def check_weights(predictor: Predictor, model_path: str | None) -> None:
    """Check that images can be scored: packages, backbone and head, verified by checksum and by shape.

    Raises:
        MissingDependencyError: The extra "image" is not installed.
        PredictorError: There is no such architecture.
        WeightsError: A file is missing, another one, or does not fit.
    """
    missing = [name for name in ("torch", "torchvision", "open_clip", "PIL", "simplejpeg") if find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            f"--image-col: expected the packages of the extra 'image', found no {', '.join(missing)}; "
            "pip install 'spark-aesthetic[image]' on the driver and on the executors"
        )
    # Here, because it loads torch.
    from spark_aesthetic import prepare

    prepare.check(predictor, model_path)


def without(rows: DataFrame, keys: DataFrame, key: Sequence[str], count: int) -> DataFrame:
    """The rows that have none of `count` keys, without a shuffle of image bytes while the keys fit a broadcast."""
    return rows.join(F.broadcast(keys) if count <= BROADCAST_KEYS else keys, list(key), "left_anti")


def describe(spark: SparkSession, text: str) -> None:
    """Say in the Spark UI what the jobs of this thread are for; Connect has no such words."""
    if not is_remote():
        spark.sparkContext.setJobDescription(text)


@contextmanager
def described(spark: SparkSession, text: str) -> Iterator[None]:
    """The same for a while."""
    name = "spark.job.description"
    before = None if is_remote() else spark.sparkContext.getLocalProperty(name)
    describe(spark, text)
    try:
        yield
    finally:
        if not is_remote():
            spark.sparkContext.setLocalProperty(name, before)  # type: ignore[arg-type]  # None removes it


def quoted(column: str) -> str:
    """A top-level column's name as SQL takes it, whatever characters it has."""
    return f"`{column.replace('`', '``')}`"
