"""Export chosen rows of a table as WebDataset shards."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from pyspark.errors import AnalysisException
from pyspark.sql import Column, DataFrame, Observation, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import BinaryType, DataType, StructType

from spark_aesthetic.curation.keys import check_keys, check_sample_keys, keys_of_shards
from spark_aesthetic.curation.pool import Pool, open_pool
from spark_aesthetic.delta import schemas
from spark_aesthetic.delta.connect import analysed
from spark_aesthetic.delta.frames import on_disk
from spark_aesthetic.delta.java import first_line, full_disk_explained
from spark_aesthetic.delta.naming import has_column, lacking, names, quoted
from spark_aesthetic.delta.rows import rows_of_chosen
from spark_aesthetic.delta.schemas import spelled
from spark_aesthetic.errors import OptionError, TableError, nearest
from spark_aesthetic.options import Mode, check_mode, whole
from spark_aesthetic.scoring.target import EMBEDDING
from spark_aesthetic.webdataset import shards, staging
from spark_aesthetic.webdataset.samples import BY_CONTENT
from spark_aesthetic.webdataset.source import KEY, URL, WebDataset

# The last line of a Python worker's traceback.
_TOLD = re.compile(r"^spark_aesthetic\.errors\.\w+: (webdataset: .+)$", re.MULTILINE)


@dataclass(frozen=True)
class ExportSummary:
    """The counts of an export.

    Attributes:
        rows: Samples written.
        without_image: Chosen rows that were left out because their image is null.
        image_bytes: Total size of the images, in bytes.
        shards: Tar files written.
        out: Folder of the shards.
        seconds: Wall-clock time.
        without_score: With `scores`, rows of the table that have no row in the scores; none of them is written.
    """

    rows: int
    without_image: int
    image_bytes: int
    shards: int
    out: str
    seconds: float
    without_score: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return a dict that JSON can store, without the fields that are None."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def export_webdataset(
    spark: SparkSession,
    *,
    table: str,
    out: str,
    where: str | None = None,
    scores: str | None = None,
    key: str | Sequence[str] = (),
    model: str | None = None,
    key_col: str | None = None,
    image_col: str = "image",
    columns: str | Sequence[str] | None = None,
    samples_per_shard: int = 10_000,
    sidecar: bool = False,
    mode: Mode = "errorifexists",
) -> ExportSummary:
    """Write the rows that a condition chooses as shards: each image byte for byte, other columns in a JSON file.

    A first pass counts the rows; it reads images only if the condition does. With `scores` this pass evaluates the
    condition and stores the chosen keys. Then, for up to half a million rows, only the files that contain them are
    read; for up to five million rows, no image is shuffled. Each task writes at least one shard, and at least as many
    tasks write as the cluster runs at once, so shards may be smaller than `samples_per_shard`. A task holds one Arrow
    batch of images in memory.

    Args:
        spark: A Spark session.
        table: Table or view with the images by catalog name, or a Delta table by path (anything with a slash).
        out: Folder of the shards, on a local disk or on any file system that fsspec supports.
        where: SQL condition over the columns of both tables; all rows by default.
        scores: Scores table to join by `key`. Its columns replace columns of the same name in `table`.
        key: Column, or several columns, that identify a row in both tables.
        model: The `aesthetic_model` of the scores to use; required if `scores` has several models.
        key_col: Column with the keys of the samples. By default samples are numbered, even if the table has keys from
            ingested shards. Keys must be unique, and with mode "append" the existing shards must not contain them.
        image_col: Binary column of image files, or the path of a struct's field, such as "image.bytes"; the other
            fields of that struct go into the JSON. The extension of each image file follows from its bytes.
        columns: Other columns to write; by default all except the embeddings of the scores, which cost a shuffle of
            the images if you name them. `__key__` and `__url__` of an ingested table are never written.
        samples_per_shard: Maximum number of samples in one shard.
        sidecar: Also write all columns except the images as a Parquet file beside each shard.
        mode: "errorifexists" refuses a folder that has shards, "append" continues their numbering, "overwrite"
            replaces them.

    Returns:
        The counts of the export; see `ExportSummary`.

    Raises:
        AestheticError: Before anything is written: a table, column, key or option is wrong, or another write to the
            folder is running. Later: a disk is full, or the folder cannot be written; then no new shard is visible.
    """
    started = time.monotonic()
    mode = check_mode("mode", mode)
    samples_per_shard = whole("samples_per_shard", samples_per_shard, least=1)
    pool = open_pool(spark, table, image_col, scores, key, model)
    chosen = _filtered(pool.joined(), where)
    sample = _sample(pool, chosen, image_col, key_col, columns)
    # Roll back, or finish, an earlier export that was killed, before its shards are counted.
    staging.settle(shards.absolute(out))
    there = [] if mode == "overwrite" else _shards_at(out)
    _check_free(out, mode, there)
    counted = None if sample.key_col is None else _count_keys(chosen, sample.key_col, there)
    without_score = pool.count_without_score()
    with _read(pool, chosen, sample, counted) as (rows, count):
        # Check again, because the passes before this one may take an hour.
        _check_free(out, mode, _shards_at(out))
        tasks = max(-(-count // samples_per_shard), _slots(spark))
        options = {"samplesPerShard": str(samples_per_shard), "sidecar": str(sidecar).lower()}
        written = _write(sample.of(rows), sample.called, tasks, out, mode, options)
    return ExportSummary(
        rows=written["images"],
        without_image=written["rows"] - written["images"],
        image_bytes=written["bytes"] or 0,
        shards=len(_shards_at(out)) - len(there),
        out=out,
        seconds=round(time.monotonic() - started, 3),
        without_score=without_score,
    )


@dataclass(frozen=True, kw_only=True)
class _Sample:
    """The columns of a sample.

    Attributes:
        key_col: Column with the keys of the samples; None if they are numbered.
        image: Column with the image bytes, as `F.col` takes it.
        called: Name of the image column in the output.
        rest: By name, structs to write without their fields of bytes.
        wide: The columns in `others` that are too wide to broadcast for more than a few hundred thousand rows: the
            embeddings of the scores.
    """

    key_col: str | None
    image: str
    called: str
    # Columns to write in addition to key and image.
    others: list[str]
    rest: dict[str, Column]
    wide: set[str]

    def of(self, rows: DataFrame) -> DataFrame:
        """Select the columns that the data source writes."""
        keys = [] if self.key_col is None else [F.col(quoted(self.key_col)).cast("string").alias(KEY)]
        others = [self.rest.get(name, F.col(quoted(name))).alias(name) for name in self.others]
        return rows.select(*keys, F.col(self.image).alias(self.called), *others)


def _sample(
    pool: Pool, chosen: DataFrame, image_col: str, key_col: str | None, columns: str | Sequence[str] | None
) -> _Sample:
    key_col = None if key_col is None else spelled(chosen, key_col)
    wide = {EMBEDDING} if pool.scored is not None and EMBEDDING in pool.scored.columns else set()
    asked = [name for name in chosen.columns if name not in wide] if columns is None else names(columns)
    # The other fields of a struct with the image are written under the struct's name.
    rest = _rest(pool.holder, pool.rows.schema[pool.holder].dataType)
    others = _others(chosen, asked, [] if rest else [pool.holder], key_col)
    called = _called(chosen, others, spelled(pool.rows, image_col))
    return _Sample(
        key_col=key_col, image=pool.image, called=called, others=others, rest=rest, wide=wide & set(others)
    )  # fmt: skip


def _count_keys(chosen: DataFrame, key_col: str, there: Sequence[str]) -> int:
    """Check the keys of the samples, also against the existing shards, and return the number of rows."""
    if not there:
        return check_sample_keys(chosen, key_col, None)
    in_shards = keys_of_shards(chosen.sparkSession, there)
    try:
        return check_sample_keys(chosen, key_col, in_shards)
    finally:
        in_shards.unpersist()


@contextmanager
def _read(pool: Pool, chosen: DataFrame, sample: _Sample, counted: int | None) -> Iterator[tuple[DataFrame, int]]:
    """Yield the rows to write, with all columns of their samples, and their number.

    With scores, the condition is evaluated first, without the image bytes unless it reads them, and then the images of
    the chosen keys are read.
    """
    if pool.scored is None:
        yield chosen, chosen.count() if counted is None else counted
        return
    narrow_columns = [name for name in pool.scored.columns if name != EMBEDDING]
    # Stored on disk, so that the condition is evaluated only once.
    with on_disk(chosen.select(*map(quoted, [*narrow_columns, *sample.wide]))) as of_scores:
        narrow = of_scores.select(*map(quoted, narrow_columns))
        count = narrow.count()
        check_keys(narrow, pool.key, "--table and --scores", "Add a column to the key, or drop those rows.")
        needed = [*pool.key, *sample.others, *([] if sample.key_col is None else [sample.key_col]), pool.holder]
        own = [name for name in dict.fromkeys(needed) if name in pool.rows.columns]
        with rows_of_chosen(pool.source, pool.rows, narrow, count, key=pool.key, own=own) as rows:
            if sample.wide:
                rows = rows.join(of_scores.select(*map(quoted, [*pool.key, *sample.wide])), pool.key)
            yield rows, count


def _write(
    samples: DataFrame, image: str, tasks: int, out: str, mode: str, options: Mapping[str, str]
) -> dict[str, Any]:
    """Write the samples that have an image, in one job, and count rows, images and image bytes."""
    told, content = Observation(), F.col(quoted(image))
    # Observe before the filter, so that rows without an image are counted too.
    with_image = samples.observe(
        told,
        F.count(F.lit(1)).alias("rows"),
        F.count(content).alias("images"),
        F.sum(F.length(content)).alias("bytes"),
    ).where(content.isNotNull())
    samples.sparkSession.dataSource.register(WebDataset)
    # Spark does not support the mode errorifexists for data sources in Python.
    writing = "overwrite" if mode == "overwrite" else "append"
    with full_disk_explained(), _one_line(out):
        with_image.coalesce(tasks).write.format("webdataset").mode(writing).options(**options).save(out)
    return told.get


@contextmanager
def _one_line(out: str) -> Iterator[None]:
    """Raise the one-line error of a failed write, from a task or from the driver, instead of its traceback."""
    try:
        yield
    except Exception as error:
        text = f"{error}\n{first_line(error)}"
        told = _TOLD.search(text)
        if told is not None:
            raise TableError(told[1]) from error
        raise


def _slots(spark: SparkSession) -> int:
    """Return Spark's default parallelism, counted by a query because a Connect session cannot read it directly."""
    return spark.range(1 << 16).select(F.spark_partition_id()).distinct().count()


def _shards_at(out: str) -> list[str]:
    system, place = shards.locate(out)
    return [str(system.unstrip_protocol(name)) for name in shards.tars(system, place)]


def _check_free(out: str, mode: str, there: Sequence[str]) -> None:
    if mode == "errorifexists" and there:
        raise TableError(
            f"--out {out}: expected no shards there, found {len(there)}. Add to them with --mode append, or replace "
            "them with --mode overwrite."
        )


def _rest(holder: str, kind: DataType) -> dict[str, Column]:
    """Return the struct without its fields of bytes, by its name; an empty dict if no field is left."""
    inside = kind.fields if isinstance(kind, StructType) else []
    with_bytes = [field.name for field in inside if schemas.holds_bytes(field.dataType)]
    if len(with_bytes) == len(inside):
        return {}
    return {holder: F.col(quoted(holder)).dropFields(*map(quoted, with_bytes))}


def _others(rows: DataFrame, columns: Sequence[str], left_out: Sequence[str], key_col: str | None) -> list[str]:
    """Return the columns to write in addition to image and key, as the rows spell them."""
    asked = [spelled(rows, name) for name in columns]
    for name in (*asked, *([] if key_col is None else [key_col])):
        if name not in rows.columns:
            raise TableError(f"--columns, --key-col: no column {name!r}: {nearest(name, rows.columns)}")
    return [name for name in dict.fromkeys(asked) if name not in (*left_out, key_col, KEY, URL)]


def _called(rows: DataFrame, others: Sequence[str], image_col: str) -> str:
    """Choose a free name for the image column for which the data source derives the file extension from the bytes."""
    taken = [name for name in others if has_column(BY_CONTENT, name)]
    free = lacking(taken, BY_CONTENT)
    of_bytes = [name for name in taken if isinstance(rows.schema[name].dataType, BinaryType)]
    if of_bytes or not free:
        raise TableError(
            f"--columns: expected no column {', '.join(of_bytes or taken)} beside --image-col {image_col}, because the "
            "image is written under that name, found one. Name the columns to write with --columns."
        )
    return free[0]


def _filtered(rows: DataFrame, where: str | None) -> DataFrame:
    if where is None:
        return rows
    try:
        return analysed(rows.where(where))
    except AnalysisException as error:
        raise OptionError(f"--where {where!r}: {first_line(error)}") from error
