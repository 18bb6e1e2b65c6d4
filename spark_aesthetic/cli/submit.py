"""What the jobs of spark-submit share: arguments, a session, where words go, and exit codes."""

from __future__ import annotations

import argparse
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

from spark_aesthetic.cli.arguments import Parser, key_columns
from spark_aesthetic.delta.java import full_disk_explained
from spark_aesthetic.errors import AestheticError
from spark_aesthetic.predictors.recipe import DEFAULT
from spark_aesthetic.scoring.jobs import MAX_BYTES_PER_CHUNK


class Stderr(io.TextIOBase):
    """The JVM's stderr: spark-submit joins a Python driver's own to its stdout, which is for the summary alone."""

    def write(self, text: str) -> int:  # noqa: D102
        if "PYSPARK_GATEWAY_PORT" in os.environ and SparkContext._jvm is not None:
            SparkContext._jvm.System.err.print(text)
            SparkContext._jvm.System.err.flush()
        else:
            sys.stderr.write(text)
        return len(text)

    def isatty(self) -> bool:  # noqa: D102
        if "PYSPARK_GATEWAY_PORT" in os.environ and SparkContext._jvm is not None:
            # Java has a console where both its ends are a terminal.
            return SparkContext._jvm.System.console() is not None
        return sys.stderr.isatty()


def parser(name: str, description: str, *, scores_required: bool) -> Parser:
    """The arguments that a job with chunks takes."""
    made = Parser(prog=name, description=description)
    # Scores that are made again from their own embeddings have no other source.
    made.add_argument(
        "--source", required=scores_required, metavar="TABLE_OR_PATH", help="Delta table with the rows to score"
    )
    made.add_argument("--key", required=True, metavar="COL[,COL]", help="columns that together identify a row")
    column = made.add_mutually_exclusive_group(required=True)
    column.add_argument("--image-col", metavar="COL", help="column of image bytes")
    column.add_argument("--embedding-col", metavar="COL", help="column of CLIP embeddings")
    if not scores_required:
        column.add_argument(
            "--rescore-from-embeddings", action="store_true",
            help="score the embeddings that --scores has kept with another head, without opening an image",
        )  # fmt: skip
    scores_help = "narrow Delta table for the scores" + ("" if scores_required else " (default: in place)")
    made.add_argument("--scores", metavar="TABLE_OR_PATH", help=scores_help, required=scores_required)
    made.add_argument("--predictor", default=DEFAULT, metavar="NAME", help="name, or JSON file (default: %(default)s)")
    made.add_argument("--model-path", metavar="PATH", help="folder of the weights files, or the backbone's file")
    made.add_argument("--with-embedding", action="store_true", help="also keep the CLIP embeddings")
    made.add_argument(
        "--checkpoint", metavar="FOLDER", help="state of the chunks (default: in the folder of the scores)"
    )
    made.add_argument(
        "--max-bytes-per-chunk", default=MAX_BYTES_PER_CHUNK, metavar="SIZE",
        help="of the source's files in one commit, about (default: %(default)s)",
    )  # fmt: skip
    made.add_argument("--max-files-per-chunk", type=int, metavar="N", help="the same, counted in files")
    made.add_argument(
        "--shared-keys", action="store_true",
        help="equal keys mean the same image in all sources of --scores (default: a second source is refused)",
    )  # fmt: skip
    made.add_argument("--version-col", metavar="COL", help="column that differs where the image does, for --reconcile")
    made.add_argument(
        "--batch-size", type=int, default=-1, metavar="N", help="rows in a forward pass (default: chosen)"
    )
    made.add_argument(
        "--num-threads", type=int, default=-1, metavar="N", help="threads a task (default: spark.task.cpus)"
    )
    made.add_argument(
        "--decode", choices=("exact", "fast"), default="exact", help="as the reference, or DCT-scaled JPEG"
    )
    made.add_argument("--max-pixels", type=int, metavar="N", help="an image of more gets no score")
    made.add_argument(
        "--device", default="auto", metavar="DEVICE", help="torch device (default: the task's GPU, or cpu)"
    )
    made.add_argument("--dtype", default="auto", metavar="DTYPE", help="float32, float16, bfloat16 (default: chosen)")
    return made


def shared(args: argparse.Namespace) -> dict[str, Any]:
    """Those arguments as `score_table` takes them."""
    return {
        "source": args.source,
        "key": key_columns(args.key),
        "image_col": args.image_col,
        "embedding_col": args.embedding_col,
        "scores": args.scores,
        "predictor": args.predictor,
        "with_embedding": args.with_embedding,
        "checkpoint": args.checkpoint,
        "max_bytes_per_chunk": args.max_bytes_per_chunk,
        "max_files_per_chunk": args.max_files_per_chunk,
        "version_col": args.version_col,
        "shared_keys": args.shared_keys,
        "batch_size": args.batch_size,
        "num_threads": args.num_threads,
        "decode": args.decode,
        "device": args.device,
        "dtype": args.dtype,
        **({} if args.max_pixels is None else {"max_pixels": args.max_pixels}),
        "model_path": args.model_path,
        "progress_file": Stderr(),
    }


def session(name: str) -> SparkSession:
    """The session of what spark-submit was given; on one machine with the workers' Python that of the driver."""
    conf = SparkConf()
    if conf.get("spark.master", "local[*]").startswith("local"):
        # Else the workers run whatever python3 is on the PATH.
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    return SparkSession.builder.appName(f"spark-aesthetic: {name}").getOrCreate()


class _OnSignal:
    """Told by the JVM of a signal."""

    def __init__(self, note: Callable[[], None]) -> None:
        self._note = note

    def handle(self, _: object) -> None:
        self._note()

    class Java:
        implements = ("sun.misc.SignalHandler",)


def stop_on_sigterm(spark: SparkSession) -> Callable[[], bool]:
    """Whether SIGTERM has come: to this process or to the JVM of spark-submit, neither of which then ends by it."""
    seen = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: seen.set())
    context = spark.sparkContext
    gateway, jvm = context._gateway, context._jvm
    assert jvm is not None, "a session has its JVM"
    ensure_callback_server_started(gateway)  # type: ignore[no-untyped-call]  # PySpark has no types there
    jvm.sun.misc.Signal.handle(jvm.sun.misc.Signal("TERM"), _OnSignal(seen.set))
    return seen.is_set


class Result(Protocol):
    """What a job tells of itself at its end."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""


def run(name: str, job: Callable[[], Result]) -> int:
    """Run a job to its exit code; the last line on stdout is its summary as JSON."""
    # Before it, SparkConf knows nothing of what spark-submit was given, and nobody writes to its stderr.
    SparkContext._ensure_initialized()
    # PySpark logs the whole Java stack of an analysis error even where it is caught.
    for logger in ("SQLQueryContextLogger", "DataFrameQueryContextLogger"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    # py4j logs the stack of each error that a chunk raises inside of Spark's stream, which raises it again here.
    logging.getLogger("py4j").setLevel(logging.CRITICAL)
    _quieten_streams()
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


def _quieten_streams() -> None:
    """Keep Spark from logging the Java stack of an error that ends a stream, which `run` reports itself."""
    jvm = SparkContext._jvm
    assert jvm is not None, "a job has its JVM"
    log4j = jvm.org.apache.logging.log4j
    # Spark 4.1 has moved the class.
    for package in ("streaming", "streaming.runtime"):
        name = f"org.apache.spark.sql.execution.{package}.MicroBatchExecution"
        log4j.core.config.Configurator.setLevel(name, log4j.Level.OFF)


def exit_with(name: str, job: Callable[[], Result]) -> None:
    """Run a job and end the process with its exit code."""
    code = run(name, job)
    # Runners that execute a job inside a process of their own can take SystemExit(0) for a failure.
    if code:
        sys.exit(code)
