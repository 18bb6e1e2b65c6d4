"""All jobs against an S3 server on this machine, with Hadoop's connector for Spark and s3fs for Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from conftest import DELTA_PACKAGE, REPOSITORY, free_port

from spark_aesthetic.testing import noise_image

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
IMAGES = 6

# This script takes images from a folder to shards. Its last line is the result of each step.
JOB = """
import json, sys
import fsspec
from pyspark.sql import SparkSession
import spark_aesthetic as sa
from spark_aesthetic.testing import small_predictor

spark, place = SparkSession.builder.getOrCreate(), "s3a://pictures"
images, scores = f"{place}/images", f"{place}/scores"
found = {}
found["ingested"] = sa.ingest_images(spark, f"{place}/in", images).added
addresses = spark.createDataFrame([(f"s3://pictures/in/{at}.jpg",) for at in range(3)], "uri string")
addresses.write.format("delta").save(f"{place}/addresses")
fetched = sa.ingest_images(
    spark, f"{place}/addresses", f"{place}/fetched", format="uris", uri_col="uri", allow=["s3://pictures/in/"]
)
found["fetched"] = fetched.added
once = dict(source=images, key="image_id", image_col="image", scores=scores, predictor=small_predictor())
found["scored"] = sa.score_table(spark, **once).scored
found["again"] = sa.score_table(spark, **once).skipped
scored = spark.read.format("delta").load(scores)
found["kept"] = sa.calibrate(scored, top_k=2).cut.kept
sa.review(scored, images, key="image_id", out="s3://pictures/review.html", n=4)
found["page"] = fsspec.filesystem("s3").size("pictures/review.html") > 1000
best = sa.curate(scored, top_k=2, key="image_id")
best.write.format("delta").save(f"{place}/best")
found["best"] = spark.read.format("delta").load(f"{place}/best").count()
shards = sa.export_webdataset(
    spark, table=images, out="s3a://pictures/shards", scores=scores, key="image_id", key_col="image_id"
)
found["exported"] = shards.rows
sa.register(spark)
read = spark.read.format("webdataset").load("s3://pictures/shards")
found["read"] = read.count()
print(json.dumps(found))
spark.stop()
"""


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Install an S3 server and s3fs, and return the path of the server and the folder of s3fs."""
    uv, folder = Path(sys.executable).parent / "uv", tmp_path_factory.mktemp("s3")
    environment, s3fs = folder / "environment", folder / "s3fs"
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, environment], check=True)
    install = [uv, "pip", "install", "--quiet", "--python", environment / "bin" / "python"]
    subprocess.run([*install, "moto[server,s3]"], check=True)
    subprocess.run([*install, "--target", s3fs, "s3fs"], check=True)
    return environment / "bin" / "moto_server", s3fs


@pytest.fixture
def server(packages: tuple[Path, Path], tmp_path: Path) -> Iterator[str]:
    address = f"http://127.0.0.1:{(port := free_port())}"
    with (tmp_path / "moto.log").open("w") as words:
        moto = subprocess.Popen(
            [packages[0], "--host", "127.0.0.1", "--port", str(port)], stdout=words, stderr=words,
            env=os.environ | CREDENTIALS,
        )  # fmt: skip
    try:
        ends = time.monotonic() + 60
        while True:
            assert moto.poll() is None, (tmp_path / "moto.log").read_text()
            assert time.monotonic() < ends, (tmp_path / "moto.log").read_text()
            try:
                urlopen(address, timeout=5).close()
                break
            except URLError:
                time.sleep(0.2)
        yield address
    finally:
        moto.kill()
        moto.wait()


def test_every_job_reads_and_writes_an_object_store(packages: tuple[Path, Path], server: str, tmp_path: Path) -> None:
    environment = os.environ | CREDENTIALS | {
        "AWS_ENDPOINT_URL": server,
        "PYTHONPATH": os.pathsep.join([str(packages[1]), os.environ["PYTHONPATH"]]),
        "PYSPARK_PYTHON": sys.executable,
        "SPARK_CONF_DIR": str(REPOSITORY / "conf"),
    }  # fmt: skip
    images = {f"in/{at}.jpg": noise_image(at) for at in range(IMAGES)}
    fill = "import s3fs, sys\nstore = s3fs.S3FileSystem()\nstore.mkdir('pictures')\n"
    for name, content in images.items():
        (tmp_path / Path(name).name).write_bytes(content)
        fill += f"store.put({str(tmp_path / Path(name).name)!r}, 'pictures/{name}')\n"
    subprocess.run([sys.executable, "-c", fill], env=environment, check=True)
    job = tmp_path / "job.py"
    job.write_text(JOB)
    settings = {
        "spark.master": "local[2]", "spark.driver.memory": "1g", "spark.ui.enabled": "false",
        "spark.jars.packages": f"{DELTA_PACKAGE},org.apache.hadoop:hadoop-aws:3.5.0",
        "spark.hadoop.fs.s3a.endpoint": server, "spark.hadoop.fs.s3a.path.style.access": "true",
        "spark.hadoop.fs.s3.impl": "org.apache.hadoop.fs.s3a.S3AFileSystem",
    }  # fmt: skip
    given = [word for name, value in settings.items() for word in ("--conf", f"{name}={value}")]
    submit = [Path(sys.executable).parent / "spark-submit", "--properties-file", "conf/local.conf", *given, job]
    done = subprocess.run(
        submit, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found == {
        "ingested": IMAGES, "fetched": 3, "scored": IMAGES, "again": IMAGES, "kept": 2, "page": True, "best": 2,
        "exported": IMAGES, "read": IMAGES,
    }  # fmt: skip
