"""The checks of spark-aesthetic-doctor inside a Spark session."""

from __future__ import annotations

import os
import re
import shlex
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pandas as pd
from pyspark import SparkContext
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.utils import is_remote

from spark_aesthetic import testing
from spark_aesthetic._version import __version__
from spark_aesthetic.cli import submit
from spark_aesthetic.cli.findings import Fault, Finding, Skipped, check_published, checked, version_of
from spark_aesthetic.delta.access import reaching
from spark_aesthetic.delta.sessions import setting
from spark_aesthetic.functions.columns import aesthetic_score_from_embedding
from spark_aesthetic.predictors.packages import missing_for_images
from spark_aesthetic.scoring.jobs import score_table


def examine_session(properties_file: str | None, paths: Sequence[str]) -> Iterator[Finding]:
    """Start a session, run all checks in it, and stop it."""
    sessions: list[SparkSession] = []
    started = SparkSession.getActiveSession() is None
    yield checked("Spark session", _start, properties_file, sessions)
    for spark in sessions:
        yield checked("Delta's jar", _delta_jar, spark)
        yield checked("scores by Spark", _score, spark)
        yield checked("Delta tables", _delta_table, spark)
        yield checked("Python workers", _workers, spark)
        yield checked("settings for images", settings_for_images, partial(setting, spark))
        for path in paths:
            yield checked(f"{path} by Spark", _read_by_spark, spark, path)
        # On Databricks, and in a notebook, the session was there before and is not ours to stop.
        if started:
            spark.stop()


def _start(properties_file: str | None, sessions: list[SparkSession]) -> str:
    if properties_file is not None:
        if "PYSPARK_GATEWAY_PORT" in os.environ or SparkSession.getActiveSession() is not None:
            raise Fault("--properties-file in a session that has started", "Pass the option to spark-submit instead.")
        if not Path(properties_file).is_file():
            raise Fault(f"no file {properties_file!r}", "Correct --properties-file.")
        given = os.environ.get("PYSPARK_SUBMIT_ARGS", "pyspark-shell")
        os.environ["PYSPARK_SUBMIT_ARGS"] = f"--properties-file {shlex.quote(properties_file)} {given}"
    if "SPARK_REMOTE" not in os.environ:
        # Until this call, SparkConf lacks the settings of the file and of spark-submit.
        SparkContext._ensure_initialized()
        submit.quieten()
    spark = submit.session("doctor")
    sessions.append(spark)
    return f"Spark {spark.version}, {spark.conf.get('spark.master', 'a server of Spark Connect')}"


def _delta_jar(spark: SparkSession) -> str:
    if is_remote():
        raise Skipped("the server of Spark Connect does not show it")
    if "DATABRICKS_RUNTIME_VERSION" in os.environ:
        raise Skipped("the Databricks Runtime has its own Delta")
    remedy = "Pass --properties-file conf/local.conf, or set spark.jars.packages and spark.sql.extensions as it does."
    try:
        found = spark._jvm.Class.forName("io.delta.sql.DeltaSparkSessionExtension", True, _loader(spark))  # type: ignore[union-attr]
    except Exception as error:
        raise Fault("no Delta on Spark's class path", remedy) from error
    jar = str(found.getProtectionDomain().getCodeSource().getLocation()).rpartition("/")[2]
    if "delta" not in (spark.conf.get("spark.sql.extensions", "") or "").lower():
        raise Fault(f"{jar}, but spark.sql.extensions has no Delta", remedy)
    return fitting_jar(jar, spark.version)


def _loader(spark: SparkSession) -> object:
    return spark._jvm.Thread.currentThread().getContextClassLoader()  # type: ignore[union-attr]


def fitting_jar(jar: str, spark: str) -> str:
    """Return the name of Delta's jar; raise Fault if it is for another release of Spark.

    Examples:
        >>> fitting_jar("delta-spark_4.2_2.13-4.4.0.jar", "4.2.0")
        'delta-spark_4.2_2.13-4.4.0.jar'
    """
    found = re.search(r"delta-spark_(?:(\d+\.\d+)_)?2\.13-(\d+\.\d+)", jar)
    release = ".".join(spark.split(".")[:2])
    # Names without a release of Spark: 4.0 is for Spark 4.0, and the later ones are for Spark 4.1.
    expected = None if found is None else found[1] or ("4.0" if found[2] == "4.0" else "4.1")
    if expected is not None and expected != release:
        raise Fault(f"{jar} on Spark {spark}", f"Take the jar for Spark {release} (spark.jars.packages).")
    return jar


def _published(spark: SparkSession) -> DataFrame:
    rows = [(at, row.astype(float).tolist()) for at, row in enumerate(testing.published_embeddings())]
    return spark.createDataFrame(rows, "id bigint, embedding array<float>")


def _score(spark: SparkSession) -> str:
    scored = _published(spark).select("id", aesthetic_score_from_embedding("embedding").alias("score"))
    return check_published(row.score for row in scored.orderBy("id").collect())


def _delta_table(spark: SparkSession) -> str:
    if is_remote() or not (spark.conf.get("spark.master", "") or "").startswith("local"):
        raise Skipped("a cluster has no temporary folder that all nodes share; try score_table --dry-run on a table")
    with tempfile.TemporaryDirectory(prefix="spark-aesthetic-doctor-") as folder:
        source, scores = f"file://{folder}/embeddings", f"file://{folder}/scores"
        _published(spark).write.format("delta").save(source)
        done = score_table(
            spark, source=source, scores=scores, key=["id"], embedding_col="embedding", progress_file=None
        )
        found = spark.read.format("delta").load(scores).orderBy("id").collect()
    return f"{done.scored} rows in a scores table: {check_published(row.aesthetic_score for row in found)}"


def _workers(spark: SparkSession) -> str:
    schema = "host string, python string, package string, images string"
    remedy = f"Install spark-aesthetic {__version__}, as on the driver, on every node."
    tasks = 8 if is_remote() else max(8, 4 * spark.sparkContext.defaultParallelism)
    try:
        found = spark.range(0, tasks, 1, tasks).mapInPandas(_about_worker, schema).distinct().collect()
    except PySparkException as error:
        # A worker cannot even load a function of a package that it does not have.
        if f"No module named {__package__.partition('.')[0]!r}" not in str(error):
            raise
        raise Fault("a node without spark-aesthetic", remedy) from error
    said = [f"{row.host}: {row.python}, spark-aesthetic {row.package}, {row.images}" for row in sorted(found)]
    if any(row.package != __version__ for row in found):
        raise Fault("; ".join(said), remedy)
    return "; ".join(said)


def _about_worker(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    for _ in batches:
        missing = missing_for_images()
        images = f"torch {version_of('torch')}" if not missing else f"cannot score images: no {', '.join(missing)}"
        python = f"Python {sys.version.split()[0]} ({sys.executable})"
        about = (socket.gethostname(), python, __version__, images)
        yield pd.DataFrame([about], columns=["host", "python", "package", "images"])


def settings_for_images(get: Callable[[str], str | None]) -> str:
    """Check the settings that limit how many images Spark reads, and passes to Python, at once.

    Args:
        get: Returns the value of a setting, or its default; None if this release of Spark does not have it.

    Raises:
        Fault: A limit is missing or too high; the remedy lists the settings.
    """
    columnar = "spark.sql.execution.arrow.pythonUDF.columnarInput.enabled"
    rows = "spark.sql.parquet.columnarReaderBatchSize"
    wrong = []
    if (get(columnar) or "false").lower() == "true":
        wrong.append(f"{columnar}=false")
    if int(get(rows) or 0) > 256:
        wrong.append(f"{rows}=256")
    if wrong:
        raise Fault("batches too large for images", f"Set {', '.join(wrong)}, as conf/local.conf does.")
    return "Arrow and Parquet batches fit images"


def _read_by_spark(spark: SparkSession, path: str) -> str:
    if is_remote():
        raise Skipped("the server of Spark Connect does not show it")
    with reaching(f"--path {path!r}"):
        jvm, context = spark._jvm, spark.sparkContext._jsc
        place = jvm.org.apache.hadoop.fs.Path(path)  # type: ignore[union-attr]
        system = place.getFileSystem(context.hadoopConfiguration())
        status = system.getFileStatus(place)
    return f"a {'directory' if status.isDirectory() else 'file'}, read by {system.getClass().getSimpleName()}"
