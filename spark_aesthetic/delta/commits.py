"""Commits to Delta tables: tried again where another one comes between, made once, and told from one another."""

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

# A commit is retried if another one, by another model or by maintenance, was committed first. This many attempts.
ATTEMPTS = 5

# How Delta says so: by condition, or by the name of the class where there is none.
_CONFLICTS = (
    "DELTA_CONCURRENT", "io.delta.exceptions.Concurrent", "DELTA_METADATA_CHANGED", "MetadataChangedException",
    "DELTA_PROTOCOL_CHANGED", "ProtocolChangedException", "DELTA_SCHEMA_CHANGE_SINCE_ANALYSIS",
)  # fmt: skip

# What changes a table without changing a row.
_HARMLESS = (
    "OPTIMIZE", "VACUUM START", "VACUUM END", "SET TBLPROPERTIES", "UNSET TBLPROPERTIES", "ADD COLUMNS", "CLUSTER BY",
    "CHANGE COLUMN", "COMPUTE STATS", "UPGRADE PROTOCOL", "ADD CONSTRAINT", "DROP CONSTRAINT",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Commit:
    """The metadata of a commit, and the transaction that lets Delta recognise its repetition.

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
        # A setting's value is no text to Spark but a pattern, in which it replaces ${env:HOME}; to JSON it is the same.
        options = {"userMetadata": self.info.replace("$", "\\u0024")}
        if self.application is not None:
            options |= {"txnAppId": self.application, "txnVersion": str(self.number)}
        return options


def is_conflict(error: Exception) -> bool:
    """Whether a commit failed for another one that came between, so that it can be tried again."""
    return any(name in str(error) for name in _CONFLICTS)


def committed(commit: Callable[[], Done], check: Callable[[], object] = lambda: None, also: Sequence[str] = ()) -> Done:
    """Commit, and again where another commit came between (or for other reasons); `check` may raise before each."""
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
    """The table's properties."""
    return {row.key: row.value for row in statement(spark, f"SHOW TBLPROPERTIES {table}")}


def properties_clause(values: Mapping[str, str]) -> str:
    """Properties as CREATE and ALTER take them; neither names nor values hold a quote or a backslash."""
    return "(" + ", ".join(f"'{name}' = '{value}'" for name, value in values.items()) + ")"


def merge_into(spark: SparkSession, table: str, rows: DataFrame, clauses: str, commit: Commit) -> list[Row]:
    """MERGE rows into a table.

    Args:
        spark: A session of our own, in which the rows were made.
        table: As SQL takes it.
        rows: Called `scored` in the clauses.
        clauses: What follows USING in the statement; the table is called `target` there.
        commit: What the commit says of itself.

    Returns:
        The counts that Delta gives; nothing where this commit has been made before.
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
    """A commit as Delta's history tells it.

    Attributes:
        version: The version of the table that it made.
        at: When.
        operation: Delta's word for it, such as WRITE or MERGE.
        parameters: Delta's, of that operation.
        metrics: Delta's counts, of that operation.
        is_blind: Whether it added rows without reading any.
        told: What it says of itself, where that is a JSON object.
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
        """Whether this package made it."""
        return isinstance(self.told.get("spark_aesthetic"), str)

    @property
    def adds_only(self) -> bool:
        """Whether each row that was there before is there after it, with the same values."""
        appends = self.operation == "WRITE" and self.parameters.get("mode") == "Append"
        return self.is_blind or appends or self.operation in _HARMLESS

    def metric(self, name: str) -> int:
        """One of the counts, 0 where Delta gives none."""
        return int(self.metrics.get(name) or 0)

    @property
    def rows_written(self) -> int:
        """Rows that were inserted or updated."""
        if self.operation == "MERGE":
            return self.metric("numTargetRowsInserted") + self.metric("numTargetRowsUpdated")
        return self.metric("numOutputRows")


def logged(spark: SparkSession, table: str, *, since: int = -1, last: int | None = None) -> list[Logged]:
    """The commits that the history still has, the newest first.

    Args:
        spark: A session with Delta Lake.
        table: As SQL takes it.
        since: The commits after this version alone; -1 is all of them.
        last: No more than this many of the newest.
    """
    if last is not None:
        return [_logged(row) for row in _described(spark, f"DESCRIBE HISTORY {table} LIMIT {last}")]
    found: list[Logged] = []
    # Delta reads a file for each commit, and most callers ask for a handful of thousands.
    for limit in (" LIMIT 50", " LIMIT 1000", ""):
        found = [_logged(row) for row in _described(spark, f"DESCRIBE HISTORY {table}{limit}")]
        if not found or found[-1].version <= since + 1 or not limit:
            break
    return [commit for commit in found if commit.version > since]


def _described(spark: SparkSession, text: str) -> list[Row]:
    with own_session(spark) as own:
        # Python's local times repeat an hour a year.
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
    """List the commits that wrote scores: which run scored what.

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
    if not tables.is_delta(spark, scores):
        raise TableError(f"scores {scores!r}: expected a Delta table, found none; check the name or path")
    rows = [
        (
            commit.version, commit.at, commit.operation, *map(commit.told.get, _TOLD), scored_at(commit),
            commit.rows_written, commit.metric("numTargetRowsDeleted"),
        )
        for commit in logged(spark, identifier(scores)) if commit.is_ours
    ]  # fmt: skip
    return spark.createDataFrame(rows, _HISTORY)


def scored_at(commit: Logged) -> datetime | None:
    """The time that a commit's rows have, where it tells one."""
    text = commit.told.get("scored_at")
    return None if text is None else datetime.fromisoformat(text)
