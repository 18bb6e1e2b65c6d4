"""Commits to Delta tables: tried again where another one comes between, made once, and told from one another."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar
from uuid import uuid4

from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import LongType, StringType, StructField, StructType, TimestampType
from pyspark.sql.utils import is_remote

from spark_aesthetic import preflight
from spark_aesthetic.errors import TableError
from spark_aesthetic.java import Py4JJavaError
from spark_aesthetic.preflight import identifier

Done = TypeVar("Done")

# So often a commit is tried that another one, of another model or of maintenance, has come before.
ATTEMPTS = 5

# How Delta says so: by condition, or by the name of the class where there is none.
_CONFLICTS = (
    "DELTA_CONCURRENT", "io.delta.exceptions.Concurrent", "DELTA_METADATA_CHANGED", "MetadataChangedException",
    "DELTA_PROTOCOL_CHANGED", "ProtocolChangedException", "DELTA_SCHEMA_CHANGE_SINCE_ANALYSIS",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Commit:
    """What a commit says of itself, and how it is told from its own repetition.

    Attributes:
        info: Where its rows come from, as JSON in the table's history.
        application: With `number`, what makes it happen once: Delta ignores a commit of a number that it has had.
        number: Of the chunk.
    """

    info: str
    application: str | None = None
    number: int | None = None

    def options(self) -> dict[str, str]:
        """As a writer takes them."""
        options = {"userMetadata": self.info}
        if self.application is not None:
            options |= {"txnAppId": self.application, "txnVersion": str(self.number)}
        return options

    @contextmanager
    def settings(self, spark: SparkSession) -> Iterator[None]:
        """The same for statements, which take no options, while they run."""
        names = {
            "userMetadata": "spark.databricks.delta.commitInfo.userMetadata",
            "txnAppId": "spark.databricks.delta.write.txnAppId",
            "txnVersion": "spark.databricks.delta.write.txnVersion",
        }
        told = self.options()
        if is_remote():
            # There a chunk runs in the user's own session, whose other commits would pass for this one. A MERGE that is
            # repeated changes nothing.
            told = {"userMetadata": self.info}
        with settings(spark, {names[name]: value for name, value in told.items()}):
            yield


@contextmanager
def settings(spark: SparkSession, values: dict[str, str]) -> Iterator[None]:
    """Give settings of a session other values for a while."""
    before = {name: spark.conf.get(name, None) for name in values}
    for name, value in values.items():
        spark.conf.set(name, value)
    try:
        yield
    finally:
        for name, known in before.items():
            if known is None:
                spark.conf.unset(name)
            else:
                spark.conf.set(name, known)


def is_conflict(error: Exception) -> bool:
    """Whether a commit failed for another one that came between, so that it can be tried again."""
    return any(name in str(error) for name in _CONFLICTS)


def committed(commit: Callable[[], Done], check: Callable[[], object] = lambda: None, also: Sequence[str] = ()) -> Done:
    """Commit, and again where another commit came between (or for other reasons) and `check` raises nothing."""
    for attempt in range(ATTEMPTS):
        try:
            return commit()
        except (PySparkException, Py4JJavaError) as error:
            again = is_conflict(error) or any(name in str(error) for name in also)
            if attempt == ATTEMPTS - 1 or not again:
                raise
        time.sleep(0.2 * 2**attempt * random.random())
        check()
    raise AssertionError("the last attempt returns or raises")


def properties(spark: SparkSession, table: str) -> dict[str, str]:
    """The table's properties."""
    return {row.key: row.value for row in spark.sql(f"SHOW TBLPROPERTIES {table}").collect()}


def merge_into(spark: SparkSession, table: str, rows: DataFrame, clauses: str, commit: Commit) -> list[Row]:
    """MERGE rows, called `scored` in the clauses, into a table, called `target`; gives what Delta says of it."""
    view = f"spark_aesthetic_{uuid4().hex}"
    rows.createTempView(view)
    try:
        with commit.settings(spark):
            merge = f"MERGE INTO {table} AS target USING {view} AS scored {clauses}"
            return spark.sql(merge).collect()
    finally:
        spark.catalog.dropTempView(view)


_INFO = StructType(
    [
        StructField("spark_aesthetic", StringType()),
        StructField("model", StringType()),
        StructField("predictor", StringType()),
        StructField("options", StringType()),
        StructField("source", StringType()),
        StructField("source_id", StringType()),
        StructField("source_version", LongType()),
        StructField("chunk", LongType()),
        StructField("checkpoint", StringType()),
        StructField("scored_at", TimestampType()),
    ]
)


def history(spark: SparkSession, scores: str) -> DataFrame:
    """Which run scored what: the commits of a scores table that scores came by.

    Args:
        spark: A session with Delta Lake.
        scores: The table by catalog name or by path.

    Returns:
        A row a commit, the newest first, with version (bigint), timestamp, operation, package_version, model,
        predictor (JSON, with the sha256 of its weights), options (JSON), source, source_id (Delta's), source_version
        (bigint; of the newest row in the chunk), chunk (bigint; null where no stream wrote it), checkpoint (of that
        stream), scored_at (timestamp; that of a chunk's rows), rows_written (bigint), rows_deleted (bigint).

    Raises:
        TableError: There is no such Delta table.
    """
    if not preflight.is_delta(spark, scores):
        raise TableError(f"scores {scores!r}: expected a Delta table, found none; check the name or path")
    commits = spark.sql(f"DESCRIBE HISTORY {identifier(scores)}")
    info, metric = F.from_json("userMetadata", _INFO), F.col("operationMetrics")
    told = commits.select("version", "timestamp", "operation", info.alias("info"), metric.alias("metrics"))
    merged = F.col("metrics.numTargetRowsInserted").cast("long") + F.col("metrics.numTargetRowsUpdated").cast("long")
    appended = F.col("metrics.numOutputRows").cast("long")
    return told.where("info.spark_aesthetic IS NOT NULL").select(
        "version", "timestamp", "operation",
        F.col("info.spark_aesthetic").alias("package_version"),
        "info.model", "info.predictor", "info.options", "info.source", "info.source_id", "info.source_version",
        "info.chunk", "info.checkpoint", "info.scored_at",
        F.when(F.col("operation") == "MERGE", merged).otherwise(appended).alias("rows_written"),
        F.coalesce(F.col("metrics.numTargetRowsDeleted").cast("long"), F.lit(0)).alias("rows_deleted"),
    )  # fmt: skip
