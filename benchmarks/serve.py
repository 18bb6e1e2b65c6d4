"""What every contestant's process does: run what it is told, time it, and say so on a channel of its own."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from time import perf_counter


def serve(contestants: dict[str, Callable[[str, str], float | None]]) -> None:
    """Answer each line `{"run": name, "data": path, "out": path}` with the seconds it took.

    A contestant reads `data` and writes `out`; one that returns a number is timed by itself, such as a loop that
    first makes what it does not measure.
    """
    answers = os.fdopen(os.dup(1), "w")
    # Libraries print; their words go to stderr, which run.py keeps in a file.
    os.dup2(2, 1)
    print(json.dumps({"ready": list(contestants)}), file=answers, flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        started = perf_counter()
        own_seconds = contestants[order["run"]](order["data"], order["out"])
        seconds = perf_counter() - started if own_seconds is None else own_seconds
        print(json.dumps({"seconds": seconds}), file=answers, flush=True)
