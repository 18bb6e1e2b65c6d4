"""Where images come from: what is new there, in narrow rows, and the bytes of some of it."""

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

# Of shards: on one row of each its size and ETag, or time, as they were when it was read.
VERSION = "__version__"

NO_IMAGE = "sample: no image"
NO_SAMPLE = "shard: no sample"

# Extensions of images in shards; of a sample the first that it has.
_IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "image")

# Rows of one task that fetches from afar: a task waits, it does not compute.
_ADDRESSES_A_TASK = 500


def format_of(source: str, *, format: Format | None, uri_col: str | None) -> Format:
    """The format of a source as it was given, or as its name tells.

    Raises:
        OptionError: There is no such format.
    """
    if format is None:
        return "uris" if uri_col is not None else "webdataset" if TAR.search(source.rstrip("}")) else "folder"
    if format not in get_args(Format):
        raise OptionError(f"--format {format!r}: {nearest(format, get_args(Format))}")
    return format


def allowed_for(format: Format, allow: Sequence[str], called: str) -> Allowed:
    """The rule for addresses of a format; `called` is how the caller names the option.

    Raises:
        OptionError: There are no addresses, or one of the prefixes is none.
    """
    allowed = Allowed.of(allow, called)
    if allowed.prefixes and format != "uris":
        raise OptionError(f"{called}: expected with --format uris, found --format {format}; leave one out")
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
    """The source of a format, or of the one that its name tells.

    Raises:
        OptionError: Options that do not go together.
        TableError: There is no such table or column, or there are no such shards.
    """
    format = format_of(source, format=format, uri_col=uri_col)
    for option, value, fitting in (("--uri-col", uri_col, "uris"), ("--glob", glob, "folder")):
        if value is not None and format != fitting:
            raise OptionError(f"{option}: expected with --format {fitting}, found --format {format}; leave one out")
    allowed = allowed_for(format, allow, "allow")
    if format == "folder":
        return Folder.open(spark, source, glob, max_file_bytes)
    if format == "webdataset":
        return Shards.open(spark, source, max_file_bytes)
    if uri_col is None:
        raise OptionError("--format uris: expected --uri-col, the column of paths or addresses, found none; name it")
    return Addresses.open(spark, source, uri_col, max_file_bytes, allowed)


@dataclass(frozen=True)
class Addresses:
    """Paths or addresses in a column of a table, fetched on the executors as far as they are allowed."""

    spark: SparkSession
    rows: DataFrame
    column: str
    max_file_bytes: int
    allowed: Allowed

    @classmethod
    def open(cls, spark: SparkSession, source: str, uri_col: str, max_file_bytes: int, allowed: Allowed) -> Addresses:
        """Look for the table and its column."""
        rows = _table(spark, source)
        column = column_named(rows.columns, uri_col)
        if column is None:
            raise TableError(f"--uri-col: no column {uri_col!r}: {nearest(uri_col, rows.columns)}")
        return cls(spark, rows, column, max_file_bytes, allowed)

    @property
    def texts(self) -> tuple[str, ...]:
        """None: the table has them, under the same path."""
        return ()

    @property
    def further(self) -> tuple[str, ...]:
        """None."""
        return ()

    def knowing(self, columns: Sequence[str]) -> Addresses:
        """The same."""
        return self

    @property
    def passed_over(self) -> PassedOver:
        """Nothing."""
        return PassedOver()

    def mend(self, entries: Sequence[Entry], read: DataFrame, errors: Set[str]) -> DataFrame | None:
        """None."""
        return None

    def new(self, known: DataFrame) -> tuple[int, Iterator[Entry]]:
        """Addresses that are not known, each once; nulls are none."""
        path = F.col(quoted(self.column)).cast("string").alias("path")
        listed = self.rows.select(path).where("path IS NOT NULL").distinct().persist()
        fresh = listed.join(known.where("NOT again"), "path", "left_anti")
        told = fresh.select("path", no("bigint", "modified_us"), no("bigint", "length"))
        return listed.count(), entries_of(told, known, listed)

    def read(self, entries: Sequence[Entry]) -> DataFrame:
        """All of them, with the bytes of images or the reason why there are none."""
        rows = self.spark.createDataFrame([(entry.path,) for entry in entries], "path string")
        spread = rows.repartition(-(-len(entries) // _ADDRESSES_A_TASK))
        # Checked there, where names are resolved and redirects met.
        fetch = partial(
            fetching.fetch_all, allowed=self.allowed, limits=Limits(file_bytes=self.max_file_bytes), images_only=True
        )
        fetched = spread.mapInArrow(fetch, fetching.FETCHED)
        length = F.length("image").cast("bigint").alias("length")
        return fetched.select("path", no("bigint", "modified_us"), length, "image", "error")

    def unread(self, entries: Sequence[Entry], read: DataFrame) -> DataFrame | None:
        """None."""
        return None


@dataclass(frozen=True)
class Shards:
    """Samples of WebDataset shards, with their texts; a shard is known when a sample of it is.

    The first samples tell the columns. Texts that only later ones have are read all the same, under the names that the
    webdataset library knows, and under those that the table has.
    """

    spark: SparkSession
    path: str
    schema: StructType
    further: tuple[str, ...]
    passed_over: PassedOver
    max_file_bytes: int

    @classmethod
    def open(cls, spark: SparkSession, path: str, max_file_bytes: int) -> Shards:
        """Look at the first samples for the columns."""
        # Here what is not there is told in one line, by the data source in a stack of Spark's.
        passed_over = PassedOver()
        for url in places.look(path).passed_over:
            passed_over.add(OTHER_SHARD, url)
        try:
            spark.dataSource.register(WebDataset)
        except AnalysisException as error:
            # The copy of a session keeps a data source of this name that the session has, and takes no second one.
            if error.getCondition() != "DATA_SOURCE_ALREADY_EXISTS":
                raise
        found = spark.read.format("webdataset").option("onDamage", "report").load(path).schema
        # Texts alone become columns, and those by whose names no table can call them are left out.
        texts = [field for field in found if isinstance(field.dataType, StringType)]
        schema = StructType([field for field in texts if _is_column(field.name)])
        # What the first samples lack others may have.
        for name in _IMAGES:
            if name not in schema.names:
                schema = schema.add(name, "binary")
        schema = schema.add(PATH, "string")
        further = tuple(lacking(schema.names, TEXTS))
        return cls(spark, path, schema, further, passed_over, min(max_file_bytes, MAX_SAMPLE_BYTES))

    def knowing(self, columns: Sequence[str]) -> Shards:
        """With the texts that a table has columns for, so that a sample without them has a null there."""
        schema = self.schema
        for name in lacking(schema.names, filter(is_text, filter(_is_column, columns))):
            schema = schema.add(name, "string")
        return replace(self, schema=schema, further=tuple(lacking(schema.names, self.further)))

    @property
    def texts(self) -> tuple[str, ...]:
        """Key and shard of a sample, its files of text, and on one row of each shard the shard's version."""
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
        """Shards of which no sample is known, and those that are not what they were."""
        found = dict(places.look(self.path).shards)
        there = {row[URL]: row for row in _by_shard(known).collect()} if URL in known.columns else {}
        entries = []
        for url, info in found.items():
            version, row = places.version_of(info), there.get(url)
            if row is None or _is_changed(row, version, places.modified_us(info)):
                entries.append(Entry(url, None, info.get("size"), row is not None, version))
        return len(found), iter(sorted(entries, key=lambda entry: (entry.changed, entry.path)))

    def read(self, entries: Sequence[Entry]) -> DataFrame:
        """The samples of shards, and a row with the place of its damage for each that has one."""
        urls = [re.sub(r"([\\{},:])", r"\\\1", entry.path) for entry in entries]
        path = entries[0].path if len(urls) == 1 else f"{{{','.join(urls)}}}"
        schema = StructType([*self.schema, *[StructField(name, StringType()) for name in self.further]])
        reader = self.spark.read.format("webdataset").schema(schema).option("onDamage", "report")
        samples = reader.option("maxMemberBytes", self.max_file_bytes).load(path)
        image = F.coalesce(*_IMAGES)
        length = F.length(image).cast("bigint").alias("length")
        # The limit by the name that the run has for it.
        told = F.replace(F.col(ERROR), F.lit("maxMemberBytes"), F.lit("max_file_bytes"))
        error = F.coalesce(told, F.when(image.isNull(), NO_IMAGE))
        return samples.select(
            F.col(PATH).alias("path"), no("bigint", "modified_us"), length, image.alias("image"),
            error.alias("error"), *[F.col(quoted(name)) for name in self._given], no("string", VERSION),
            *[F.col(quoted(name)) for name in self.further],
        )  # fmt: skip

    def mend(self, entries: Sequence[Entry], read: DataFrame, errors: Set[str]) -> DataFrame | None:
        """With one row for each sample whose files are apart in its shard: the rows of one path are joined.

        They may lie gigabytes apart, so a task cannot do it. It shuffles the images of the chunk.
        """
        if not any(APART in error for error in errors):
            return None
        image = F.struct("image", "length", "header")
        # What a row says before that is right still.
        before = F.regexp_replace(F.substring_index("error", APART, 1), "; $", "")
        is_said = F.col("error") != NO_IMAGE
        joined, alone = F.max(F.when(is_said, F.nullif(before, F.lit("")))), F.max(F.when(is_said, F.col("error")))
        # A part that is not known to belong to another one has its path alone, and is apart still.
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
        """A row for each shard without samples, by which it is known."""
        listed = self.spark.createDataFrame([(entry.path,) for entry in entries], "path string")
        empty = listed.join(read.select(F.col(URL).alias("path")), "path", "left_anti")
        texts = [F.col("path").alias(URL) if name == URL else no("string", name) for name in self._all_texts]
        return empty.select(
            "path", no("bigint", "modified_us"), no("bigint", "length"), no("binary", "image"),
            F.lit(NO_SAMPLE).alias("error"), *texts,
        )  # fmt: skip


def _is_column(name: str) -> bool:
    """Whether every Delta table can have a column called as a file of a sample."""
    return WHOLE_EXTENSION.match(name) is not None and not naming.unusual([name])


def _by_shard(known: DataFrame) -> DataFrame:
    """What is known of each shard: its version, when its last row was taken in, and whether to try it again."""
    version = F.max(VERSION) if VERSION in known.columns else F.lit(None).cast("string")
    # Of an unchanged shard only what the whole of it says may be another the next time.
    again = F.bool_or(F.col("again") & (F.col("path") == F.col(URL)))
    of_shards = known.where(F.col(URL).isNotNull()).groupBy(URL)
    return of_shards.agg(version.alias("version"), F.max("ingested_us").alias("ingested_us"), again.alias("again"))


def _is_changed(known: Row, version: str | None, modified_us: int | None) -> bool:
    """Whether to read a shard again of which rows are there."""
    if known.again:
        return True
    if known.version is None:
        # Rows of an older release, which did not keep it.
        return modified_us is not None and modified_us > known.ingested_us
    return version is not None and version != known.version


def _table(spark: SparkSession, source: str) -> DataFrame:
    """A Delta or Parquet table by name or path."""
    missing = "expected a Delta or Parquet table of paths, found none; check the name or path"
    with access.reaching(f"--source {source!r}", missing=missing):
        path = naming.path_of(source)
        if path is None or tables.is_delta(spark, source):
            return analysed(tables.read_table(spark, source))
        return _parquet(spark, path)


def _parquet(spark: SparkSession, path: str) -> DataFrame:
    """Files of what is called so, else of a pattern."""
    try:
        return analysed(spark.read.parquet(naming.literal(path)))
    except AnalysisException:
        return analysed(spark.read.parquet(path))
