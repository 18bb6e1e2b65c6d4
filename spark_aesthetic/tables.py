"""Delta tables: which rows lack a score, score them, and commit them once.

Everything about Delta goes through Spark SQL, so the same lines run on a classic and a Connect session.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from pyspark import StorageLevel
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, DataType, FloatType, StringType, TimestampType

from spark_aesthetic import preflight, weights
from spark_aesthetic.errors import TableError
from spark_aesthetic.functions import embedding_columns, score_image
from spark_aesthetic.options import OptionArgs, Options
from spark_aesthetic.predictors import DEFAULT, Predictor, resolve
from spark_aesthetic.preflight import Source, identifier, quoted

if TYPE_CHECKING:
    from typing_extensions import Unpack

SCORE, ERROR, MODEL, SCORED_AT = "aesthetic_score", "aesthetic_error", "aesthetic_model", "aesthetic_scored_at"
EMBEDDING = "clip_embedding"

_TYPES: dict[str, DataType] = {
    SCORE: FloatType(),
    ERROR: StringType(),
    MODEL: StringType(),
    SCORED_AT: TimestampType(),
    EMBEDDING: ArrayType(FloatType()),
}

# Up to as many missing keys go to every executor, so that image bytes are not shuffled to meet them.
_BROADCAST_KEYS = 5_000_000


@dataclass(frozen=True)
class Summary:
    """What a run did.

    Attributes:
        rows_read: Rows in the source table.
        scored: Rows that got a score in this run.
        failed: Rows that got a reason instead in this run.
        failed_by_reason: The same, counted by `aesthetic_error`.
        skipped: Rows that this model had scored, or failed on, before.
        model: Name and content of the predictor, as in `aesthetic_model`.
        seconds: Wall-clock time of the run.
        dry_run: Whether nothing was written.
        to_score: In a dry run, the rows that a run would work on.
    """

    rows_read: int
    scored: int
    failed: int
    skipped: int
    model: str
    seconds: float
    failed_by_reason: dict[str, int] = field(default_factory=dict)
    dry_run: bool = False
    to_score: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it, without what a real run does not have."""
        return {
            name: value for name, value in asdict(self).items() if self.dry_run or name not in ("dry_run", "to_score")
        }


def score_table(
    spark: SparkSession,
    *,
    source: str,
    key: Sequence[str],
    image_col: str | None = None,
    embedding_col: str | None = None,
    scores: str | None = None,
    view: str | None = None,
    predictor: str | Predictor = DEFAULT,
    with_embedding: bool = False,
    dry_run: bool = False,
    **options: Unpack[OptionArgs],
) -> Summary:
    """Add scores to the rows of a Delta table that this model has not scored yet.

    Without `scores` the source itself gets the columns aesthetic_score (float), aesthetic_error (string) and
    aesthetic_model (string), by MERGE on the key; Delta then rewrites the files of those rows, image bytes
    included. With `scores` they go, with the key and aesthetic_scored_at (timestamp), to a narrow table that
    is made if need be, and the source is not touched: the choice for tables of images. All rows of a run
    are committed at once or not at all. A row that failed counts as scored: it keeps its reason.

    Args:
        spark: A session with Delta Lake.
        source: Delta table by catalog name, or by path (anything with a slash).
        key: Columns that together identify a row; no nulls, no duplicates.
        image_col: Binary column of image files. Either this or `embedding_col`.
        embedding_col: array<float>, array<double> or ml Vector column of CLIP embeddings; normalised here.
        scores: Delta table for the scores, by name or by path.
        view: With `scores`, a view to make or replace that joins source and scores of this model.
        predictor: A predictor, its name, or the path of its JSON file.
        with_embedding: Also write `clip_embedding` (array<float>), so that other heads can score it later.
        dry_run: Check everything and count, write nothing.
        **options: See `spark_aesthetic.Options`.

    Returns:
        Counts; see `Summary`.

    Raises:
        AestheticError: One of its kinds, before any work: source, columns, types, key, weights, options or
            devices are not right.
    """
    started = time.monotonic()
    checked = Options.of(**options)
    pinned = weights.pin(resolve(predictor), checked.model_path)
    preflight.check_gpu_scheduling(spark)
    _check_combination(source, image_col, embedding_col, scores, view, with_embedding)
    table = preflight.open_source(spark, source)
    scored_columns = _check_and_plan(table, pinned, image_col, embedding_col, with_embedding, options)
    written = [SCORE, ERROR, MODEL, *([SCORED_AT] if scores else []), *([EMBEDDING] if with_embedding else [])]
    rows_read = preflight.check_key(table.rows, key, reserved=list(_TYPES))

    if scores is None:
        preflight.check_columns(table.rows, {name: _TYPES[name] for name in written}, source, required=False)
        todo = _unscored_in_place(table.rows, pinned.model_id)
    else:
        todo = _unscored_beside(spark, table.rows, rows_read, key, scores, pinned.model_id, written)

    if dry_run:
        to_score = todo.count()
        return Summary(
            rows_read=rows_read,
            scored=0,
            failed=0,
            skipped=rows_read - to_score,
            model=pinned.model_id,
            seconds=_since(started),
            dry_run=True,
            to_score=to_score,
        )

    keys = [F.col(quoted(column)) for column in key]
    # Kept on the executors' disks: counting and committing then score no row a second time.
    scored = (
        todo.select(*keys, scored_columns).select(*keys, *_columns(pinned, written)).persist(StorageLevel.DISK_ONLY)
    )
    try:
        by_reason = {row[ERROR]: row["count"] for row in scored.groupBy(ERROR).count().collect()}
        if by_reason:
            if scores is None:
                _merge_in_place(spark, table.identifier, scored, key, written)
            else:
                _insert_beside(spark, identifier(scores), scored, key)
    finally:
        scored.unpersist()
    if view is not None and scores is not None:
        _make_view(spark, view, table, identifier(scores), key, pinned.model_id)
    good = by_reason.pop(None, 0)
    failed = sum(by_reason.values())
    return Summary(
        rows_read=rows_read,
        scored=good,
        failed=failed,
        failed_by_reason=dict(sorted(by_reason.items())),
        skipped=rows_read - good - failed,
        model=pinned.model_id,
        seconds=_since(started),
    )


def _check_combination(
    source: str,
    image_col: str | None,
    embedding_col: str | None,
    scores: str | None,
    view: str | None,
    with_embedding: bool,
) -> None:
    if (image_col is None) == (embedding_col is None):
        raise TableError("expected either --image-col or --embedding-col, found both or neither; give one")
    if view is not None and scores is None:
        raise TableError(
            "--view: expected --scores with it, found none; without --scores the source has the columns itself"
        )
    if scores is not None and identifier(scores) == identifier(source):
        raise TableError("--scores: expected another table than --source; leave it out to score in place")
    if with_embedding and embedding_col is not None:
        raise TableError("--with-embedding: expected --image-col, found --embedding-col, which holds them already")


def _check_and_plan(
    table: Source,
    pinned: Predictor,
    image_col: str | None,
    embedding_col: str | None,
    with_embedding: bool,
    options: OptionArgs,
) -> Column:
    """Check column and weights; give the struct column `scored` of score, error and perhaps embedding."""
    if image_col is not None:
        preflight.check_image_column(table.rows, image_col)
        preflight.check_weights(pinned, options.get("model_path"))
        return score_image(image_col, predictor=pinned, with_embedding=with_embedding, **options).alias("scored")
    assert embedding_col is not None, "checked before"
    head = weights.load_head(pinned, options.get("model_path"))
    vector = preflight.check_embedding_column(table.rows, embedding_col, head.dimension, pinned)
    return embedding_columns(
        embedding_col, predictor=pinned, vector=vector, model_path=options.get("model_path")
    ).alias("scored")


def _columns(pinned: Predictor, written: Sequence[str]) -> list[Column]:
    made = {
        SCORE: F.col("scored.score"),
        ERROR: F.col("scored.error"),
        MODEL: F.lit(pinned.model_id),
        # A literal: a plan with current_timestamp() is not found in the cache again, and MERGE would score twice.
        SCORED_AT: F.lit(datetime.now(timezone.utc)),
        EMBEDDING: F.col("scored.embedding"),
    }
    return [(made[name]).alias(name) for name in written]


def _unscored_in_place(rows: DataFrame, model: str) -> DataFrame:
    if MODEL not in [name.lower() for name in rows.columns]:
        return rows
    return rows.where(~F.col(MODEL).eqNullSafe(model))


def _unscored_beside(
    spark: SparkSession,
    rows: DataFrame,
    rows_read: int,
    key: Sequence[str],
    scores: str,
    model: str,
    written: Sequence[str],
) -> DataFrame:
    """Rows whose key has no score of this model, making the scores table where there is none.

    Only narrow columns are joined to find the keys; image bytes are read for what is missing alone.
    """
    types = {column: preflight.column_type(rows, quoted(column), "--key") for column in key}
    types |= {name: _TYPES[name] for name in written}
    if not preflight.is_delta(spark, scores):
        return rows
    preflight.check_columns(spark.table(identifier(scores)), types, scores, required=True)
    done = spark.table(identifier(scores)).where(F.col(MODEL) == model).select(*map(quoted, key))
    missing = rows.select(*map(quoted, key)).join(done, list(key), "left_anti")
    count = missing.count()
    if count == rows_read:
        return rows
    return rows.join(F.broadcast(missing) if count <= _BROADCAST_KEYS else missing, list(key), "left_semi")


def _merge_in_place(
    spark: SparkSession, target: str, scored: DataFrame, key: Sequence[str], written: Sequence[str]
) -> None:
    updates = ", ".join(f"{name} = scored.{name}" for name in written)
    spark.sql(
        f"MERGE WITH SCHEMA EVOLUTION INTO {target} AS target USING {{scored}} AS scored ON {_same_key(key, 'target')} "
        f"WHEN MATCHED THEN UPDATE SET {updates}",
        scored=scored,
    )


def _insert_beside(spark: SparkSession, target: str, scored: DataFrame, key: Sequence[str]) -> None:
    columns = ", ".join(f"{quoted(item.name)} {item.dataType.simpleString()}" for item in scored.schema)
    spark.sql(f"CREATE TABLE IF NOT EXISTS {target} ({columns}) USING delta")
    # A MERGE and not an append: of two runs at once Delta lets one commit, where two appends would both.
    spark.sql(
        f"MERGE INTO {target} AS target USING {{scored}} AS scored "
        f"ON {_same_key(key, 'target')} AND target.{MODEL} = scored.{MODEL} WHEN NOT MATCHED THEN INSERT *",
        scored=scored,
    )


def _make_view(spark: SparkSession, view: str, table: Source, scores: str, key: Sequence[str], model: str) -> None:
    own = ", ".join(f"source.{quoted(name)}" for name in table.rows.columns if name.lower() not in _TYPES)
    made = ", ".join(f"scored.{name}" for name in (SCORE, ERROR, MODEL, SCORED_AT))
    spark.sql(
        f"CREATE OR REPLACE VIEW {view} AS SELECT {own}, {made} FROM {table.identifier} AS source "
        f"LEFT JOIN {scores} AS scored ON {_same_key(key, 'source')} AND scored.{MODEL} = '{model}'"
    )


def _same_key(key: Sequence[str], other: str) -> str:
    return " AND ".join(f"{other}.{quoted(column)} = scored.{quoted(column)}" for column in key)


def _since(started: float) -> float:
    return round(time.monotonic() - started, 3)
