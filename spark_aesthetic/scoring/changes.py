"""Reduce the changes in a change data feed to the latest row of each key."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import IntegralType, StringType

from spark_aesthetic.delta import identity
from spark_aesthetic.delta.naming import quoted
from spark_aesthetic.errors import TableError
from spark_aesthetic.scoring.target import CHANGED, DELETED

# Our names for the columns of a change data feed. Rows of a source without a feed count as inserts.
CHANGE, VERSION = "_aesthetic_change", "_aesthetic_version"
FEED = {"_change_type": CHANGE, "_commit_version": VERSION}

# Intermediate columns of `latest`.
_COPIES, _ROW, _LAST = "_aesthetic_copies", "_aesthetic_row", "_aesthetic_last"


def said(rows: DataFrame, change: str) -> DataFrame:
    """Add the columns of a change data feed to rows, with one change type, such as `insert`, for all of them."""
    return rows.withColumns({CHANGE: F.lit(change), VERSION: F.lit(0)})


def is_present() -> Column:
    """Whether a row exists after its change."""
    return F.col(CHANGE).isin("insert", "update_postimage")


def deletes_of(version: int) -> Column:
    """Whether a row was deleted by a version."""
    return (F.col(VERSION) == version) & (F.col(CHANGE) == "delete")


def read_in_part(changes: DataFrame, version: int, there: DataFrame | None, key: Sequence[str]) -> DataFrame:
    """Adapt the changes of a version that is read in several chunks, so that each chunk can be merged by itself.

    An overwrite deletes all rows and inserts the new ones, in any order. Therefore an insert replaces the score with
    the same key, and a delete counts only if the source at that version has no row with its key.

    Args:
        changes: Rows with `CHANGE` and `VERSION`.
        version: The version.
        there: The keys of deleted rows that the source has at that version; None if the chunk has no deletes.
        key: Columns that identify a row.
    """
    replaces = (F.col(VERSION) == version) & (F.col(CHANGE) == "insert")
    changes = changes.withColumn(CHANGE, F.when(replaces, "update_postimage").otherwise(F.col(CHANGE)))
    if there is None:
        return changes
    deletes = deletes_of(version)
    return changes.where(~deletes).unionByName(changes.where(deletes).join(there, list(key), "left_anti"))


def latest(changes: DataFrame, key: Sequence[str], columns: Iterable[str]) -> DataFrame:
    """Reduce the changes to one row per key: the latest values, whether it was deleted, and whether it changed.

    Args:
        changes: Rows with `CHANGE` and `VERSION`.
        key: Columns that identify a row.
        columns: All columns of a row.
    """
    names = list(map(quoted, key))
    row = F.struct(*[F.col(quoted(name)) for name in columns if name not in key]).alias(_ROW)
    # One version may contain a key's delete or preimage beside its new row. Only the new row counts.
    versions = changes.groupBy(*names, VERSION).agg(
        F.count_if(is_present()).alias(_COPIES),
        F.bool_or(F.col(CHANGE) != "insert").alias(CHANGED),
        F.max_by(row, is_present()).alias(_ROW),
    )
    last = F.max_by(F.struct(_COPIES, _ROW), VERSION).alias(_LAST)
    keys = versions.groupBy(*names).agg(last, F.bool_or(CHANGED).alias(CHANGED))
    copies = F.col(_LAST)[_COPIES]
    return keys.select(*names, f"{_LAST}.{_ROW}.*", CHANGED, (copies == 0).alias(DELETED), copies.alias(_COPIES))


def check_key(latest: DataFrame, key: Sequence[str]) -> tuple[int | str, int | str] | None:
    """Check that keys have no nulls and no duplicates, and return the range of the first key column.

    The range is None if there is no row, or if a value is neither an integer nor valid UTF-8.

    Args:
        latest: The rows that `latest` returns.
        key: Columns that identify a row.

    Raises:
        TableError: A key has a null, or belongs to several rows.
    """
    nulls, first = identity.has_null(key), F.col(quoted(key[0]))
    kind = latest.schema[key[0]].dataType
    # Python and Delta's statistics replace bytes that are not valid UTF-8, so the bounds would be wrong.
    altered = ~F.is_valid_utf8(first) if kind == StringType() else F.lit(not isinstance(kind, IntegralType))
    found = latest.agg(
        F.count_if(nulls).alias("nulls"), F.count_if(F.col(_COPIES) > 1).alias("repeated"),
        F.min(first).alias("least"), F.max(first).alias("greatest"), F.count_if(altered).alias("altered"),
    )  # fmt: skip
    counts = found.collect()[0]
    if counts.nulls or counts.repeated:
        raise TableError(
            f"--key {', '.join(key)}: expected a unique key in each row, found {counts.nulls} new keys with a "
            f"null and {counts.repeated} shared by several rows. Add a column to the key, or repair the source and run "
            "with --reconcile."
        )
    return None if counts.altered or counts.least is None else (counts.least, counts.greatest)
