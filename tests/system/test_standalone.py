"""A standalone cluster on this machine: a Master and two Workers, as docs/cluster.md describes it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import urlopen

import pytest
from conftest import REPOSITORY, free_port
from processes import Job, commits, kill, spark_home, until
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

import spark_aesthetic as sa
from spark_aesthetic.testing import noise_image, small_predictor

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

CONF = "conf/standalone-cpu.conf"
ROWS, FILES = 600, 12


class Cluster(NamedTuple):
    """A running cluster."""

    master: str
    state: str
    workers: list[subprocess.Popen[bytes]]
    folder: Path

    def settings(self) -> dict[str, str]:
        """Return settings with one core and 1 GB for each executor, and with the paths of this machine."""
        return {
            "spark.executor.cores": "1", "spark.executor.memory": "1g", "spark.pyspark.python": sys.executable,
            "spark.executorEnv.SPARK_AESTHETIC_CACHE": os.environ["SPARK_AESTHETIC_CACHE"],
            "spark.executorEnv.SPARK_AESTHETIC_WEIGHTS": str(self.folder), "spark.driver.host": "127.0.0.1",
        }  # fmt: skip

    def alive(self) -> int:
        with urlopen(f"{self.state}/json/", timeout=10) as answer:
            return int(json.load(answer)["aliveworkers"])


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    home = spark_home(tmp_path)
    environment = os.environ | {"SPARK_HOME": str(home), "SPARK_LOCAL_IP": "127.0.0.1"}
    port, ui = str(free_port()), str(free_port())
    master = f"spark://127.0.0.1:{port}"

    def start(name: str, *arguments: str) -> subprocess.Popen[bytes]:
        command = [str(home / "bin" / "spark-class"), f"org.apache.spark.deploy.{name.lower()}.{name}"]
        with (tmp_path / f"{name}.log").open("ab") as words:
            return subprocess.Popen(
                [*command, "--host", "127.0.0.1", *arguments], env=environment, stdout=words, stderr=words
            )

    processes = [start("Master", "--port", port, "--webui-port", ui)]
    at_work = ("--cores", "1", "--memory", "1g", "--webui-port", "0")
    workers = [start("Worker", *at_work, "--work-dir", str(tmp_path / f"work{at}"), master) for at in range(2)]
    cluster = Cluster(master, f"http://127.0.0.1:{ui}", workers, tmp_path)
    try:
        ends = time.monotonic() + 120
        while True:
            assert time.monotonic() < ends, (tmp_path / "Worker.log").read_text()
            try:
                if cluster.alive() == 2:
                    break
            except OSError:
                pass
            time.sleep(0.5)
        yield cluster
    finally:
        for process in [*workers, *processes]:
            kill(process)


def said(job: Job) -> dict[str, Any]:
    """Return the last line of JSON that a job printed."""
    lines = [line for line in job.log.read_text().splitlines() if line.startswith("{")]
    return dict(json.loads(lines[-1]))


def test_a_worker_that_is_killed_in_the_middle_costs_no_row(
    spark: SparkSession, tmp_path: Path, cluster: Cluster
) -> None:
    source, scores, recipe = str(tmp_path / "photos"), str(tmp_path / "scores"), tmp_path / "small.json"
    recipe.write_text(small_predictor().to_json())
    rows = [(at, bytearray(noise_image(at))) for at in range(ROWS)]
    frame = spark.createDataFrame(rows, "id bigint, image binary")
    frame.repartitionByRange(FILES, "id").write.format("delta").save(source)
    arguments = ("--source", source, "--key", "id", "--image-col", "image", "--scores", scores)
    job = Job(
        tmp_path / "job.log", *arguments, "--predictor", str(recipe), "--max-files-per-chunk", "2",
        master=cluster.master, properties=CONF, settings=cluster.settings(),
    )  # fmt: skip
    try:
        # The commits for the table and the stream come before that of the first chunk.
        until(lambda: commits(scores) >= 4, job, seconds=400)
        done = commits(scores)
        kill(cluster.workers[0])
        assert job.wait() == 0, job.log.read_text()[-3000:]
    finally:
        job.kill()
    assert said(job)["scored"] == ROWS
    # The job still had a chunk to score after it lost an executor.
    assert commits(scores) > done + 1
    assert "Lost executor" in job.log.read_text()
    assert cluster.alive() == 1
    found = dict(spark.read.format("delta").load(scores).select("id", "aesthetic_score").collect())
    assert spark.read.format("delta").load(scores).count() == len(found) == ROWS
    score = sa.aesthetic_score(F.col("image"), predictor=small_predictor())
    expected = dict(spark.read.format("delta").load(source).select("id", score).collect())
    assert found == pytest.approx(expected, abs=1e-5)


def test_a_packed_environment_reaches_the_executors(spark: SparkSession, tmp_path: Path, cluster: Cluster) -> None:
    """The environment has what embeddings and addresses need. Torch would only add gigabytes."""
    uv, environment, packed = Path(sys.executable).parent / "uv", tmp_path / "environment", tmp_path / "e.tar.gz"
    python = str(environment / "bin" / "python")
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, environment], check=True)
    install = [uv, "pip", "install", "--quiet", "--python", python, "venv-pack", REPOSITORY]
    subprocess.run(install, check=True)
    pack = [environment / "bin" / "venv-pack", "--quiet", "--prefix", environment, "--output", packed]
    subprocess.run([*pack, "--compress-level", "1"], check=True)
    settings = cluster.settings() | {
        "spark.archives": f"{packed}#environment",
        "spark.pyspark.python": "./environment/bin/python",
        "spark.pyspark.driver.python": sys.executable,
    }
    job = Job(
        tmp_path / "doctor.log", "--json", script="jobs/doctor.py", master=cluster.master, properties=CONF,
        settings=settings,
    )  # fmt: skip
    try:
        job.wait()
    finally:
        job.kill()
    found = {finding["name"]: finding for finding in said(job)["checks"]}
    workers = found["Python workers"]
    assert workers["status"] == "ok", job.log.read_text()[-3000:]
    places = [part.split("(")[1].split(")")[0] for part in workers["found"].split("; ")]
    assert len(places) == 2
    assert all(place.startswith(str(tmp_path / "work")) and "/environment/bin/python" in place for place in places)
    assert "cannot score images: no torch" in workers["found"]
    assert found["scores by Spark"]["status"] == "ok"


def test_without_a_python_for_the_driver_spark_cannot_start_it(tmp_path: Path, cluster: Cluster) -> None:
    """This failure is why docs/cluster.md sets spark.pyspark.driver.python beside spark.archives."""
    job = Job(
        tmp_path / "doctor.log", script="jobs/doctor.py", master=cluster.master, properties=CONF,
        settings=cluster.settings() | {"spark.pyspark.python": "./environment/bin/python"},
    )  # fmt: skip
    try:
        assert job.wait() != 0
    finally:
        job.kill()
    assert 'Cannot run program "./environment/bin/python"' in job.log.read_text()
