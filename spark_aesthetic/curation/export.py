"""Chosen rows of a table as WebDataset shards."""

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

# How the error of a Python worker ends its stack.
_TOLD = re.compile(r"^spark_aesthetic\.errors\.\w+: (webdataset: .+)$", re.MULTILINE)


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
        without_score: With `scores`, rows of the table that no row of the scores belongs to; none of them is chosen.
    """

    rows: int
    without_image: int
    image_bytes: int
    shards: int
    out: str
    seconds: float
    without_score: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it, without what was not asked for."""
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
    """Write the rows that a condition chooses as shards: images byte for byte, all else in a JSON file for each.

    A first pass counts the rows, without the images unless the condition reads them. With `scores` it also finds out
    which rows are chosen, and then images of up to half a million rows are read from the files alone that hold them,
    those of up to five million without a shuffle; a condition is asked once. As many tasks write as there are shards,
    and no fewer than the cluster runs at once: where that is more, as each task ends with a shard of its own, shards
    are smaller. A task holds one Arrow batch of images.

    Args:
        spark: A session.
        table: Table or view with the images by catalog name, or a Delta table by path (anything with a slash).
        out: Folder of the shards, local or of any file system that fsspec knows.
        where: SQL condition over the columns of both tables; all rows by default.
        scores: Scores table to join by `key`. Its columns take the place of columns of the same name.
        key: Column, or columns that together, identify a row in both.
        model: The `aesthetic_model` whose scores to take; needed where there are several.
        key_col: Column of the samples' keys; by default they are counted, also where the table has keys of shards that
            it was ingested from. Each key is of one row, and with mode "append" of none in the shards that are there.
        image_col: Binary column of image files, or the path of a struct's field, such as "image.bytes"; the other
            fields of that struct go into the JSON. The files are named by what the bytes are.
        columns: One other to write, or several; by default all but the embeddings of the scores, which cost a shuffle
            of the images where they are named, and `__key__` and `__url__` of an ingested table never.
        samples_per_shard: Maximum number of samples in one shard.
        sidecar: Also write all but the images as Parquet beside each shard.
        mode: "errorifexists" refuses a folder that has shards, "append" numbers on from them, "overwrite" replaces
            them.

    Returns:
        Counts; see `ExportSummary`.

    Raises:
        AestheticError: Before anything is written: tables, columns, keys or options are not right, or another write to
            the folder is at work. Later: a disk is full, or the folder cannot be written; no shard is in place then.
    """
    started = time.monotonic()
    mode = check_mode("mode", mode)
    samples_per_shard = whole("samples_per_shard", samples_per_shard, least=1)
    pool = open_pool(spark, table, image_col, scores, key, model)
    chosen = _filtered(pool.joined(), where)
    sample = _sample(pool, chosen, image_col, key_col, columns)
    # What an export that was killed has left is none of this one's.
    staging.settle(shards.absolute(out))
    there = [] if mode == "overwrite" else _shards_at(out)
    _check_free(out, mode, there)
    counted = None if sample.key_col is None else _count_keys(chosen, sample.key_col, there)
    without_score = pool.count_without_score()
    with _read(pool, chosen, sample, counted) as (rows, count):
        # Again, because the passes before may take an hour.
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
    """What a chosen row gives its sample.

    Attributes:
        key_col: The column of the samples' keys; None where they are counted.
        image: The column with the bytes, as `F.col` takes it.
        called: The name that the image goes out by.
        others: Columns that go out beside key and image.
        rest: Structs that go out without the bytes in them, by name.
        wide: Those of `others` that are no broadcast beyond some hundred thousand rows: embeddings of the scores.
    """

    key_col: str | None
    image: str
    called: str
    others: list[str]
    rest: dict[str, Column]
    wide: set[str]

    def of(self, rows: DataFrame) -> DataFrame:
        """The samples of rows, as the data source writes them."""
        keys = [] if self.key_col is None else [F.col(quoted(self.key_col)).cast("string").alias(KEY)]
        others = [self.rest.get(name, F.col(quoted(name))).alias(name) for name in self.others]
        return rows.select(*keys, F.col(self.image).alias(self.called), *others)


def _sample(
    pool: Pool, chosen: DataFrame, image_col: str, key_col: str | None, columns: str | Sequence[str] | None
) -> _Sample:
    key_col = None if key_col is None else spelled(chosen, key_col)
    wide = {EMBEDDING} if pool.scored is not None and EMBEDDING in pool.scored.columns else set()
    asked = [name for name in chosen.columns if name not in wide] if columns is None else names(columns)
    # The other fields of a struct with the image go out under the struct's name.
    rest = _rest(pool.holder, pool.rows.schema[pool.holder].dataType)
    others = _others(chosen, asked, [] if rest else [pool.holder], key_col)
    called = _called(chosen, others, spelled(pool.rows, image_col))
    return _Sample(
        key_col=key_col, image=pool.image, called=called, others=others, rest=rest, wide=wide & set(others)
    )  # fmt: skip


def _count_keys(chosen: DataFrame, key_col: str, there: Sequence[str]) -> int:
    """Count the rows by the pass that checks their samples' keys, also against those of the shards that are there."""
    if not there:
        return check_sample_keys(chosen, key_col, None)
    in_shards = keys_of_shards(chosen.sparkSession, there)
    try:
        return check_sample_keys(chosen, key_col, in_shards)
    finally:
        in_shards.unpersist()


@contextmanager
def _read(pool: Pool, chosen: DataFrame, sample: _Sample, counted: int | None) -> Iterator[tuple[DataFrame, int]]:
    """Rows to write with all that their samples need, while it is open, and how many there are.

    With scores the condition is asked of narrow columns, and the images are then read by the keys that it chooses.
    """
    if pool.scored is None:
        yield chosen, chosen.count() if counted is None else counted
        return
    narrow_columns = [name for name in pool.scored.columns if name != EMBEDDING]
    # Kept, so that the condition is asked once.
    with on_disk(chosen.select(*map(quoted, [*narrow_columns, *sample.wide]))) as of_scores:
        narrow = of_scores.select(*map(quoted, narrow_columns))
        count = narrow.count()
        check_keys(narrow, pool.key, "--table and --scores", "add a column to the key, or drop those rows")
        needed = [*pool.key, *sample.others, *([] if sample.key_col is None else [sample.key_col]), pool.holder]
        own = [name for name in dict.fromkeys(needed) if name in pool.rows.columns]
        with rows_of_chosen(pool.source, pool.rows, narrow, count, key=pool.key, own=own) as rows:
            if sample.wide:
                rows = rows.join(of_scores.select(*map(quoted, [*pool.key, *sample.wide])), pool.key)
            yield rows, count


def _write(
    samples: DataFrame, image: str, tasks: int, out: str, mode: str, options: Mapping[str, str]
) -> dict[str, Any]:
    """Write the samples that have an image, in one job, and count: rows, images, and bytes of images."""
    told, content = Observation(), F.col(quoted(image))
    # Above the count of all, so that Spark counts before it leaves any out.
    with_image = samples.observe(
        told,
        F.count(F.lit(1)).alias("rows"),
        F.count(content).alias("images"),
        F.sum(F.length(content)).alias("bytes"),
    ).where(content.isNotNull())
    samples.sparkSession.dataSource.register(WebDataset)
    # Spark lets sources in Python have no mode errorifexists.
    writing = "overwrite" if mode == "overwrite" else "append"
    with full_disk_explained(), _one_line(out):
        with_image.coalesce(tasks).write.format("webdataset").mode(writing).options(**options).save(out)
    return told.get


@contextmanager
def _one_line(out: str) -> Iterator[None]:
    """Give what a task of the write, or the driver's part of it, has said of its failure."""
    try:
        yield
    except Exception as error:
        text = f"{error}\n{first_line(error)}"
        told = _TOLD.search(text)
        if told is not None:
            raise TableError(told[1]) from error
        raise


def _slots(spark: SparkSession) -> int:
    """Tasks that Spark takes for what runs at once; a Connect session has no other way to ask."""
    return spark.range(1 << 16).select(F.spark_partition_id()).distinct().count()


def _shards_at(out: str) -> list[str]:
    system, place = shards.locate(out)
    return [str(system.unstrip_protocol(name)) for name in shards.tars(system, place)]


def _check_free(out: str, mode: str, there: Sequence[str]) -> None:
    if mode == "errorifexists" and there:
        raise TableError(
            f"--out {out}: expected no shards there, found {len(there)}; add to them with --mode append, or replace "
            "them with --mode overwrite"
        )


def _rest(holder: str, kind: DataType) -> dict[str, Column]:
    """The fields beside those with bytes, by the name of their struct; nothing where there are none."""
    inside = kind.fields if isinstance(kind, StructType) else []
    with_bytes = [field.name for field in inside if schemas.holds_bytes(field.dataType)]
    if len(with_bytes) == len(inside):
        return {}
    return {holder: F.col(quoted(holder)).dropFields(*map(quoted, with_bytes))}


def _others(rows: DataFrame, columns: Sequence[str], left_out: Sequence[str], key_col: str | None) -> list[str]:
    """Columns to write beside image and key, as the rows spell them."""
    asked = [spelled(rows, name) for name in columns]
    for name in (*asked, *([] if key_col is None else [key_col])):
        if name not in rows.columns:
            raise TableError(f"--columns, --key-col: no column {name!r}: {nearest(name, rows.columns)}")
    return [name for name in dict.fromkeys(asked) if name not in (*left_out, key_col, KEY, URL)]


def _called(rows: DataFrame, others: Sequence[str], image_col: str) -> str:
    """The name under which the image goes out: one for which the data source looks at the bytes."""
    taken = [name for name in others if has_column(BY_CONTENT, name)]
    free = lacking(taken, BY_CONTENT)
    of_bytes = [name for name in taken if isinstance(rows.schema[name].dataType, BinaryType)]
    if of_bytes or not free:
        raise TableError(
            f"--columns: expected no column {', '.join(of_bytes or taken)} beside --image-col {image_col}, which goes "
            "out by that name, found one; name the others with --columns"
        )
    return free[0]


def _filtered(rows: DataFrame, where: str | None) -> DataFrame:
    if where is None:
        return rows
    try:
        return analysed(rows.where(where))
    except AnalysisException as error:
        raise OptionError(f"--where {where!r}: {first_line(error)}") from error
