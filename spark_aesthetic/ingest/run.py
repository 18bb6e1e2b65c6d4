"""One run of `ingest_images`: list the new entries, then read each chunk once and commit it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import reduce
from itertools import chain
from operator import and_
from uuid import uuid4

from pyspark.sql import Column, DataFrame, Row
from pyspark.sql import functions as F

from spark_aesthetic.delta.frames import on_disk
from spark_aesthetic.delta.naming import lacking, quoted
from spark_aesthetic.images import headers
from spark_aesthetic.ingest.duplicates import Duplicates
from spark_aesthetic.ingest.entries import Entry, ImageSource, header_udf
from spark_aesthetic.ingest.sources import VERSION
from spark_aesthetic.ingest.table import DROPPED, ImageTable, RunMark, marked
from spark_aesthetic.webdataset.source import URL

# Target size of the table's data files.
_FILE_BYTES = 128 << 20


@dataclass
class Done:
    """The counts of a run so far; `IngestSummary` describes them."""

    added: int = 0
    replaced: int = 0
    removed: int = 0
    unchanged: int = 0
    duplicates: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    bytes_read: int = 0
    chunks: int = 0


@dataclass(kw_only=True)
class Run:
    """One run from one source into one table.

    Attributes:
        source: The source of the images.
        name: The source as the user wrote it.
        table: The target table.
        keep_once: Whether copies are left out.
        retry_failed: Whether entries with an error are read again.
        id: A unique id of the run.
        began: The start time, stored in `ingested_at`.
        began_at: The table's version when the run began to write; None until `list_new` finds a new entry.
        generation: A number greater than that of every earlier run; 0 until `list_new` finds a new entry.
        done: The counts.
    """

    source: ImageSource
    name: str
    table: ImageTable
    keep_once: bool
    retry_failed: bool
    id: str = field(default_factory=lambda: uuid4().hex[:12])
    began: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    began_at: int | None = None
    generation: int = 0
    done: Done = field(default_factory=Done)

    @property
    def mark(self) -> RunMark:
        """The mark that the run's commits carry."""
        return RunMark(self.name, self.id, self.generation)

    @property
    def duplicates(self) -> Duplicates:
        """The copies of images in the table."""
        return Duplicates(self.table)

    def list_new(self) -> tuple[int, Iterator[Entry]]:
        """Count the source's entries and return the new ones. If there are any, older runs can no longer commit."""
        before = self.table.version()
        there = self.table.rows(before)
        self.source = self.source.knowing(there.columns)
        listed, new = self._list(there)
        first = next(new, None)
        if first is None:
            return listed, iter(())
        # This machine's clock may be behind that of an earlier run.
        self.generation = max(int(1000 * self.began.timestamp()), self.table.last_generation() + 1)
        # After this commit, Delta drops the commits of older runs because their transaction numbers are lower. The
        # commit also adds the missing columns, which MERGE cannot do.
        self.table.append(there.limit(0).select("*", *self._missing()), self.mark, 0)
        self.began_at = self.table.version()
        if self.began_at == before + 1:
            return listed, chain([first], new)
        # Another commit came in between, so the list above is outdated.
        return self._list(self.table.rows(self.began_at))

    def _missing(self) -> list[Column]:
        """Return null columns for the source's text columns that the table lacks."""
        missing = lacking(self.table.rows().columns, self.source.texts)
        return [F.lit(None).cast("string").alias(name) for name in missing]

    def _list(self, rows: DataFrame) -> tuple[int, Iterator[Entry]]:
        known = self._narrow(rows, there=True)
        copies = self.duplicates.rows()
        if copies is not None:
            known = known.unionByName(self._narrow(copies, there=False), allowMissingColumns=True)
        return self.source.new(known)

    def _narrow(self, rows: DataFrame, *, there: bool) -> DataFrame:
        """Select the columns that `ImageSource.new` expects."""
        shards = [name for name in (URL, VERSION) if name in rows.columns]
        again = F.lit(self.retry_failed) & F.col("error").isNotNull()
        modified, ingested = (F.unix_micros(f"{did}_at").alias(f"{did}_us") for did in ("modified", "ingested"))
        told = (again.alias("again"), F.lit(there).alias("there"))
        return rows.select("path", modified, "length", ingested, *told, *shards)

    def write(self, entries: list[Entry], number: int) -> None:
        """Read one chunk once onto the executors' disks, then count and commit it from there.

        Raises:
            TableError: A later run has begun.
        """
        with ExitStack() as kept:
            read = kept.enter_context(on_disk(self.source.read(entries).withColumn("header", header_udf()("image"))))
            rows = self._rows_of(entries, read)
            counts = self._counts(rows)
            mended = self.source.mend(entries, read, {row.error for row in counts if row.error is not None})
            if mended is not None:
                rows = self._rows_of(entries, kept.enter_context(on_disk(mended)))
                counts = self._counts(rows)
            self._take_up([name for name in self.source.further if any(row[name] for row in counts)])
            rows = rows.drop(*self.source.further)
            self.done.bytes_read += sum(row.bytes or 0 for row in counts)
            gone = None
            if VERSION in self.source.texts:
                rows = _versioned(rows, entries, counts)
                if entries[0].changed:
                    rows, gone = self._changed(rows, entries, kept)
                    counts = self._counts(rows)
            count, size = sum(row.rows for row in counts), sum(row.bytes or 0 for row in counts)
            rows = rows.coalesce(max(1, -(-size // _FILE_BYTES)))
            copies = self._commit(rows, gone, count, number, changed=entries[0].changed)
        for row in counts:
            if row.error is not None:
                self.done.failed[row.error] += row.rows
        self.done.chunks += 1
        self.done.duplicates += copies
        if not entries[0].changed:
            self.done.added += count - copies

    def _rows_of(self, entries: list[Entry], read: DataFrame) -> DataFrame:
        """Return the table rows of all entries, including those that could not be read."""
        rows, unread = self._described(read), self.source.unread(entries, read)
        if unread is None:
            return rows
        return rows.unionByName(self._described(unread.withColumn("header", F.lit(None).cast(headers.HEADER))))

    def _counts(self, rows: DataFrame) -> list[Row]:
        """Count rows and bytes and return the first path in sort order, per error and, for shards, per shard."""
        by = ["error", *([URL] if URL in self.source.texts else [])]
        told = [F.count(F.lit(1)).alias("rows"), F.sum("length").alias("bytes"), F.min("path").alias("path")]
        # The table gets a text column only when a row has a value for it.
        told += [F.count(quoted(name)).alias(name) for name in self.source.further if name in rows.columns]
        return rows.groupBy(*by).agg(*told).collect()

    def _take_up(self, names: list[str]) -> None:
        """Add columns to the table for texts that the first samples did not have."""
        if names:
            # MERGE does not add columns.
            self.table.add_texts(names)
            self.source = self.source.knowing(names)

    def _changed(self, rows: DataFrame, entries: list[Entry], kept: ExitStack) -> tuple[DataFrame, DataFrame]:
        """Return the new and changed rows of modified shards, and the paths that these shards no longer contain.

        Both are stored on disk until `kept` closes.
        """
        compared = ["image_id", "error", *(name for name in self.source.texts if name != VERSION)]
        urls = self.table.spark.createDataFrame([(entry.path,) for entry in entries], f"`{URL}` string")
        there = self.table.snapshot().join(F.broadcast(urls), URL, "left_semi")
        narrow = rows.select("path", VERSION, *map(quoted, compared))
        known = there.select("path", VERSION, *map(quoted, compared))
        # Exactly one row per shard has the version. It is always rewritten, so it counts as changed.
        equal = narrow.where(F.col(VERSION).isNull()).join(
            known.where(F.col(VERSION).isNull()).select(
                F.col("path").alias("_aesthetic_path"),
                *[F.col(quoted(name)).alias(f"_aesthetic_{at}") for at, name in enumerate(compared)],
            ),
            (F.col("path") == F.col("_aesthetic_path")) & _all_equal(compared),
            "left_semi",
        )
        with on_disk(equal.select("path")) as equal:
            self.done.unchanged += equal.count()
            gone = kept.enter_context(on_disk(known.select("path").join(narrow, "path", "left_anti")))
            self.done.removed += gone.count()
            changed = kept.enter_context(on_disk(rows.join(F.broadcast(equal), "path", "left_anti")))
            # Materialise the rows now, while `equal` still exists.
            changed.count()
        return changed, gone

    def _described(self, read: DataFrame) -> DataFrame:
        """Convert the rows of a source to rows of the table."""
        header = F.col("header")
        error = F.coalesce("error", header.getField("error"))
        return read.select(
            F.sha2(F.coalesce("image", F.col("path").cast("binary")), 256).alias("image_id"), "path", "image",
            *[header.getField(name).alias(name) for name in ("width", "height", "format")],
            error.alias("error"), "length", F.timestamp_micros("modified_us").alias("modified_at"),
            F.lit(self.began).alias("ingested_at"),
            *[F.col(quoted(name)) for name in (*self.source.texts, *self.source.further)],
        )  # fmt: skip

    def _commit(self, rows: DataFrame, gone: DataFrame | None, count: int, number: int, *, changed: bool) -> int:
        """Write rows, delete the rows of `gone`, and return the number of copies that were left out."""
        if not self.keep_once:
            if changed:
                self._replace(marked(rows, None, gone), number)
            else:
                self.table.append(rows, self.mark, number)
            return 0
        with on_disk(self.duplicates.first(rows, changed=changed)) as kept:
            copies = count - kept.count()
            by_path = marked(rows, kept, None)
            if changed:
                # This runs before the images are written: if the run is killed in between, copies are read again, not
                # lost.
                self.duplicates.forget(rows, kept, gone)
                self._replace(marked(rows, kept, gone), number)
            else:
                self.table.append(by_path.where(f"NOT {DROPPED}").drop(DROPPED), self.mark, number)
            if copies:
                # This runs after the images are written: if the run is killed in between, a file is read again, not
                # lost.
                self.duplicates.add(by_path.where(DROPPED).drop(DROPPED, "image"))
        return copies

    def _replace(self, rows: DataFrame, number: int) -> None:
        counts = self.table.replace(rows, self.source.texts, self.mark, number)
        self.done.replaced += counts.num_updated_rows
        self.done.added += counts.num_inserted_rows

    def count_duplicates(self) -> None:
        """Count the copies that were written to the table."""
        self.done.duplicates = self.duplicates.count(self.began, self.began_at, replaced=self.done.replaced > 0)


def _versioned(rows: DataFrame, entries: list[Entry], counts: list[Row]) -> DataFrame:
    """Set each shard's version on its row with the first path in sort order."""
    least: dict[str, str] = {}
    for row in counts:
        least[row[URL]] = min(row.path, least.get(row[URL], row.path))
    versions = [(least[entry.path], entry.version) for entry in entries]
    marks = rows.sparkSession.createDataFrame(versions, f"path string, `{VERSION}` string")
    return rows.drop(VERSION).join(F.broadcast(marks), "path", "left").select(*map(quoted, rows.columns))


def _all_equal(names: Sequence[str]) -> Column:
    """Return the condition that each column equals its numbered counterpart `_aesthetic_<n>`."""
    return reduce(and_, (F.col(quoted(name)).eqNullSafe(F.col(f"_aesthetic_{at}")) for at, name in enumerate(names)))
