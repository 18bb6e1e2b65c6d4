"""Where images come from: what is new there, in narrow rows, and the bytes of some of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import fsspec
from pyspark.errors import AnalysisException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StringType, StructType

from spark_aesthetic import preflight
from spark_aesthetic.curation import files
from spark_aesthetic.datasources import shards
from spark_aesthetic.datasources.webdataset import ERROR, PATH, URL, WebDataset
from spark_aesthetic.errors import OptionError, TableError, nearest
from spark_aesthetic.preflight import quoted, spelled

FORMATS = ("folder", "webdataset", "uris")

# What each source reads: `modified_us` are microseconds of the epoch, since Python's local times repeat an hour a year.
READ = "path string, modified_us bigint, length bigint, image binary, error string"

NO_IMAGE = "sample: no image"
NO_SAMPLE = "shard: no sample"
UNREADABLE = "fetch: unreadable"

# Extensions of images in shards; of a sample the first that it has.
_IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "image")

_TAR = re.compile(r"\.(tar|tar\.gz|tgz)$")

# Rows of one task that fetches from afar: a task waits, it does not compute.
_ADDRESSES_A_TASK = 500


class Entry(NamedTuple):
    """A file, a shard or an address that is to be read.

    Attributes:
        path: Where it is.
        modified_us: When it was modified, in microseconds of the epoch, or None where nothing tells.
        length: Its bytes, or None.
        changed: A row of this path is there, of an older file.
    """

    path: str
    modified_us: int | None
    length: int | None
    changed: bool


class ImageSource(Protocol):
    """What `ingest_images` asks of a source."""

    @property
    def texts(self) -> tuple[str, ...]:
        """Names of string columns that go along with the images."""

    def new(self, known: DataFrame) -> tuple[int, Iterator[Entry]]:
        """How much is there, and what of it is new: first what no row has, and each of the two sorted by path.

        Args:
            known: Columns path, modified_us, length, whether it is to be tried again (`again`, boolean), whether it is
                a row of the table and no copy that was left out (`there`, boolean) and, where there are samples of
                shards, `__url__`.
        """

    def read(self, entries: Sequence[Entry]) -> DataFrame:
        """Columns as in `READ`, and `texts`; at its end an entry may lack its row."""

    def unread(self, entries: Sequence[Entry], read: DataFrame) -> DataFrame | None:
        """The rows that entries lack, with the reason; None where they all have one."""


def open_source(
    spark: SparkSession, source: str, *, format: str | None, uri_col: str | None, glob: str | None, max_file_bytes: int
) -> ImageSource:
    """The source of a format, or of the one that its name tells.

    Raises:
        OptionError: Options that do not go together.
        TableError: There is no such table or column, or there are no such shards.
    """
    if format is None:
        format = "uris" if uri_col is not None else "webdataset" if _TAR.search(source.rstrip("}")) else "folder"
    if format not in FORMATS:
        raise OptionError(f"--format {format!r}: {nearest(format, FORMATS)}")
    for option, value, fitting in (("--uri-col", uri_col, "uris"), ("--glob", glob, "folder")):
        if value is not None and format != fitting:
            raise OptionError(f"{option}: expected with --format {fitting}, found --format {format}; leave one out")
    if format == "folder":
        return Folder.open(spark, source, glob, max_file_bytes)
    if format == "webdataset":
        return Shards.open(spark, source)
    if uri_col is None:
        raise OptionError("--format uris: expected --uri-col, the column of paths or addresses, found none; name it")
    return Addresses.open(spark, source, uri_col, max_file_bytes)


@dataclass(frozen=True)
class Folder:
    """Files below a folder, read by Spark's own binaryFile with Spark's own access to the file system."""

    spark: SparkSession
    listed: DataFrame
    count: int
    max_file_bytes: int

    @classmethod
    def open(cls, spark: SparkSession, path: str, glob: str | None, max_file_bytes: int) -> Folder:
        """List the files; nothing else of them is read."""
        reader = spark.read.format("binaryFile").option("recursiveFileLookup", "true")
        if glob is not None:
            reader = reader.option("pathGlobFilter", glob)
        try:
            # Spark Connect looks whether there is such a folder no sooner than it is to keep its rows.
            found = reader.load(path)
            listed = found.select("path", F.unix_micros("modificationTime").alias("modified_us"), "length").persist()
        except AnalysisException as error:
            raise TableError(
                f"--source {path!r}: expected a folder of images, found nothing there; check the path"
            ) from error
        shard_files = F.count_if(F.col("path").rlike(_TAR.pattern))
        count, tars = listed.agg(F.count(F.lit(1)), shard_files).collect()[0]
        # Beside shards there are their lists, as of img2dataset.
        if tars > 0 and (glob is None or tars == count):
            raise TableError(
                f"--source {path!r}: expected images, found {tars} shards; take --format webdataset, or --glob "
                "for the images beside them"
            )
        return cls(spark, listed, count, max_file_bytes)

    @property
    def texts(self) -> tuple[str, ...]:
        """None."""
        return ()

    def new(self, known: DataFrame) -> tuple[int, Iterator[Entry]]:
        """Files that are not known by path, time and length."""
        fresh = self.listed.join(known.where("NOT again"), ["path", "modified_us", "length"], "left_anti")
        return self.count, _entries(fresh, known, self.listed)

    def read(self, entries: Sequence[Entry]) -> DataFrame:
        """Those that are not too large; of a file that cannot be read, nothing."""
        # Spark takes a path for a pattern where it has such letters.
        paths = [re.sub(r"([\\{}\[\]*?,])", r"\\\1", entry.path) for entry in entries if self._fits(entry)]
        if not paths:
            return self.spark.createDataFrame([], READ)
        reader = self.spark.read.format("binaryFile")
        # Else one file that is gone, or may not be read, costs the run.
        found = reader.option("ignoreMissingFiles", "true").option("ignoreCorruptFiles", "true").load(paths)
        modified = F.unix_micros("modificationTime").alias("modified_us")
        return found.select("path", modified, "length", F.col("content").alias("image"), _no_error())

    def unread(self, entries: Sequence[Entry], read: DataFrame) -> DataFrame | None:
        """Those that are too large, and those that are gone or may not be read."""
        rows = [
            (entry.path, entry.modified_us, entry.length, UNREADABLE if self._fits(entry) else files.TOO_LARGE)
            for entry in entries
        ]
        listed = self.spark.createDataFrame(rows, "path string, modified_us bigint, length bigint, error string")
        unread = listed.join(read.select("path"), "path", "left_anti")
        return unread.withColumn("image", F.lit(None).cast("binary"))

    def _fits(self, entry: Entry) -> bool:
        return entry.length is not None and entry.length <= self.max_file_bytes


@dataclass(frozen=True)
class Addresses:
    """Paths or addresses in a column of a table, fetched on the executors through fsspec."""

    spark: SparkSession
    rows: DataFrame
    column: str
    max_file_bytes: int

    @classmethod
    def open(cls, spark: SparkSession, source: str, uri_col: str, max_file_bytes: int) -> Addresses:
        """Look for the table and its column."""
        rows = _table(spark, source)
        column = spelled(rows, uri_col)
        if column not in rows.columns:
            raise TableError(f"--uri-col: no column {uri_col!r}: {nearest(uri_col, rows.columns)}")
        return cls(spark, rows, column, max_file_bytes)

    @property
    def texts(self) -> tuple[str, ...]:
        """None: the table has them, under the same path."""
        return ()

    def new(self, known: DataFrame) -> tuple[int, Iterator[Entry]]:
        """Addresses that are not known, each once; nulls are none."""
        path = F.col(quoted(self.column)).cast("string").alias("path")
        listed = self.rows.select(path).where("path IS NOT NULL").distinct().persist()
        fresh = listed.join(known.where("NOT again"), "path", "left_anti")
        told = fresh.select("path", _no("bigint", "modified_us"), _no("bigint", "length"))
        return listed.count(), _entries(told, known, listed)

    def read(self, entries: Sequence[Entry]) -> DataFrame:
        """All of them, with their bytes or the reason why not."""
        rows = self.spark.createDataFrame([(entry.path,) for entry in entries], "path string")
        spread = rows.repartition(-(-len(entries) // _ADDRESSES_A_TASK))
        fetched = spread.mapInArrow(partial(files.fetch_all, max_file_bytes=self.max_file_bytes), files.FETCHED)
        length = F.length("image").cast("bigint").alias("length")
        return fetched.select("path", _no("bigint", "modified_us"), length, "image", "error")

    def unread(self, entries: Sequence[Entry], read: DataFrame) -> DataFrame | None:
        """None."""
        return None


@dataclass(frozen=True)
class Shards:
    """Samples of WebDataset shards, with their texts; a shard is known when a sample of it is."""

    spark: SparkSession
    path: str
    schema: StructType

    @classmethod
    def open(cls, spark: SparkSession, path: str) -> Shards:
        """Look at the first samples for the columns."""
        # Here what is not there is told in one line, by the data source in a stack of Spark's.
        shards.find(path)
        spark.dataSource.register(WebDataset)
        schema = spark.read.format("webdataset").option("onDamage", "report").load(path).schema
        # What the first samples lack others may have.
        for name in _IMAGES:
            if name not in schema.names:
                schema = schema.add(name, "binary")
        return cls(spark, path, schema.add(PATH, "string"))

    @property
    def texts(self) -> tuple[str, ...]:
        """Key and shard of a sample, and its files of text."""
        return tuple(
            field.name
            for field in self.schema
            if isinstance(field.dataType, StringType) and field.name not in (ERROR, PATH)
        )

    def new(self, known: DataFrame) -> tuple[int, Iterator[Entry]]:
        """Shards of which no sample is known."""
        there = {row[0] for row in known.select(URL).distinct().collect()} if URL in known.columns else set[str]()
        found = sorted(shards.find(self.path))
        fresh = (url for url in found if url not in there)
        return len(found), (Entry(url, None, fsspec.core.url_to_fs(url)[0].size(url), False) for url in fresh)

    def read(self, entries: Sequence[Entry]) -> DataFrame:
        """The samples of shards, and a row with the place of its damage for each that has one."""
        urls = [re.sub(r"([\\{},])", r"\\\1", entry.path) for entry in entries]
        path = urls[0] if len(urls) == 1 else f"{{{','.join(urls)}}}"
        samples = self.spark.read.format("webdataset").schema(self.schema).option("onDamage", "report").load(path)
        image = F.coalesce(*_IMAGES)
        length = F.length(image).cast("bigint").alias("length")
        error = F.coalesce(F.col(ERROR), F.when(image.isNull(), NO_IMAGE))
        return samples.select(
            F.col(PATH).alias("path"), _no("bigint", "modified_us"), length, image.alias("image"),
            error.alias("error"), *[F.col(quoted(name)) for name in self.texts],
        )  # fmt: skip

    def unread(self, entries: Sequence[Entry], read: DataFrame) -> DataFrame | None:
        """A row for each shard without samples, by which it is known."""
        listed = self.spark.createDataFrame([(entry.path,) for entry in entries], "path string")
        empty = listed.join(read.select(F.col(URL).alias("path")), "path", "left_anti")
        texts = [F.col("path").alias(URL) if name == URL else _no("string", name) for name in self.texts]
        return empty.select(
            "path", _no("bigint", "modified_us"), _no("bigint", "length"), _no("binary", "image"),
            F.lit(NO_SAMPLE).alias("error"), *texts,
        )  # fmt: skip


def _entries(fresh: DataFrame, known: DataFrame, listed: DataFrame) -> Iterator[Entry]:
    """In order, and partition by partition, so that the driver never holds all of them."""
    there = known.where("there").select("path", F.lit(True).alias("changed"))
    marked = fresh.join(there, "path", "left").fillna({"changed": False})
    try:
        yield from (Entry(*row) for row in marked.orderBy("changed", "path").toLocalIterator())
    finally:
        listed.unpersist()


def _no(kind: str, name: str) -> Column:
    return F.lit(None).cast(kind).alias(name)


def _no_error() -> Column:
    return _no("string", "error")


def _table(spark: SparkSession, source: str) -> DataFrame:
    """A Delta or Parquet table by name or path."""
    try:
        if "/" not in source:
            rows = spark.table(source)
        elif preflight.is_delta(spark, source):
            rows = spark.table(preflight.identifier(source))
        else:
            rows = spark.read.parquet(source)
        # Spark Connect looks no sooner.
        _ = rows.schema
        return rows
    except AnalysisException as error:
        raise TableError(
            f"--source {source!r}: expected a Delta or Parquet table of paths, found none; check the name or path"
        ) from error
