"""Persist rows for repeated use, and join rows with image bytes to keys without a shuffle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pyspark import StorageLevel
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

# Up to this many keys are broadcast, so that a join with them does not shuffle image bytes.
_BROADCAST_KEYS = 5_000_000


@contextmanager
def on_disk(rows: DataFrame) -> Iterator[DataFrame]:
    """Persist rows on the executors' disks for the duration of the context."""
    kept = rows.persist(StorageLevel.DISK_ONLY)
    try:
        yield kept
    finally:
        kept.unpersist()


def broadcast_if_few(keys: DataFrame, count: int) -> DataFrame:
    """Return the keys, broadcast if `count` is small, for a join with rows that have image bytes."""
    return F.broadcast(keys) if count <= _BROADCAST_KEYS else keys


def without(rows: DataFrame, keys: DataFrame, key: Sequence[str], count: int) -> DataFrame:
    """Return the rows that have none of the `count` keys."""
    return rows.join(broadcast_if_few(keys, count), list(key), "left_anti")
