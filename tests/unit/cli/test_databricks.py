"""The parts of the Databricks bundle that can be checked without Databricks: types, command line and settings."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from confs import CONF, GPU_CONFS, properties
from conftest import REPOSITORY
from databricks.bundles.jobs import Job

from spark_aesthetic import DEFAULT
from spark_aesthetic.cli.scoring import score_table_arguments


def filled(node: Any, variables: dict[str, Any]) -> Any:
    """Replace variables by their default values, as Databricks does.

    A text that is only a variable becomes the variable's value. In any other text the value replaces the variable.
    """
    if isinstance(node, dict):
        return {key: filled(value, variables) for key, value in node.items()}
    if isinstance(node, list):
        return [filled(item, variables) for item in node]
    if isinstance(node, str):
        whole = re.fullmatch(r"\$\{var\.(\w+)\}", node)
        if whole:
            return variables[whole[1]]["default"]
        return re.sub(r"\$\{var\.(\w+)\}", lambda found: str(variables[found[1]]["default"]), node)
    return node


@pytest.fixture
def bundle() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((REPOSITORY / "databricks.yml").read_text())
    return loaded


@pytest.fixture
def job(bundle: dict[str, Any]) -> dict[str, Any]:
    (included,) = bundle["include"]
    jobs = yaml.safe_load((REPOSITORY / included).read_text())["resources"]["jobs"]
    filled_in: dict[str, Any] = filled(jobs["score_table"], bundle["variables"])
    return filled_in


def test_the_job_is_one_by_databricks_own_types(job: dict[str, Any]) -> None:
    # Databricks' types know the name of each field, so a misspelt name is an error.
    assert Job.from_dict(job).as_dict() == job
    with pytest.raises(ValueError, match="max_concurent_runs"):
        Job.from_dict(job | {"max_concurent_runs": 1})


def test_the_task_is_a_command_that_the_job_takes(job: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    (task,) = job["tasks"]
    monkeypatch.setattr(sys, "argv", ["score_table", *task["python_wheel_task"]["parameters"]])
    args = score_table_arguments()
    assert (args.source, args.key, args.image_col) == ("main.default.photos", ["id"], "content")
    assert (args.scores, args.view) == ("main.default.photo_scores", "main.default.scored_photos")
    assert (args.predictor, args.decode) == (DEFAULT, "exact")
    assert args.checkpoint == "/Volumes/main/default/spark_aesthetic/checkpoints"


def test_the_wheel_has_the_entry_point_of_the_task(job: dict[str, Any], bundle: dict[str, Any], tmp_path: Path) -> None:
    build = bundle["artifacts"]["wheel"]["build"].removeprefix("python ").split()
    subprocess.run([sys.executable, *build, "--outdir", str(tmp_path)], cwd=REPOSITORY, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (named,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        entry_points = archive.read(named).decode()
    task = job["tasks"][0]["python_wheel_task"]
    assert wheel.name.startswith(task["package_name"])
    assert f"{task['entry_point']} = spark_aesthetic.cli.scoring:score_table" in entry_points


def test_settings_are_strings_that_agree_with_those_of_other_clusters(job: dict[str, Any]) -> None:
    given = job["tasks"][0]["new_cluster"]["spark_conf"]
    # Databricks refuses numbers and booleans here.
    assert all(isinstance(value, str) for value in given.values())
    for file in GPU_CONFS:
        assert given == {key: properties(file).get(key) for key in given}


def test_the_runtime_brings_its_own_spark_and_delta(job: dict[str, Any]) -> None:
    text = json.dumps(job)
    for name in ("spark.jars", "spark.sql.extensions", "delta-spark", "pyspark"):
        assert name not in text


def test_the_policy_allows_the_cluster_of_the_job(job: dict[str, Any]) -> None:
    policy = json.loads((CONF / "databricks-policy.json").read_text())
    cluster = job["tasks"][0]["new_cluster"]
    given = {name: value for name, value in cluster.items() if not isinstance(value, dict)}
    for group in ("spark_conf", "spark_env_vars"):
        given |= {f"{group}.{name}": value for name, value in cluster[group].items()}
    for name, rule in policy.items():
        # This rule is for clusters that people start, not for the cluster of a job.
        if name not in given:
            assert rule["isOptional"]
            continue
        value = given[name]
        assert rule["type"] in ("fixed", "allowlist", "range", "regex")
        assert rule["type"] != "fixed" or value == rule["value"]
        assert rule["type"] != "allowlist" or value in rule["values"]
        assert rule["type"] != "range" or rule["minValue"] <= value <= rule["maxValue"]
        assert rule["type"] != "regex" or re.fullmatch(rule["pattern"], value)
    assert len(policy.keys() & given.keys()) == len(policy) - 1


def test_production_has_one_place(bundle: dict[str, Any]) -> None:
    # Without one place, the command line refuses to deploy. With one place per user, each user would have a nightly
    # job.
    place = bundle["targets"]["prod"]["workspace"]["root_path"]
    assert place.endswith("${bundle.target}")
    assert "current_user" not in place


def test_each_line_of_settings_has_a_reason_above_it() -> None:
    lines = (CONF / "databricks.yml").read_text().splitlines()
    for at, line in enumerate(lines):
        if re.match(
            r" +(spark\.\S+|SPARK_\w+|spark_version|node_type_id|num_workers|data_security_mode|max_\w+):", line
        ):
            assert lines[at - 1].strip().startswith("#"), line
