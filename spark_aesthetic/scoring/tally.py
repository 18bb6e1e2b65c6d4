"""What a run has done so far."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime

from pyspark.sql import DataFrame, Row
from pyspark.sql import functions as F

from spark_aesthetic.functions.costs import NAMES, Costs
from spark_aesthetic.scoring.live import Tasks


@dataclass(kw_only=True)
class Tally:
    """What a run has done so far, counted.

    Attributes:
        known: Rows that the model had when the stream's first chunk began; None before that.
        times: When its commits began to be scored, which is what their rows have in `aesthetic_scored_at`.
        rows: Rows that this run has scored or failed on.
        failed: The latter by their reason.
        dropped: Scores that this run has dropped.
        commits: Commits of this run.
        costs: What the images of this run have cost; None if there were none.
        tasks: Those of the rows that are being scored.
        failure: The error that ended the run, as it was raised.
    """

    known: int | None = None
    times: list[datetime] = field(default_factory=list)
    rows: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    dropped: int = 0
    commits: int = 0
    costs: Costs | None = None
    tasks: Tasks = field(default_factory=Tasks)
    failure: Exception | None = None

    def add_commit(self, scored_at: datetime) -> None:
        """Count a commit by the time of its rows."""
        self.commits += 1
        self.times.append(scored_at)

    def add_costs(self, counts: Row) -> None:
        """Add what rows have cost, if it stands there."""
        found = counts.asDict()
        if NAMES[0] in found:
            self.costs = (self.costs or Costs()) + Costs(**{name: found[name] or 0.0 for name in NAMES})

    def add_reasons(self, rows: DataFrame, error: str) -> None:
        """Count the reasons of rows that failed, in a column of theirs."""
        reasons = rows.where(F.col(error).isNotNull()).groupBy(F.col(error).alias("error")).count().collect()
        self.failed.update({row.error: row["count"] for row in reasons})

    def forget_rows(self) -> None:
        """Begin to count anew, where what has been scored is thrown away."""
        self.rows, self.commits, self.failed = 0, 0, Counter()
