"""What a change data feed says of the rows of a source, reduced to the last row of each key."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import IntegralType, StringType

from spark_aesthetic.delta import identity
from spark_aesthetic.delta.naming import quoted
from spark_aesthetic.errors import TableError
from spark_aesthetic.scoring.target import CHANGED, DELETED

# What the change data feed says of a row, by the name that it gets here; other sources are read as inserts alone.
CHANGE, VERSION = "_aesthetic_change", "_aesthetic_version"
FEED = {"_change_type": CHANGE, "_commit_version": VERSION}

# Steps on the way from the changes of a key to its last row.
_COPIES, _ROW, _LAST = "_aesthetic_copies", "_aesthetic_row", "_aesthetic_last"


def said(rows: DataFrame, change: str) -> DataFrame:
    """Rows as a change data feed would give them, all with one change, such as `insert`."""
    return rows.withColumns({CHANGE: F.lit(change), VERSION: F.lit(0)})


def is_present() -> Column:
    """Whether a row is there after its change."""
    return F.col(CHANGE).isin("insert", "update_postimage")


def latest(changes: DataFrame, key: Sequence[str], columns: Iterable[str]) -> DataFrame:
    """Reduce the changes to one row per key: the latest values, whether it was deleted, and whether it changed.

    Args:
        changes: Rows with `CHANGE` and `VERSION`.
        key: Columns that identify a row.
        columns: All columns of a row.
    """
    names = list(map(quoted, key))
    row = F.struct(*[F.col(quoted(name)) for name in columns if name not in key]).alias(_ROW)
    # A version may hold the delete or the old side of an update beside the new row, which is the one that counts.
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
    """Give the least and the greatest value of the first column of a key, if both can stand in a statement.

    Args:
        latest: As `latest` gives it.
        key: Columns that identify a row.

    Raises:
        TableError: A key has a null, or is of several rows.
    """
    nulls, first = identity.has_null(key), F.col(quoted(key[0]))
    kind = latest.schema[key[0]].dataType
    # Python and Delta's statistics hold other text in place of bytes that are no UTF-8.
    altered = ~F.is_valid_utf8(first) if kind == StringType() else F.lit(not isinstance(kind, IntegralType))
    found = latest.agg(
        F.count_if(nulls).alias("nulls"), F.count_if(F.col(_COPIES) > 1).alias("repeated"),
        F.min(first).alias("least"), F.max(first).alias("greatest"), F.count_if(altered).alias("altered"),
    )  # fmt: skip
    counts = found.collect()[0]
    if counts.nulls or counts.repeated:
        raise TableError(
            f"--key {', '.join(key)}: expected a value of its own in each row, found {counts.nulls} "
            f"new keys with a null and {counts.repeated} of several rows; add a column to the key, or repair the "
            "source and run with --reconcile"
        )
    return None if counts.altered or counts.least is None else (counts.least, counts.greatest)
