"""The session, the output and the exit codes of all jobs."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, Protocol

from pyspark import SparkConf, SparkContext
from pyspark.java_gateway import ensure_callback_server_started
from pyspark.sql import SparkSession

from spark_aesthetic.delta.java import full_disk_explained
from spark_aesthetic.errors import AestheticError


class Stderr(io.TextIOBase):
    """The JVM's stderr. spark-submit merges a Python driver's stderr into stdout, which is only for the summary."""

    def write(self, text: str) -> int:  # noqa: D102
        if "PYSPARK_GATEWAY_PORT" in os.environ and SparkContext._jvm is not None:
            SparkContext._jvm.System.err.print(text)
            SparkContext._jvm.System.err.flush()
        else:
            sys.stderr.write(text)
        return len(text)

    def isatty(self) -> bool:  # noqa: D102
        if "PYSPARK_GATEWAY_PORT" in os.environ and SparkContext._jvm is not None:
            # Java has a console only if both stdin and stdout are terminals.
            return SparkContext._jvm.System.console() is not None
        return sys.stderr.isatty()


def session(name: str) -> SparkSession:
    """Make the session with the options of spark-submit; with a local master, workers use the driver's Python."""
    conf = SparkConf()
    if conf.get("spark.master", "local[*]").startswith("local"):
        # Without this, workers use the first python3 on the PATH.
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    return SparkSession.builder.appName(f"spark-aesthetic: {name}").getOrCreate()


class _OnSignal:
    """A signal handler that the JVM calls."""

    def __init__(self, note: Callable[[], None]) -> None:
        self._note = note

    def handle(self, _: object) -> None:
        self._note()

    class Java:
        implements = ("sun.misc.SignalHandler",)


def stop_on_sigterm(spark: SparkSession) -> Callable[[], bool]:
    """Keep SIGTERM from ending this process and the JVM; return a function that reports whether either received it."""
    seen = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: seen.set())
    context = spark.sparkContext
    gateway, jvm = context._gateway, context._jvm
    assert jvm is not None, "a session has a JVM"
    ensure_callback_server_started(gateway)  # type: ignore[no-untyped-call]  # PySpark has no types there
    jvm.sun.misc.Signal.handle(jvm.sun.misc.Signal("TERM"), _OnSignal(seen.set))
    return seen.is_set


class Result(Protocol):
    """The summary that a job prints when it ends."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary for JSON."""


def run(name: str, job: Callable[[], Result]) -> int:
    """Run a job, print its summary as JSON in the last line on stdout, and return the exit code."""
    # Until this call, SparkConf lacks the options of spark-submit, and the JVM's stderr cannot be written.
    SparkContext._ensure_initialized()
    quieten()
    words = Stderr()
    logging.basicConfig(stream=words, format=f"{name}: %(message)s")
    logging.getLogger("spark_aesthetic").setLevel(logging.INFO)
    try:
        with full_disk_explained():
            summary = job()
    except AestheticError as error:
        words.write(f"{name}: {' '.join(str(error).split())}\n")
        return 2
    except Exception:
        words.write(traceback.format_exc())
        return 1
    print(json.dumps(summary.to_dict()))
    return 0


def quieten() -> None:
    """Keep PySpark, py4j and Spark from logging the stacks of errors that are reported in one line."""
    # PySpark logs the whole Java stack of an analysis error even if the error is caught.
    for logger in ("SQLQueryContextLogger", "DataFrameQueryContextLogger"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    # py4j logs the stack of an error in a chunk of the stream. Spark raises the same error here again.
    logging.getLogger("py4j").setLevel(logging.CRITICAL)
    _quieten_streams()


def _quieten_streams() -> None:
    """Keep Spark from logging the Java stack of an error that ends a stream, because `run` reports the error."""
    jvm = SparkContext._jvm
    assert jvm is not None, "a job has a JVM"
    log4j = jvm.org.apache.logging.log4j
    # Spark 4.1 moved the class to the second package.
    for package in ("streaming", "streaming.runtime"):
        name = f"org.apache.spark.sql.execution.{package}.MicroBatchExecution"
        log4j.core.config.Configurator.setLevel(name, log4j.Level.OFF)


def exit_with(name: str, job: Callable[[], Result]) -> None:
    """Run a job and end the process with its exit code."""
    code = run(name, job)
    # Runners that execute a job in their own process can take SystemExit(0) for a failure.
    if code:
        sys.exit(code)
