"""Ingest images from files, shards or addresses into a Delta table: each image once, in chunks, with unchanged bytes.

The table itself records which images were ingested. A run lists the source without image bytes, skips entries that the
table has with the same path, time and length, and reads only the rest. Each chunk is one commit, so a killed run loses
only the chunk in progress, and the next run continues from there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pyspark.sql import SparkSession

from spark_aesthetic.delta import sessions
from spark_aesthetic.delta.sessions import in_own_session
from spark_aesthetic.functions import inputs
from spark_aesthetic.ingest.entries import Entry
from spark_aesthetic.ingest.run import Run
from spark_aesthetic.ingest.sources import Format, open_source
from spark_aesthetic.ingest.table import ImageTable
from spark_aesthetic.options import check_files, in_bytes

__all__ = ["IngestSummary", "ingest_images"]

_log = logging.getLogger("spark_aesthetic")

# If a run is killed, about this much is read again.
MAX_BYTES_PER_CHUNK = "8g"
# The driver and the query plan hold the paths of one chunk.
MAX_FILES_PER_CHUNK = 50_000

# This is tens of times the size of a large photograph. The JVM holds a few copies of a file while writing Parquet.
MAX_FILE_BYTES = "128m"


@dataclass(frozen=True)
class IngestSummary:
    """The counts of a run.

    Attributes:
        listed: Files, shards or addresses in the source.
        skipped: Entries of the source that the table already had.
        passed_over: Files of a local folder, and shards, that exist and are not listed.
        passed_over_by_reason: The same, counted by reason.
        added: Rows with new paths.
        replaced: Rows that were replaced because their file was modified or was tried again.
        removed: Rows of samples that a modified shard no longer contains.
        unchanged: Samples of modified shards with unchanged rows.
        duplicates: Rows of this run with the same bytes as an earlier row, or as a row of this run with a path that
            sorts before theirs.
        left_out: Duplicates that were written to the `_duplicates` table instead of the table (`keep_once`).
        failed: Rows with an error, including rows that were left out.
        failed_by_reason: The same, counted by `error`.
        bytes_read: Total size of the images of this run.
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
        """Return the counts as a dictionary for JSON."""
        return asdict(self)


@in_own_session
def ingest_images(
    spark: SparkSession,
    source: str,
    table: str,
    *,
    format: Format | None = None,
    uri_col: str | None = None,
    glob: str | None = None,
    keep_once: bool = False,
    max_file_bytes: str | int = MAX_FILE_BYTES,
    max_bytes_per_chunk: str | int = MAX_BYTES_PER_CHUNK,
    max_files_per_chunk: int = MAX_FILES_PER_CHUNK,
    retry_failed: bool = False,
    allow: Sequence[str] = (),
) -> IngestSummary:
    """Ingest new images into a Delta table, which is created if it does not exist.

    The table has the columns image_id (string), path (string, unique), image (binary), width and height (int), format
    (string), error (string), length (bigint), modified_at and ingested_at (timestamp). For shards it also has
    `__key__`, `__url__`, `__version__` and the text columns (string). Only the header of an image is checked. A file
    that is not an image keeps its bytes and has the reason in `error`. A file that is too large or cannot be read, and
    an address that does not return an image, has only the reason.

    A file is identified by path, modification time and length, a shard by path, size and ETag (or time), and an address
    by its text. If nothing is new, the run reads no image and writes nothing. If a file was modified, its row is
    replaced. If a shard was modified, its new and changed samples are written and missing samples are removed. Only one
    run may write to a table: if a second run begins, the first one stops with an error.

    Args:
        spark: A session with Delta Lake.
        source: A folder (read recursively) or a pattern of folders; WebDataset shards, as the "webdataset" data source
            accepts them; or the name or path of a Delta or Parquet table with a column of paths or addresses.
        table: The Delta table for the images: a catalog name, or a path (anything with a slash).
        format: "folder" (read by Spark's binaryFile), "webdataset" or "uris". The default is "uris" with `uri_col`,
            "webdataset" if the source ends in .tar, .tar.gz or .tgz, and "folder" otherwise.
        uri_col: The column of paths or addresses. The executors fetch them, eight per task at a time, not counting slow
            addresses.
        glob: A pattern that file names in a folder must match, such as "*.{jpg,png}".
        keep_once: Keep one row for images with the same bytes: the row that is already in the table, or the one with
            the first path in sort order. Copies are listed without their bytes in a table of the same name with the
            suffix `_duplicates`.
        max_file_bytes: Larger files are not read. Use bytes, or text such as "128m". In shards this limits each file of
            a sample, and the maximum is "512m".
        max_bytes_per_chunk: The approximate size of the images in one commit. Use bytes, or text such as "8g". A chunk
            is stored on the executors' disks until its commit. Each shard is read by one task.
        max_files_per_chunk: The maximum number of files in one commit.
        retry_failed: Also retry files and addresses that could not be read or were not images, and damaged shards.
        allow: Prefixes of the addresses in `uri_col` that may be read, such as "s3://bucket/photos/",
            "/Volumes/main/photos/" or "http://10.1.2.3:8080/". Without a prefix, only http(s) to public addresses is
            allowed; add "http://" and "https://" to allow it in addition to prefixes.

    Returns:
        The counts of the run; see `IngestSummary`.

    Raises:
        OptionError: Options exclude each other or are out of range.
        TableError: The source does not exist, the table has unsuitable columns, or a later run has begun.
    """
    started = time.monotonic()
    check_files("max_files_per_chunk", max_files_per_chunk)
    max_bytes = in_bytes("max_bytes_per_chunk", max_bytes_per_chunk)
    opened = open_source(
        spark, source, format=format, uri_col=uri_col, glob=glob,
        max_file_bytes=in_bytes("max_file_bytes", max_file_bytes), allow=allow,
    )  # fmt: skip
    if opened.passed_over.counts:
        _log.warning("%s: files not read: %s", source, opened.passed_over)
    inputs.warn_of_large_batches(spark)
    run = Run(
        source=opened, name=source, table=ImageTable(spark, table), keep_once=keep_once, retry_failed=retry_failed
    )  # fmt: skip
    run.table.make()
    listed, skipped = _take_in(run, max_bytes, max_files_per_chunk)
    return _summary(run, listed, skipped, time.monotonic() - started)


def _take_in(run: Run, max_bytes: int, max_files: int) -> tuple[int, int]:
    """Write the new entries in chunks and return the numbers of listed and skipped entries."""
    listed, new = run.list_new()
    skipped = listed
    for number, entries in enumerate(_chunks(new, max_bytes, max_files), start=1):
        with sessions.described(run.table.spark, f"spark-aesthetic: chunk {number} of {run.name}"):
            run.write(entries, number)
        skipped -= len(entries)
        _log.info("%s: %d of %d entries ingested, %d chunks", run.name, listed - skipped, listed, run.done.chunks)
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
    """Group the entries in order into chunks of about `max_bytes`, with new and changed entries in separate chunks."""
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
