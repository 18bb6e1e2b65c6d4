"""The lease of a write to a folder: the process that began it, and whether it may still be alive.

For a write of this machine, the process either runs or does not. For a write of a different machine, only the time at
which its tasks last wrote something is known.
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

# A write of a different machine is considered dead after this time without a heartbeat. Its tasks write one every
# minute, but only once Spark has computed the rows to write.
STALE_SECONDS = 3600.0

# Module prefix of Spark's Python workers, which end long before the write does.
_WORKERS = "pyspark."

_MAX_BYTES = 64 << 10


@dataclass(frozen=True)
class Lease:
    """The identity of a write.

    Attributes:
        machine: Host name, boot id and PID namespace.
        pid: A process that lives at least as long as the write; None if unknown.
        started: The start time of that process in the operating system's format.
        began: The start time of the write in seconds since the epoch.
    """

    machine: str
    pid: int | None
    started: str | None
    began: float

    @classmethod
    def own(cls) -> Lease:
        """Create the lease of a write that begins now in this process."""
        pid = _owner()
        return cls(machine(), pid, None if pid is None else started(pid), time())

    @classmethod
    def parse(cls, text: bytes) -> Lease:
        """Parse the output of `dumped`. Any other text becomes a lease of an unknown machine."""
        with suppress(ValueError, TypeError, KeyError, RecursionError):
            told: dict[str, Any] = json.loads(text[:_MAX_BYTES])
            pid, began = told["pid"], float(told["began"])
            if (pid is None or (isinstance(pid, int) and 0 < pid < 2**31)) and 0 <= began < 2**40:
                return cls(str(told["machine"]), pid, told["started"], began)
        return cls("", None, None, 0)

    def dumped(self) -> bytes:
        """Serialise the lease for its file."""
        return json.dumps(asdict(self)).encode()

    @property
    def host(self) -> str:
        """The host name."""
        return self.machine.partition(" ")[0]


def is_alive(lease: Lease | None, last: float, *, here: str, started: Callable[[int], str | None], now: float) -> bool:
    """Whether a write may still be running.

    Args:
        lease: The write's lease; None if it has none, like writes of older releases.
        last: The time of its last heartbeat, in seconds since the epoch.
        here: This machine.
        started: Returns the start time of a local process, or None if it does not run.
        now: The current time in seconds since the epoch.
    """
    if lease is None:
        return False
    if lease.pid is not None and lease.machine == here:
        return lease.started is not None and started(lease.pid) == lease.started
    # Clocks may differ. `abs` prevents a timestamp in the year 2100 from blocking the folder until then.
    return abs(now - max(lease.began, last)) < STALE_SECONDS


def machine() -> str:
    """Return a unique identifier of this machine, boot and PID namespace."""
    told = [gethostname() or "unknown"]
    with suppress(OSError):
        told.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        told.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(told)


def started(pid: int) -> str | None:
    """Return a local process's start time in the operating system's format, or None if it does not run."""
    try:
        if not Path("/proc/self/stat").exists():
            os.kill(pid, 0)
            return "running"
        # The process name before the last ")" may contain spaces and parentheses.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except PermissionError:
        return "running"
    except OSError:
        return None
    # A killed process that its parent has not reaped (state Z or X) does not run.
    return None if fields[0] in "ZX" else fields[19]


def _owner() -> int | None:
    """Return the PID of Spark's JVM if this is one of its short-lived Python workers, otherwise of this process."""
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
