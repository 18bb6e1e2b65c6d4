"""The settings of the files in conf/."""

from __future__ import annotations

from conftest import REPOSITORY

CONF = REPOSITORY / "conf"
GPU_CONFS = ("standalone-gpu.conf", "yarn-gpu.conf", "kubernetes-gpu.conf")
CPU_CONFS = ("standalone-cpu.conf", "yarn-cpu.conf", "kubernetes-cpu.conf")


def properties(name: str) -> dict[str, str]:
    """Return the settings of a properties file that has only comments and lines of a name, blanks and a value."""
    lines = (CONF / name).read_text().splitlines()
    assert not any("\\" in line for line in lines)
    return dict(line.split(maxsplit=1) for line in map(str.strip, lines) if line and not line.startswith("#"))
