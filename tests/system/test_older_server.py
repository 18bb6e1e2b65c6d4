"""A client of this Spark on a Spark Connect server of an older Spark, which `make test-compat` installs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, free_port

import spark_aesthetic as sa
from spark_aesthetic.predictors import weights

OLDER = REPOSITORY / ".compat" / "4.0.5-4.0.1" / "pyspark"

pytestmark = [pytest.mark.long, pytest.mark.skipif(not OLDER.exists(), reason="make test-compat installs it")]

# The client does not call createDataFrame, which asks for settings that an older server does not have.
CLIENT = """
import sys
from pyspark.sql import SparkSession
import spark_aesthetic as sa

spark = SparkSession.builder.remote(sys.argv[1]).getOrCreate()
assert spark.version == "4.0.5", spark.version
embeddings = spark.range(2).selectExpr("array_repeat(0.1F, CAST(768 - id AS INT)) AS e")
sa.register(spark)
native = sa.create_function_ddl("native", portable=False)
assert sa.create_function_ddl("native") != native
for scored in (
    embeddings.select(sa.aesthetic_score_from_embedding("e")),
    embeddings.selectExpr("aesthetic_score_from_embedding(e)"),
):
    (score,), (none,) = scored.collect()
    print(score, none)
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    port, log = free_port(), tmp_path / "log"
    environment = {
        **os.environ,
        "SPARK_HOME": str(OLDER),
        "PYSPARK_PYTHON": sys.executable,
        "PYTHONPATH": str(REPOSITORY),
    }
    confs = {"spark.connect.grpc.binding.port": port, "spark.driver.host": "127.0.0.1", "spark.ui.enabled": "false"}
    command = [
        OLDER / "bin" / "spark-submit", "--master", "local[1]",
        *(word for name, value in confs.items() for word in ("--conf", f"{name}={value}")),
        "--class", "org.apache.spark.sql.connect.service.SparkConnectServer", "spark-internal",
    ]  # fmt: skip
    with log.open("w") as told, subprocess.Popen(command, env=environment, stdout=told, stderr=told) as process:
        try:
            until = time.monotonic() + 120
            while "server started" not in log.read_text():
                assert process.poll() is None, log.read_text()[-2000:]
                assert time.monotonic() < until, log.read_text()[-2000:]
                time.sleep(0.2)
            yield f"sc://127.0.0.1:{port}"
        finally:
            process.terminate()


def test_embeddings_are_scored_by_what_the_server_has(server: str) -> None:
    client = subprocess.run([sys.executable, "-c", CLIENT, server], capture_output=True, text=True, timeout=150)
    assert client.returncode == 0, client.stderr[-3000:]
    head = weights.load_head(weights.pin(sa.resolve(sa.DEFAULT)))
    expected = float(head(np.full((1, 768), 768**-0.5, dtype=np.float32))[0])
    for line in client.stdout.splitlines():
        score, none = line.split()
        assert float(score) == pytest.approx(expected, abs=1e-5)
        assert none == "None"
    assert len(client.stdout.splitlines()) == 2
