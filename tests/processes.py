"""Jobs that run in separate processes, which a test can kill."""

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
    """Send SIGKILL to a process, if it still runs, and to all processes that it started."""
    if process.poll() is not None:
        return
    parent = psutil.Process(process.pid)
    for each in [*parent.children(recursive=True), parent]:
        with suppress(psutil.NoSuchProcess):
            each.kill()
    process.wait()


def spark_home(folder: Path) -> Path:
    """Create a SPARK_HOME in a folder, so that a cluster does not write its logs into the virtual environment."""
    home = folder / "spark"
    home.mkdir()
    for part in Path(pyspark.__file__).parent.iterdir():
        (home / part.name).symlink_to(part)
    return home


def commits(table: str) -> int:
    """Return the number of commits of a Delta table."""
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
        """Send SIGKILL to the JVM, if it runs, and to all that it started, some of them in sessions of their own."""
        kill(self.process)

    def wait(self) -> int:
        return self.process.wait(timeout=240)

    def children(self, word: str) -> list[psutil.Process]:
        """Return the child processes that have a word in their command line."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if word in " ".join(process.cmdline()):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
        return found


def until(condition: Callable[[], object], job: Job, seconds: float = 240) -> None:
    """Wait until a condition holds.

    The time limit ends a job that hangs. It does not measure speed.
    """
    ends = time.monotonic() + seconds
    while not condition():
        assert job.process.poll() is None, job.log.read_text()[-3000:]
        assert time.monotonic() < ends, job.log.read_text()[-3000:]
        time.sleep(0.05)
