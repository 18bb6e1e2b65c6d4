"""The README's examples run as they are written."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, RunHere
from pyspark.sql import SparkSession

import spark_aesthetic as sa
from spark_aesthetic.testing import photographs


def examples(language: str) -> list[str]:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"<!-- test: {language} -->\n```\w+\n(.*?)```", text, flags=re.DOTALL)


def test_python(spark: SparkSession, demo_output: str, capsys: pytest.CaptureFixture[str]) -> None:
    names = {"spark": spark}
    embeddings, images = examples("python")
    exec(embeddings.replace("demo-output", demo_output), names)
    assert "5.74676" in capsys.readouterr().out
    exec(images.replace("demo-output", demo_output), names)
    shown = capsys.readouterr().out
    assert "untrained-vit-b-32@" in shown
    assert re.search(r"missing.jpg\s*\|NULL *\|null", shown)
    assert re.search(r"china_cut_off.jpg\s*\|NULL *\|decode: truncated JPEG", shown)


def test_it_is_short_and_has_every_link() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert len(text.split()) <= 900
    for place in re.findall(r"\]\(([^)#]+)", text):
        assert (REPOSITORY / place).exists(), place


def test_sql(spark: SparkSession, demo_output: str) -> None:
    sa.register(spark)
    (text,) = examples("sql")
    create, select = text.replace("demo-output", demo_output).split(";")
    spark.sql(create)
    assert [row.name for row in spark.sql(select).collect()] == ["rating9", "rating8", "rating7", "rating6"]


def in_shell(text: str, demo_output: str) -> list[dict[str, Any]]:
    """Run jobs in a shell with the settings of the README's first lines, and return the summaries."""
    shell = {"PATH": f"{sys.prefix}/bin{os.pathsep}{os.environ['PATH']}", "SPARK_CONF_DIR": str(REPOSITORY / "conf")}
    done = subprocess.run(
        ["bash", "-euc", text.replace("demo-output", demo_output)],
        cwd=REPOSITORY, env=os.environ | shell, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_spark_submit(spark: SparkSession, demo_output: str) -> None:
    (summary,) = in_shell(examples("shell")[0], demo_output)
    assert (summary["scored"], summary["failed"]) == (9, 2)
    scores = spark.read.format("delta").load(str(Path(demo_output) / "my_scores"))
    bad = {"china_cut_off.jpg": "decode: truncated JPEG", "missing.jpg": "null"}
    assert {row.name: row.aesthetic_error for row in scores.collect()} == dict.fromkeys(photographs()) | bad


def in_this_session(text: str, run_here: RunHere) -> list[dict[str, Any]]:
    """Run the jobs of a shell text in this session, without a JVM for each, and return the summaries."""
    commands = text.replace("\\\n", " ").splitlines()
    submit = "spark-submit --properties-file conf/local.conf jobs/"
    assert all(command.startswith(submit) for command in commands)
    called = [shlex.split(command.removeprefix(submit)) for command in commands]
    return [run_here(job, *arguments) for job, *arguments in called]


@pytest.mark.parametrize("shell", [False, pytest.param(True, marks=[pytest.mark.long, pytest.mark.timeout(600)])])
def test_images_of_ones_own(demo_output: str, tmp_path: Path, run_here: RunHere, shell: bool) -> None:
    text = examples("shell")[1].replace("demo-output/", f"{tmp_path}/")
    ingested, scored, _ = in_shell(text, demo_output) if shell else in_this_session(text, run_here)
    assert ingested["added"] == scored["scored"] == len(list((REPOSITORY / "docs" / "images").iterdir()))
    assert "<html" in (tmp_path / "own.html").read_text(encoding="utf-8")
