"""Places that Spark reads and writes, and one line about one that it cannot reach."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pyspark.errors import PySparkException
from pyspark.sql import DataFrameReader, SparkSession

from spark_aesthetic.delta.java import Py4JJavaError, first_line, full_disk_explained
from spark_aesthetic.errors import TableError


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


def is_missing(error: Exception) -> bool:
    """Whether Spark says that a table, a schema or a path does not exist, or that a folder has none of the files."""
    condition = (error.getCondition() or "") if isinstance(error, PySparkException) else ""
    missing = ("NOT_FOUND", "MISSING_DELTA_TABLE", "PATH_DOES_NOT_EXIST", "UNABLE_TO_INFER_SCHEMA")
    return any(name in condition for name in missing)
