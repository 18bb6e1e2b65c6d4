"""One run of `ingest_images`: list what is new, then read each chunk once and commit it."""

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

# The size that each file of the table should have.
_FILE_BYTES = 128 << 20


@dataclass
class Done:
    """What a run has done so far; `IngestSummary` describes the counts."""

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
        source: What the images come from.
        name: The source, as the user names it.
        table: Where they go.
        keep_once: Whether copies are left out.
        retry_failed: Whether entries with an error are read again.
        id: Of this run alone.
        began: When it began, as its rows have it.
        began_at: The table's version then; None until `list_new` has found something new.
        generation: Greater than that of every run before; 0 until then.
        done: Its counts.
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
        """What its commits say of it."""
        return RunMark(self.name, self.id, self.generation)

    @property
    def duplicates(self) -> Duplicates:
        """Copies of images in its table."""
        return Duplicates(self.table)

    def list_new(self) -> tuple[int, Iterator[Entry]]:
        """How much the source has, and what of it is new; where something is, all older runs have been ended."""
        before = self.table.version()
        there = self.table.rows(before)
        self.source = self.source.knowing(there.columns)
        listed, new = self._list(there)
        first = next(new, None)
        if first is None:
            return listed, iter(())
        # A clock may be behind that of an earlier run.
        self.generation = max(int(1000 * self.began.timestamp()), self.table.last_generation() + 1)
        # From here on Delta drops what older runs commit: their numbers are lower. MERGE adds no columns, this does.
        self.table.append(there.limit(0).select("*", *self._missing()), self.mark, 0)
        self.began_at = self.table.version()
        if self.began_at == before + 1:
            return listed, chain([first], new)
        # What was committed in between was not known above.
        return self._list(self.table.rows(self.began_at))

    def _missing(self) -> list[Column]:
        """Columns of this source that the table does not have."""
        missing = lacking(self.table.rows().columns, self.source.texts)
        return [F.lit(None).cast("string").alias(name) for name in missing]

    def _list(self, rows: DataFrame) -> tuple[int, Iterator[Entry]]:
        known = self._narrow(rows, there=True)
        copies = self.duplicates.rows()
        if copies is not None:
            known = known.unionByName(self._narrow(copies, there=False), allowMissingColumns=True)
        return self.source.new(known)

    def _narrow(self, rows: DataFrame, *, there: bool) -> DataFrame:
        """What `ImageSource.new` takes."""
        shards = [name for name in (URL, VERSION) if name in rows.columns]
        again = F.lit(self.retry_failed) & F.col("error").isNotNull()
        modified, ingested = (F.unix_micros(f"{did}_at").alias(f"{did}_us") for did in ("modified", "ingested"))
        told = (again.alias("again"), F.lit(there).alias("there"))
        return rows.select("path", modified, "length", ingested, *told, *shards)

    def write(self, entries: list[Entry], number: int) -> None:
        """Take one chunk in: read once, onto the executors' disks, then counted and committed from there.

        Raises:
            TableError: Another run has begun.
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
        """What was read, and what could not be, as the table has it."""
        rows, unread = self._described(read), self.source.unread(entries, read)
        if unread is None:
            return rows
        return rows.unionByName(self._described(unread.withColumn("header", F.lit(None).cast(headers.HEADER))))

    def _counts(self, rows: DataFrame) -> list[Row]:
        """Rows, bytes and the least path of each error, and of shards of each shard."""
        by = ["error", *([URL] if URL in self.source.texts else [])]
        told = [F.count(F.lit(1)).alias("rows"), F.sum("length").alias("bytes"), F.min("path").alias("path")]
        # The table gets a column for a text once a row has it.
        told += [F.count(quoted(name)).alias(name) for name in self.source.further if name in rows.columns]
        return rows.groupBy(*by).agg(*told).collect()

    def _take_up(self, names: list[str]) -> None:
        """Give the table columns for texts that the first samples did not have."""
        if names:
            # MERGE adds none.
            self.table.add_texts(names)
            self.source = self.source.knowing(names)

    def _changed(self, rows: DataFrame, entries: list[Entry], kept: ExitStack) -> tuple[DataFrame, DataFrame]:
        """The new and changed rows of modified shards, and the paths that these shards no longer have, both `kept`."""
        compared = ["image_id", "error", *(name for name in self.source.texts if name != VERSION)]
        urls = self.table.spark.createDataFrame([(entry.path,) for entry in entries], f"`{URL}` string")
        there = self.table.snapshot().join(F.broadcast(urls), URL, "left_semi")
        narrow = rows.select("path", VERSION, *map(quoted, compared))
        known = there.select("path", VERSION, *map(quoted, compared))
        # One row of each shard has its version, the older one's may be another.
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
            # While what they are made of is there.
            changed.count()
        return changed, gone

    def _described(self, read: DataFrame) -> DataFrame:
        """Rows as the table has them."""
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
        """Write rows, take those out whose paths are gone, and give how many were left out as copies."""
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
                # Before the images, so that a kill in between has copies looked at again, and not lost.
                self.duplicates.forget(rows, kept, gone)
                self._replace(marked(rows, kept, gone), number)
            else:
                self.table.append(by_path.where(f"NOT {DROPPED}").drop(DROPPED), self.mark, number)
            if copies:
                # After the images, so that a kill in between has a file looked at again, and not lost.
                self.duplicates.add(by_path.where(DROPPED).drop(DROPPED, "image"))
        return copies

    def _replace(self, rows: DataFrame, number: int) -> None:
        counts = self.table.replace(rows, self.source.texts, self.mark, number)
        self.done.replaced += counts.num_updated_rows
        self.done.added += counts.num_inserted_rows

    def count_duplicates(self) -> None:
        """Count the copies that went to the table."""
        self.done.duplicates = self.duplicates.count(self.began, self.began_at, replaced=self.done.replaced > 0)


def _versioned(rows: DataFrame, entries: list[Entry], counts: list[Row]) -> DataFrame:
    """Rows with each shard's version on the row of its least path."""
    least: dict[str, str] = {}
    for row in counts:
        least[row[URL]] = min(row.path, least.get(row[URL], row.path))
    versions = [(least[entry.path], entry.version) for entry in entries]
    marks = rows.sparkSession.createDataFrame(versions, f"path string, `{VERSION}` string")
    return rows.drop(VERSION).join(F.broadcast(marks), "path", "left").select(*map(quoted, rows.columns))


def _all_equal(names: Sequence[str]) -> Column:
    """Whether columns have the values of those that are called by their numbers."""
    return reduce(and_, (F.col(quoted(name)).eqNullSafe(F.col(f"_aesthetic_{at}")) for at, name in enumerate(names)))
