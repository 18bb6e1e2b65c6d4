"""Find images with the same bytes, and list the copies that `keep_once` leaves out in a second table."""

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

# Replaces a shard's version to have the shard read again. It sorts after every version, so `max` returns it.
_AGAIN = "~again"


@dataclass(frozen=True)
class Duplicates:
    """Rows with the same bytes, and the table in which `keep_once` lists the copies.

    Attributes:
        table: The table of images.
    """

    table: ImageTable

    @property
    def name(self) -> str:
        """The name of the table that lists the copies."""
        name = self.table.name
        path = naming.path_of(name)
        if path is not None:
            return f"{path}_duplicates"
        # A quoted name ends in a backquote, so the suffix goes before it.
        return f"{name.removesuffix('`')}_duplicates{'`' if name.endswith('`') else ''}"

    def rows(self) -> DataFrame | None:
        """Read the list of copies, or return None if it does not exist."""
        spark = self.table.spark
        return tables.read_table(spark, self.name) if tables.is_delta(spark, self.name) else None

    def first(self, rows: DataFrame, *, changed: bool) -> DataFrame:
        """Return the first path, in sort order, of each `image_id` that the table does not contain."""
        there = self.table.snapshot().select("path", "image_id")
        if changed:
            # The old version of a file does not make its new version a copy.
            there = there.join(F.broadcast(rows.select("path")), "path", "left_anti")
        first = rows.groupBy("image_id").agg(F.min("path").alias("path"))
        return _without(first, there, F.broadcast(first)).select("path")

    def add(self, copies: DataFrame) -> None:
        """Append rows to the list of copies, which is created if missing."""
        writer = copies.coalesce(1).write.format("delta").mode("append").option("mergeSchema", "true")
        tables.write_table(writer, self.name)

    def forget(self, rows: DataFrame, kept: DataFrame, gone: DataFrame | None) -> None:
        """Make the next run read the copies of replaced images again, so that it keeps one of them.

        Copies that are files are removed from the list. Copies in shards have their shard read again.
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
            # Reading these shards again finds their copies.
            own = rows.select(URL).distinct()
            self._merge(own, f"ON target.{URL} = scored.{URL} WHEN MATCHED THEN DELETE")

    def _merge(self, rows: DataFrame, clauses: str) -> None:
        list_ = identifier(self.name)
        committed(lambda: merge_into(self.table.spark, list_, rows, clauses, Commit(info="{}")))

    def count(self, began: datetime, version: int | None, *, replaced: bool) -> int:
        """Count the rows of a run that duplicate an earlier row, by `image_id` alone.

        Args:
            began: The run's start time, as in `ingested_at`.
            version: The table's version at that time.
            replaced: Whether the run has replaced rows.
        """
        mine = self.table.rows().where(F.col("ingested_at") == F.lit(began)).select("path", "image_id")
        known = self.table.rows(version).select("path", "image_id")
        if replaced:
            known = known.join(mine.select("path"), "path", "left_anti")
        ids = mine.select("image_id").distinct()
        return mine.count() - _without(ids, known, ids).count()


def _without(rows: DataFrame, known: DataFrame, few: DataFrame) -> DataFrame:
    """Return the rows with an unknown `image_id`. `few` reduces the known ids first, so only few are shuffled."""
    met = known.join(few, "image_id", "left_semi").select("image_id").distinct()
    return rows.join(met, "image_id", "left_anti")
