"""A Spark session of our own for table jobs: what the user has set there changes nothing here, and nothing here leaks.

Delta reads some options of a commit from the session's settings, and Spark's parser reads some of its rules there. Set
in the user's session they would reach every other thread of it: Delta then drops an append of the user as one that it
has had. So a job runs in a copy of the session, which has its temporary views, its current schema and its settings,
except those below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar, cast

from pyspark.sql import Row, SparkSession

from spark_aesthetic.delta.connect import can_copy, copied, job_property, set_job_property
from spark_aesthetic.delta.java import full_disk_explained

Job = TypeVar("Job", bound=Callable[..., Any])

_USER_METADATA = "spark.databricks.delta.commitInfo.userMetadata"
_TXN_APP_ID = "spark.databricks.delta.write.txnAppId"
_TXN_VERSION = "spark.databricks.delta.write.txnVersion"

_OWN: Mapping[str, str | None] = {
    # Spark replaces ${env:HOME} in any SQL text, also inside of a quoted name.
    "spark.sql.variable.substitute": "false",
    # Both change what a backslash and a quoted name mean.
    "spark.sql.parser.escapedStringLiterals": "false",
    "spark.sql.parser.quotedRegexColumnNames": "false",
    "spark.sql.caseSensitive": "false",
    # TIMESTAMP and STRING columns of our tables mean the same for everyone.
    "spark.sql.timestampType": "TIMESTAMP_LTZ",
    "spark.sql.storeAssignmentPolicy": "ANSI",
    # Otherwise the overwrite of a partitioned table replaces some of its partitions alone.
    "spark.sql.sources.partitionOverwriteMode": "STATIC",
    # Otherwise a second run in the same JVM would end the first one, which would take that for its own end.
    "spark.sql.streaming.stopActiveRunOnRestart": "false",
    # Otherwise Delta could take our commits for repetitions of the user's.
    _USER_METADATA: None,
    _TXN_APP_ID: None,
    _TXN_VERSION: None,
}

_DESCRIPTION = "spark.job.description"

# Tells a session of our own, and every copy that Spark makes of it for a stream, from the user's.
_MARK = "spark.aesthetic.ownSession"


@contextmanager
def own_session(spark: SparkSession) -> Iterator[SparkSession]:
    """Give a copy of a session to run a job in.

    A server of Spark Connect older than Spark 4.1 cannot copy a session. There the job runs in the user's session,
    whose settings are changed for as long as the job takes and then restored.

    Args:
        spark: The user's session. A session of our own is given back as it is.
    """
    if is_own(spark):
        yield spark
    elif can_copy(spark):
        with copied(spark) as own:
            _make_own(own)
            yield own
    else:
        with settings(spark, _OWN):
            yield spark


def in_own_session(job: Job) -> Job:
    """Make a function, whose first argument is a session, run in a copy of it; its result must not be lazy.

    A disk that is full is one line there.
    """

    @wraps(job)
    def run(spark: SparkSession, *args: Any, **options: Any) -> Any:
        with own_session(spark) as own, full_disk_explained():
            return job(own, *args, **options)

    return cast("Job", run)


def statement(spark: SparkSession, text: str) -> list[Row]:
    """Run a statement in a session of our own and give its rows.

    A text may hold names of tables and columns, between backquotes, and values that `text_literal` has encoded. Nothing
    else in it comes from data, a path or a property.
    """
    with own_session(spark) as own:
        return own.sql(text).collect()


def text_literal(text: str) -> str:
    """Write a text for SQL without any letter of it, so that no setting and no quote can change what it means.

    Spark folds the cast to a constant, by which Delta leaves out files as by any other.

    Examples:
        >>> text_literal("it's")
        "CAST(X'69742773' AS STRING)"
    """
    return f"CAST(X'{text.encode().hex()}' AS STRING)"


def is_own(spark: SparkSession) -> bool:
    """Whether a session is a copy that `own_session` made, or a copy of that."""
    return spark.conf.get(_MARK, None) == "true"


@contextmanager
def commit_settings(spark: SparkSession, options: Mapping[str, str]) -> Iterator[None]:
    """Give the SQL statements of a session the options of a Delta writer, which a statement cannot take itself.

    In a user's session only userMetadata is set: with a transaction number there Delta would drop the commits that
    other threads make meanwhile.
    """
    names = {"userMetadata": _USER_METADATA, "txnAppId": _TXN_APP_ID, "txnVersion": _TXN_VERSION}
    told = options if is_own(spark) else {"userMetadata": options["userMetadata"]}
    with settings(spark, {names[name]: value for name, value in told.items()}):
        yield


@contextmanager
def settings(spark: SparkSession, values: Mapping[str, str | None]) -> Iterator[None]:
    """Set and, for None, unset some settings of a session, and restore them at the end."""
    before = {name: spark.conf.get(name, None) for name in values}
    try:
        _set(spark, values)
        yield
    finally:
        _set(spark, before)


def _make_own(spark: SparkSession) -> None:
    # What is right already is left alone: Spark warns of some of these settings, because they are to go.
    _set(spark, {name: value for name, value in _OWN.items() if value is None or spark.conf.get(name) != value})
    spark.conf.set(_MARK, "true")


def _set(spark: SparkSession, values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            spark.conf.unset(name)
        else:
            spark.conf.set(name, value)


def describe(spark: SparkSession, text: str) -> None:
    """Say in the Spark UI what the jobs of this thread are for; Connect has no such words."""
    set_job_property(spark, _DESCRIPTION, text)


@contextmanager
def described(spark: SparkSession, text: str) -> Iterator[None]:
    """The same for a while."""
    before = job_property(spark, _DESCRIPTION)
    describe(spark, text)
    try:
        yield
    finally:
        set_job_property(spark, _DESCRIPTION, before)
