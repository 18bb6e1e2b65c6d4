"""How far a run is: one live line on a terminal, a log line a minute elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from typing import TextIO

from pyspark.sql.streaming.listener import (
    QueryProgressEvent,
    QueryStartedEvent,
    QueryTerminatedEvent,
    StreamingQueryListener,
)
from tqdm import tqdm

_log = logging.getLogger("spark_aesthetic")
_LOG_EVERY_SECONDS = 60.0


class ProgressListener(StreamingQueryListener):
    """Follows one query by Spark's own reports, so it works wherever those do.

    Rows and bytes done count from the run's beginning; the bytes still to come are those that Delta's source reports.

    Args:
        name: Shown in front of each line.
        failed: Rows that have failed so far, by reason.
        file: Where the lines go; None is stderr.
    """

    def __init__(self, name: str, failed: Counter[str], file: TextIO | None) -> None:
        self._name = name
        self._failed = failed
        self._rows = 0
        self._left_at_first: float | None = None
        self._started = self._logged = time.monotonic()
        file = sys.stderr if file is None else file
        self._bar = tqdm(desc=name, unit=" rows", file=file) if file.isatty() else None

    def onQueryStarted(self, event: QueryStartedEvent) -> None:  # noqa: D102, N802
        pass

    def onQueryProgress(self, event: QueryProgressEvent) -> None:  # noqa: D102, N802
        progress = event.progress
        self._rows += progress.numInputRows
        left = sum(float((source.metrics or {}).get("numBytesOutstanding", 0)) for source in progress.sources)
        if self._bar is not None:
            self._bar.set_postfix_str(self._line(left), refresh=False)
            self._bar.update(progress.numInputRows)
        elif time.monotonic() - self._logged >= _LOG_EVERY_SECONDS:
            self._logged = time.monotonic()
            _log.info("%s: %d rows, %s", self._name, self._rows, self._line(left))

    def onQueryIdle(self, event: object) -> None:  # noqa: D102, N802
        pass

    def onQueryTerminated(self, event: QueryTerminatedEvent) -> None:  # noqa: D102, N802
        pass

    def close(self) -> None:
        """End the live line."""
        if self._bar is not None:
            self._bar.close()

    def _line(self, left: float) -> str:
        """Rate, what is left and for how long, and failures, as they stand after a chunk."""
        seconds = time.monotonic() - self._started
        if self._left_at_first is None:
            self._left_at_first, self._started_at_first = left, time.monotonic()
        done = self._left_at_first - left
        parts = [f"{self._rows / seconds:.1f} rows/s", f"{left / 2**20:.0f} MiB left"]
        if done > 0 and left > 0:
            parts.append(f"{left / done * (time.monotonic() - self._started_at_first):.0f} s to go")
        parts += [f"{count} {reason}" for reason, count in self._failed.most_common()]
        return ", ".join(parts)
