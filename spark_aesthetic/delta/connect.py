"""Where Spark Connect differs from a classic session: a function for each difference, named after what callers want."""

from __future__ import annotations

import pyspark
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql.utils import is_remote


def oldest_release() -> tuple[int, int]:
    """The release of Spark, such as (4, 1): on Connect the older one of the client's and the server's."""
    server = SparkSession.getActiveSession() if is_remote() else None
    return min(_release(version) for version in (pyspark.__version__, *([] if server is None else [server.version])))


def _release(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def computes_each_mention(column: Column) -> bool:
    """Whether an expression that names a column several times computes it as often.

    To a classic session all mentions are one. Connect sends each as a call of its own, except columns of a table.
    """
    if not is_remote():
        return False
    from pyspark.sql.connect.expressions import ColumnReference

    return not isinstance(column._expr, ColumnReference)


def analysed(rows: DataFrame) -> DataFrame:
    """The same rows, after Spark has looked up what they name.

    A classic session does so at once. Connect waits until it is asked for the schema, and only then raises an error.
    """
    _ = rows.schema
    return rows


def batches_run_elsewhere() -> bool:
    """Whether foreachBatch calls its function in another process, from which nothing comes back but errors."""
    return is_remote()
