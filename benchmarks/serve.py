"""Serve contestants in a process: run the requested one, time it, and answer on a separate channel."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from time import perf_counter


def serve(contestants: dict[str, Callable[[str, str], float | None]]) -> None:
    """Answer each line `{"run": name, "data": path, "out": path}` with the seconds it took.

    A contestant reads `data` and writes `out`. If it returns a number, that is its time, for example because it first
    prepares inputs that are not to be timed.
    """
    answers = os.fdopen(os.dup(1), "w")
    # Libraries print to stdout, so redirect that to stderr, which run.py writes to a log.
    os.dup2(2, 1)
    print(json.dumps({"ready": list(contestants)}), file=answers, flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        started = perf_counter()
        own_seconds = contestants[order["run"]](order["data"], order["out"])
        seconds = perf_counter() - started if own_seconds is None else own_seconds
        print(json.dumps({"seconds": seconds}), file=answers, flush=True)
