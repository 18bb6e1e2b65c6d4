"""Show the progress of a run: one live line on a terminal or in a notebook, elsewhere one log line per minute."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import itemgetter
from typing import Any, NoReturn, TextIO

from pyspark.sql import SparkSession
from pyspark.sql.streaming.listener import (
    QueryProgressEvent,
    QueryStartedEvent,
    QueryTerminatedEvent,
    StreamingQueryListener,
)
from tqdm import tqdm

from spark_aesthetic.delta.connect import task_counter
from spark_aesthetic.scoring.cell import CellLine, in_notebook

_log = logging.getLogger("spark_aesthetic")
_LIVE_EVERY_SECONDS, _LOG_EVERY_SECONDS, _TOLD_WITHIN_SECONDS = 1.0, 60.0, 5.0


class Tasks:
    """Counts the finished tasks of one pass over rows, because Spark reports the rows only at the end of a pass.

    The tasks of a pass in another process, such as a chunk on Spark Connect, cannot be counted.
    """

    def __init__(self) -> None:
        self._count: Callable[[], tuple[int, int]] | None = None
        self._ended, self._largest = False, (0, 0)

    @contextmanager
    def counted(self, spark: SparkSession) -> Iterator[None]:
        """Count the tasks of this thread's jobs for the duration of the context."""
        self._ended, self._largest = False, (0, 0)
        with task_counter(spark) as self._count:
            try:
                yield
                self._ended = True
            finally:
                self._count = None

    def forget(self) -> None:
        """Forget the finished pass, because its rows are known by now."""
        self._ended = False

    def count(self) -> tuple[int, int] | None:
        """Return the number of finished tasks and of all tasks in the running pass; None if it is unknown."""
        counted = self._count
        if counted is None:
            return None
        # The stage with the most tasks is the one that reads rows. Smaller stages run before and after it.
        self._largest = max(counted(), self._largest, key=itemgetter(1))
        return self._largest if self._largest[1] else None

    def share(self, count: tuple[int, int] | None) -> float:
        """Return the finished share of the pass, from 0 to 1; it stays at 1 until the rows of the pass are known."""
        return float(self._ended) if count is None else count[0] / count[1]


class ProgressListener(StreamingQueryListener):
    """Shows the progress of a streaming query, which Spark reports once per chunk, or of work that calls `add`.

    Delta's source does not report the bytes that are left, so bytes are estimated from rows and the table's mean size
    of a row. Within a chunk, rows are estimated from the share of finished tasks and the expected rows of a chunk.

    Args:
        name: Shown in front of each line.
        rows_to_do: Returns the number of rows of the run; None before the first chunk.
        bytes_a_row: Mean size of a row in the source's files.
        rows_a_chunk: Expected rows of a chunk, if that many are left.
        tasks: The tasks of the running chunk.
        failed: Rows that have failed so far, by reason.
        file: Stream for the live line, which is shown if it is a terminal; None is stderr, or a notebook's cell.
    """

    def __init__(
        self,
        name: str,
        *,
        rows_to_do: Callable[[], int | None],
        bytes_a_row: float,
        rows_a_chunk: float,
        tasks: Tasks,
        failed: Counter[str],
        file: TextIO | None,
    ) -> None:
        self._name = name
        self._rows_to_do = rows_to_do
        self._bytes_a_row = bytes_a_row
        self._rows_a_chunk = rows_a_chunk
        self._tasks = tasks
        self._failed = failed
        self._run_id: str | None = None
        self._rows = self._chunks = 0
        self._started = time.monotonic()
        shown: Any = file
        if file is None:
            shown = CellLine() if in_notebook() else sys.stderr
        self._bar = tqdm(desc=name, unit=" rows", file=shown, dynamic_ncols=True) if shown.isatty() else None
        self._ended, self._closed = threading.Event(), threading.Event()
        self._clock = threading.Thread(target=self._tick, name="spark-aesthetic progress", daemon=True)
        self._clock.start()

    def follow(self, run_id: str) -> None:
        """Follow this run of a query. Other queries of the session are ignored."""
        self._run_id = run_id

    def add(self, rows: int) -> None:
        """Count the rows of a finished chunk."""
        self._rows += rows
        self._chunks += 1
        self._tasks.forget()

    def onQueryStarted(self, event: QueryStartedEvent) -> None:  # noqa: D102, N802
        pass

    def onQueryProgress(self, event: QueryProgressEvent) -> None:  # noqa: D102, N802
        if str(event.progress.runId) == self._run_id and event.progress.numInputRows > 0:
            self.add(event.progress.numInputRows)

    def onQueryIdle(self, event: object) -> None:  # noqa: D102, N802
        pass

    def onQueryTerminated(self, event: QueryTerminatedEvent) -> None:  # noqa: D102, N802
        if str(event.runId) == self._run_id:
            self._ended.set()

    def close(self) -> None:
        """Wait for Spark's report of the last chunk, which comes with a delay, and end the line."""
        if self._run_id is None:
            self._ended.set()
        self._ended.wait(_TOLD_WITHIN_SECONDS)
        self._closed.set()
        self._clock.join()
        if self._bar is not None:
            self._show(self._bar)
            self._bar.close()

    def line(self) -> str:
        """Return rows and bytes done and to do, the rate, the time left and the failures by reason."""
        seconds, to_do, tasks = time.monotonic() - self._started, self._rows_to_do(), self._tasks.count()
        rows = self._done(tasks)
        total = "" if to_do is None or to_do < rows else f" of {to_do}"
        parts = [
            f"{'' if rows == self._rows else 'about '}{rows}{total} rows", self._sizes(rows, to_do),
            f"{rows / seconds:.1f} rows/s",
        ]  # fmt: skip
        if total and rows:
            parts.append(f"{tqdm.format_interval((to_do - rows) * seconds / rows)} to go")  # type: ignore[operator]
        return ", ".join([*parts, *self._notes(tasks)])

    def _done(self, tasks: tuple[int, int] | None) -> int:
        """Return the rows of finished chunks plus an estimate for the running chunk."""
        to_do = self._rows_to_do()
        left = self._rows_a_chunk if to_do is None else min(self._rows_a_chunk, to_do - self._rows)
        return self._rows + int(max(left, 0) * self._tasks.share(tasks))

    def _sizes(self, rows: int, to_do: int | None) -> str:
        def size(rows: int) -> str:
            return str(tqdm.format_sizeof(rows * self._bytes_a_row, "B", 1024))

        return f"about {size(rows)}" + ("" if to_do is None else f" of {size(max(to_do, rows))}")

    def _notes(self, tasks: tuple[int, int] | None) -> list[str]:
        done = "" if tasks is None else f", {tasks[0]} of {tasks[1]} tasks"
        work = [] if self._ended.is_set() else [f"chunk {self._chunks + 1} at work{done}"]
        return work + [f"{count} {reason}" for reason, count in self._failed.most_common()]

    def _tick(self) -> None:
        while not self._closed.wait(_LOG_EVERY_SECONDS if self._bar is None else _LIVE_EVERY_SECONDS):
            if self._bar is None:
                _log.info("%s: %s", self._name, self.line())
            else:
                self._show(self._bar)

    def _show(self, bar: tqdm[NoReturn]) -> None:
        to_do, tasks = self._rows_to_do(), self._tasks.count()
        rows = self._done(tasks)
        bar.total = to_do if to_do is not None and to_do >= rows else None
        bar.n = rows
        bar.set_postfix_str(", ".join([self._sizes(rows, to_do), *self._notes(tasks)]))
