"""Files, shards or addresses of images to a Delta table: chunk by chunk, each once, bytes untouched.

The table itself is the memory of what has been taken in: a run lists the source in narrow rows, leaves out what is
there by path, time and length, and reads nothing else. Each chunk of the rest is one commit, so a run that is killed
costs the chunk at work, and the next one lists again.
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

# What a kill may cost: at most so much is read again.
MAX_BYTES_PER_CHUNK = "8g"
# Held on the driver, and in the plan that reads them.
MAX_FILES_PER_CHUNK = 50_000

# Tens of times a large photograph; the JVM holds a few copies of it on its way into Parquet.
MAX_FILE_BYTES = "128m"


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
        max_file_bytes: Larger files are not read: bytes, or text such as "128m". In shards it limits each file of a
            sample, and is at most "512m".
        max_bytes_per_chunk: Approximate size of the images in one commit: bytes, or text such as "8g". They wait on the
            executors' disks; of shards there is one task each.
        max_files_per_chunk: Maximum number of files in one commit.
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
