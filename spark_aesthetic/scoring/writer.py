"""Score the rows of a source once, and write them to a scores table in one commit.

Each method makes one pass over the image bytes. Its narrow results are persisted on the executors' disks, and are
counted, checked and written from there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from uuid import uuid4

from pyspark.sql import Column, DataFrame, Row, SparkSession
from pyspark.sql import functions as F

import spark_aesthetic
from spark_aesthetic.delta import sessions, tables
from spark_aesthetic.delta.commits import Commit, committed
from spark_aesthetic.delta.frames import broadcast_if_few, on_disk
from spark_aesthetic.delta.naming import quoted
from spark_aesthetic.delta.tables import Origin
from spark_aesthetic.functions.costs import NAMES, PEAK
from spark_aesthetic.predictors.recipe import Predictor
from spark_aesthetic.scoring import changes
from spark_aesthetic.scoring.changes import CHANGE, VERSION
from spark_aesthetic.scoring.tally import Tally
from spark_aesthetic.scoring.target import CHANGED, DELETED, EMBEDDING, ERROR, MODEL, SCORE, SCORED_AT, Target

# The struct column with the result of a row.
SCORED = "_aesthetic_scored"


@dataclass(frozen=True, kw_only=True)
class Writer:
    """Scores the rows of one source and writes them to one scores table.

    It holds no DataFrame, because Spark Connect sends it to the process that writes the chunks.

    Attributes:
        source: The table of images or embeddings.
        target: The scores table.
        struct: Computes score, error and optionally embedding and costs of a row.
        column: The source's column that `struct` scores.
        info: The metadata of every commit.
    """

    source: Origin
    target: Target
    struct: Column
    column: str
    info: Mapping[str, object]

    @staticmethod
    def told(pinned: Predictor, source: Origin) -> dict[str, object]:
        """Return the metadata of every commit of one run: the model that computes the scores, and the source."""
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
        """The source's columns to read."""
        return (*self.target.kept, self.column)

    def telling(self, **told: object) -> Writer:
        """Return a copy of the writer with more metadata for every commit."""
        return replace(self, info={**self.info, **told})

    def commit(self, version: int, **told: object) -> Commit:
        """Return the metadata of a commit with rows from a version of the source."""
        return Commit(info=json.dumps({**self.info, "source_version": version, **told}))

    @contextmanager
    def kept(self, rows: DataFrame, tally: Tally, *also: str) -> Iterator[tuple[DataFrame, Row]]:
        """Score rows once, and provide the persisted result with the counts of all and of failed rows."""
        scored = rows.select(*map(quoted, self.target.kept), *also, self.struct.alias(SCORED))
        with on_disk(scored) as kept:
            with tally.tasks.counted(rows.sparkSession):
                counts = kept.agg(*_counts(kept)).collect()[0]
            tally.add_costs(counts)
            yield kept, counts

    def made(self, kept: DataFrame, scored_at: datetime, *also: str) -> DataFrame:
        """Select the columns of the scores table from rows that `kept` has scored."""
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
        """Score and append rows with new keys.

        Args:
            rows: The columns of `inputs`.
            commit: The metadata of the commit.
            tally: The counts to update.
            scored_at: The `aesthetic_scored_at` of the rows.
            still_new: Raises an error if the keys are no longer new; called before each attempt to commit.
        """
        with self.kept(rows, tally) as (kept, counts):
            # An OPTIMIZE of the source gives a chunk without rows.
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
        in_part: Sequence[int] = (),
        alone: Callable[[], object] = lambda: None,
    ) -> None:
        """Score rows with new or existing keys in one pass, and merge them by their key.

        Args:
            spark: The session.
            rows: The columns of `inputs` and, for changes, `CHANGE` and `VERSION` from a change data feed. Without
                these two, existing rows are left alone.
            commit: The metadata of the commit.
            tally: The counts to update.
            scored_at: The `aesthetic_scored_at` of the rows; None is the current time.
            drops: Whether the scores of deleted rows are dropped.
            in_part: Versions of which the rows may have only some of the changes.
            alone: Raises an error if another run has written; called before each attempt to commit.
        """
        scored_at = now() if scored_at is None else scored_at
        has_changes = CHANGE in rows.columns
        if not has_changes:
            rows = changes.said(rows, "insert")
        # The images of deleted rows are not scored.
        rows = rows.withColumn(self.column, F.when(changes.is_present(), F.col(quoted(self.column))))
        with self.kept(rows, tally, CHANGE, VERSION) as (kept, counts):
            if counts.rows == 0:
                # If another run in this JVM has written these keys, Spark computes the persisted rows again from the
                # new scores, and finds none.
                alone()
                return
            key, made = self.target.key, self.made(kept, scored_at, CHANGE, VERSION)
            for version in in_part:
                made = changes.read_in_part(made, version, self._deleted_and_there(spark, made, version), key)
            latest = changes.latest(made, key, self.target.types)
            if not drops:
                # Deleted rows keep their scores, so a row that is inserted with the same key may have another image.
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
                # Count only rows that were written, not existing ones. Delta's statistics make the filter by time fast.
                tally.add_reasons(self.target.rows(spark).where(F.col(SCORED_AT) == F.lit(scored_at)), ERROR)

    def _deleted_and_there(self, spark: SparkSession, made: DataFrame, version: int) -> DataFrame | None:
        """Return the keys that a version deletes and has in other rows; None if it deletes no row here."""
        key = list(map(quoted, self.target.key))
        deleted = made.where(changes.deletes_of(version)).select(*key)
        count = deleted.count()
        if not count:
            return None
        sessions.allow_old_versions(spark)
        keys = tables.read_table(spark, self.source.table, version).select(*key)
        return keys.join(broadcast_if_few(deleted, count), list(self.target.key), "left_semi")

    def replace_rows(
        self, spark: SparkSession, rows: DataFrame, commit: Commit, tally: Tally, *, alone: Callable[[], object]
    ) -> None:
        """Score rows of the source and replace their existing scores; `alone` works as in `merge`."""
        self.merge(spark, changes.said(rows, "update_postimage"), commit, tally, alone=alone)


def now() -> datetime:
    """Return the current time, in whole milliseconds."""
    # Rows are looked up by this time, and every spark.sql.parquet.outputTimestampType keeps milliseconds.
    now = datetime.now(timezone.utc)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)


def _counts(scored: DataFrame) -> list[Column]:
    of_row = F.col(SCORED)
    counts = [F.count(F.lit(1)).alias("rows"), F.count(of_row["error"]).alias("failed")]
    if NAMES[0] in scored.select(f"{SCORED}.*").columns:
        counts += [(F.max if name == PEAK else F.sum)(of_row[name]).alias(name) for name in NAMES]
    return counts
