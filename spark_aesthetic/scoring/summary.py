"""What a run did, as its caller gets it."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any

from spark_aesthetic.scoring.tally import Tally


@dataclass(frozen=True)
class Summary:
    """What a run did.

    Attributes:
        rows_read: Rows in the source table.
        scored: Rows that got a score in this run.
        failed: Rows that got a reason instead in this run.
        failed_by_reason: The same, counted by `aesthetic_error`.
        skipped: Rows that had a score or a reason of this model before and were left alone, counted in the scores; None
            for a run that was told to end.
        model: Name and content of the predictor, as in `aesthetic_model`.
        seconds: Wall-clock time of the run.
        chunks: Commits of scores in this run.
        dropped: Scores that were dropped, for their rows are no longer in the source.
        bytes_rewritten: In place, bytes of the source's files that held rows to be scored: the commit rewrote them.
        stages: Of images, seconds that the workers' threads took to decode, to transfer to the device and to infer,
            and that they waited for Spark; their sum over the threads passes `seconds` where work was done at once.
        peak_memory_bytes: Of images, the most memory that one worker had resident, shared pages included.
        dry_run: Whether nothing was written.
        to_score: In a dry run, the rows that a run would work on.
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
        """As JSON takes it, without what a run of its kind does not have."""
        return {name: value for name, value in asdict(self).items() if value is not None and value is not False}


def summed_up(
    tally: Tally, *, model: str, began: float, rows_read: int, skipped: int | None, bytes_rewritten: int | None = None
) -> Summary:
    """What has been counted, with the seconds since a time of `time.monotonic`."""
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
