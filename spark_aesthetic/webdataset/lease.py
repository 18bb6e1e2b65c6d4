"""Who writes to a folder: the process that began, and until when another one must take it for alive.

A process of this machine either runs or does not. One of another machine is known by its signs alone: the times at
which its tasks last wrote something.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from socket import gethostname
from time import time
from typing import Any

# A write of another machine without a sign for so long is dead. Its tasks give one each minute, but none before Spark
# has computed what they write.
STALE_SECONDS = 3600.0

# How a worker of Spark's is started, which ends long before the write does.
_WORKERS = "pyspark."

_MAX_BYTES = 64 << 10


@dataclass(frozen=True)
class Lease:
    """What a write says of itself.

    Attributes:
        machine: Its name, this boot of it and its space of process numbers.
        pid: The process that ends with the write at the latest; None if none is known.
        started: When that process started, in the words of its system.
        began: When the write began, in seconds of the epoch.
    """

    machine: str
    pid: int | None
    started: str | None
    began: float

    @classmethod
    def own(cls) -> Lease:
        """Make the lease of a write that begins now in this process."""
        pid = _owner()
        return cls(machine(), pid, None if pid is None else started(pid), time())

    @classmethod
    def parse(cls, text: bytes) -> Lease:
        """As `dumped` gives it; anything else is of a machine that nobody knows."""
        with suppress(ValueError, TypeError, KeyError, RecursionError):
            told: dict[str, Any] = json.loads(text[:_MAX_BYTES])
            pid, began = told["pid"], float(told["began"])
            if (pid is None or (isinstance(pid, int) and 0 < pid < 2**31)) and 0 <= began < 2**40:
                return cls(str(told["machine"]), pid, told["started"], began)
        return cls("", None, None, 0)

    def dumped(self) -> bytes:
        """As the file has it."""
        return json.dumps(asdict(self)).encode()

    @property
    def host(self) -> str:
        """The machine's name."""
        return self.machine.partition(" ")[0]


def is_alive(lease: Lease | None, last: float, *, here: str, started: Callable[[int], str | None], now: float) -> bool:
    """Whether a write may still be at work.

    Args:
        lease: What it says of itself; None if it says nothing, as that of an older release.
        last: When it last wrote something, in seconds of the epoch.
        here: This machine.
        started: When a process of this machine started; None if there is none.
        now: In seconds of the epoch.
    """
    if lease is None:
        return False
    if lease.pid is not None and lease.machine == here:
        return lease.started is not None and started(lease.pid) == lease.started
    # Clocks may differ, and a time of the year 2100 must not block a folder until then.
    return abs(now - max(lease.began, last)) < STALE_SECONDS


def machine() -> str:
    """This machine, in words that another one does not have."""
    told = [gethostname() or "unknown"]
    with suppress(OSError):
        told.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        told.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(told)


def started(pid: int) -> str | None:
    """When a process of this machine started, in the words of its system; None if it does not run."""
    try:
        if not Path("/proc/self/stat").exists():
            os.kill(pid, 0)
            return "running"
        # The name before may have blanks and parentheses.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except PermissionError:
        return "running"
    except OSError:
        return None
    # One that was killed, and that nobody has asked for its end.
    return None if fields[0] in "ZX" else fields[19]


def _owner() -> int | None:
    """The JVM of Spark's driver if this is one of its workers, which end earlier; otherwise this process."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is None or not str(spec.name).startswith(_WORKERS):
        return os.getpid()
    pid = os.getppid()
    with suppress(OSError, ValueError):
        while pid > 1:
            if Path(f"/proc/{pid}/comm").read_text().strip() == "java":
                return pid
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return None
