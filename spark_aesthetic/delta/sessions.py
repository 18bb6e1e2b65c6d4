"""Run table jobs in a copy of the user's Spark session, so that neither changes the settings of the other.

Delta reads some options of a commit, and Spark's parser reads some of its rules, from the session's settings. In the
user's session these settings would affect every other thread: Delta could then ignore an append of the user as a
repeated commit. The copy has the session's temporary views, current schema and settings, except those in `_OWN`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar, cast

from pyspark.errors import PySparkException
from pyspark.sql import Row, SparkSession

from spark_aesthetic.delta.connect import can_copy, copied, job_property, set_job_property
from spark_aesthetic.delta.java import full_disk_explained

Job = TypeVar("Job", bound=Callable[..., Any])

_USER_METADATA = "spark.databricks.delta.commitInfo.userMetadata"
_TXN_APP_ID = "spark.databricks.delta.write.txnAppId"
_TXN_VERSION = "spark.databricks.delta.write.txnVersion"

_OWN: Mapping[str, str | None] = {
    # Otherwise Spark replaces ${env:HOME} in any SQL text, even inside a quoted name.
    "spark.sql.variable.substitute": "false",
    # These two change the meaning of a backslash and of a quoted name.
    "spark.sql.parser.escapedStringLiterals": "false",
    "spark.sql.parser.quotedRegexColumnNames": "false",
    "spark.sql.caseSensitive": "false",
    # These two give the columns of our tables the same types and values for every user.
    "spark.sql.timestampType": "TIMESTAMP_LTZ",
    "spark.sql.storeAssignmentPolicy": "ANSI",
    # Otherwise the overwrite of a partitioned table may replace only some of its partitions.
    "spark.sql.sources.partitionOverwriteMode": "STATIC",
    # Otherwise a second run in the same JVM stops the query of the first one, which then believes that it has finished.
    "spark.sql.streaming.stopActiveRunOnRestart": "false",
    # Otherwise Delta could ignore our commits as repetitions of the user's.
    _USER_METADATA: None,
    _TXN_APP_ID: None,
    _TXN_VERSION: None,
}

_DESCRIPTION = "spark.job.description"

# This setting marks a session from `own_session`. Copies that Spark makes of it for a stream have the mark too.
_MARK = "spark.aesthetic.ownSession"


@contextmanager
def own_session(spark: SparkSession) -> Iterator[SparkSession]:
    """Provide a copy of a session for a job.

    A server of Spark Connect older than Spark 4.1 cannot copy a session. There the job runs in the user's session. Its
    settings are changed for the duration of the job and then restored.

    Args:
        spark: The user's session. A copy that was made here is returned as it is.
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
    """Decorate a function to run in a copy of the session that is its first argument; its result must not be lazy.

    A full disk is reported as a ResourceError of one line.
    """

    @wraps(job)
    def run(spark: SparkSession, *args: Any, **options: Any) -> Any:
        with own_session(spark) as own, full_disk_explained():
            return job(own, *args, **options)

    return cast("Job", run)


def statement(spark: SparkSession, text: str) -> list[Row]:
    """Run a statement in a session from `own_session` and return its rows.

    The text may contain names of tables and columns in backquotes, and values encoded by `text_literal`. Nothing else
    in it may come from data, a path or a property.
    """
    with own_session(spark) as own:
        return own.sql(text).collect()


def text_literal(text: str) -> str:
    """Encode a text in hexadecimal for SQL, so that no setting and no quote can change its meaning.

    Spark folds the cast to a constant, so Delta can skip files by it.

    Examples:
        >>> text_literal("it's")
        "CAST(X'69742773' AS STRING)"
    """
    return f"CAST(X'{text.encode().hex()}' AS STRING)"


def setting(spark: SparkSession, name: str) -> str | None:
    """Return the value of a setting, or its default in this release of Spark; None if this release does not have it.

    `spark.conf.get(name, None)` returns None for a setting that nobody has set, whatever its default is.
    """
    try:
        return spark.conf.get(name)
    except PySparkException:
        return None


def is_own(spark: SparkSession) -> bool:
    """Whether a session is a copy that `own_session` made, or a copy of such a copy."""
    return spark.conf.get(_MARK, None) == "true"


def allow_old_versions(spark: SparkSession) -> None:
    """Let a session from `own_session` read a version of a table as long as its files exist.

    By default, Delta 4.4 refuses a version that is older than delta.deletedFileRetentionDuration, even if no VACUUM has
    run. It still reads the changes of such a version.
    """
    spark.conf.set("spark.databricks.delta.vacuum.enforceTimeTravelWithinDeletedFileRetentionDuration", "false")


@contextmanager
def commit_settings(spark: SparkSession, options: Mapping[str, str]) -> Iterator[None]:
    """Set the options of a commit for the SQL statements of a session, because a statement cannot take options itself.

    In a user's session only userMetadata is set. A transaction number there would make Delta ignore commits of other
    threads.
    """
    names = {"userMetadata": _USER_METADATA, "txnAppId": _TXN_APP_ID, "txnVersion": _TXN_VERSION}
    told = options if is_own(spark) else {"userMetadata": options["userMetadata"]}
    with settings(spark, {names[name]: value for name, value in told.items()}):
        yield


@contextmanager
def settings(spark: SparkSession, values: Mapping[str, str | None]) -> Iterator[None]:
    """Set some settings of a session (None unsets one), and restore them at the end."""
    before = {name: spark.conf.get(name, None) for name in values}
    try:
        _set(spark, values)
        yield
    finally:
        _set(spark, before)


def _make_own(spark: SparkSession) -> None:
    # Set only values that differ, because Spark logs a deprecation warning when some of these are set.
    _set(spark, {name: value for name, value in _OWN.items() if value is None or spark.conf.get(name) != value})
    spark.conf.set(_MARK, "true")


def _set(spark: SparkSession, values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            spark.conf.unset(name)
        else:
            spark.conf.set(name, value)


def describe(spark: SparkSession, text: str) -> None:
    """Set the description of this thread's jobs in the Spark UI; does nothing on Connect."""
    set_job_property(spark, _DESCRIPTION, text)


@contextmanager
def described(spark: SparkSession, text: str) -> Iterator[None]:
    """Set the description for the duration of the context, then restore the previous one."""
    before = job_property(spark, _DESCRIPTION)
    describe(spark, text)
    try:
        yield
    finally:
        set_job_property(spark, _DESCRIPTION, before)
