"""The image sources for tables of addresses and for WebDataset shards, and the choice between all sources."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, get_args

from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StringType, StructField, StructType

from spark_aesthetic.delta import access, naming, tables
from spark_aesthetic.delta.connect import analysed
from spark_aesthetic.delta.naming import column_named, lacking, quoted
from spark_aesthetic.errors import OptionError, TableError, nearest
from spark_aesthetic.ingest import fetching
from spark_aesthetic.ingest.allowed import Allowed
from spark_aesthetic.ingest.entries import TAR, Entry, ImageSource, entries_of, no
from spark_aesthetic.ingest.folders import Folder
from spark_aesthetic.ingest.listing import OTHER_SHARD, PassedOver
from spark_aesthetic.ingest.pace import Limits
from spark_aesthetic.webdataset import places
from spark_aesthetic.webdataset.shards import APART, MAX_SAMPLE_BYTES, TEXTS, WHOLE_EXTENSION, is_text
from spark_aesthetic.webdataset.source import ERROR, PATH, URL, WebDataset

Format = Literal["folder", "webdataset", "uris"]

# The column that has, on one row per shard, the shard's size and ETag (or time) when it was read.
VERSION = "__version__"

NO_IMAGE = "sample: no image"
NO_SAMPLE = "shard: no sample"

# Extensions of images in shards. If a sample has several, the first one in this order counts.
_IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "image")

# Addresses per task. Such a task mostly waits for the network.
_ADDRESSES_A_TASK = 500


def format_of(source: str, *, format: Format | None, uri_col: str | None) -> Format:
    """Return the format that the user chose, or derive it from the options and the source's name.

    Raises:
        OptionError: The format does not exist.
    """
    if format is None:
        return "uris" if uri_col is not None else "webdataset" if TAR.search(source.rstrip("}")) else "folder"
    if format not in get_args(Format):
        raise OptionError(f"--format {format!r}: {nearest(format, get_args(Format))}")
    return format


def allowed_for(format: Format, allow: Sequence[str], called: str) -> Allowed:
    """Return the address rule for a format; `called` is the caller's name for the option.

    Raises:
        OptionError: The format has no addresses, or a prefix is not valid.
    """
    allowed = Allowed.of(allow, called)
    if allowed.prefixes and format != "uris":
        raise OptionError(f"{called}: expected --format uris, found --format {format}. Omit one of them.")
    return allowed


def open_source(
    spark: SparkSession,
    source: str,
    *,
    format: Format | None,
    uri_col: str | None,
    glob: str | None,
    max_file_bytes: int,
    allow: Sequence[str] = (),
) -> ImageSource:
    """Open a source in the chosen or derived format.

    Raises:
        OptionError: Options exclude each other.
        TableError: The table, its column or the shards do not exist.
    """
    format = format_of(source, format=format, uri_col=uri_col)
    for option, value, fitting in (("--uri-col", uri_col, "uris"), ("--glob", glob, "folder")):
        if value is not None and format != fitting:
            raise OptionError(f"{option}: expected --format {fitting}, found --format {format}. Omit one of them.")
    allowed = allowed_for(format, allow, "allow")
    if format == "folder":
        return Folder.open(spark, source, glob, max_file_bytes)
    if format == "webdataset":
        return Shards.open(spark, source, max_file_bytes)
    if uri_col is None:
        raise OptionError("--format uris: expected --uri-col, found none. Set it to the column of paths or addresses.")
    return Addresses.open(spark, source, uri_col, max_file_bytes, allowed)


@dataclass(frozen=True)
class Addresses:
    """Paths or addresses in a column of a table. The executors fetch those that are allowed."""

    spark: SparkSession
    rows: DataFrame
    column: str
    max_file_bytes: int
    allowed: Allowed

    @classmethod
    def open(cls, spark: SparkSession, source: str, uri_col: str, max_file_bytes: int, allowed: Allowed) -> Addresses:
        """Open the table and find its column."""
        rows = _table(spark, source)
        column = column_named(rows.columns, uri_col)
        if column is None:
            raise TableError(f"--uri-col: no column {uri_col!r}: {nearest(uri_col, rows.columns)}")
        return cls(spark, rows, column, max_file_bytes, allowed)

    @property
    def texts(self) -> tuple[str, ...]:
        """Empty: text columns remain in the source table and can be joined by path."""
        return ()

    @property
    def further(self) -> tuple[str, ...]:
        """Empty: addresses have no text columns."""
        return ()

    def knowing(self, columns: Sequence[str]) -> Addresses:
        """Return this source: it has no text columns."""
        return self

    @property
    def passed_over(self) -> PassedOver:
        """Empty: every address is read."""
        return PassedOver()

    def mend(self, entries: Sequence[Entry], read: DataFrame, errors: Set[str]) -> DataFrame | None:
        """Return None: no row needs repair."""
        return None

    def new(self, known: DataFrame) -> tuple[int, Iterator[Entry]]:
        """List the distinct unknown addresses, without nulls."""
        path = F.col(quoted(self.column)).cast("string").alias("path")
        listed = self.rows.select(path).where("path IS NOT NULL").distinct().persist()
        fresh = listed.join(known.where("NOT again"), "path", "left_anti")
        told = fresh.select("path", no("bigint", "modified_us"), no("bigint", "length"))
        return listed.count(), entries_of(told, known, listed)

    def read(self, entries: Sequence[Entry]) -> DataFrame:
        """Fetch all addresses; each row has the bytes of an image or the reason for the failure."""
        rows = self.spark.createDataFrame([(entry.path,) for entry in entries], "path string")
        spread = rows.repartition(-(-len(entries) // _ADDRESSES_A_TASK))
        # The executors check the addresses because they resolve host names and follow redirects.
        fetch = partial(
            fetching.fetch_all, allowed=self.allowed, limits=Limits(file_bytes=self.max_file_bytes), images_only=True
        )
        fetched = spread.mapInArrow(fetch, fetching.FETCHED)
        length = F.length("image").cast("bigint").alias("length")
        return fetched.select("path", no("bigint", "modified_us"), length, "image", "error")

    def unread(self, entries: Sequence[Entry], read: DataFrame) -> DataFrame | None:
        """Return None: every address has a row."""
        return None


@dataclass(frozen=True)
class Shards:
    """Samples of WebDataset shards, with their texts. A shard is known if the table has one of its samples.

    The first samples determine the columns. Texts that only later samples have are also read if the webdataset library
    knows their extension or the table has a column for it.
    """

    spark: SparkSession
    path: str
    schema: StructType
    further: tuple[str, ...]
    passed_over: PassedOver
    max_file_bytes: int

    @classmethod
    def open(cls, spark: SparkSession, path: str, max_file_bytes: int) -> Shards:
        """Derive the columns from the first samples."""
        # Missing shards raise a one-line error here. In the data source it would be buried in a Spark stack trace.
        passed_over = PassedOver()
        for url in places.look(path).passed_over:
            passed_over.add(OTHER_SHARD, url)
        try:
            spark.dataSource.register(WebDataset)
        except AnalysisException as error:
            # A copied session inherits the data source and cannot register it a second time.
            if error.getCondition() != "DATA_SOURCE_ALREADY_EXISTS":
                raise
        found = spark.read.format("webdataset").option("onDamage", "report").load(path).schema
        # Only texts become columns, and only if a table accepts their extension as a column name.
        texts = [field for field in found if isinstance(field.dataType, StringType)]
        schema = StructType([field for field in texts if _is_column(field.name)])
        # Later samples may have image extensions that the first ones lack.
        for name in _IMAGES:
            if name not in schema.names:
                schema = schema.add(name, "binary")
        schema = schema.add(PATH, "string")
        further = tuple(lacking(schema.names, TEXTS))
        return cls(spark, path, schema, further, passed_over, min(max_file_bytes, MAX_SAMPLE_BYTES))

    def knowing(self, columns: Sequence[str]) -> Shards:
        """Add the text columns of the table, so that a sample without such a text has a null."""
        schema = self.schema
        for name in lacking(schema.names, filter(is_text, filter(_is_column, columns))):
            schema = schema.add(name, "string")
        return replace(self, schema=schema, further=tuple(lacking(schema.names, self.further)))

    @property
    def texts(self) -> tuple[str, ...]:
        """The columns for a sample's key, shard and text files, and the shard's version (set on one row per shard)."""
        return (*self._given, VERSION)

    @property
    def _all_texts(self) -> tuple[str, ...]:
        return (*self.texts, *self.further)

    @property
    def _given(self) -> tuple[str, ...]:
        return tuple(
            field.name
            for field in self.schema
            if isinstance(field.dataType, StringType) and field.name not in (ERROR, PATH)
        )

    def new(self, known: DataFrame) -> tuple[int, Iterator[Entry]]:
        """List the shards without a known sample, and the modified shards."""
        found = dict(places.look(self.path).shards)
        there = {row[URL]: row for row in _by_shard(known).collect()} if URL in known.columns else {}
        entries = []
        for url, info in found.items():
            version, row = places.version_of(info), there.get(url)
            if row is None or _is_changed(row, version, places.modified_us(info)):
                entries.append(Entry(url, None, info.get("size"), row is not None, version))
        return len(found), iter(sorted(entries, key=lambda entry: (entry.changed, entry.path)))

    def read(self, entries: Sequence[Entry]) -> DataFrame:
        """Read the samples of shards, with one more row per damaged shard that states the position of the damage."""
        urls = [re.sub(r"([\\{},:])", r"\\\1", entry.path) for entry in entries]
        path = entries[0].path if len(urls) == 1 else f"{{{','.join(urls)}}}"
        schema = StructType([*self.schema, *[StructField(name, StringType()) for name in self.further]])
        reader = self.spark.read.format("webdataset").schema(schema).option("onDamage", "report")
        samples = reader.option("maxMemberBytes", self.max_file_bytes).load(path)
        image = F.coalesce(*_IMAGES)
        length = F.length(image).cast("bigint").alias("length")
        # The option has this name in `ingest_images`.
        told = F.replace(F.col(ERROR), F.lit("maxMemberBytes"), F.lit("max_file_bytes"))
        error = F.coalesce(told, F.when(image.isNull(), NO_IMAGE))
        return samples.select(
            F.col(PATH).alias("path"), no("bigint", "modified_us"), length, image.alias("image"),
            error.alias("error"), *[F.col(quoted(name)) for name in self._given], no("string", VERSION),
            *[F.col(quoted(name)) for name in self.further],
        )  # fmt: skip

    def mend(self, entries: Sequence[Entry], read: DataFrame, errors: Set[str]) -> DataFrame | None:
        """Join the rows of one path, so that a sample with files apart in its shard becomes one row.

        The files may be gigabytes apart, so the reading task cannot join them. This shuffles the images of the chunk.
        """
        if not any(APART in error for error in errors):
            return None
        image = F.struct("image", "length", "header")
        # The faults before this one remain valid.
        before = F.regexp_replace(F.substring_index("error", APART, 1), "; $", "")
        is_said = F.col("error") != NO_IMAGE
        joined, alone = F.max(F.when(is_said, F.nullif(before, F.lit("")))), F.max(F.when(is_said, F.col("error")))
        # A part that cannot be assigned to its sample has a path of its own and keeps the fault.
        said = F.when(F.count(F.lit(1)) > 1, joined).otherwise(alone)
        rows = read.groupBy("path").agg(
            F.max_by(image, F.col("image").isNotNull()).alias("of_image"),
            said.alias("said"),
            *[F.first(quoted(name), ignorenulls=True).alias(name) for name in self._all_texts],
        )
        error = F.coalesce("said", F.when(F.col("of_image.image").isNull(), NO_IMAGE)).alias("error")
        texts = [F.col(quoted(name)) for name in self._all_texts]
        return rows.select("path", no("bigint", "modified_us"), "of_image.*", error, *texts)

    def unread(self, entries: Sequence[Entry], read: DataFrame) -> DataFrame | None:
        """Return a row for each shard without samples, so that the next run knows the shard."""
        listed = self.spark.createDataFrame([(entry.path,) for entry in entries], "path string")
        empty = listed.join(read.select(F.col(URL).alias("path")), "path", "left_anti")
        texts = [F.col("path").alias(URL) if name == URL else no("string", name) for name in self._all_texts]
        return empty.select(
            "path", no("bigint", "modified_us"), no("bigint", "length"), no("binary", "image"),
            F.lit(NO_SAMPLE).alias("error"), *texts,
        )  # fmt: skip


def _is_column(name: str) -> bool:
    """Whether every Delta table accepts a file extension as a column name."""
    return WHOLE_EXTENSION.match(name) is not None and not naming.unusual([name])


def _by_shard(known: DataFrame) -> DataFrame:
    """Return each known shard's version, the time of its last ingested row, and whether to try it again."""
    version = F.max(VERSION) if VERSION in known.columns else F.lit(None).cast("string")
    # Reading an unchanged shard again can only change the error of the whole shard (its row with `path = __url__`).
    again = F.bool_or(F.col("again") & (F.col("path") == F.col(URL)))
    of_shards = known.where(F.col(URL).isNotNull()).groupBy(URL)
    return of_shards.agg(version.alias("version"), F.max("ingested_us").alias("ingested_us"), again.alias("again"))


def _is_changed(known: Row, version: str | None, modified_us: int | None) -> bool:
    """Whether to read a known shard again."""
    if known.again:
        return True
    if known.version is None:
        # The rows were written by an older release without versions.
        return modified_us is not None and modified_us > known.ingested_us
    return version is not None and version != known.version


def _table(spark: SparkSession, source: str) -> DataFrame:
    """Read a Delta or Parquet table by name or path."""
    missing = "expected a Delta or Parquet table of paths, found none. Check the name or path."
    with access.reaching(f"--source {source!r}", missing=missing):
        path = naming.path_of(source)
        if path is None or tables.is_delta(spark, source):
            return analysed(tables.read_table(spark, source))
        return _parquet(spark, path)


def _parquet(spark: SparkSession, path: str) -> DataFrame:
    """Read a literal path, or the pattern if nothing has that literal name."""
    try:
        return analysed(spark.read.parquet(naming.literal(path)))
    except AnalysisException:
        return analysed(spark.read.parquet(path))
