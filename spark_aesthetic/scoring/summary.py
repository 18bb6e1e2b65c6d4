"""The summary of a run for its caller."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any

from spark_aesthetic.scoring.tally import Tally


@dataclass(frozen=True)
class Summary:
    """The result of a run.

    Attributes:
        rows_read: Rows in the source table.
        scored: Rows that got a score in this run.
        failed: Rows that got a reason instead of a score in this run.
        failed_by_reason: Failed rows by `aesthetic_error`.
        skipped: Rows that already had a score or a reason of this model and were left alone, counted in the scores
            table; None if the run was stopped.
        model: Name and content of the predictor, as in `aesthetic_model`.
        seconds: Wall-clock time of the run.
        chunks: Commits of scores in this run.
        dropped: Scores that were dropped because their rows are no longer in the source.
        bytes_rewritten: For a run in place, the size in bytes of the source's files that have rows to score. The commit
            rewrote these files.
        stages: For images, the seconds that the workers' threads spent to decode, to transfer to the device, to infer,
            and to wait for Spark. Threads work in parallel, so the sum may exceed `seconds`.
        peak_memory_bytes: For images, the largest resident memory of one worker, including shared pages.
        dry_run: Whether nothing was written.
        to_score: In a dry run, the number of rows that a run would score.
    """

    rows_read: int
    scored: int
    failed: int
    skipped: int | None
    model: str
    seconds: float
    failed_by_reason: dict[str, int] = field(default_factory=dict)
    chunks: int | None = None
    dropped: int | None = None
    bytes_rewritten: int | None = None
    stages: dict[str, float] | None = None
    peak_memory_bytes: int | None = None
    dry_run: bool = False
    to_score: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return a dict for JSON, without fields that do not apply to this kind of run."""
        return {name: value for name, value in asdict(self).items() if value is not None and value is not False}


def summed_up(
    tally: Tally, *, model: str, began: float, rows_read: int, skipped: int | None, bytes_rewritten: int | None = None
) -> Summary:
    """Make the summary of a tally; `began` is the start of the run in `time.monotonic` seconds."""
    failed, costs = tally.failed.total(), tally.costs
    return Summary(
        rows_read=rows_read,
        scored=tally.rows - failed,
        failed=failed,
        skipped=skipped,
        model=model,
        seconds=round(time.monotonic() - began, 3),
        failed_by_reason=dict(sorted(tally.failed.items())),
        chunks=tally.commits,
        dropped=tally.dropped,
        bytes_rewritten=bytes_rewritten,
        peak_memory_bytes=None if costs is None else int(costs.peak_memory_bytes),
        stages=None if costs is None else {name: round(value, 3) for name, value in costs.stages.items()},
    )
