"""Read files and tables through Spark, and report a place that cannot be reached in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pyspark.errors import PySparkException
from pyspark.sql import DataFrameReader, SparkSession

from spark_aesthetic.delta.java import Py4JJavaError, first_line, full_disk_explained
from spark_aesthetic.errors import TableError


def files_reader(spark: SparkSession) -> DataFrameReader:
    """Return a reader that takes a path literally, not as a glob pattern.

    Use it for a single path. Given several paths that look like patterns, Spark 4.2 reads each of them twice. Spark
    reads the files of its own tables with this option. Escaping the path instead does not work, because Hadoop cannot
    match a name with a colon against a pattern.
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
    """Turn an error of a file system, a connector or a metastore into one line that names the place.

    Args:
        place: The place as the user named it, such as `--source 's3://bucket/x'`.
        remedy: What the user should do.
        missing: The message, after the place, if nothing exists there.
        errors: The exception types to convert: only those that the place can cause. Spark and Delta raise classes of
            PySpark; an error of a file system is a Py4JJavaError.

    Raises:
        ResourceError: The disk is full.
        TableError: Nothing exists there, or the place cannot be reached. The message has the first line of the cause.
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


def is_missing(error: Exception) -> bool:
    """Whether an error means that a table, a schema or a path does not exist, or that a folder has no data files."""
    condition = (error.getCondition() or "") if isinstance(error, PySparkException) else ""
    missing = ("NOT_FOUND", "MISSING_DELTA_TABLE", "PATH_DOES_NOT_EXIST", "UNABLE_TO_INFER_SCHEMA")
    return any(name in condition for name in missing)
