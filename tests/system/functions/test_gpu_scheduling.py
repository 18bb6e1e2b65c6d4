"""How Spark assigns GPUs, without a GPU: a real cluster on this machine, and an nvidia-smi that lists made-up GPUs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confs import CONF, properties
from conftest import REPOSITORY
from processes import spark_home

from spark_aesthetic import Options, resolve
from spark_aesthetic.errors import ResourceError
from spark_aesthetic.functions.worker import granted, score_images

DISCOVERY = CONF / "gpu-discovery.sh"

# No machine has GPUs of these numbers, so scoring on them fails on a machine with GPUs too.
ADDRESSES = ("41", "43")

# This job runs in the cluster. The last line of its output is its result.
JOB = """
import json, time
from pyspark import TaskContext
from pyspark.sql import SparkSession
from spark_aesthetic import Options, aesthetic_score
from spark_aesthetic.functions.worker import granted

def ask(batches):
    import os
    import pandas as pd
    context = TaskContext.get()
    for batch in batches:
        options = granted(Options())
        own = granted(Options(device="cuda:7", num_threads=3))
        # Long enough that no executor takes all tasks before the other has its first.
        time.sleep(0.5)
        yield pd.DataFrame({
            "addresses": [list(context.resources()["gpu"].addresses)],
            "device": options.device,
            "num_threads": options.num_threads,
            "own": f"{own.device} {own.num_threads}",
            "cache": os.environ["SPARK_AESTHETIC_CACHE"],
        })

spark = SparkSession.builder.getOrCreate()
rows = spark.range(4, numPartitions=4)
schema = "addresses array<string>, device string, num_threads int, own string, cache string"
tasks = [row.asDict() for row in rows.mapInPandas(ask, schema).collect()]
try:
    # One row, in one task: each worker that comes to it loads torch, which is most of this test's time.
    row = spark.range(1, numPartitions=1)
    row.select(aesthetic_score(row.id.cast("string").cast("binary"), predictor="untrained-vit-b-32")).collect()
    error = None
except Exception as raised:
    error = str(raised)
print(json.dumps({"tasks": tasks, "cpus": spark.conf.get("spark.task.cpus"), "error": error}))
spark.stop()
"""


def submit(
    job: Path, *args: str, conf: dict[str, str], env: dict[str, str], options: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run a job by spark-submit, and kill it after four minutes, because a job that waits forever is a failure."""
    brief = {"spark.executor.extraJavaOptions": os.environ["SPARK_SUBMIT_OPTS"]}
    settings = [word for key, value in (brief | conf).items() for word in ("--conf", f"{key}={value}")]
    return subprocess.run(
        [Path(sys.executable).parent / "spark-submit", *options, *settings, job, *args],
        env=os.environ | env,
        text=True,
        capture_output=True,
        timeout=240,
        check=False,
    )


@pytest.fixture(scope="module")
def nvidia_smi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write an nvidia-smi that lists the made-up GPUs after a warning, as drivers print it, and return its folder."""
    script = tmp_path_factory.mktemp("bin") / "nvidia-smi"
    script.write_text(f"#!/bin/sh\necho 'WARNING: infoROM is corrupted'\nprintf '%s\\n' {' '.join(ADDRESSES)}\n")
    script.chmod(0o755)
    return script.parent


@pytest.fixture(scope="module")
def on_two_gpus(nvidia_smi: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run JOB on a standalone cluster of one worker with two GPUs, and return its result.

    The settings are those of conf/standalone-gpu.conf, so the worker has two executors. Two workers would both find the
    same addresses, as two machines do. With one worker, Spark must give each executor a different address.
    """
    folder = tmp_path_factory.mktemp("cluster")
    job = folder / "job.py"
    job.write_text(JOB)
    home = spark_home(folder)
    given = properties("standalone-gpu.conf")
    cores = 2 * int(given["spark.executor.cores"])
    result = submit(
        job,
        options=("--properties-file", str(CONF / "standalone-gpu.conf")),
        env={
            "SPARK_HOME": str(home),
            "PATH": f"{nvidia_smi}:{os.environ['PATH']}",
            # Without this, the address is that of the host's name, which a machine without a network cannot resolve.
            "SPARK_LOCAL_IP": "127.0.0.1",
        },
        conf={
            # A local cluster does not check its cores and memory, so they may be more than this machine has.
            "spark.master": f"local-cluster[1,{cores},2048]",
            "spark.executor.memory": "1g",
            "spark.driver.memory": "1g",
            # These paths of this machine replace those below /opt/spark-aesthetic.
            "spark.worker.resource.gpu.discoveryScript": str(DISCOVERY),
            "spark.pyspark.python": sys.executable,
            "spark.executorEnv.SPARK_AESTHETIC_CACHE": str(folder / "cache"),
            # The job uses no table. Without Delta, no jars are sent to both executors.
            "spark.jars.packages": "",
            "spark.sql.extensions": "",
            "spark.sql.catalog.spark_catalog": "builtin",
            # No task starts before both executors are registered. Otherwise one executor might run all tasks.
            "spark.cores.max": str(cores),
            "spark.scheduler.minRegisteredResourcesRatio": "1.0",
            "spark.scheduler.maxRegisteredResourcesWaitingTime": "60s",
            # The failure is intended, and three more attempts would load torch three more times.
            "spark.task.maxFailures": "1",
            "spark.ui.enabled": "false",
            "spark.local.dir": str(folder / "local"),
        },
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def test_each_task_gets_the_gpu_that_spark_granted_it(on_two_gpus: dict[str, Any]) -> None:
    tasks = on_two_gpus["tasks"]
    assert len(tasks) == 4
    assert [task["device"] for task in tasks] == [f"cuda:{task['addresses'][0]}" for task in tasks]
    assert {tuple(task["addresses"]) for task in tasks} == {(address,) for address in ADDRESSES}


def test_a_task_decodes_on_all_cores_that_it_occupies(on_two_gpus: dict[str, Any]) -> None:
    cpus = properties("standalone-gpu.conf")["spark.task.cpus"]
    assert on_two_gpus["cpus"] == cpus
    assert {task["num_threads"] for task in on_two_gpus["tasks"]} == {int(cpus)}


def test_a_device_and_threads_of_ones_own_are_kept(on_two_gpus: dict[str, Any]) -> None:
    assert {task["own"] for task in on_two_gpus["tasks"]} == {"cuda:7 3"}


def test_variables_of_the_settings_reach_the_python_workers(on_two_gpus: dict[str, Any]) -> None:
    (cache,) = {task["cache"] for task in on_two_gpus["tasks"]}
    assert cache.endswith("/cache")


def test_a_gpu_that_torch_has_not_fails_the_job_naming_device_and_remedy(on_two_gpus: dict[str, Any]) -> None:
    error = on_two_gpus["error"]
    assert error is not None
    found = re.search(r"ResourceError: device cuda:(\d+): expected a GPU that torch can use, found \d+ GPUs", error)
    assert found is not None, error
    assert found[1] in ADDRESSES
    assert "Install a CUDA build of torch and the GPU driver on the executors" in error
    assert "correct the discovery script's addresses" in error


def test_an_address_that_is_no_number_is_named_with_the_remedy() -> None:
    scored = score_images([], resolve("untrained-vit-b-32"), Options(device="cuda:GPU-5f3c", num_threads=1))
    with pytest.raises(ResourceError, match=r"cuda:GPU-5f3c: expected a GPU by its number.*conf/gpu-discovery\.sh"):
        next(scored)


def test_gpu_amounts_on_a_local_master_stop_the_job_at_once(tmp_path: Path) -> None:
    amounts = dict.fromkeys(("spark.executor.resource.gpu.amount", "spark.task.resource.gpu.amount"), "1")
    result = submit(
        REPOSITORY / "jobs" / "score_table.py",
        *("--source", str(tmp_path / "photos"), "--key", "id", "--image-col", "content"),
        conf=amounts | {"spark.master": "local[2]", "spark.ui.enabled": "false", "spark.local.dir": str(tmp_path)},
        env={"SPARK_LOCAL_IP": "127.0.0.1", "PYSPARK_PYTHON": sys.executable},
    )
    assert result.returncode == 2, result.stdout[-3000:] + result.stderr[-3000:]
    # spark-submit writes to its stdout what Python writes to stderr.
    (said,) = [line for line in (result.stdout + result.stderr).splitlines() if line.startswith("score_table:")]
    assert "spark.task.resource.gpu.amount: expected no GPU amounts with master 'local[2]', found 1" in said
    assert "Remove the spark.*.resource.gpu.* settings" in said


def test_outside_of_spark_it_is_the_cpu_and_one_thread() -> None:
    options = granted(Options())
    assert (options.device, options.num_threads) == ("cpu", 1)


def test_a_task_without_gpus_runs_on_the_cpu(spark: "SparkSession") -> None:  # noqa: F821, UP037
    import pandas as pd

    def ask(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        for _ in batches:
            options = granted(Options())
            yield pd.DataFrame({"device": [options.device], "num_threads": [options.num_threads]})

    rows = spark.range(2, numPartitions=2).mapInPandas(ask, "device string, num_threads int").collect()
    assert [tuple(row) for row in rows] == [("cpu", 1)] * 2


def test_discovery_prints_what_nvidia_smi_lists(nvidia_smi: Path) -> None:
    # Spark executes the file itself.
    assert os.access(DISCOVERY, os.X_OK)
    env = {"PATH": f"{nvidia_smi}:{os.environ['PATH']}"}
    printed = subprocess.run([DISCOVERY], env=env, text=True, capture_output=True, check=True).stdout
    assert json.loads(printed) == {"name": "gpu", "addresses": list(ADDRESSES)}


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (None, "expected nvidia-smi on the PATH, found none"),
        ("echo 'Driver/library version mismatch'; exit 18", "found: Driver/library version mismatch"),
        ("echo 'No devices were found'", "expected at least one GPU, found: No devices were found"),
    ],
    ids=["no nvidia-smi", "broken driver", "no GPU"],
)
def test_discovery_says_what_is_missing(tmp_path: Path, script: str | None, said: str) -> None:
    # This PATH hides a real nvidia-smi of the machine.
    for tool in ("bash", "grep", "sed", "paste"):
        (tmp_path / tool).symlink_to(subprocess.check_output(["which", tool], text=True).strip())
    if script is not None:
        (tmp_path / "nvidia-smi").write_text(f"#!{tmp_path / 'bash'}\n{script}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    result = subprocess.run([DISCOVERY], env={"PATH": str(tmp_path)}, text=True, capture_output=True, check=False)
    assert result.returncode == 1
    assert result.stdout == ""
    assert said in result.stderr
