"""Read the rows of given keys with their bytes, from only the files that contain the keys.

Delta skips files only by the values in a filter, which helps only if the table is ordered by the key. A join with the
keys reads the bytes of every row. Therefore a first read of narrow columns finds the files of the keys, and a second
read opens these files directly as Parquet, at the version that the run has pinned.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from urllib.parse import unquote

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from spark_aesthetic.delta.frames import broadcast_if_few, on_disk
from spark_aesthetic.delta.naming import quoted
from spark_aesthetic.delta.schemas import holds_bytes, spelled
from spark_aesthetic.delta.tables import Source

_FILE, _SIZE = "_aesthetic_file", "_aesthetic_size"

# Up to this many rows of one part are broadcast with their file's name. A part of 8 GiB has fewer images.
_BROADCAST_ROWS = 500_000

# Spark reads a path with one of these characters as a glob pattern.
_PATTERN = set("*?[]{},\\")


def rows_of_keys(
    spark: SparkSession,
    source: Source,
    keys: DataFrame,
    count: int,
    *,
    key: Sequence[str],
    kept: Sequence[str],
    column: str,
    max_bytes: int,
) -> Generator[DataFrame, None, None]:
    """Yield the rows of the given keys, in parts of about `max_bytes` of files each.

    If the files cannot be read directly, there is one part, and the bytes of every row are read. This concerns tables
    in Unity Catalog, which protects its files; tables with deletion vectors or column mapping; paths that look like
    glob patterns; and keys of partition columns only.

    Args:
        spark: The session.
        source: The table, at its pinned version.
        keys: The keys, in the columns `key`.
        count: The number of keys.
        key: The key columns.
        kept: Narrow columns to return, including the key.
        column: The column of bytes or embeddings to return.
        max_bytes: Size of the files of one part.
    """
    # The Parquet files need the exact spelling.
    key, kept = ([spelled(source.rows, name) for name in given] for given in (key, kept))
    column = spelled(source.rows, column)
    names = list(map(quoted, [*kept, column]))
    wanted = broadcast_if_few(keys, count)
    # The files do not contain the partition columns.
    held_key = [name for name in key if name not in source.partitions]
    in_one = source.rows.join(wanted, list(key), "left_semi").select(*names)
    if not held_key or not _files_are_ours_to_read(source):
        yield in_one
        return
    # The table may have a column of its own that is named _metadata.
    metadata = source.rows.metadataColumn("_metadata")
    narrow = source.rows.select(
        *map(quoted, kept), metadata["file_path"].alias(_FILE), metadata["file_size"].alias(_SIZE)
    )
    with on_disk(narrow.join(wanted, list(key), "left_semi")) as located:
        files = located.groupBy(_FILE).agg(F.max(_SIZE).alias("size"), F.count(F.lit(1)).alias("rows")).collect()
        if any(_PATTERN & set(unquote(row[_FILE])) for row in files):
            yield in_one
            return
        schema = StructType([source.rows.schema[name] for name in (*held_key, column)])
        for part in _parts([(row[_FILE], row.size, row.rows) for row in files], max_bytes):
            paths = [path for path, _, _ in part]
            here = located.where(F.col(_FILE).isin(paths)).drop(_SIZE)
            if sum(rows for _, _, rows in part) <= _BROADCAST_ROWS:
                here = F.broadcast(here)
            held = spark.read.schema(schema).parquet(*map(unquote, paths))
            held = held.select("*", held.metadataColumn("_metadata")["file_path"].alias(_FILE))
            yield held.join(here, [_FILE, *held_key]).select(*names)


def _files_are_ours_to_read(source: Source) -> bool:
    guarded = "__unitystorage" in source.location or "DATABRICKS_RUNTIME_VERSION" in os.environ
    return source.plain and not guarded


def _parts(files: list[tuple[str, int, int]], max_bytes: int) -> Iterator[list[tuple[str, int, int]]]:
    """Group files into parts of at most `max_bytes`. A larger file is a part of its own."""
    part: list[tuple[str, int, int]] = []
    total = 0
    for file in sorted(files):
        if part and total + file[1] > max_bytes:
            yield part
            part, total = [], 0
        part.append(file)
        total += file[1]
    if part:
        yield part


@contextmanager
def rows_of_chosen(
    source: Source | None, rows: DataFrame, chosen: DataFrame, count: int, *, key: Sequence[str], own: Sequence[str]
) -> Iterator[DataFrame]:
    """Join narrow columns of chosen keys to the rows of a table, for one write while the context is open.

    For up to half a million keys and one column of bytes (or of structs with bytes), only the files that contain the
    keys are read. Otherwise a join reads all files; for up to five million keys it does not shuffle the bytes.

    Args:
        source: The table at its pinned version, or None if it is not a Delta table.
        rows: The rows of the table, with at least the columns `own`.
        chosen: The columns `key`, and narrow columns that are not in `own`. Each key occurs once.
        count: The number of chosen keys.
        key: Columns that together identify a row on both sides.
        own: Columns of `rows` to return, including the key.
    """
    of_bytes = [name for name in own if holds_bytes(rows.schema[name].dataType)]
    if source is not None and 0 < count <= _BROADCAST_ROWS and len(of_bytes) == 1 and of_bytes[0] not in key:
        # One part, because there is one commit.
        parts = rows_of_keys(
            rows.sparkSession, source, chosen.select(*map(quoted, key)), count, key=key,
            kept=[name for name in own if name not in of_bytes], column=of_bytes[0], max_bytes=sys.maxsize,
        )  # fmt: skip
        with closing(parts):
            for read in parts:
                yield read.join(F.broadcast(chosen), list(key))
                return
    wanted = broadcast_if_few(chosen, count)
    yield rows.select(*map(quoted, own)).join(wanted, list(key))
