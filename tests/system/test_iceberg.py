"""The Iceberg example of docs/functions.md runs as it is written, on the Spark that `make test-compat` installs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

SPARK = REPOSITORY / ".compat" / "4.1.1-4.3.1"

pytestmark = [pytest.mark.long, pytest.mark.skipif(not SPARK.exists(), reason="make test-compat installs its Spark")]

BEFORE = """
import sys
from pyspark.sql import SparkSession
import spark_aesthetic as sa
from spark_aesthetic.testing import noise_image

builder = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
for setting in sys.argv[1:]:
    builder = builder.config(*setting.split("=", 1))
spark = builder.getOrCreate()
assert spark.version == "4.1.1", spark.version

def photographs(*names):
    rows = [(name, bytearray(noise_image(seed)) if name != "torn" else bytearray(b"torn")) for seed, name in names]
    return spark.createDataFrame(rows, "name string, image binary")

photographs((1, "a"), (2, "torn")).writeTo("lake.db.photographs").using("iceberg").create()
spark.sql("CREATE TABLE lake.db.scores (name string, score float, error string, model string) USING iceberg")
"""

BETWEEN = """
photographs((3, "b"), (4, "it's")).writeTo("lake.db.photographs").append()
"""

AFTER = """
for row in spark.table("lake.db.scores").orderBy("name").collect():
    print("row", row.name, row.score is not None, row.error, row.model.split("@")[0])
"""


def test_only_new_rows_are_scored(tmp_path: Path) -> None:
    page = (REPOSITORY / "docs" / "functions.md").read_text()
    (example,) = re.findall(r"^```python\n(known = spark\.table.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    (command,) = re.findall(r"^```bash\n(pyspark --packages.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    given = command.replace("demo-output", str(tmp_path))
    (packages,) = re.findall(r"--packages (\S+)", given)
    settings = [f"spark.jars.packages={packages}", *re.findall(r"--conf (\S+)", given)]
    code = BEFORE + example + BETWEEN + example + example + AFTER
    environment = os.environ | {"PYTHONPATH": str(SPARK), "PYSPARK_PYTHON": sys.executable}
    done = subprocess.run(
        [sys.executable, "-c", code, *settings],
        env=environment, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert [line for line in done.stdout.splitlines() if line.startswith("row ")] == [
        f"row {name} {error is None} {error} untrained-vit-b-32"
        for name, error in [("a", None), ("b", None), ("it's", None), ("torn", "decode: not an image")]
    ]
