"""Jobs in processes of their own, which a test can kill."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pyspark
from conftest import REPOSITORY


def kill(process: subprocess.Popen[Any]) -> None:
    """SIGKILL to a process, if it runs, and to all that it started."""
    if process.poll() is not None:
        return
    parent = psutil.Process(process.pid)
    for each in [*parent.children(recursive=True), parent]:
        with suppress(psutil.NoSuchProcess):
            each.kill()
    process.wait()


def spark_home(folder: Path) -> Path:
    """A SPARK_HOME in a folder: a cluster keeps logs and files in its home, and not in the virtual environment."""
    home = folder / "spark"
    home.mkdir()
    for part in Path(pyspark.__file__).parent.iterdir():
        (home / part.name).symlink_to(part)
    return home


def commits(table: str) -> int:
    """The number of a Delta table's commits."""
    return len(list(Path(table, "_delta_log").glob("*.json")))


class Job:
    """A spark-submit that can be killed with all of its processes."""

    def __init__(
        self, log: Path, *arguments: str, script: str = "jobs/score_table.py", master: str = "local[2]",
        properties: str = "conf/local.conf", settings: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        command = [str(Path(sys.prefix) / "bin" / "spark-submit"), "--properties-file", properties, "--master", master]
        of_tests = {"spark.driver.memory": "1g", "spark.ui.enabled": "false"} | dict(settings or {})
        given = [word for name, value in of_tests.items() for word in ("--conf", f"{name}={value}")]
        self.log = log
        with log.open("w") as words:
            self.process = subprocess.Popen(
                [*command, *given, script, *arguments],
                cwd=REPOSITORY, stdout=words, stderr=subprocess.STDOUT, start_new_session=True,
                env=os.environ | {"PYSPARK_PYTHON": sys.executable, "SPARK_CONF_DIR": str(REPOSITORY / "conf")},
            )  # fmt: skip

    def kill(self) -> None:
        """SIGKILL to the JVM and all that it started, if it runs; some of those are sessions of their own."""
        kill(self.process)

    def wait(self) -> int:
        return self.process.wait(timeout=240)

    def children(self, word: str) -> list[psutil.Process]:
        """The processes whose command line has a word."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if word in " ".join(process.cmdline()):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
        return found


def until(condition: Callable[[], object], job: Job, seconds: float = 240) -> None:
    """Waits; the seconds end a job that hangs, they are no measure of speed."""
    ends = time.monotonic() + seconds
    while not condition():
        assert job.process.poll() is None, job.log.read_text()[-3000:]
        assert time.monotonic() < ends, job.log.read_text()[-3000:]
        time.sleep(0.05)
