"""Chosen rows of a table as WebDataset shards."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, Observation, SparkSession
from pyspark.sql import functions as F

from spark_aesthetic import preflight
from spark_aesthetic.datasources import shards
from spark_aesthetic.datasources.webdataset import KEY, WebDataset
from spark_aesthetic.errors import OptionError, TableError, nearest
from spark_aesthetic.preflight import BROADCAST_KEYS, identifier, quoted
from spark_aesthetic.scores import MODEL, TYPES


@dataclass(frozen=True)
class ExportSummary:
    """What an export wrote.

    Attributes:
        rows: Samples in the shards.
        without_image: Rows that were chosen and left out, since their image is null.
        image_bytes: Of all images.
        shards: Tar files.
        out: Their folder.
        seconds: Wall-clock time.
    """

    rows: int
    without_image: int
    image_bytes: int
    shards: int
    out: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)


def export_webdataset(
    spark: SparkSession,
    *,
    table: str,
    out: str,
    where: str | None = None,
    scores: str | None = None,
    key: Sequence[str] = (),
    model: str | None = None,
    key_col: str | None = None,
    image_col: str = "image",
    columns: Sequence[str] | None = None,
    samples_per_shard: int = 10_000,
    sidecar: bool = False,
    mode: str = "append",
) -> ExportSummary:
    """Write the rows that a condition chooses as shards: images byte for byte, all else in a JSON file for each.

    A first pass counts the rows, without the images unless the condition reads them, so that about as many tasks write
    as there are shards; images are not shuffled, and a task holds one Arrow batch of them. Where several tasks meet the
    limit of a shard, each ends with a smaller one.

    Args:
        spark: A session.
        table: Table or view with the images by catalog name, or a Delta table by path (anything with a slash).
        out: Folder of the shards, local or of any file system that fsspec knows.
        where: SQL condition over the columns of both tables; all rows by default.
        scores: Scores table to join by `key`. Its columns take the place of columns of the same name.
        key: Columns that together identify a row in both.
        model: The `aesthetic_model` whose scores to take; needed where there are several.
        key_col: Column of the samples' keys, without dots and each once; by default they are counted.
        image_col: Binary column of image files; the files are named by what the bytes are.
        columns: Others to write; by default all.
        samples_per_shard: At most so many in a shard.
        sidecar: Also write all but the images as Parquet beside each shard.
        mode: "append" numbers on from the shards that are there, "overwrite" replaces them.

    Returns:
        Counts; see `ExportSummary`.

    Raises:
        AestheticError: Before anything is written: tables, columns, keys or options are not right.
    """
    started = time.monotonic()
    if mode not in ("append", "overwrite"):
        raise OptionError(f"--mode {mode}: {nearest(mode, ('append', 'overwrite'))}")
    if samples_per_shard < 1:
        raise OptionError(f"--samples-per-shard: expected at least 1, found {samples_per_shard}")
    rows = _open(spark, table, "--table")
    preflight.check_image_column(rows, image_col)
    if scores is not None:
        rows = _join(spark, rows, scores, key, model, where)
    elif key or model is not None:
        raise OptionError("--key, --model: expected --scores with them, found none; they say what to join")
    if where is not None:
        rows = _filtered(rows, where)
    kept = [image_col, *(rows.columns if columns is None else columns), *([] if key_col is None else [key_col])]
    for name in kept:
        if name not in rows.columns:
            raise TableError(f"--columns, --key-col: no column {name!r}: {nearest(name, rows.columns)}")
    if key_col is not None:
        _check_keys(rows, key_col)
    count = rows.count()
    others = [quoted(name) for name in dict.fromkeys(kept) if name not in (image_col, key_col)]
    keys = [] if key_col is None else [F.col(quoted(key_col)).cast("string").alias(KEY)]
    samples = rows.select(*keys, F.col(quoted(image_col)).alias("image"), *others)
    told = Observation()
    image = F.col("image")
    # Above the count of all, so that Spark counts before it leaves any out.
    samples = samples.observe(
        told,
        F.count(F.lit(1)).alias("rows"),
        F.count(image).alias("images"),
        F.sum(F.length(image)).alias("bytes"),
    ).where(image.isNotNull())
    spark.dataSource.register(WebDataset)
    before = 0 if mode == "overwrite" else _count_shards(out)
    options = {"samplesPerShard": str(samples_per_shard), "sidecar": str(sidecar).lower()}
    tasks = max(1, -(-count // samples_per_shard))
    samples.coalesce(tasks).write.format("webdataset").mode(mode).options(**options).save(out)
    found = told.get
    return ExportSummary(
        rows=found["images"],
        without_image=found["rows"] - found["images"],
        image_bytes=found["bytes"] or 0,
        shards=_count_shards(out) - before,
        out=out,
        seconds=round(time.monotonic() - started, 3),
    )


def _open(spark: SparkSession, table: str, option: str) -> DataFrame:
    try:
        rows = spark.table(identifier(table))
        # On Connect nothing has been looked up before.
        _ = rows.schema
    except AnalysisException as error:
        raise TableError(f"{option} {table}: expected a table, found none; check the name or the path") from error
    return rows


def _join(
    spark: SparkSession, rows: DataFrame, scores: str, key: Sequence[str], model: str | None, where: str | None
) -> DataFrame:
    scored = _open(spark, scores, "--scores")
    for side, found in (("--table", rows), ("--scores", scored)):
        for name in key:
            if name not in found.columns:
                raise TableError(f"--key: no column {name!r} in {side}: {nearest(name, found.columns)}")
    if not key:
        raise OptionError("--scores: expected --key with it, found none; name the columns that identify a row in both")
    if MODEL not in scored.columns:
        raise TableError(f"--scores {scores}: expected a scores table, found no column {MODEL}; score --table first")
    models = sorted(row[0] for row in scored.select(MODEL).distinct().collect())
    if model is None and len(models) > 1:
        raise OptionError(f"--model: expected one, since --scores has several; choose from {', '.join(models)}")
    if model is not None and model not in models:
        raise OptionError(f"--model: no model {model!r} in --scores: {nearest(model, models)}")
    made = [name for name in scored.columns if name in TYPES]
    scored = scored.where(F.col(MODEL) == (model or (models[0] if models else ""))).select(*map(quoted, key), *made)
    if where is not None:
        # One that asks for columns of the other table too is asked of both alone.
        with suppress(OptionError):
            scored = _filtered(scored, where)
    # Else images would be shuffled to meet their scores.
    wanted = F.broadcast(scored) if scored.count() <= BROADCAST_KEYS else scored
    return rows.drop(*made).join(wanted, list(key))


def _filtered(rows: DataFrame, where: str) -> DataFrame:
    try:
        chosen = rows.where(where)
        _ = chosen.schema
    except AnalysisException as error:
        raise OptionError(f"--where {where!r}: {str(error).splitlines()[0]}") from error
    return chosen


def _check_keys(rows: DataFrame, key_col: str) -> None:
    text = F.col(quoted(key_col)).cast("string")
    dotted = rows.where(text.contains(".")).select(text.alias("key")).limit(1).collect()
    if dotted:
        raise TableError(
            f"--key-col {key_col}: expected keys without a dot, at which readers cut them, found {dotted[0].key!r}; "
            "leave it out, then keys are counted, and the column goes into the JSON"
        )


def _count_shards(out: str) -> int:
    system, place = shards.locate(out)
    return len(system.glob(f"{place.rstrip('/')}/*.tar"))
