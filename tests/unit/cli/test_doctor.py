"""The checks of spark-aesthetic-doctor that need no Spark."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from spark_aesthetic.cli import doctor
from spark_aesthetic.cli.doctor import fits_together, suitable_java
from spark_aesthetic.cli.doctor_session import fitting_jar, settings_for_images
from spark_aesthetic.cli.findings import Fault, Finding, Skipped, checked
from spark_aesthetic.errors import WeightsError
from spark_aesthetic.predictors.recipe import resolve


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ('openjdk version "17.0.12" 2024-07-16\nOpenJDK Runtime Environment', "17.0.12"),
        ('java version "21" 2023-09-19 LTS', "21"),
        ('openjdk version "25-ea" 2025-09-16', "25-ea"),
    ],
)
def test_a_java_that_spark_runs_on(said: str, version: str) -> None:
    assert suitable_java(said) == version


@pytest.mark.parametrize("said", ['java version "1.8.0_402"', 'openjdk version "11.0.22"', "", "no such command"])
def test_a_java_that_spark_does_not_run_on(said: str) -> None:
    with pytest.raises(Fault) as fault:
        suitable_java(said)
    assert fault.value.remedy.startswith("Install Java 17")


@pytest.mark.parametrize(
    ("pyspark", "delta", "fits"),
    [
        ("4.2.0", "4.4.0", True), ("4.1.1", "4.3.1", True), ("4.0.5", "4.0.1", True), ("4.0.1", "4.4.0", True),
        ("4.1.1", "4.1.0", True), ("4.2.0", None, True), ("4.2.0", "4.3.1", False), ("4.1.1", "4.0.1", False),
        ("3.5.6", "4.0.1", False), (None, "4.4.0", False), (None, None, False),
        ("3.5.6", None, False), ("4.0.0", "3.3.0", False), ("4.3.0", "5.0.0", True),
    ],
)  # fmt: skip
def test_releases_that_go_together(pyspark: str | None, delta: str | None, fits: bool) -> None:
    if fits:
        assert str(pyspark) in fits_together(pyspark, delta)
    else:
        with pytest.raises(Fault):
            fits_together(pyspark, delta)


@pytest.mark.parametrize(
    ("jar", "spark", "fits"),
    [
        ("delta-spark_4.2_2.13-4.4.0.jar", "4.2.0", True), ("delta-spark_4.1_2.13-4.3.1.jar", "4.2.0", False),
        ("delta-spark_2.13-4.0.1.jar", "4.0.5", True), ("delta-spark_2.13-4.0.1.jar", "4.2.0", False),
        ("delta-spark_2.13-4.3.1.jar", "4.1.1", True), ("databricks-own.jar", "4.1.0", True),
        ("io.delta_delta-spark_4.2_2.13-4.4.0.jar", "4.2.1", True),
    ],
)  # fmt: skip
def test_a_jar_is_for_one_release(jar: str, spark: str, fits: bool) -> None:
    if fits:
        assert fitting_jar(jar, spark) == jar
    else:
        with pytest.raises(Fault):
            fitting_jar(jar, spark)


def _raising(error: Exception) -> str:
    raise error


def test_every_error_of_a_check_is_a_finding() -> None:
    assert checked("a", lambda: "well") == Finding("a", "ok", "well")
    assert checked("a", _raising, Skipped("why")) == Finding("a", "skipped", "why")
    assert checked("a", _raising, Fault("bad", "Do.")) == Finding("a", "failed", "bad", "Do.")
    assert checked("a", _raising, WeightsError("two\nlines")) == Finding("a", "failed", "two lines")
    assert checked("a", _raising, KeyError("x")).found == "KeyError: 'x'"
    assert str(Finding("a", "failed", "bad", "Do.")).split() == ["failed", "a", "bad.", "Do."]


def test_settings_that_let_too_many_images_into_a_batch() -> None:
    assert settings_for_images({"spark.sql.parquet.columnarReaderBatchSize": "256"}.get)
    with pytest.raises(Fault) as fault:
        settings_for_images({"spark.sql.execution.arrow.pythonUDF.columnarInput.enabled": "true"}.get)
    assert "columnarInput.enabled=false" in fault.value.remedy
    assert "columnarReaderBatchSize" not in fault.value.remedy


def test_weights_are_looked_for_and_not_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARK_AESTHETIC_CACHE", str(tmp_path / "cache"))
    predictor = resolve("laion-aesthetics-v2")
    with pytest.raises(Skipped, match="download https://"):
        doctor._weights(predictor, None)
    with pytest.raises(Skipped, match="no file"):
        doctor._weights(resolve("untrained-vit-b-32"), None)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "model.safetensors").write_bytes(b"another file")
    finding = checked("weights", doctor._weights, predictor, str(tmp_path / "models"))
    assert finding.status == "failed"
    assert "expected sha256" in finding.found


def test_what_the_score_of_an_image_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = Finding("weights", "skipped", "no weights here yet")
    with pytest.raises(Skipped, match=r"^needs the weights$"):
        doctor._image(missing, resolve("laion-aesthetics-v2"), None)
    monkeypatch.setattr(doctor, "missing_for_images", lambda: ["open_clip", "blake3"])
    with pytest.raises(Skipped, match=r"needs open_clip, blake3: pip install 'spark-aesthetic\[image\]'"):
        doctor._image(missing, resolve("laion-aesthetics-v2"), None)


def test_the_process_says_what_is_wrong_and_exits_with_1(tmp_path: Path) -> None:
    """Everyone can write to the cache, Java is missing, and one of two paths is missing."""
    shared, there = tmp_path / "cache", tmp_path / "there"
    for folder in (shared, there):
        folder.mkdir()
    shared.chmod(0o777)
    environment = os.environ | {"SPARK_AESTHETIC_CACHE": str(shared), "JAVA_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "spark_aesthetic", "doctor", "--path", str(there), "--path", f"{there}/missing"]
    done = subprocess.run([*command, "--json"], env=environment, capture_output=True, text=True, check=False)
    found = {finding["name"]: finding for finding in json.loads(done.stdout)["checks"]}
    assert done.returncode == 1
    failed = {name for name, finding in found.items() if finding["status"] == "failed"}
    assert failed == {"Java", "cache of weights", f"{there}/missing by Python"}
    assert found["scores of embeddings"]["status"] == "ok"
    assert found["Spark session"]["status"] == "skipped"
    assert found[f"{there} by Python"]["found"] == "a directory, read by LocalFileSystem"
    assert all(
        finding["remedy"] or finding["status"] != "failed" or "Set " in finding["found"] for finding in found.values()
    )


def test_another_command_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "spark_aesthetic", "docter"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "usage: python -m spark_aesthetic doctor" in done.stderr


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("s3a://AKIA1:se/cr+et=@bucket/images", "s3a://…@bucket/images"),
        ("https://ghp_token@host/a.tar", "https://…@host/a.tar"),
        ("https://user:word@host/a.tar?sig=5f&exp=1", "https://…@host/a.tar?…"),
        ("gs://bucket/a.tar?Signature=5f", "gs://bucket/a.tar?…"),
        ("hdfs://user:p@ss@name:8020/images", "hdfs://…@name:8020/images"),
        ("HTTPS://ghp_token@host/a", "HTTPS://…@host/a"),
        ("sftp://user@host/a", "sftp://…@host/a"),
        ("s3a://AKIA%3Asecret@bucket", "s3a://…@bucket"),
        ("https://user:pa'ss wo@host/a", "https://…@host/a"),
        ("https://host/a?se='x y'&sig=S", "https://host/a?…"),
        ("https://host/a#access_token=S", "https://host/a#…"),
        ("sc://host:443/;token=abc==", "sc://host:443/;token=…"),
        ("hdfs://name:8020/user@realm/x", "hdfs://name:8020/user@realm/x"),
        ("https://host:8443/a@2x.png", "https://host:8443/a@2x.png"),
        ("https://host/a@2x.png", "https://host/a@2x.png"),
        ("abfss://box@account.dfs.core.windows.net/images", "abfss://box@account.dfs.core.windows.net/images"),
        ("/data/what?/a@b:c", "/data/what?/a@b:c"),
        ("s3://bucket/images", "s3://bucket/images"),
    ],
)  # fmt: skip
def test_no_secret_of_an_address_is_shown(address: str, shown: str) -> None:
    def fail(path: str) -> str:
        raise Fault(f"no {path}", f"Correct {path} first.")

    assert checked(f"{address} by Python", fail, address) == Finding(
        f"{shown} by Python", "failed", f"no {shown}", f"Correct {shown} first."
    )


@pytest.mark.parametrize(
    "address", ["gs://bucket/a.tar?Signature=5f6e", "s3a://AKIA1:se/cr+et@bucket", "memory://k:s@b/a"]
)
def test_no_secret_is_shown_where_an_error_has_only_a_part_of_the_address(address: str) -> None:
    """fsspec's errors name the place without its scheme."""

    def fail(path: str) -> str:
        raise FileNotFoundError(path.partition("://")[2])

    found = checked("a", fail, address).found
    assert "…" in found
    assert not any(secret in found for secret in ("5f6e", "AKIA1", "cr+et", "k:s"))


def test_no_secret_of_a_message_is_shown() -> None:
    error = ValueError(
        "Parameter 'token=abc==' should be provided as key and value; Hostname missing in 'http://:443/;token=S'"
    )
    assert checked("Spark session", _raising, error).found == (
        "ValueError: Parameter 'token=…' should be provided as key and value; Hostname missing in 'http://:443/;token=…'"
    )
    assert checked("a", _raising, OSError("https://user:word@host/a cannot be read")).found == (
        "OSError: https://…@host/a cannot be read"
    )


def test_a_path_that_python_cannot_read_is_shown_without_its_secret() -> None:
    """The error is one of fsspec's own."""
    finding = checked("a", doctor._read_by_python, "memory://key:secret@bucket/missing?sig=5f6e")
    assert finding.status == "failed"
    assert "secret" not in finding.found
    assert "5f6e" not in finding.found


def test_without_pyspark_the_doctor_says_what_to_install() -> None:
    code = (
        "import sys\n"
        "from importlib.abc import MetaPathFinder\n"
        "class Missing(MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'pyspark':\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        "sys.argv = ['doctor', '--json']\n"
        "from spark_aesthetic.cli.doctor import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    found = {finding["name"]: finding for finding in json.loads(done.stdout)["checks"]}
    assert "pip install 'spark-aesthetic[delta]'" in found["pyspark and Delta"]["remedy"]
    assert found["Spark session"]["status"] == "skipped"
