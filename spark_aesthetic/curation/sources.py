"""Where images come from: what is new there, in narrow rows, and the bytes of some of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

from fsspec import available_protocols
from pyspark.errors import AnalysisException
from pyspark.sql import Column, DataFrame, Row, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.functions import pandas_udf
from pyspark.sql.types import StringType, StructType

from spark_aesthetic import preflight
from spark_aesthetic.curation import files
from spark_aesthetic.curation.listing import OTHER_SHARD, PassedOver, compare
from spark_aesthetic.datasources import places
from spark_aesthetic.datasources.shards import APART, MAX_SAMPLE_BYTES, WHOLE_EXTENSION
from spark_aesthetic.datasources.webdataset import ERROR, PATH, URL, WebDataset
from spark_aesthetic.errors import OptionError, TableError, nearest
from spark_aesthetic.files import mounted
from spark_aesthetic.preflight import quoted, spelled

FORMATS = ("folder", "webdataset", "uris")

# What each source reads: `modified_us` are microseconds of the epoch, since Python's local times repeat an hour a year.
READ = "path string, modified_us bigint, length bigint, image binary, error string"

# Of shards: on one row of each its size and ETag, or time, as they were when it was read.
VERSION = "__version__"

NO_IMAGE = "sample: no image"
NO_SAMPLE = "shard: no sample"
UNREADABLE = "fetch: unreadable"
COLON = "fetch: unreadable, Hadoop opens no file with a colon in its name"

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
        changed: A row of this path, or of this shard, is there, of an older file.
        version: Of a shard, as `places.version_of` has it.
    """

    path: str
    modified_us: int | None
    length: int | None
    changed: bool
    version: str | None = None


class ImageSource(Protocol):
    """What `ingest_images` asks of a source."""

    @property
    def texts(self) -> tuple[str, ...]:
        """Names of string columns that go along with the images."""

    def new(self, known: DataFrame) -> tuple[int, Iterator[Entry]]:
        """How much is there, and what of it is new: first what no row has, and each of the two sorted by path.

        Args:
            known: Columns path, modified_us, length, ingested_us, whether it is to be tried again (`again`, boolean),
                whether it is a row of the table and no copy that was left out (`there`, boolean) and, where there are
                samples of shards, `__url__` and `__version__`.
        """

    @property
    def passed_over(self) -> PassedOver:
        """What is there and is not read."""

    def read(self, entries: Sequence[Entry]) -> DataFrame:
        """Columns as in `READ`, and `texts`; at its end an entry may lack its row."""

    def mend(self, entries: Sequence[Entry], read: DataFrame, errors: Set[str]) -> DataFrame | None:
        """What was read, put right in a slower way that few entries need; None if the errors ask for none.

        `read` has the column `header` too.
        """

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
        return Shards.open(spark, source, max_file_bytes)
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
    passed_over: PassedOver

    @classmethod
    def open(cls, spark: SparkSession, path: str, glob: str | None, max_file_bytes: int) -> Folder:
        """List the files; nothing else of them is read."""
        reader = spark.read.format("binaryFile").option("recursiveFileLookup", "true")
        if glob is not None:
            reader = reader.option("pathGlobFilter", glob)
        place = preflight.whole(path)
        # First what is called so, and then a pattern.
        for name in dict.fromkeys((preflight.literal(place), place)):
            with preflight.reaching(f"--source {path!r}"):
                try:
                    # Spark Connect looks whether there is such a folder no sooner than it is to keep its rows.
                    found = reader.load(name)
                    modified = F.unix_micros("modificationTime").alias("modified_us")
                    listed = found.select("path", modified, "length").persist()
                    break
                except AnalysisException as error:
                    if error.getCondition() != "PATH_NOT_FOUND":
                        raise
        else:
            raise TableError(f"--source {path!r}: expected a folder of images, found nothing there; check the path")
        shard_files = F.count_if(F.col("path").rlike(_TAR.pattern))
        count, tars = listed.agg(F.count(F.lit(1)), shard_files).collect()[0]
        # Beside shards there are their lists, as of img2dataset.
        if tars > 0 and (glob is None or tars == count):
            raise TableError(
                f"--source {path!r}: expected images, found {tars} shards; take --format webdataset, or --glob "
                "for the images beside them"
            )
        first = listed.select("path").limit(1).collect()
        local = first[0].path.startswith("file:") if first else place.startswith(("file:", "/"))
        paths = (row.path for row in listed.select("path").toLocalIterator())
        passed_over = compare(mounted(place), glob, paths, count) if local else PassedOver()
        return cls(spark, listed, count, max_file_bytes, passed_over)

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
        paths = [preflight.literal(entry.path) for entry in entries if self._fits(entry)]
        if not paths:
            return self.spark.createDataFrame([], READ)
        reader = self.spark.read.format("binaryFile")
        # Else one file that is gone, or may not be read, costs the run.
        found = reader.option("ignoreMissingFiles", "true").option("ignoreCorruptFiles", "true").load(paths)
        modified = F.unix_micros("modificationTime").alias("modified_us")
        return found.select("path", modified, "length", F.col("content").alias("image"), _no_error())

    def mend(self, entries: Sequence[Entry], read: DataFrame, errors: Set[str]) -> DataFrame | None:
        """With the local files that Spark did not read: Python opens them, or says why not."""
        if not errors & {UNREADABLE, COLON}:
            return None
        unread = self.unread(entries, read)
        local = unread.where((F.col("error") != files.TOO_LARGE) & F.col("path").startswith("file:"))
        fetch = partial(files.fetch_all, max_file_bytes=self.max_file_bytes)
        fetched = local.select("path").mapInArrow(fetch, files.FETCHED)
        rows = local.drop("image", "error").join(fetched, "path")
        return read.unionByName(rows.withColumn("header", header_udf()("image")))

    def unread(self, entries: Sequence[Entry], read: DataFrame) -> DataFrame:
        """Those that are too large, and those that are gone or may not be read."""
        rows = [(entry.path, entry.modified_us, entry.length, self._reason(entry)) for entry in entries]
        listed = self.spark.createDataFrame(rows, "path string, modified_us bigint, length bigint, error string")
        unread = listed.join(read.select("path"), "path", "left_anti")
        return unread.withColumn("image", F.lit(None).cast("binary"))

    def _reason(self, entry: Entry) -> str:
        if not self._fits(entry):
            return files.TOO_LARGE
        return COLON if ":" in entry.path.rpartition("/")[2] else UNREADABLE

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
        _check_stores(fresh)
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
        return cls(spark, path, schema.add(PATH, "string"), passed_over, min(max_file_bytes, MAX_SAMPLE_BYTES))

    @property
    def texts(self) -> tuple[str, ...]:
        """Key and shard of a sample, its files of text, and on one row of each shard the shard's version."""
        return (*self._given, VERSION)

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
        reader = self.spark.read.format("webdataset").schema(self.schema).option("onDamage", "report")
        samples = reader.option("maxMemberBytes", self.max_file_bytes).load(path)
        image = F.coalesce(*_IMAGES)
        length = F.length(image).cast("bigint").alias("length")
        # The limit by the name that the run has for it.
        told = F.replace(F.col(ERROR), F.lit("maxMemberBytes"), F.lit("max_file_bytes"))
        error = F.coalesce(told, F.when(image.isNull(), NO_IMAGE))
        return samples.select(
            F.col(PATH).alias("path"), _no("bigint", "modified_us"), length, image.alias("image"),
            error.alias("error"), *[F.col(quoted(name)) for name in self._given], _no("string", VERSION),
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
        said = F.when(F.col("error") != NO_IMAGE, F.nullif(before, F.lit("")))
        rows = read.groupBy("path").agg(
            F.max_by(image, F.col("image").isNotNull()).alias("of_image"),
            F.max(said).alias("said"),
            *[F.first(quoted(name), ignorenulls=True).alias(name) for name in self.texts],
        )
        error = F.coalesce("said", F.when(F.col("of_image.image").isNull(), NO_IMAGE)).alias("error")
        texts = [F.col(quoted(name)) for name in self.texts]
        return rows.select("path", _no("bigint", "modified_us"), "of_image.*", error, *texts)

    def unread(self, entries: Sequence[Entry], read: DataFrame) -> DataFrame | None:
        """A row for each shard without samples, by which it is known."""
        listed = self.spark.createDataFrame([(entry.path,) for entry in entries], "path string")
        empty = listed.join(read.select(F.col(URL).alias("path")), "path", "left_anti")
        texts = [F.col("path").alias(URL) if name == URL else _no("string", name) for name in self.texts]
        return empty.select(
            "path", _no("bigint", "modified_us"), _no("bigint", "length"), _no("binary", "image"),
            F.lit(NO_SAMPLE).alias("error"), *texts,
        )  # fmt: skip


def _is_column(name: str) -> bool:
    """Whether every Delta table can have a column called as a file of a sample."""
    return WHOLE_EXTENSION.match(name) is not None and not preflight.unusual([name])


def header_udf() -> Any:
    """`files.read_headers` for a column of file bytes."""
    return pandas_udf(files.read_headers, returnType=files.HEADER)  # type: ignore[call-overload]  # PySpark's overloads


def _by_shard(known: DataFrame) -> DataFrame:
    """What is known of each shard: its version, when its last row was taken in, and whether to try it again."""
    version = F.max(VERSION) if VERSION in known.columns else F.lit(None).cast("string")
    # Of an unchanged shard only what the whole of it says may be another the next time.
    again = F.bool_or(F.col("again") & (F.col("path") == F.col(URL)))
    of_shards = known.where(F.col(URL).isNotNull()).groupBy(URL)
    return of_shards.agg(version.alias("version"), F.max("ingested_us").alias("ingested_us"), again.alias("again"))


def _check_stores(addresses: DataFrame) -> None:
    """Raise MissingDependencyError if a package is missing here that every executor needs for some addresses."""
    scheme = F.regexp_extract("path", r"^([A-Za-z][A-Za-z0-9+.-]*)://", 1).alias("scheme")
    for row in addresses.select(scheme).where("scheme <> ''").distinct().collect():
        # One that nobody knows costs its own rows.
        if row.scheme in available_protocols():
            places.locate(f"{row.scheme}://")


def _is_changed(known: Row, version: str | None, modified_us: int | None) -> bool:
    """Whether to read a shard again of which rows are there."""
    if known.again:
        return True
    if known.version is None:
        # Rows of an older release, which did not keep it.
        return modified_us is not None and modified_us > known.ingested_us
    return version is not None and version != known.version


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
    missing = "expected a Delta or Parquet table of paths, found none; check the name or path"
    with preflight.reaching(f"--source {source!r}", missing=missing):
        path = preflight.path_of(source)
        if path is None or preflight.is_delta(spark, source):
            rows = preflight.read_table(spark, source)
        else:
            rows = _parquet(spark, path)
        # Spark Connect looks no sooner.
        _ = rows.schema
        return rows


def _parquet(spark: SparkSession, path: str) -> DataFrame:
    """Files of what is called so, else of a pattern."""
    try:
        rows = spark.read.parquet(preflight.literal(path))
        _ = rows.schema
        return rows
    except AnalysisException:
        return spark.read.parquet(path)
