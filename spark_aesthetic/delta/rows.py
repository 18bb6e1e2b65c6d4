"""Rows of some keys with their bytes, reading the bytes of those files alone that hold them.

Delta leaves out files by a filter's values, which helps where keys are stored in order, and by nothing else: a join
with the keys reads the bytes of every row. So keys are first looked up by a narrow read, which tells their files, and
then those are read as the Parquet files they are, at the version that the run has pinned.
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

# Up to as many rows of one part go to every executor with the name of their file; images of 8 GiB are fewer.
_BROADCAST_ROWS = 500_000

# Spark takes these in a path for a pattern.
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
    """The rows that have one of some keys, in parts of about `max_bytes` of files each.

    All in one part, with the bytes of every row read, where files cannot be read on their own: those of Unity
    Catalog, which guards them; those with deletion vectors or other names for columns; paths that look like patterns.

    Args:
        spark: The session.
        source: The table, at its version.
        keys: Columns `key`.
        count: How many keys these are.
        key: The key columns.
        kept: Narrow columns to give, the key among them.
        column: The column of bytes or embeddings to give.
        max_bytes: Of files, in a part.
    """
    # As the files spell them.
    key, kept = ([spelled(source.rows, name) for name in given] for given in (key, kept))
    column = spelled(source.rows, column)
    names = list(map(quoted, [*kept, column]))
    wanted = broadcast_if_few(keys, count)
    # Of a partitioned table a file holds but the other columns.
    held_key = [name for name in key if name not in source.partitions]
    in_one = source.rows.join(wanted, list(key), "left_semi").select(*names)
    if not held_key or not _files_are_ours_to_read(source):
        yield in_one
        return
    # Not by the name _metadata, which a column of the table may have.
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
    """Files in parts whose sizes sum up to `max_bytes` at most, or of one file that is larger."""
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
    """Rows of a table with narrow columns of chosen keys beside them, for one write while it is open.

    With one column of bytes, or of structs with bytes, those of up to half a million rows are read from the files alone
    that hold them; else a join reads all, of up to five million rows without a shuffle of their bytes.

    Args:
        source: The table at its version, or None where it is none of Delta's.
        rows: Its rows, as the reader names the columns.
        chosen: Columns `key` and narrow ones that `own` does not have; each key once.
        count: How many rows these are.
        key: Columns that together identify a row in both.
        own: Columns of `rows` to give, the key among them.
    """
    of_bytes = [name for name in own if holds_bytes(rows.schema[name].dataType)]
    if source is not None and 0 < count <= _BROADCAST_ROWS and len(of_bytes) == 1 and of_bytes[0] not in key:
        # All in one part, for one commit.
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
