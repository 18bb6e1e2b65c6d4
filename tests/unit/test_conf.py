"""The settings of the files in conf/ agree with each other."""

from __future__ import annotations

import re

import pytest
from confs import CONF, CPU_CONFS, GPU_CONFS, properties
from conftest import REPOSITORY

CLUSTERS = (*GPU_CONFS, *CPU_CONFS)


@pytest.mark.parametrize("name", [*CLUSTERS, "local.conf"])
def test_no_setting_is_given_twice(name: str) -> None:
    lines = [line.split()[0] for line in (CONF / name).read_text().splitlines() if line.startswith("spark.")]
    assert sorted(lines) == sorted(properties(name))


@pytest.mark.parametrize("name", CLUSTERS)
def test_each_setting_has_its_reason_in_the_line_above(name: str) -> None:
    lines = (CONF / name).read_text().splitlines()
    bare = [line for above, line in zip(["", *lines], lines, strict=False) if line and not above.startswith("#")]
    assert [line for line in bare if not line.startswith("#")] == []


@pytest.mark.parametrize("name", GPU_CONFS)
def test_an_executors_tasks_use_up_its_cores_and_its_gpus(name: str) -> None:
    given = properties(name)
    by_gpus = float(given["spark.executor.resource.gpu.amount"]) / float(given["spark.task.resource.gpu.amount"])
    by_cores = int(given["spark.executor.cores"]) / int(given["spark.task.cpus"])
    assert by_gpus == by_cores == 1


@pytest.mark.parametrize("name", CLUSTERS)
def test_delta_and_arrow_are_set_as_in_local_conf(name: str) -> None:
    local, given = properties("local.conf"), properties(name)
    shared = [key for key in local if key.startswith("spark.sql.")]
    # Each cluster sets its own number of partitions, because it has more keys and files than one machine.
    shared.remove("spark.sql.shuffle.partitions")
    assert len(shared) == 6
    # The container image for Kubernetes already contains Delta's jars.
    packages = None if name.startswith("kubernetes") else local["spark.jars.packages"]
    assert given.get("spark.jars.packages") == packages
    assert {key: given.get(key) for key in shared} == {key: local[key] for key in shared}
    assert given["spark.executor.extraJavaOptions"] == local["spark.driver.extraJavaOptions"]


@pytest.mark.parametrize("kind", ["standalone", "yarn", "kubernetes"])
def test_settings_for_cpus_differ_from_those_for_gpus_in_cores_and_memory_alone(kind: str) -> None:
    gpu, cpu = properties(f"{kind}-gpu.conf"), properties(f"{kind}-cpu.conf")
    assert {name for name in gpu if "gpu" in name or name == "spark.files"} == gpu.keys() - cpu.keys()
    assert cpu.keys() <= gpu.keys()
    changed = {name for name in cpu if cpu[name] != gpu[name]}
    assert changed <= {"spark.task.cpus", "spark.executor.memoryOverhead"}
    assert cpu["spark.task.cpus"] == "1"


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_workers_get_their_address_space(name: str) -> None:
    assert "spark.executor.pyspark.memory" not in properties(name)


@pytest.mark.parametrize("name", CLUSTERS)
def test_driver_and_executors_look_for_weights_in_the_same_places(name: str) -> None:
    given = properties(name)
    driver = {"yarn": "spark.yarn.appMasterEnv.", "kubernetes": "spark.kubernetes.driverEnv."}.get(name.split("-")[0])
    for variable in ("SPARK_AESTHETIC_CACHE", "SPARK_AESTHETIC_WEIGHTS"):
        assert given[f"spark.executorEnv.{variable}"].startswith("/")
        if driver is not None:
            assert given[driver + variable] == given[f"spark.executorEnv.{variable}"]


def test_whoever_discovers_gpus_has_the_script() -> None:
    standalone, yarn, kubernetes = map(properties, GPU_CONFS)
    key = "executor.resource.gpu.discoveryScript"
    # Standalone workers discover GPUs and pass them to their executors. On YARN and Kubernetes each executor discovers
    # its own.
    assert standalone["spark.worker.resource.gpu.discoveryScript"].endswith("/conf/gpu-discovery.sh")
    assert f"spark.{key}" not in standalone
    assert yarn[f"spark.{key}"] == f"./{yarn['spark.files'].rpartition('/')[2]}"
    assert (REPOSITORY / yarn["spark.files"]).samefile(CONF / "gpu-discovery.sh")
    assert kubernetes[f"spark.{key}"].endswith("/conf/gpu-discovery.sh")
    assert kubernetes["spark.executor.resource.gpu.vendor"] == "nvidia.com"


def test_the_container_image_has_the_releases_and_the_places_of_the_settings() -> None:
    text = (CONF / "Dockerfile").read_text()
    given = properties("kubernetes-cpu.conf")
    assert f"--packages {properties('local.conf')['spark.jars.packages']} " in text
    folder = re.search(r"^WORKDIR (.+)$", text, flags=re.MULTILINE)
    assert folder is not None
    assert given["spark.pyspark.python"] == f"{folder[1]}/.venv/bin/python"
    spark = re.search(r"^FROM apache/spark:([\d.]+)-python3$", text, flags=re.MULTILINE)
    assert spark is not None
    assert f"pyspark=={spark[1]}" in (REPOSITORY / "requirements.lock").read_text().splitlines()
    for source in re.findall(r"^COPY (.+) \S+$", text, flags=re.MULTILINE):
        assert all((REPOSITORY / name).exists() for name in source.split()), source
