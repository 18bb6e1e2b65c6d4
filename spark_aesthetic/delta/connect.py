"""Differences between Spark Connect and a classic session, with one function for each."""

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
    """Return the release of Spark, such as (4, 1); on Connect, the older one of client and server."""
    server = SparkSession.getActiveSession() if is_remote() else None
    return min(_release(version) for version in (pyspark.__version__, *([] if server is None else [server.version])))


def _release(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def computes_each_mention(column: Column) -> bool:
    """Whether an expression that uses a column several times also computes it several times.

    A classic session computes it once. Connect sends each use as a separate call, except for columns of a table.
    """
    if not is_remote():
        return False
    from pyspark.sql.connect.expressions import ColumnReference

    return not isinstance(column._expr, ColumnReference)


def analysed(rows: DataFrame) -> DataFrame:
    """Return the same rows after Spark has resolved the names in them.

    A classic session does so at once. Connect resolves names, and raises errors, only when the schema is requested.
    """
    _ = rows.schema
    return rows


def batches_run_elsewhere() -> bool:
    """Whether foreachBatch runs its function in another process, so that its counters do not reach this one."""
    return is_remote()


def can_copy(spark: SparkSession) -> bool:
    """Whether `copied` works: in any classic session, and on Connect with client and server from Spark 4.1 on."""
    if not is_remote():
        return True
    return hasattr(spark, "cloneSession") and _release(spark.version) >= (4, 1)


@contextmanager
def copied(spark: SparkSession) -> Iterator[SparkSession]:
    """Copy a session, with its settings and temporary views, for the duration of the context."""
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
        # The client may still be releasing results on the server, which refuses that in a closed session.
        wait(clone.client._release_futures, timeout=10)
        # `stop` would also end a local server.
        clone.client.release_session()
        clone.client.close()


def _copy(spark: SparkSession) -> SparkSession:
    # The constructor would make `rdd.toDF()` use this session in the whole process.
    own = object.__new__(SparkSession)
    shared = ("_sc", "_jsc", "_jvm", "_profiler_collector")
    vars(own).update({name: value for name, value in vars(spark).items() if name in shared})
    own._jsparkSession = spark._jsparkSession.cloneSession()
    return own


@contextmanager
def _active(own: SparkSession) -> Iterator[None]:
    """Make a session the active one of this thread, and restore the previous one at the end.

    Spark looks up data sources in the active session. `createDataFrame` makes its own session the active one, so
    without the restore the user's thread would continue in our copy.
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
    """Return a property of the jobs that this thread starts, or None if it is not set; always None on Connect."""
    return None if is_remote() else spark.sparkContext.getLocalProperty(name)


def set_job_property(spark: SparkSession, name: str, value: str | None) -> None:
    """Set a property of the jobs that this thread starts, or remove it for None; does nothing on Connect."""
    if not is_remote():
        spark.sparkContext.setLocalProperty(name, value)  # type: ignore[arg-type]  # None removes it


def task_counter(spark: SparkSession) -> AbstractContextManager[Callable[[], tuple[int, int]]]:
    """Provide a function that returns the number of finished tasks and of all tasks in the largest running stage.

    The function works while the context is open. In a classic session it counts the jobs of this thread, on Connect
    those of the session.
    """
    return (_connects_count if is_remote() else _own_count)(spark)


@contextmanager
def _own_count(spark: SparkSession) -> Iterator[Callable[[], tuple[int, int]]]:
    context, name = spark.sparkContext, "spark.jobGroup.id"
    # An existing job group stays, because a stream and a notebook cell cancel their jobs by it.
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

    spark.registerProgressHandler(note)  # type: ignore[arg-type]  # any callable works
    try:
        yield lambda: latest
    finally:
        spark.removeProgressHandler(note)  # type: ignore[arg-type]


def _largest(stages: Iterable[tuple[int, int]]) -> tuple[int, int]:
    return max(stages, key=itemgetter(1), default=(0, 0))
