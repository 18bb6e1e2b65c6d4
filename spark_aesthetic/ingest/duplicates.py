"""Images with the same bytes: which rows are copies, and the table that lists the copies which were left out."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from spark_aesthetic.delta import naming, tables
from spark_aesthetic.delta.commits import Commit, committed, merge_into
from spark_aesthetic.delta.naming import identifier
from spark_aesthetic.ingest.sources import VERSION
from spark_aesthetic.ingest.table import ImageTable
from spark_aesthetic.webdataset.source import URL

# In place of a shard's version: read it again. Greater than every version, so that `max` gives it.
_AGAIN = "~again"


@dataclass(frozen=True)
class Duplicates:
    """Rows of the same bytes: which of them are copies, and the table in which `keep_once` lists the copies.

    Attributes:
        table: The table of images.
    """

    table: ImageTable

    @property
    def name(self) -> str:
        """The table that lists the copies."""
        name = self.table.name
        path = naming.path_of(name)
        if path is not None:
            return f"{path}_duplicates"
        # The last letter of a name in backquotes is one of them.
        return f"{name.removesuffix('`')}_duplicates{'`' if name.endswith('`') else ''}"

    def rows(self) -> DataFrame | None:
        """The list, or None if there is none."""
        spark = self.table.spark
        return tables.read_table(spark, self.name) if tables.is_delta(spark, self.name) else None

    def first(self, rows: DataFrame, *, changed: bool) -> DataFrame:
        """Paths of the first of each content, unless the table has it."""
        there = self.table.snapshot().select("path", "image_id")
        if changed:
            # The older file of a path does not make the newer one a copy.
            there = there.join(F.broadcast(rows.select("path")), "path", "left_anti")
        first = rows.groupBy("image_id").agg(F.min("path").alias("path"))
        return _without(first, there, F.broadcast(first)).select("path")

    def add(self, copies: DataFrame) -> None:
        """Add rows to the list, which is made if need be."""
        writer = copies.coalesce(1).write.format("delta").mode("append").option("mergeSchema", "true")
        tables.write_table(writer, self.name)

    def forget(self, rows: DataFrame, kept: DataFrame, gone: DataFrame | None) -> None:
        """Let the next run take copies of what rows replace for new: it keeps one of them.

        Those of files go from the list. Those of shards make their shards to be read again.
        """
        if not tables.is_delta(self.table.spark, self.name):
            return
        there = self.table.snapshot().select("path", "image_id")
        paths = rows.select("path") if gone is None else rows.select("path").union(gone)
        old = there.join(F.broadcast(paths), "path", "left_semi").select("image_id").distinct()
        lost = old.join(rows.join(kept, "path").select("image_id"), "image_id", "left_anti")
        again = ""
        if gone is not None:
            self.add(rows.limit(0).drop("image"))
            again = f"WHEN MATCHED AND target.{URL} IS NOT NULL THEN UPDATE SET {VERSION} = '{_AGAIN}' "
        self._merge(lost, f"ON target.image_id = scored.image_id {again}WHEN MATCHED THEN DELETE")
        if gone is not None:
            # A shard that is read again has its copies found again.
            own = rows.select(URL).distinct()
            self._merge(own, f"ON target.{URL} = scored.{URL} WHEN MATCHED THEN DELETE")

    def _merge(self, rows: DataFrame, clauses: str) -> None:
        list_ = identifier(self.name)
        committed(lambda: merge_into(self.table.spark, list_, rows, clauses, Commit(info="{}")))

    def count(self, began: datetime, version: int | None, *, replaced: bool) -> int:
        """Count the rows of a run whose bytes another row had before them, from ids alone.

        Args:
            began: When the run began, as its rows have it.
            version: The table's version then.
            replaced: Whether the run has replaced rows.
        """
        mine = self.table.rows().where(F.col("ingested_at") == F.lit(began)).select("path", "image_id")
        known = self.table.rows(version).select("path", "image_id")
        if replaced:
            known = known.join(mine.select("path"), "path", "left_anti")
        ids = mine.select("image_id").distinct()
        return mine.count() - _without(ids, known, ids).count()


def _without(rows: DataFrame, known: DataFrame, few: DataFrame) -> DataFrame:
    """Rows whose image_id is not known; those that are known are looked up first, so that few of them are shuffled."""
    met = known.join(few, "image_id", "left_semi").select("image_id").distinct()
    return rows.join(met, "image_id", "left_anti")
