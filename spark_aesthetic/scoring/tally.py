"""The counts of a run."""

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
    """The counts of a run so far.

    Attributes:
        known: Number of rows that the model had before the stream's first chunk in this run; None before that chunk.
        times: The `aesthetic_scored_at` of each commit, which is the time when its scoring began.
        rows: Rows that this run has scored, or that failed.
        failed: Failed rows by reason.
        dropped: Scores that this run has dropped.
        commits: Commits of this run.
        costs: The costs of this run's images; None if there were none.
        tasks: The tasks of the rows that are being scored.
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
        """Count a commit, and record the time of its rows."""
        self.commits += 1
        self.times.append(scored_at)

    def add_costs(self, counts: Row) -> None:
        """Add the costs of rows, if the counts include them."""
        found = counts.asDict()
        if NAMES[0] in found:
            self.costs = (self.costs or Costs()) + Costs(**{name: found[name] or 0.0 for name in NAMES})

    def add_reasons(self, rows: DataFrame, error: str) -> None:
        """Count the failed rows by the reason in their `error` column."""
        reasons = rows.where(F.col(error).isNotNull()).groupBy(F.col(error).alias("error")).count().collect()
        self.failed.update({row.error: row["count"] for row in reasons})

    def forget_rows(self) -> None:
        """Reset the counts of rows, because their scores were discarded."""
        self.rows, self.commits, self.failed = 0, 0, Counter()
