"""The settings of the files in conf/."""

from __future__ import annotations

from conftest import REPOSITORY

CONF = REPOSITORY / "conf"
GPU_CONFS = ("standalone-gpu.conf", "yarn-gpu.conf", "kubernetes-gpu.conf")
CPU_CONFS = ("standalone-cpu.conf", "yarn-cpu.conf", "kubernetes-cpu.conf")


def properties(name: str) -> dict[str, str]:
    """The settings of a --properties-file, as spark-submit reads them."""
    lines = (CONF / name).read_text().splitlines()
    return dict(line.split(maxsplit=1) for line in map(str.strip, lines) if line and not line.startswith("#"))
