"""Commit to Delta tables: retry after a conflict, commit exactly once, and list the commits."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, TypeVar
from uuid import uuid4

from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F

from spark_aesthetic.delta import tables
from spark_aesthetic.delta.java import Py4JJavaError
from spark_aesthetic.delta.naming import identifier
from spark_aesthetic.delta.sessions import commit_settings, own_session, statement
from spark_aesthetic.errors import TableError

Done = TypeVar("Done")

# Attempts per commit, because a run of another model, or maintenance, may commit first.
ATTEMPTS = 5

# How Delta reports a conflict: by error condition, or by class name if the error has no condition.
_CONFLICTS = (
    "DELTA_CONCURRENT", "io.delta.exceptions.Concurrent", "DELTA_METADATA_CHANGED", "MetadataChangedException",
    "DELTA_PROTOCOL_CHANGED", "ProtocolChangedException", "DELTA_SCHEMA_CHANGE_SINCE_ANALYSIS",
)  # fmt: skip

# Operations that change no row.
_HARMLESS = (
    "OPTIMIZE", "VACUUM START", "VACUUM END", "SET TBLPROPERTIES", "UNSET TBLPROPERTIES", "ADD COLUMNS", "CLUSTER BY",
    "CHANGE COLUMN", "COMPUTE STATS", "UPGRADE PROTOCOL", "ADD CONSTRAINT", "DROP CONSTRAINT",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Commit:
    """The metadata of a commit, and the transaction id by which Delta ignores a repeated commit.

    Attributes:
        info: Delta's userMetadata: JSON that records in the table's history where the rows come from.
        application: Delta's txnAppId. Delta ignores a commit with an application and a number that it already has.
        number: Delta's txnVersion, which identifies the chunk.
    """

    info: str
    application: str | None = None
    number: int | None = None

    def options(self) -> dict[str, str]:
        """Return the options of a DataFrameWriter."""
        # Spark substitutes ${env:HOME} in the value of a setting. An escaped $ prevents that and is the same in JSON.
        options = {"userMetadata": self.info.replace("$", "\\u0024")}
        if self.application is not None:
            options |= {"txnAppId": self.application, "txnVersion": str(self.number)}
        return options


def is_conflict(error: Exception) -> bool:
    """Whether a commit failed because another commit came first, so that a retry can succeed."""
    return any(name in str(error) for name in _CONFLICTS)


def committed(commit: Callable[[], Done], check: Callable[[], object] = lambda: None, also: Sequence[str] = ()) -> Done:
    """Commit, and retry after a conflict or after an error that contains a text of `also`.

    `check` runs before each attempt and may raise an error.
    """
    for attempt in range(ATTEMPTS):
        check()
        try:
            return commit()
        except (PySparkException, Py4JJavaError) as error:
            again = is_conflict(error) or any(name in str(error) for name in also)
            if attempt == ATTEMPTS - 1 or not again:
                raise
        time.sleep(0.2 * 2**attempt * random.random())
    raise AssertionError("the last attempt returns or raises")


def properties(spark: SparkSession, table: str) -> dict[str, str]:
    """Return the table's properties."""
    return {row.key: row.value for row in statement(spark, f"SHOW TBLPROPERTIES {table}")}


def properties_clause(values: Mapping[str, str]) -> str:
    """Format properties for CREATE and ALTER. Names and values must not contain a quote or a backslash."""
    return "(" + ", ".join(f"'{name}' = '{value}'" for name, value in values.items()) + ")"


def merge_into(spark: SparkSession, table: str, rows: DataFrame, clauses: str, commit: Commit) -> list[Row]:
    """MERGE rows into a table.

    Args:
        spark: The session from `own_session` in which the rows were created.
        table: The table as an SQL identifier.
        rows: The rows, which the clauses call `scored`.
        clauses: The rest of the statement after USING, which calls the table `target`.
        commit: The metadata of the commit.

    Returns:
        Delta's row of counts; an empty list if the table already has this commit.
    """
    view = f"_aesthetic_{uuid4().hex}"
    rows.createTempView(view)
    try:
        with commit_settings(spark, commit.options()):
            return spark.sql(f"MERGE INTO {table} AS target USING {view} AS scored {clauses}").collect()
    finally:
        spark.catalog.dropTempView(view)


@dataclass(frozen=True, kw_only=True)
class Logged:
    """A commit as Delta's history records it.

    Attributes:
        version: The table version that it created.
        at: The time of the commit.
        operation: Delta's name of the operation, such as WRITE or MERGE.
        parameters: Delta's parameters of the operation.
        metrics: Delta's metrics of the operation.
        is_blind: Whether it added rows without reading any.
        told: Its user metadata, if that is a JSON object; empty otherwise.
    """

    version: int
    at: datetime
    operation: str
    parameters: Mapping[str, str]
    metrics: Mapping[str, str]
    is_blind: bool
    told: Mapping[str, Any]

    @property
    def is_ours(self) -> bool:
        """Whether this package made the commit."""
        return isinstance(self.told.get("spark_aesthetic"), str)

    @property
    def adds_only(self) -> bool:
        """Whether the commit leaves all existing rows unchanged."""
        appends = self.operation == "WRITE" and self.parameters.get("mode") == "Append"
        return self.is_blind or appends or self.operation in _HARMLESS

    def metric(self, name: str) -> int:
        """Return a metric as a number, or 0 if Delta does not report it."""
        return int(self.metrics.get(name) or 0)

    @property
    def rows_written(self) -> int:
        """Rows that were inserted or updated."""
        if self.operation == "MERGE":
            return self.metric("numTargetRowsInserted") + self.metric("numTargetRowsUpdated")
        return self.metric("numOutputRows")


def logged(spark: SparkSession, table: str, *, since: int = -1, last: int | None = None) -> list[Logged]:
    """Return the commits that are still in the history, newest first.

    Args:
        spark: A session with Delta Lake.
        table: The table as an SQL identifier.
        since: Return only commits after this version; -1 returns all.
        last: Return at most this many of the newest commits, whatever `since` is.
    """
    if last is not None:
        return [_logged(row) for row in _described(spark, f"DESCRIBE HISTORY {table} LIMIT {last}")]
    found: list[Logged] = []
    # Delta reads one file per commit, and most callers need only the newest ones.
    for limit in (" LIMIT 50", " LIMIT 1000", ""):
        found = [_logged(row) for row in _described(spark, f"DESCRIBE HISTORY {table}{limit}")]
        if not found or found[-1].version <= since + 1 or not limit:
            break
    return [commit for commit in found if commit.version > since]


def _described(spark: SparkSession, text: str) -> list[Row]:
    with own_session(spark) as own:
        # In Python's local time, one hour per year is ambiguous.
        return own.sql(text).withColumn("timestamp", F.unix_micros("timestamp")).collect()


def _logged(row: Row) -> Logged:
    try:
        told = json.loads(row.userMetadata or "null")
    except ValueError:
        told = None
    return Logged(
        version=row.version,
        at=datetime.fromtimestamp(row.timestamp / 1e6, timezone.utc),
        operation=row.operation,
        parameters=row.operationParameters or {},
        metrics=row.operationMetrics or {},
        is_blind=bool(row.isBlindAppend),
        told=told if isinstance(told, dict) else {},
    )


_HISTORY = (
    "version bigint, timestamp timestamp_ltz, operation string, package_version string, model string, "
    "predictor string, options string, source string, source_id string, source_version bigint, chunk bigint, "
    "checkpoint string, scored_at timestamp_ltz, rows_written bigint, rows_deleted bigint"
)
_TOLD = (
    "spark_aesthetic", "model", "predictor", "options", "source", "source_id", "source_version", "chunk", "checkpoint",
)  # fmt: skip


def history(spark: SparkSession, scores: str) -> DataFrame:
    """List the commits that wrote scores, with the model, the options and the source of each.

    Args:
        spark: A session with Delta Lake.
        scores: The scores table, by catalog name or by path.

    Returns:
        One row per commit, newest first, with version (bigint), timestamp, operation, package_version, model,
        predictor (JSON, with the sha256 of its weights), options (JSON), source, source_id (Delta's table id),
        source_version (bigint; the scores contain every change of the source up to it), chunk (bigint; null if no
        stream wrote the commit), checkpoint (of that stream), scored_at (timestamp; the `aesthetic_scored_at` of a
        chunk's rows), rows_written (bigint), rows_deleted (bigint).

    Raises:
        TableError: The table does not exist, or is not a Delta table.
    """
    if not tables.is_delta(spark, scores):
        raise TableError(f"scores {scores!r}: expected a Delta table, found none. Check the name or path.")
    rows = [
        (
            commit.version, commit.at, commit.operation, *map(commit.told.get, _TOLD), scored_at(commit),
            commit.rows_written, commit.metric("numTargetRowsDeleted"),
        )
        for commit in logged(spark, identifier(scores)) if commit.is_ours
    ]  # fmt: skip
    return spark.createDataFrame(rows, _HISTORY)


def scored_at(commit: Logged) -> datetime | None:
    """Return the `aesthetic_scored_at` of a commit's rows, or None if its metadata does not have it."""
    text = commit.told.get("scored_at")
    return None if text is None else datetime.fromisoformat(text)
