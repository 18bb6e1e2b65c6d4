"""Files, shards or addresses of images to a Delta table: chunk by chunk, each once, bytes untouched.

The table itself is the memory of what has been taken in: a run lists the source in narrow rows, leaves out what is
there by path, time and length, and reads nothing else. Each chunk of the rest is one commit, so a run that is killed
costs the chunk at work, and the next one lists again.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from functools import reduce
from itertools import chain
from operator import and_
from typing import Any
from uuid import uuid4

from pyspark.sql import Column, DataFrame, Row, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StringType

import spark_aesthetic
from spark_aesthetic.delta import access, fitting, naming, sessions, tables
from spark_aesthetic.delta.commits import Commit, Logged, committed, logged, merge_into
from spark_aesthetic.delta.frames import on_disk
from spark_aesthetic.delta.naming import identifier, quoted
from spark_aesthetic.delta.sessions import in_own_session
from spark_aesthetic.errors import TableError
from spark_aesthetic.functions import inputs
from spark_aesthetic.images import headers
from spark_aesthetic.ingest.entries import Entry, ImageSource, header_udf
from spark_aesthetic.ingest.sources import VERSION, open_source
from spark_aesthetic.options import check_files, in_bytes
from spark_aesthetic.scoring.target import add_columns
from spark_aesthetic.webdataset.source import URL

__all__ = ["IngestSummary", "ingest_images"]

_log = logging.getLogger("spark_aesthetic")

# What a kill may cost: at most so much is read again.
MAX_BYTES_PER_CHUNK = "8g"
# Held on the driver, and in the plan that reads them.
MAX_FILES_PER_CHUNK = 50_000

# Tens of times a large photograph; the JVM holds a few copies of it on its way into Parquet.
MAX_FILE_BYTES = "128m"

# Of one file of the table.
_FILE_BYTES = 128 << 20

# As far back a commit is looked for that was made a moment ago.
_LAST_COMMITS = 20

# Of all runs into a table: Delta takes a number of an application once, and none below the last.
_APPLICATION = "spark_aesthetic.ingest"

# Columns of a MERGE's rows that the table does not have.
DROPPED, _KEPT = "_aesthetic_dropped", "_aesthetic_kept"

# In place of a shard's version: read it again. Greater than every version, so that `max` gives it.
_AGAIN = "~again"

_COLUMNS = {
    "image_id": ("STRING", "sha256 of the bytes, 64 hexadecimal digits; of the path where there are no bytes"),
    "path": ("STRING", "Where the image comes from: a file, an address, or shard#key"),
    "image": ("BINARY", "The bytes as they were found; null where they could not be had"),
    "width": ("INT", "Pixels, as the header says; null where it says nothing"),
    "height": ("INT", "Pixels, as the header says; null where it says nothing"),
    "format": ("STRING", "JPEG, PNG, WEBP, GIF, BMP, TIFF or AVIF, by the bytes and not by the name"),
    "error": ("STRING", "Why there are no bytes, or why they are no image; null where all is well"),
    "length": ("BIGINT", "Bytes of the file"),
    "modified_at": ("TIMESTAMP", "When the file was modified; null where nothing tells"),
    "ingested_at": ("TIMESTAMP", "When the run began that wrote the row"),
}


@dataclass(frozen=True)
class IngestSummary:
    """What a run did.

    Attributes:
        listed: Files, shards or addresses that the source has.
        skipped: Those of them that the table had.
        passed_over: Files that are there and not listed; of a local folder, and of shards.
        passed_over_by_reason: The same, counted by reason.
        added: Rows of new paths.
        replaced: Rows of paths that were there, of a file that was modified or is tried again.
        removed: Rows of samples that a shard which was modified no longer has.
        unchanged: Samples of such shards whose rows stay as they are.
        duplicates: Rows of this run whose bytes an earlier row has, or one of this run with a lesser path.
        left_out: Of these the rows that went not to the table but to the list beside it (`keep_once`).
        failed: Rows with an error, left out or not.
        failed_by_reason: The same, counted by `error`.
        bytes_read: Of all images of this run.
        chunks: Commits to the table.
        seconds: Wall-clock time of the run.
    """

    listed: int
    skipped: int
    passed_over: int
    passed_over_by_reason: dict[str, int]
    added: int
    replaced: int
    removed: int
    unchanged: int
    duplicates: int
    left_out: int
    failed: int
    failed_by_reason: dict[str, int]
    bytes_read: int
    chunks: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)


@in_own_session
def ingest_images(
    spark: SparkSession,
    source: str,
    table: str,
    *,
    format: str | None = None,
    uri_col: str | None = None,
    glob: str | None = None,
    keep_once: bool = False,
    max_file_bytes: str | int = MAX_FILE_BYTES,
    max_bytes_per_chunk: str | int = MAX_BYTES_PER_CHUNK,
    max_files_per_chunk: int = MAX_FILES_PER_CHUNK,
    retry_failed: bool = False,
    allow: Sequence[str] = (),
) -> IngestSummary:
    """Take images that are new into a Delta table, which is made if need be.

    Its columns: image_id (string), path (string, unique), image (binary), width and height (int), format (string),
    error (string), length (bigint), modified_at and ingested_at (timestamp), and of shards `__key__`, `__url__` and
    their text columns (string). A file that is no image keeps its row and its bytes, one that cannot be read or is too
    large its row, each with the reason in `error`; of an image nothing but the header is looked at. An address whose
    bytes are no image keeps its row alone.

    A file is known by its path, modification time and length, a shard by its path, size and ETag (or time),
    an address by its text. A run with nothing new reads no image and writes nothing. A file that was modified
    replaces its row, a shard all of its rows: samples that are the same stay as they are, those that it no longer has
    are removed. One run at a time: of two, the one that began first stops with an error.

    Args:
        spark: A session with Delta Lake.
        source: A folder, with all that is below it, or a pattern of folders; WebDataset shards as the data source
            takes them; or a Delta or Parquet table with a column of paths or addresses, by name or by path.
        table: Delta table for the images, by catalog name, or by path (anything with a slash).
        format: "folder" (read by Spark's binaryFile), "webdataset" or "uris". By default uris with `uri_col`, else
            webdataset where the source ends in .tar, .tar.gz or .tgz, else folder.
        uri_col: The column of paths or addresses, fetched on the executors, eight at a time a task; a slow one does not
            count.
        glob: Of a folder, a pattern that the names of files must match, such as "*.{jpg,png}".
        keep_once: Of images with the same bytes keep one row: the one that is in the table, else the least path. The
            others are listed, without their bytes, in the table of the same name with `_duplicates` at its end.
        max_file_bytes: What is larger is not read; a number, or text such as "128m". Of shards, a file
            of a sample, and at most "512m".
        max_bytes_per_chunk: Of one commit, about. It waits on the executors' disks; of shards there is one task each.
        max_files_per_chunk: Of one commit.
        retry_failed: Also read files and addresses again that could not be read or gave no image, and damaged shards.
        allow: Which addresses of `uri_col` may be read: prefixes such as "s3://bucket/photos/", "/Volumes/main/photos/"
            or "http://10.1.2.3:8080/". Without any, http(s) to public addresses alone, which "http://" and "https://"
            stand for beside others.

    Returns:
        Counts; see `IngestSummary`.

    Raises:
        OptionError: Options that do not go together, or are out of their range.
        TableError: The source is not there, the table has other columns, or another run has begun.
    """
    started = time.monotonic()
    check_files("max_files_per_chunk", max_files_per_chunk)
    max_bytes = in_bytes("max_bytes_per_chunk", max_bytes_per_chunk)
    opened = open_source(
        spark, source, format=format, uri_col=uri_col, glob=glob,
        max_file_bytes=in_bytes("max_file_bytes", max_file_bytes), allow=allow,
    )  # fmt: skip
    if opened.passed_over.counts:
        _log.warning("%s: files that are not read: %s", source, opened.passed_over)
    inputs.warn_of_large_batches(spark)
    run = Run(
        source=opened, name=source, table=ImageTable(spark, table), keep_once=keep_once, retry_failed=retry_failed
    )  # fmt: skip
    run.table.make()
    listed, skipped = _take_in(run, max_bytes, max_files_per_chunk)
    return _summary(run, listed, skipped, time.monotonic() - started)


def _take_in(run: Run, max_bytes: int, max_files: int) -> tuple[int, int]:
    """Write what is new, chunk by chunk, and count the entries of the source and those that the table had."""
    listed, new = run.list_new()
    skipped = listed
    for number, entries in enumerate(_chunks(new, max_bytes, max_files), start=1):
        with sessions.described(run.table.spark, f"spark-aesthetic: chunk {number} of {run.name}"):
            run.write(entries, number)
        skipped -= len(entries)
        _log.info("%s: %d of %d taken in, %d chunks", run.name, listed - skipped, listed, run.done.chunks)
    if not run.keep_once and run.done.chunks:
        run.count_duplicates()
    return listed, skipped


def _summary(run: Run, listed: int, skipped: int, seconds: float) -> IngestSummary:
    done, passed_over = run.done, run.source.passed_over.counts
    return IngestSummary(
        listed=listed,
        skipped=skipped,
        passed_over=sum(passed_over.values()),
        passed_over_by_reason=dict(sorted(passed_over.items())),
        added=done.added,
        replaced=done.replaced,
        removed=done.removed,
        unchanged=done.unchanged,
        duplicates=done.duplicates,
        left_out=done.duplicates if run.keep_once else 0,
        failed=done.failed.total(),
        failed_by_reason=dict(sorted(done.failed.items())),
        bytes_read=done.bytes_read,
        chunks=done.chunks,
        seconds=round(seconds, 3),
    )


def _chunks(entries: Iterator[Entry], max_bytes: int, max_files: int) -> Iterator[list[Entry]]:
    """Entries in their order, about `max_bytes` of them at a time, new ones apart from changed ones."""
    chunk: list[Entry] = []
    total = 0
    for entry in entries:
        length = entry.length or 0
        if chunk and (total + length > max_bytes or len(chunk) == max_files or entry.changed != chunk[0].changed):
            yield chunk
            chunk, total = [], 0
        chunk.append(entry)
        total += length
    if chunk:
        yield chunk


@dataclass(frozen=True)
class RunMark:
    """What the commits of a run say of it in the table's history.

    Attributes:
        source: The source of its images, as the user names it.
        id: Of this run alone.
        generation: Greater than that of every run that began before it.
    """

    source: str
    id: str
    generation: int

    def commit(self, number: int) -> Commit:
        """Mark the commit of a chunk. Delta drops it if a run of a higher generation has committed."""
        told = {
            "spark_aesthetic": spark_aesthetic.__version__, "ingested": self.source, "run": self.id, "chunk": number,
            "generation": self.generation,
        }  # fmt: skip
        return Commit(info=json.dumps(told), application=_APPLICATION, number=(self.generation << 20) + number)


@dataclass(frozen=True)
class ImageTable:
    """The Delta table into which images are taken.

    Attributes:
        spark: A session of our own.
        name: By catalog, or a path.
    """

    spark: SparkSession
    name: str

    def make(self) -> None:
        """Create the table if it is not there.

        Raises:
            TableError: A table is there without the columns, or with other types.
        """
        described = tables.detail(self.spark, self.name)
        if described is None:
            self._create()
            return
        fitting.check_updates(described, f"--table {self.name!r}", "choose another table")
        found = {field.name: field.dataType.simpleString().upper() for field in self.rows().schema}
        for name, (kind, _) in _COLUMNS.items():
            if found.get(name) != kind:
                raise TableError(
                    f"--table {self.name!r}, column {name}: expected {kind}, found {found.get(name)}; choose "
                    "another table: this one was not made by ingest_images"
                )

    def _create(self) -> None:
        fitting.check_schema(self.spark, self.name, f"--table {self.name!r}")
        columns = ", ".join(f"{name} {kind} COMMENT '{comment}'" for name, (kind, comment) in _COLUMNS.items())
        # The feed lets score_table follow the rows that are replaced.
        create = (
            f"CREATE TABLE IF NOT EXISTS {identifier(self.name)} ({columns}) USING delta "
            "TBLPROPERTIES (delta.enableChangeDataFeed = true)"
        )
        with access.reaching(f"--table {self.name!r}"):
            committed(lambda: self.spark.sql(create), also=("DELTA_CREATE_TABLE_WITH_NON_EMPTY_LOCATION",))

    def version(self) -> int:
        """The number of its newest version."""
        return tables.current_version(self.spark, identifier(self.name))

    def rows(self, version: int | None = None) -> DataFrame:
        """The table as it is when it is read, or at one of its versions."""
        return tables.read_table(self.spark, self.name, version)

    def snapshot(self) -> DataFrame:
        """The table at its newest version."""
        # Without the version, Spark computes again what it keeps of these rows once the table is written to.
        return self.rows(self.version())

    def add_texts(self, names: list[str]) -> None:
        """Add columns of strings."""
        add_columns(self.spark, identifier(self.name), self.rows(), dict.fromkeys(names, StringType()))

    def last_generation(self) -> int:
        """The generation of the newest run in the table's history, or 0."""
        for last in (_LAST_COMMITS, None):
            told = [commit.told.get("generation") for commit in self._logged(last)]
            generations = [generation for generation in told if isinstance(generation, int)]
            if generations:
                return max(generations)
        return 0

    def append(self, rows: DataFrame, mark: RunMark, number: int) -> None:
        """Add rows, and columns that the table does not have.

        Raises:
            TableError: A later run has begun.
        """
        options = mark.commit(number).options()
        writer = rows.write.format("delta").mode("append").option("mergeSchema", "true").options(**options)
        committed(lambda: tables.write_table(writer, self.name))
        self._check_alone(mark, number)

    def replace(self, rows: DataFrame, texts: Sequence[str], mark: RunMark, number: int) -> Row:
        """Put rows in place of those of the same path, and delete the rows of paths that are `DROPPED`.

        Args:
            rows: From `marked`.
            texts: Columns of strings beside those that every table has.
            mark: The run that does it.
            number: Of the chunk.

        Returns:
            The counts that Delta gives.

        Raises:
            TableError: A later run has begun.
        """
        columns = list(map(quoted, [*_COLUMNS, *texts]))
        clauses = (
            f"ON target.path = scored.path WHEN MATCHED AND scored.{DROPPED} THEN DELETE "
            f"WHEN MATCHED THEN UPDATE SET {', '.join(f'{name} = scored.{name}' for name in columns)} "
            f"WHEN NOT MATCHED AND NOT scored.{DROPPED} THEN INSERT ({', '.join(columns)}) "
            f"VALUES ({', '.join(f'scored.{name}' for name in columns)})"
        )
        commit = mark.commit(number)
        done = committed(lambda: merge_into(self.spark, identifier(self.name), rows, clauses, commit))
        self._check_alone(mark, number)
        return done[0]

    def _check_alone(self, mark: RunMark, number: int) -> None:
        """Check that a commit was made, since Delta does not say if it dropped it, and that no later run made one."""
        last = [commit.told for commit in self._logged(_LAST_COMMITS)]
        later = any((told.get("generation") or 0) > mark.generation for told in last)
        if later or (mark.id, number) not in [(told.get("run"), told.get("chunk")) for told in last]:
            raise TableError(
                f"--table {self.name!r}: expected this run alone to take images in, found that a later one has begun; "
                "let that one finish, then run again"
            )

    def _logged(self, last: int | None) -> list[Logged]:
        return logged(self.spark, identifier(self.name), last=last)


def marked(rows: DataFrame, kept: DataFrame | None, gone: DataFrame | None) -> DataFrame:
    """Rows for `ImageTable.replace`: `DROPPED` are those that are not kept, and the paths that are gone."""
    if kept is None:
        marked = rows.withColumn(DROPPED, F.lit(False))
    else:
        marked = rows.join(F.broadcast(kept.withColumn(_KEPT, F.lit(True))), "path", "left")
        marked = marked.withColumn(DROPPED, F.col(_KEPT).isNull()).drop(_KEPT)
    return (
        marked if gone is None else marked.unionByName(gone.withColumn(DROPPED, F.lit(True)), allowMissingColumns=True)
    )


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
        known = {name.lower() for name in self.table.rows().columns}
        return [F.lit(None).cast("string").alias(name) for name in self.source.texts if name.lower() not in known]

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
