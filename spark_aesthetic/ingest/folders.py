"""The image source for files below a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from spark_aesthetic.delta import access, naming
from spark_aesthetic.delta.connect import analysed
from spark_aesthetic.errors import TableError
from spark_aesthetic.files import mounted
from spark_aesthetic.ingest import fetching, reasons
from spark_aesthetic.ingest.allowed import Address, Allowed
from spark_aesthetic.ingest.entries import READ, TAR, Entry, entries_of, header_udf, no_error
from spark_aesthetic.ingest.links import links_below
from spark_aesthetic.ingest.listing import PassedOver, compare, files_below, roots_of
from spark_aesthetic.ingest.pace import Limits

COLON = f"{reasons.UNREADABLE}, Hadoop opens no file with a colon in its name"


@dataclass(frozen=True)
class Folder:
    """Files below a folder, read by Spark's binaryFile source with Spark's file system access.

    Attributes:
        spark: The session.
        listed: Columns path, modified_us and length of the files.
        count: The number of these files.
        max_file_bytes: Larger files are not read.
        passed_over: Files of a local folder that are not listed.
        base: The local folder that contains all files.
    """

    spark: SparkSession
    listed: DataFrame
    count: int
    max_file_bytes: int
    passed_over: PassedOver
    base: str

    @classmethod
    def open(cls, spark: SparkSession, path: str, glob: str | None, max_file_bytes: int) -> Folder:
        """List the files without reading them."""
        place = naming.whole(path)
        here = mounted(place)
        roots, base = roots_of(here) if _is_of_this_machine(place) else ([], "/")
        links = links_below(roots, base)
        with access.reaching(f"--source {path!r}"):
            listed = _listed_here(spark, place, list(files_below(here, glob))) if links.to_folders else None
            # A folder with this literal name takes precedence over the pattern.
            for name in dict.fromkeys((naming.literal(place), place)):
                listed = _list(spark, glob, name) if listed is None else listed
        if listed is None:
            raise TableError(f"--source {path!r}: expected a folder of images, found nothing there. Check the path.")
        if links.leading_out:
            out = spark.createDataFrame([(f"file:{name}",) for name in links.leading_out], "path string")
            listed = listed.join(out, "path", "left_anti")
        listed = listed.persist()
        shard_files = F.count_if(F.col("path").rlike(TAR.pattern))
        count, tars = listed.agg(F.count(F.lit(1)), shard_files).collect()[0]
        # img2dataset writes Parquet and JSON files beside the shards, so not every file must be a shard.
        if tars > 0 and (glob is None or tars == count):
            raise TableError(
                f"--source {path!r}: expected images, found {tars} shards. Use --format webdataset, or --glob to "
                "select the images beside the shards."
            )
        first = listed.select("path").limit(1).collect()
        local = first[0].path.startswith("file:") if first else place.startswith(("file:", "/"))
        paths = (row.path for row in listed.select("path").toLocalIterator())
        passed_over = compare(here, glob, paths, count) if local else PassedOver()
        return cls(spark, listed, count, max_file_bytes, passed_over, base)

    @property
    def texts(self) -> tuple[str, ...]:
        """Empty: files have no text columns."""
        return ()

    @property
    def further(self) -> tuple[str, ...]:
        """Empty: files have no text columns."""
        return ()

    def knowing(self, columns: Sequence[str]) -> Folder:
        """Return this source: it has no text columns."""
        return self

    def new(self, known: DataFrame) -> tuple[int, Iterator[Entry]]:
        """List the files without a known row of the same path, modification time and length, and those to retry."""
        fresh = self.listed.join(known.where("NOT again"), ["path", "modified_us", "length"], "left_anti")
        return self.count, entries_of(fresh, known, self.listed)

    def read(self, entries: Sequence[Entry]) -> DataFrame:
        """Read the files that are not too large. Files that cannot be read have no row."""
        paths = [naming.literal(entry.path) for entry in entries if self._fits(entry)]
        if not paths:
            return self.spark.createDataFrame([], READ)
        reader = self.spark.read.format("binaryFile")
        # Without these options, one deleted or unreadable file fails the run.
        found = reader.option("ignoreMissingFiles", "true").option("ignoreCorruptFiles", "true").load(paths)
        modified = F.unix_micros("modificationTime").alias("modified_us")
        return found.select("path", modified, "length", F.col("content").alias("image"), no_error())

    def mend(self, entries: Sequence[Entry], read: DataFrame, errors: Set[str]) -> DataFrame | None:
        """Add the local files that Spark did not read: Python opens them or reports the reason."""
        if not errors & {reasons.UNREADABLE, COLON}:
            return None
        unread = self.unread(entries, read)
        local = unread.where((F.col("error") != reasons.TOO_LARGE) & F.col("path").startswith("file:"))
        fetch = partial(
            fetching.fetch_all,
            allowed=Allowed((Address("file", "", 0, os.path.normpath(self.base)),)),
            limits=Limits(file_bytes=self.max_file_bytes),
            images_only=False,
        )
        fetched = local.select("path").mapInArrow(fetch, fetching.FETCHED)
        rows = local.drop("image", "error").join(fetched, "path")
        return read.unionByName(rows.withColumn("header", header_udf()("image")))

    def unread(self, entries: Sequence[Entry], read: DataFrame) -> DataFrame:
        """Return the files that are too large, deleted or unreadable, with the reason."""
        rows = [(entry.path, entry.modified_us, entry.length, self._reason(entry)) for entry in entries]
        listed = self.spark.createDataFrame(rows, "path string, modified_us bigint, length bigint, error string")
        unread = listed.join(read.select("path"), "path", "left_anti")
        return unread.withColumn("image", F.lit(None).cast("binary"))

    def _reason(self, entry: Entry) -> str:
        if not self._fits(entry):
            return reasons.TOO_LARGE
        return COLON if ":" in entry.path.rpartition("/")[2] else reasons.UNREADABLE

    def _fits(self, entry: Entry) -> bool:
        return entry.length is not None and entry.length <= self.max_file_bytes


def _is_of_this_machine(place: str) -> bool:
    # On Databricks a path without a scheme is in a store. It has no links, and walking it would be slow.
    return place.startswith("file:") or (place.startswith("/") and "DATABRICKS_RUNTIME_VERSION" not in os.environ)


def _list(spark: SparkSession, glob: str | None, name: str) -> DataFrame | None:
    """List a path with Spark, or return None if it does not exist."""
    reader = spark.read.format("binaryFile").option("recursiveFileLookup", "true")
    if glob is not None:
        reader = reader.option("pathGlobFilter", glob)
    try:
        found = analysed(reader.load(name))
    except AnalysisException as error:
        if error.getCondition() != "PATH_NOT_FOUND":
            raise
        return None
    return found.select("path", F.unix_micros("modificationTime").alias("modified_us"), "length")


def _listed_here(spark: SparkSession, place: str, names: list[str]) -> DataFrame | None:
    """List local files as Spark would; None if Spark resolves their paths in a different file system."""
    if names and not place.startswith("file:"):
        first = _list(spark, None, naming.literal(names[0]))
        found = None if first is None else first.select("path").first()
        if found is None or not found.path.startswith("file:"):
            return None
    rows = []
    for name in names:
        # A file may have been deleted since it was listed.
        with suppress(FileNotFoundError):
            seen = os.stat(name)  # noqa: PTH116 (a name that is not UTF-8 is no Path)
            # Java's modification times have millisecond resolution.
            rows.append((f"file:{name}", seen.st_mtime_ns // 1_000_000 * 1_000, seen.st_size))
    return spark.createDataFrame(rows, "path string, modified_us bigint, length bigint")
