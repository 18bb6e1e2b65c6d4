"""Rows of a source become rows of a scores table: they are scored once, and written in one commit.

Each way from rows to a commit is one pass over their bytes: what comes of them is narrow, is kept on the executors'
disks, and is counted, checked and written from there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from uuid import uuid4

from pyspark.sql import Column, DataFrame, Row, SparkSession
from pyspark.sql import functions as F

import spark_aesthetic
from spark_aesthetic.delta.commits import Commit, committed
from spark_aesthetic.delta.frames import on_disk
from spark_aesthetic.delta.naming import quoted
from spark_aesthetic.delta.tables import Origin
from spark_aesthetic.functions.costs import NAMES, PEAK
from spark_aesthetic.predictors.recipe import Predictor
from spark_aesthetic.scoring import changes
from spark_aesthetic.scoring.changes import CHANGE, VERSION
from spark_aesthetic.scoring.tally import Tally
from spark_aesthetic.scoring.target import CHANGED, DELETED, EMBEDDING, ERROR, MODEL, SCORE, SCORED_AT, Target

# What comes of a row.
SCORED = "_aesthetic_scored"


@dataclass(frozen=True, kw_only=True)
class Writer:
    """How rows of one source become rows of one scores table.

    A value without a DataFrame: Spark Connect sends it to the process that writes the chunks there.

    Attributes:
        source: The table of images or embeddings.
        target: The scores table.
        struct: Makes score, error and perhaps embedding and costs of a row.
        column: The source's column that `struct` scores.
        info: What every commit says of itself.
    """

    source: Origin
    target: Target
    struct: Column
    column: str
    info: Mapping[str, object]

    @staticmethod
    def told(pinned: Predictor, source: Origin) -> dict[str, object]:
        """What every commit of one run says of its scores: who made them, and of what."""
        return {
            "spark_aesthetic": spark_aesthetic.__version__,
            "model": pinned.model_id,
            "predictor": pinned.to_json(),
            "source": source.identifier,
            "source_id": source.id,
            "run": uuid4().hex[:12],
        }

    @property
    def inputs(self) -> tuple[str, ...]:
        """The source's columns that are read."""
        return (*self.target.kept, self.column)

    def telling(self, **told: object) -> Writer:
        """The same, with more that every commit says of itself."""
        return replace(self, info={**self.info, **told})

    def commit(self, version: int, **told: object) -> Commit:
        """What a commit of rows from a version of the source says of itself."""
        return Commit(info=json.dumps({**self.info, "source_version": version, **told}))

    @contextmanager
    def kept(self, rows: DataFrame, tally: Tally, *also: str) -> Iterator[tuple[DataFrame, Row]]:
        """What comes of rows, scored once, and how many there are and have failed."""
        scored = rows.select(*map(quoted, self.target.kept), *also, self.struct.alias(SCORED))
        with on_disk(scored) as kept:
            with tally.tasks.counted(rows.sparkSession):
                counts = kept.agg(*_counts(kept)).collect()[0]
            tally.add_costs(counts)
            yield kept, counts

    def made(self, kept: DataFrame, scored_at: datetime, *also: str) -> DataFrame:
        """The columns of the scores table, of what has come of rows."""
        made = {
            SCORE: F.col(SCORED)["score"],
            ERROR: F.col(SCORED)["error"],
            MODEL: F.lit(self.target.model),
            SCORED_AT: F.lit(scored_at),
            EMBEDDING: F.col(SCORED)["embedding"],
        }
        names = [made[name].alias(name) for name in self.target.written]
        return kept.select(*map(quoted, self.target.kept), *also, *names)

    def append(
        self, rows: DataFrame, commit: Commit, tally: Tally, *, scored_at: datetime, still_new: Callable[[], object]
    ) -> None:
        """Score rows whose keys are new.

        Args:
            rows: The columns of `inputs`.
            commit: What the commit says of itself.
            tally: Where it is counted.
            scored_at: The time that the rows get.
            still_new: Raises an error if the keys are new no longer; asked before each attempt to commit.
        """
        with self.kept(rows, tally) as (kept, counts):
            # The files of an OPTIMIZE have no new row.
            if counts.rows == 0:
                return
            made = self.made(kept, scored_at)
            committed(lambda: self.target.append(made, commit), still_new)
            tally.add_commit(scored_at)
            tally.rows += counts.rows
            if counts.failed:
                tally.add_reasons(kept, f"{SCORED}.error")

    def merge(
        self,
        spark: SparkSession,
        rows: DataFrame,
        commit: Commit,
        tally: Tally,
        *,
        scored_at: datetime | None = None,
        drops: bool = True,
        alone: Callable[[], object] = lambda: None,
    ) -> None:
        """Score rows whose keys may be there, in one pass, then take over what they are now.

        Args:
            spark: The session.
            rows: The columns of `inputs` and, for changes, `CHANGE` and `VERSION` as a change data feed has them.
                Without those, rows that exist already are left alone.
            commit: What the commit says of itself.
            tally: Where it is counted.
            scored_at: The time that the rows get; None is that of the clock.
            drops: Whether the scores of deleted rows are dropped.
            alone: Raises an error if another run has written; asked before each attempt to commit.
        """
        scored_at = now() if scored_at is None else scored_at
        has_changes = CHANGE in rows.columns
        if not has_changes:
            rows = changes.said(rows, "insert")
        # The images of deleted rows are not scored.
        rows = rows.withColumn(self.column, F.when(changes.is_present(), F.col(quoted(self.column))))
        with self.kept(rows, tally, CHANGE, VERSION) as (kept, counts):
            if counts.rows == 0:
                return
            key, made = self.target.key, self.made(kept, scored_at, CHANGE, VERSION)
            latest = changes.latest(made, key, self.target.types)
            if not drops:
                # A row that is gone keeps its score here, so one that comes again under its key may be another.
                latest = latest.where(~F.col(DELETED)).withColumn(CHANGED, F.lit(has_changes))
            bounds = changes.check_key(latest, key)
            merged = committed(
                lambda: self.target.merge(spark, latest, commit, inserts_only=not has_changes, bounds=bounds), alone
            )
            if merged is None:
                return
            inserted, updated, deleted = merged
            tally.add_commit(scored_at)
            tally.rows += inserted + updated
            tally.dropped += deleted
            if counts.failed:
                # Of those that were written, which a key that was there already is not; Delta has statistics of times.
                tally.add_reasons(self.target.rows(spark).where(F.col(SCORED_AT) == F.lit(scored_at)), ERROR)

    def replace_rows(
        self, spark: SparkSession, rows: DataFrame, commit: Commit, tally: Tally, *, alone: Callable[[], object]
    ) -> None:
        """Score rows of the source, replacing what is there; `alone` is that of `merge`."""
        self.merge(spark, changes.said(rows, "update_postimage"), commit, tally, alone=alone)


def now() -> datetime:
    """The time of the clock, in milliseconds."""
    # Every spark.sql.parquet.outputTimestampType keeps those: rows are found again by their time.
    now = datetime.now(timezone.utc)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)


def _counts(scored: DataFrame) -> list[Column]:
    of_row = F.col(SCORED)
    counts = [F.count(F.lit(1)).alias("rows"), F.count(of_row["error"]).alias("failed")]
    if NAMES[0] in scored.select(f"{SCORED}.*").columns:
        counts += [(F.max if name == PEAK else F.sum)(of_row[name]).alias(name) for name in NAMES]
    return counts
