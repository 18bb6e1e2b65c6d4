"""Fixtures and helpers of all tests: the Spark session, a cache, a browser, and readers of Spark's query metrics."""

from __future__ import annotations

import io
import json
import os
import runpy
import shutil
import socket
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

# Tests must not read a weights folder of this machine, so the variable is removed before the package is imported.
os.environ.pop("SPARK_AESTHETIC_WEIGHTS", None)
# Python workers import `preloading_daemon` from this folder.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
# These options apply to every JVM that the tests start. These JVMs live for seconds or minutes. Without the second
# compiler and the parallel collector, four runs of spark-submit take 107 s of CPU time instead of 185 s.
os.environ["SPARK_SUBMIT_OPTS"] = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
SECOND_COMPILER = (
    "-XX:TieredStopAtLevel=4 -XX:Tier4InvocationThreshold=25000 -XX:Tier4MinInvocationThreshold=3000 "
    "-XX:Tier4CompileThreshold=75000 -XX:Tier4BackEdgeThreshold=200000"
)

# With this variable the tests run on Spark Connect. `make test-spark` sets it to run the tests of the public interfaces
# a second time.
CONNECT = os.environ.get("SPARK_AESTHETIC_TEST_SESSION") == "connect"
own_session = pytest.mark.skipif(CONNECT, reason="kills a driver of its own, which starts a classic session")

# Before Spark 4.2, a pandas UDF scores embeddings.
native = pytest.mark.skipif(
    tuple(map(int, version("pyspark").split(".")[:2])) < (4, 2), reason="Spark has vector functions since 4.2"
)

REPOSITORY = Path(__file__).parents[1]
SHARED = REPOSITORY.parent / "shared"

RunHere = Callable[..., dict[str, Any]]


def _delta_package() -> str:
    """Return the Maven coordinates of Delta for the installed pyspark and delta-spark.

    `make test-compat` runs the tests with older versions.
    """
    spark = ".".join(version("pyspark").split(".")[:2])
    # Since Spark 4.1, the artifact's name contains the version of Spark.
    artifact = "delta-spark_2.13" if spark == "4.0" else f"delta-spark_{spark}_2.13"
    return f"io.delta:{artifact}:{version('delta-spark')}"


DELTA_PACKAGE = _delta_package()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the slowest files to the front.

    Two processes share the files. If a slow file came last, one process would end long after the other.
    """
    names = ("jobs", "chunks", "docs", "faults", "columns", "readme", "ingest", "prepare", "calibration")
    longest = [f"test_{name}.py" for name in names]
    items.sort(key=lambda item: longest.index(item.path.name) if item.path.name in longest else len(longest))


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create an empty cache for the whole run.

    Spark's workers inherit the variable.
    """
    folder = tmp_path_factory.mktemp("cache")
    os.environ["SPARK_AESTHETIC_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def spark(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator["SparkSession"]:  # noqa: F821, UP037
    from pyspark.sql import SparkSession

    os.environ["PYSPARK_PYTHON"] = sys.executable
    if CONNECT:
        from pyspark.sql.connect.client import DefaultChannelBuilder

        # PySpark starts a local server only on its default port, so each test process sets its own default.
        port = free_port()
        DefaultChannelBuilder.default_port = staticmethod(lambda: port)
        builder = SparkSession.builder.remote("local[2]").config("spark.connect.grpc.binding.port", str(port))
    else:
        builder = SparkSession.builder.master("local[2]")
    builder = (
        builder.appName("tests")
        .config("spark.jars.packages", DELTA_PACKAGE)
        .config("spark.sql.extensions", "io.delta.sql.DeltaSparkSessionExtension")
        .config("spark.sql.catalog.spark_catalog", "org.apache.spark.sql.delta.catalog.DeltaCatalog")
        .config("spark.sql.warehouse.dir", str(tmp_path_factory.mktemp("warehouse")))
        # Tests have a handful of rows. The defaults of 200 and 50 tasks would take most of the suite's time.
        .config("spark.sql.shuffle.partitions", "2")
        .config("spark.databricks.delta.snapshotPartitions", "1")
        # Delta caches each table's snapshot for an hour, about 1 MB of plans. A thousand tables would fill the heap.
        .config("spark.databricks.delta.delta.log.cacheSize", "20")
        # VACUUM lists files in this many tasks. The default is 10,000.
        .config("spark.sql.sources.parallelPartitionDiscovery.parallelism", "2")
        .config("spark.python.daemon.module", "preloading_daemon")
        # Data has one partition unless a test asks for more. A Python worker may take ten seconds to import open_clip.
        .config("spark.default.parallelism", "1")
        # Batches are small, so that a few rows already span two Arrow batches.
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", "7")
        .config("spark.sql.execution.arrow.pythonUDF.columnarInput.enabled", "false")
        .config("spark.driver.memory", "2g")
        # This JVM lives as long as the tests. After its first minute, a run with the second compiler takes 0.7 of the
        # time. At its default thresholds that compiler takes two fifths of all CPU time. At five times these, a run
        # takes 0.85 of the CPU time.
        .config("spark.driver.extraJavaOptions", SECOND_COMPILER)
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.ui.enabled", "false")
    )
    # Two test processes may start on a fresh machine. The lock lets one of them fetch Delta's jars while the other
    # waits, because Ivy's own cache has no lock.
    with FileLock(tmp_path_factory.getbasetemp().parent / "jars.lock"), warnings.catch_warnings():
        if CONNECT:
            # The server has already accepted its options. For each of them PySpark still warns that a client cannot set
            # it.
            warnings.simplefilter("ignore", UserWarning)
        session = builder.getOrCreate()
    if not CONNECT:
        session.sparkContext.setLogLevel("OFF")
    yield session
    session.stop()


@pytest.fixture
def interpreted(spark: "SparkSession") -> Iterator[None]:  # noqa: F821, UP037
    """Run a test's queries without generating Java code.

    Compiling that code takes most of the time of a Delta commit on a few rows.
    """
    settings = {"spark.sql.codegen.wholeStage": "false", "spark.sql.codegen.factoryMode": "NO_CODEGEN"}
    for name, value in settings.items():
        spark.conf.set(name, value)
    yield
    for name in settings:
        spark.conf.unset(name)


@pytest.fixture
def run_here(spark: "SparkSession", monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunHere:  # noqa: F821, UP037
    """Return a function that runs a job's file in this process and returns its summary.

    The job uses this process's Spark session, so it takes a tenth of the time of spark-submit.
    """

    def run(job: str, *arguments: str) -> dict[str, Any]:
        monkeypatch.setattr("sys.argv", [job, *arguments])
        runpy.run_path(str(REPOSITORY / "jobs" / job), run_name="__main__")
        return dict(json.loads(capsys.readouterr().out))

    return run


@pytest.fixture(scope="session")
def demo_output(spark: "SparkSession", tmp_path_factory: pytest.TempPathFactory) -> str:  # noqa: F821, UP037
    """Write the tables of `make demo` that the examples of README and docs read, and return their folder."""
    import spark_aesthetic as sa

    out = tmp_path_factory.mktemp("demo-output")
    runpy.run_path(str(REPOSITORY / "jobs" / "demo.py"))["write_tables"](spark, out)
    sa.score_table(
        spark, source=f"{out}/photographs", key=["name"], image_col="image", scores=f"{out}/photograph_scores",
        predictor="untrained-vit-b-32", progress_file=io.StringIO(),
    )  # fmt: skip
    return str(out)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Start Chromium without a window."""
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine: make browser installs it where apt-get can")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=chromium)
        yield started
        started.close()


@pytest.fixture(scope="session")
def published_heads() -> Path:
    """Return the folder of the published .pth files, which are not part of the project."""
    folder = SHARED / "weights"
    if not folder.is_dir():
        pytest.skip("the published .pth files are not beside the project (../shared/weights)")
    return folder


def _queries(spark: "SparkSession") -> Any:  # noqa: F821, UP037
    """Return the store of queries behind Spark's UI.

    PySpark keeps a classic session beside a Connect server that it has started.
    """
    from pyspark.sql import SparkSession

    session = SparkSession._instantiatedSession if CONNECT else spark
    return session._jsparkSession.sharedState().statusStore()  # type: ignore[union-attr]


def _executions(spark: "SparkSession") -> "list[Any]":  # noqa: F821, UP037
    executions = _queries(spark).executionsList()
    return [executions.apply(at) for at in range(executions.size())]


def last_query(spark: "SparkSession") -> int:  # noqa: F821, UP037
    """Return the number of the newest query."""
    return max((execution.executionId() for execution in _executions(spark)), default=-1)


def descriptions(spark: "SparkSession", since: int) -> set[str]:  # noqa: F821, UP037
    """Return the descriptions that the UI shows for the queries after query `since`."""
    return {execution.description() for execution in _executions(spark) if execution.executionId() > since}


def planned(frame: "DataFrame", part: str = "Physical Plan") -> str:  # noqa: F821, UP037
    """Return one part of what `explain` prints, for a session of either kind."""
    with redirect_stdout(io.StringIO()) as text:
        frame.explain(extended=True)
    return text.getvalue().partition(f"== {part} ==")[2].partition("\n== ")[0]


def plan_metrics(spark: "SparkSession", since: int) -> "Iterator[tuple[Any, str, int, str]]":  # noqa: F821, UP037
    """Yield each plan node of the queries after query `since`, with name, number and text of each of its metrics."""
    store = _queries(spark)
    for execution in (execution.executionId() for execution in _executions(spark)):
        # Spark keeps only the last thousand queries, so a count over all of them would shrink.
        if execution <= since:
            continue
        values = {}
        entries = store.executionMetrics(execution).iterator()
        while entries.hasNext():
            entry = entries.next()
            values[entry._1()] = entry._2()
        nodes = store.planGraph(execution).allNodes()
        for node in (nodes.apply(number) for number in range(nodes.size())):
            for metric in (node.metrics().apply(place) for place in range(node.metrics().size())):
                number = metric.accumulatorId()
                yield node, metric.name(), number, values.get(number, "")


def bytes_read(spark: "SparkSession", since: int, column: str) -> int:  # noqa: F821, UP037
    """Return how many bytes the scans with a column read from files, over the queries after query `since`."""
    total = 0
    for node, name, _, text in plan_metrics(spark, since):
        if not node.name().startswith("Scan") or f"{column}:" not in node.desc().partition("ReadSchema")[2]:
            continue
        if name == "size of files read":
            # Spark formats this text for its UI, for example "total (min, med, max)\n123.4 KiB (…)".
            size, unit = (text or "0 B").split("\n")[-1].split()[:2]
            total += int(float(size.replace(",", "")) * 1024 ** ["B", "KiB", "MiB", "GiB"].index(unit))
    return total
