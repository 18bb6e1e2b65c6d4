"""Where Spark Connect differs from a classic session: a function for each difference, named after what callers want."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import wait
from contextlib import AbstractContextManager, contextmanager
from operator import itemgetter
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pyspark
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql.utils import is_remote

if TYPE_CHECKING:
    from pyspark.sql.connect.shell.progress import StageInfo


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
    """Whether foreachBatch calls its function in another process, so that what the function counts stays there."""
    return is_remote()


def can_copy(spark: SparkSession) -> bool:
    """Whether `copied` can copy a session: every classic one, and on Connect one of a server from Spark 4.1 on."""
    if not is_remote():
        return True
    return hasattr(spark, "cloneSession") and _release(spark.version) >= (4, 1)


@contextmanager
def copied(spark: SparkSession) -> Iterator[SparkSession]:
    """A copy of a session, with its settings and temporary views, for as long as this lasts."""
    if not is_remote():
        own = _copy(spark)
        with _active(own):
            yield own
        return
    remote: Any = spark
    clone = remote.cloneSession()
    try:
        yield clone
    finally:
        # The client still tells the server of results that it has read, which a closed session would refuse.
        wait(clone.client._release_futures, timeout=10)
        # Not `stop`, which would end a local server too.
        clone.client.release_session()
        clone.client.close()


def _copy(spark: SparkSession) -> SparkSession:
    # Not by the constructor, which makes `rdd.toDF()` of the whole process use the newest session.
    own = object.__new__(SparkSession)
    shared = ("_sc", "_jsc", "_jvm", "_profiler_collector")
    vars(own).update({name: value for name, value in vars(spark).items() if name in shared})
    own._jsparkSession = spark._jsparkSession.cloneSession()
    return own


@contextmanager
def _active(own: SparkSession) -> Iterator[None]:
    """Make a session the active one of this thread, and restore the one before it at the end.

    Spark looks up data sources in the active session. `createDataFrame` makes its own session the active one, so the
    user's thread would go on in ours.
    """
    sessions = SparkSession._get_j_spark_session_class(own._jvm)
    before, known = sessions.getActiveSession(), SparkSession._activeSession
    sessions.setActiveSession(own._jsparkSession)
    try:
        yield
    finally:
        if before.isDefined():
            sessions.setActiveSession(before.get())
        else:
            sessions.clearActiveSession()
        if SparkSession._activeSession is own:
            SparkSession._activeSession = known


def job_property(spark: SparkSession, name: str) -> str | None:
    """A property of the jobs that this thread starts, or None if it is not set; Connect has none."""
    return None if is_remote() else spark.sparkContext.getLocalProperty(name)


def set_job_property(spark: SparkSession, name: str, value: str | None) -> None:
    """Set a property of the jobs that this thread starts, or remove it for None; does nothing on Connect."""
    if not is_remote():
        spark.sparkContext.setLocalProperty(name, value)  # type: ignore[arg-type]  # None removes it


def task_counter(spark: SparkSession) -> AbstractContextManager[Callable[[], tuple[int, int]]]:
    """Give a function that counts the finished and all tasks of the largest stage at work, for as long as this lasts.

    A classic session counts those of this thread's jobs, Connect those of the session's.
    """
    return (_connects_count if is_remote() else _own_count)(spark)


@contextmanager
def _own_count(spark: SparkSession) -> Iterator[Callable[[], tuple[int, int]]]:
    context, name = spark.sparkContext, "spark.jobGroup.id"
    # The group of a stream's jobs is its run, that of a notebook's its cell: both are what cancels them.
    before = context.getLocalProperty(name)
    group = before or uuid4().hex
    context.setLocalProperty(name, group)
    tracker = context.statusTracker()

    def count() -> tuple[int, int]:
        jobs = map(tracker.getJobInfo, tracker.getJobIdsForGroup(group))
        own = {stage for job in jobs if job is not None and job.status == "RUNNING" for stage in job.stageIds}
        stages = map(tracker.getStageInfo, own.intersection(tracker.getActiveStageIds()))
        return _largest((at.numCompletedTasks, at.numTasks) for at in stages if at is not None)

    try:
        yield count
    finally:
        context.setLocalProperty(name, before)  # type: ignore[arg-type]  # None removes it


@contextmanager
def _connects_count(spark: SparkSession) -> Iterator[Callable[[], tuple[int, int]]]:
    latest = (0, 0)

    def note(stages: Iterable[StageInfo] | None, **_: object) -> None:
        nonlocal latest
        latest = _largest((at.num_completed_tasks, at.num_tasks) for at in stages or ())

    spark.registerProgressHandler(note)  # type: ignore[arg-type]  # any callable is one
    try:
        yield lambda: latest
    finally:
        spark.removeProgressHandler(note)  # type: ignore[arg-type]


def _largest(stages: Iterable[tuple[int, int]]) -> tuple[int, int]:
    return max(stages, key=itemgetter(1), default=(0, 0))
