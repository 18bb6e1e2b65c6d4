"""Keys that do not identify one row each: their number and the first of them, before anything is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import Column, DataFrame, Row, SparkSession
from pyspark.sql import functions as F

from spark_aesthetic.delta.identity import has_null, key_text
from spark_aesthetic.delta.naming import quoted
from spark_aesthetic.errors import TableError
from spark_aesthetic.webdataset import shards
from spark_aesthetic.webdataset.source import SIDECAR_KEY

_KEY, _ROWS, _DAMAGE = "_aesthetic_key", "_aesthetic_rows", "_aesthetic_damage"

# Keys that an error shows.
_SHOWN = 3

# Keys of shards in one Arrow batch.
_BATCH_ROWS = 10_000


def check_keys(rows: DataFrame, key: Sequence[str], called: str, remedy: str) -> None:
    """Check that each key is of one row and has no null; reads the key columns once, and again where it has not.

    Args:
        rows: The rows.
        key: Columns that together identify a row.
        called: The rows in an error: "the scores".
        remedy: What to do about a key with several rows.

    Raises:
        TableError: With the number of such keys, and the first three.
    """
    columns = [F.col(quoted(name)) for name in key]
    groups = rows.groupBy(*columns).agg(F.count(F.lit(1)).alias(_ROWS))
    empty, several = has_null(key), F.col(_ROWS) > 1
    found = groups.agg(
        F.sum(F.when(empty, F.col(_ROWS))).alias("empty"), F.count_if(several & ~empty).alias("repeated")
    ).collect()[0]
    if found.empty:
        raise TableError(
            f"--key {', '.join(key)}: expected a value in each row of {called}, found {found.empty} rows with a null, "
            "which no other table's row can equal; leave them out, or name another key"
        )
    if found.repeated:
        text = key_text(map(quoted, key)).alias(_KEY)
        first = groups.where(several & ~empty).orderBy(*columns).limit(_SHOWN).select(text, _ROWS).collect()
        shown = ", ".join(f"{row[_ROWS]} for {row[_KEY]}" for row in first)
        raise TableError(
            f"--key {', '.join(key)}: expected one row of {called} for each key, found {shown}"
            f"{_more(found.repeated)}; {remedy}"
        )


def check_sample_keys(rows: DataFrame, key_col: str, there: DataFrame | None) -> int:
    """Check the keys of samples in one pass over them: that readers find them again, each once.

    Args:
        rows: Rows to write.
        key_col: Their column of keys; where it is null, keys are counted.
        there: The keys that the shards at the place have, as `keys_of_shards` gives them; None if there are none.

    Returns:
        How many rows there are.

    Raises:
        TableError: With the number of such keys, and the first three.
    """
    keys = rows.select(F.col(quoted(key_col)).cast("string").alias(_KEY)).groupBy(_KEY)
    groups = keys.agg(F.count(F.lit(1)).alias(_ROWS))
    key = F.col(_KEY)
    unsayable, several = ~key.rlike(shards.WHOLE_KEY), key.isNotNull() & (F.col(_ROWS) > 1)
    found = groups.agg(
        F.coalesce(F.sum(_ROWS), F.lit(0)).alias("rows"),
        F.count_if(unsayable).alias("unsayable"),
        F.count_if(several).alias("repeated"),
    ).collect()[0]
    counted = "leave it out, then keys are counted, and the column goes into the JSON"
    if found.unsayable:
        raise TableError(
            f"--key-col {key_col}: expected keys {shards.KEY_RULE}, found {_first(groups, unsayable)}"
            f"{_more(found.unsayable)}; {counted}"
        )
    if found.repeated:
        raise TableError(
            f"--key-col {key_col}: expected each key in one row, found several rows for {_first(groups, several)}"
            f"{_more(found.repeated)}; take another column, drop those rows, or {counted}"
        )
    if there is not None:
        again = groups.join(there, _KEY, "left_semi")
        repeated = again.count()
        if repeated:
            raise TableError(
                f"--key-col {key_col}: expected keys that the shards at --out do not have, found "
                f"{_first(again, F.lit(True))}{_more(repeated)}; leave those rows out, or replace the shards with "
                "--mode overwrite"
            )
    rows_found: int = found.rows
    return rows_found


def _first(groups: DataFrame, wrong: Column) -> str:
    shown: list[Row] = groups.where(wrong).orderBy(_KEY).limit(_SHOWN).collect()
    return ", ".join(repr(row[_KEY]) for row in shown)


def _more(found: int) -> str:
    return f" and {found - _SHOWN} more" if found > _SHOWN else ""


def keys_of_shards(spark: SparkSession, urls: Sequence[str]) -> DataFrame:
    """Read the keys of shards, a task for each: from the sidecar if the shard has one, else from its headers.

    Returns:
        A frame that is kept on the executors; the caller unpersists it.

    Raises:
        TableError: A shard is damaged.
    """
    addresses = spark.createDataFrame([(url,) for url in urls], "url string").repartition(len(urls), "url")
    found = addresses.mapInArrow(_keys, f"{_KEY} string, {_DAMAGE} string").persist()
    damaged = found.where(F.col(_DAMAGE).isNotNull()).limit(1).collect()
    if damaged:
        found.unpersist()
        raise TableError(f"--out: expected shards whose keys can be read, found one that is not: {damaged[0][_DAMAGE]}")
    return found


def _keys(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        for url in batch.column("url").to_pylist():
            keys: list[str] = []
            damage = None
            try:
                for key in _keys_of(url):
                    keys.append(key)
                    if len(keys) == _BATCH_ROWS:
                        yield _batch(keys, None)
                        keys = []
            except shards.ShardError as error:
                damage = str(error)
            # The Parquet file beside a shard is damaged.
            except pa.ArrowException as error:
                damage = f"the sidecar of {url}: {str(error).splitlines()[0]}"
            yield _batch(keys, damage)


def _keys_of(url: str) -> Iterator[str]:
    system, place = shards.locate(url.removesuffix(".tar") + ".parquet")
    if system.exists(place):
        with system.open(place, "rb") as file:
            for batch in pq.ParquetFile(file).iter_batches(_BATCH_ROWS, columns=[SIDECAR_KEY]):
                yield from batch.column(0).to_pylist()
    else:
        for sample in shards.read(url, lambda _: False):
            yield sample.key


def _batch(keys: list[str], damage: str | None) -> pa.RecordBatch:
    rows = [(key, None) for key in keys] + ([] if damage is None else [(None, damage)])
    columns = zip(*rows, strict=True) if rows else ((), ())
    return pa.RecordBatch.from_arrays([pa.array(list(column), pa.string()) for column in columns], [_KEY, _DAMAGE])
