"""Check that each key identifies one row, before anything is written."""

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

# An error shows at most this many keys.
_SHOWN = 3

# Number of keys in one Arrow batch.
_BATCH_ROWS = 10_000


def check_keys(rows: DataFrame, key: Sequence[str], called: str, remedy: str) -> None:
    """Check that each key has one row and no null. Reads the key columns once, and again to name repeated keys.

    Args:
        rows: The rows.
        key: Columns that together identify a row.
        called: The name of the rows in an error, such as "the scores".
        remedy: A sentence for the error that states what to do about a repeated key.

    Raises:
        TableError: A key is null or repeated. The message gives the number of rows with a null, or names up to three
            repeated keys and counts the rest.
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
            "which cannot be joined. Leave them out, or choose another key."
        )
    if found.repeated:
        text = key_text(map(quoted, key)).alias(_KEY)
        first = groups.where(several & ~empty).orderBy(*columns).limit(_SHOWN).select(text, _ROWS).collect()
        shown = ", ".join(f"{row[_ROWS]} for {row[_KEY]}" for row in first)
        raise TableError(
            f"--key {', '.join(key)}: expected one row of {called} for each key, found {shown}"
            f"{_more(found.repeated)}. {remedy}"
        )


def check_sample_keys(rows: DataFrame, key_col: str, there: DataFrame | None) -> int:
    """Check that the keys of samples are valid and unique, in one pass over them.

    Args:
        rows: Rows to write.
        key_col: Column of the keys; a sample with a null key is numbered.
        there: The keys of the existing shards, as `keys_of_shards` gives them; None without shards.

    Returns:
        The number of rows.

    Raises:
        TableError: A key is invalid or repeated. The message names up to three keys and counts the rest.
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
    counted = "leave out --key-col, which numbers the samples and writes the column to the JSON."
    if found.unsayable:
        raise TableError(
            f"--key-col {key_col}: expected keys {shards.KEY_RULE}, found {_first(groups, unsayable)}"
            f"{_more(found.unsayable)}. Choose another column, or {counted}"
        )
    if found.repeated:
        raise TableError(
            f"--key-col {key_col}: expected each key in one row, found several rows for {_first(groups, several)}"
            f"{_more(found.repeated)}. Choose another column, drop those rows, or {counted}"
        )
    if there is not None:
        again = groups.join(there, _KEY, "left_semi")
        repeated = again.count()
        if repeated:
            raise TableError(
                f"--key-col {key_col}: expected keys that the shards at --out do not have, found "
                f"{_first(again, F.lit(True))}{_more(repeated)}. Leave those rows out, or replace the shards with "
                "--mode overwrite."
            )
    rows_found: int = found.rows
    return rows_found


def _first(groups: DataFrame, wrong: Column) -> str:
    shown: list[Row] = groups.where(wrong).orderBy(_KEY).limit(_SHOWN).collect()
    return ", ".join(repr(row[_KEY]) for row in shown)


def _more(found: int) -> str:
    return f" and {found - _SHOWN} more" if found > _SHOWN else ""


def keys_of_shards(spark: SparkSession, urls: Sequence[str]) -> DataFrame:
    """Read the keys of shards, one task per shard: from its sidecar if it has one, otherwise from its tar headers.

    Returns:
        A DataFrame that is persisted on the executors; the caller unpersists it.

    Raises:
        TableError: A shard is damaged.
    """
    addresses = spark.createDataFrame([(url,) for url in urls], "url string").repartition(len(urls), "url")
    found = addresses.mapInArrow(_keys, f"{_KEY} string, {_DAMAGE} string").persist()
    damaged = found.where(F.col(_DAMAGE).isNotNull()).limit(1).collect()
    if damaged:
        found.unpersist()
        raise TableError(
            f"--out: expected shards with readable keys, found a damaged one: {damaged[0][_DAMAGE]}. Replace the "
            "shards with --mode overwrite, or write to another folder."
        )
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
            # PyArrow raises this for a damaged sidecar.
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
