"""spark-aesthetic-doctor with real sessions of Spark."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY


def examine(*command: str) -> tuple[int, dict[str, dict[str, Any]]]:
    done = subprocess.run(
        [*command, "--json"], cwd=REPOSITORY, capture_output=True, text=True, check=False,
        env=os.environ | {"PYSPARK_PYTHON": sys.executable},
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert lines, done.stderr[-3000:]
    return done.returncode, {finding["name"]: finding for finding in json.loads(lines[-1])["checks"]}


def test_all_is_well_with_our_settings(tmp_path: Path) -> None:
    module = (sys.executable, "-m", "spark_aesthetic", "doctor")
    code, found = examine(*module, "--properties-file", "conf/local.conf", "--path", str(tmp_path))
    failed = {name: finding for name, finding in found.items() if finding["status"] == "failed"}
    assert (code, failed) == (0, {})
    for name in ("Java", "Spark session", "Delta's jar", "scores by Spark", "Delta tables", "Python workers",
                 "settings for images", f"{tmp_path} by Python", f"{tmp_path} by Spark"):  # fmt: skip
        assert found[name]["status"] == "ok", found[name]
    assert "10 rows" in found["Delta tables"]["found"]


@pytest.mark.long
def test_a_session_without_delta_and_a_path_without_a_connector() -> None:
    submit = str(Path(sys.prefix) / "bin" / "spark-submit")
    code, found = examine(submit, "--master", "local[1]", "jobs/doctor.py", "--path", "s3a://bucket/images")
    assert code == 1
    failed = {name for name, finding in found.items() if finding["status"] == "failed"}
    assert {"Delta's jar", "Delta tables", "settings for images", "s3a://bucket/images by Spark"} <= failed
    assert "conf/local.conf" in found["Delta's jar"]["remedy"]
    # The setting is missing, and its default lets 4,096 images into a batch.
    assert "columnarInput.enabled=false" in found["settings for images"]["remedy"]
    assert found["scores by Spark"]["status"] == "ok"
