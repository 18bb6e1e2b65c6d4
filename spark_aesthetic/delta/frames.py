"""Rows that are used more than once, and rows beside others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pyspark import StorageLevel
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

# Up to as many keys go to every executor, so that image bytes are not shuffled to meet them.
_BROADCAST_KEYS = 5_000_000


@contextmanager
def on_disk(rows: DataFrame) -> Iterator[DataFrame]:
    """Keep rows on the executors' disks, so that each use after the first reads them from there."""
    kept = rows.persist(StorageLevel.DISK_ONLY)
    try:
        yield kept
    finally:
        kept.unpersist()


def broadcast_if_few(keys: DataFrame, count: int) -> DataFrame:
    """The same `count` keys, for a join with rows that hold image bytes."""
    return F.broadcast(keys) if count <= _BROADCAST_KEYS else keys


def without(rows: DataFrame, keys: DataFrame, key: Sequence[str], count: int) -> DataFrame:
    """The rows that have none of `count` keys."""
    return rows.join(broadcast_if_few(keys, count), list(key), "left_anti")
