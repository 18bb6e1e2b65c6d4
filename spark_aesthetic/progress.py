"""How far a run is: one live line on a terminal or in a notebook, a log line a minute elsewhere."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import NoReturn, TextIO

from pyspark.sql.streaming.listener import (
    QueryProgressEvent,
    QueryStartedEvent,
    QueryTerminatedEvent,
    StreamingQueryListener,
)
from tqdm import tqdm

_log = logging.getLogger("spark_aesthetic")
_LIVE_EVERY_SECONDS, _LOG_EVERY_SECONDS, _TOLD_WITHIN_SECONDS = 1.0, 60.0, 5.0


class ProgressListener(StreamingQueryListener):
    """Follows one query by Spark's own reports, of which each chunk makes one.

    Delta's source does not say how many bytes are left, so bytes are rows of the table's mean size.

    Args:
        name: Shown in front of each line.
        rows_to_do: Gives the rows of the run, known from its first chunk on; None before.
        bytes_a_row: Of the source's files.
        failed: Rows that have failed so far, by reason.
        file: Where the live line goes; None is stderr.
    """

    def __init__(
        self,
        name: str,
        *,
        rows_to_do: Callable[[], int | None],
        bytes_a_row: float,
        failed: Counter[str],
        file: TextIO | None,
    ) -> None:
        self._name = name
        self._rows_to_do = rows_to_do
        self._bytes_a_row = bytes_a_row
        self._failed = failed
        self._run_id: str | None = None
        self._rows = self._chunks = 0
        self._started = time.monotonic()
        file = sys.stderr if file is None else file
        live = file.isatty() or _in_notebook()
        self._bar = tqdm(desc=name, unit=" rows", file=file, dynamic_ncols=True) if live else None
        self._ended, self._closed = threading.Event(), threading.Event()
        self._clock = threading.Thread(target=self._tick, name="spark-aesthetic progress", daemon=True)
        self._clock.start()

    def follow(self, run_id: str) -> None:
        """Which run of which query; others in the session are not this one's."""
        self._run_id = run_id

    def onQueryStarted(self, event: QueryStartedEvent) -> None:  # noqa: D102, N802
        pass

    def onQueryProgress(self, event: QueryProgressEvent) -> None:  # noqa: D102, N802
        if str(event.progress.runId) == self._run_id and event.progress.numInputRows > 0:
            self._rows += event.progress.numInputRows
            self._chunks += 1

    def onQueryIdle(self, event: object) -> None:  # noqa: D102, N802
        pass

    def onQueryTerminated(self, event: QueryTerminatedEvent) -> None:  # noqa: D102, N802
        if str(event.runId) == self._run_id:
            self._ended.set()

    def close(self) -> None:
        """End the line, once the last chunk is told of: Spark tells some time later."""
        self._ended.wait(_TOLD_WITHIN_SECONDS if self._run_id is not None else 0)
        self._closed.set()
        self._clock.join()
        if self._bar is not None:
            self._show(self._bar)
            self._bar.close()

    def line(self) -> str:
        """Rows and bytes done and to do, rate, time to go, failures by reason, as they stand after the last chunk."""
        seconds, to_do = time.monotonic() - self._started, self._rows_to_do()
        total = "" if to_do is None or to_do < self._rows else f" of {to_do}"
        parts = [f"{self._rows}{total} rows", self._sizes(to_do), f"{self._rows / seconds:.1f} rows/s"]
        if total and self._rows:
            parts.append(f"{tqdm.format_interval((to_do - self._rows) * seconds / self._rows)} to go")  # type: ignore[operator]
        return ", ".join([*parts, *self._notes()])

    def _sizes(self, to_do: int | None) -> str:
        def size(rows: int) -> str:
            return str(tqdm.format_sizeof(rows * self._bytes_a_row, "B", 1024))

        return f"about {size(self._rows)}" + ("" if to_do is None else f" of {size(max(to_do, self._rows))}")

    def _notes(self) -> list[str]:
        work = [] if self._ended.is_set() else [f"chunk {self._chunks + 1} at work"]
        return work + [f"{count} {reason}" for reason, count in self._failed.most_common()]

    def _tick(self) -> None:
        while not self._closed.wait(_LOG_EVERY_SECONDS if self._bar is None else _LIVE_EVERY_SECONDS):
            if self._bar is None:
                _log.info("%s: %s", self._name, self.line())
            else:
                self._show(self._bar)

    def _show(self, bar: tqdm[NoReturn]) -> None:
        to_do = self._rows_to_do()
        bar.total = to_do if to_do is not None and to_do >= self._rows else None
        bar.n = self._rows
        bar.set_postfix_str(", ".join([self._sizes(to_do), *self._notes()]))


def _in_notebook() -> bool:
    """Whether this is a kernel; that its package has been imported does not tell, for PySpark does that anywhere."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")
