"""Delta tables: which rows lack a score, score them, and commit them once.

Everything about Delta goes through Spark SQL, so the same lines run on a classic and a Connect session.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from pyspark import StorageLevel
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, DataType, FloatType, StringType, TimestampType

from spark_aesthetic import preflight, udfs, weights
from spark_aesthetic.errors import TableError
from spark_aesthetic.functions import embedding_columns
from spark_aesthetic.options import OptionArgs, Options
from spark_aesthetic.predictors import DEFAULT, Predictor, resolve
from spark_aesthetic.preflight import Source, identifier, quoted
from spark_aesthetic.worker import STAGES

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
        stages: Of images, seconds that the workers' threads took to decode, to transfer to the device and to infer,
            and that they waited for Spark; their sum over the threads passes `seconds` where work was done at once.
        peak_memory_bytes: Of images, the most memory that one worker had resident, shared pages included.
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
    stages: dict[str, float] | None = None
    peak_memory_bytes: int | None = None
    dry_run: bool = False
    to_score: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it, without what a run of its kind does not have."""
        return {name: value for name, value in asdict(self).items() if value is not None and value is not False}


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
    model = pinned.model_id
    preflight.check_gpu_scheduling(spark)
    _check_combination(source, image_col, embedding_col, scores, view, with_embedding)
    table = preflight.open_source(spark, source)
    struct = _check_and_plan(table, pinned, image_col, embedding_col, with_embedding, options)
    written = [SCORE, ERROR, MODEL, *([SCORED_AT] if scores else []), *([EMBEDDING] if with_embedding else [])]
    rows_read = preflight.check_key(table.rows, key, reserved=list(_TYPES))
    if view is not None:
        preflight.check_view(spark, view)

    if scores is None:
        preflight.check_columns(table.rows, {name: _TYPES[name] for name in written}, source, required=())
        todo = _unscored_in_place(table.rows, model)
        to_score = todo.count()
    else:
        missing = _unscored_keys(spark, table.rows, key, scores, model, written)
        to_score = missing.count()
        todo = table.rows if to_score == rows_read else _rows_of(table.rows, missing, to_score, key)

    by_reason: dict[str | None, int] = {}
    costs: dict[str, float] = {}
    if not dry_run:
        if scores is not None:
            _make_scores_table(spark, identifier(scores), table.rows, key, written)
        if to_score:
            by_reason, costs = _score_and_commit(spark, table, todo, struct, key, scores, model, written)
        if view is not None and scores is not None:
            _make_view(spark, view, table, identifier(scores), key, model, written)
    good = by_reason.pop(None, 0)
    failed = sum(by_reason.values())
    return Summary(
        rows_read=rows_read,
        scored=good,
        failed=failed,
        skipped=rows_read - to_score,
        model=model,
        seconds=round(time.monotonic() - started, 3),
        failed_by_reason={str(reason): count for reason, count in sorted(by_reason.items(), key=str)},
        peak_memory_bytes=int(costs.pop("peak_memory_bytes")) if costs else None,
        stages={name.removesuffix("_seconds"): round(value, 3) for name, value in costs.items()} or None,
        dry_run=dry_run,
        to_score=to_score if dry_run else None,
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
    """Check column and weights; give a struct column of score, error and perhaps embedding and costs."""
    if image_col is not None:
        preflight.check_image_column(table.rows, image_col)
        preflight.check_weights(pinned, options.get("model_path"))
        return udfs.job_udf(pinned, with_embedding, Options.of(**options))(F.col(quoted(image_col)))
    assert embedding_col is not None, "checked before"
    head = weights.load_head(pinned, options.get("model_path"))
    vector = preflight.check_embedding_column(table.rows, embedding_col, head.dimension, pinned)
    return embedding_columns(embedding_col, predictor=pinned, vector=vector, model_path=options.get("model_path"))


def _unscored_in_place(rows: DataFrame, model: str) -> DataFrame:
    if MODEL not in [name.lower() for name in rows.columns]:
        return rows
    return rows.where(~F.col(MODEL).eqNullSafe(model))


def _unscored_keys(
    spark: SparkSession, rows: DataFrame, key: Sequence[str], scores: str, model: str, written: Sequence[str]
) -> DataFrame:
    """Keys that have no row of this model in the scores table; reads the key columns alone."""
    keys = rows.select(*map(quoted, key))
    if not preflight.is_delta(spark, scores):
        return keys
    beside = spark.table(identifier(scores))
    types = {field.name: field.dataType for field in keys.schema} | {name: _TYPES[name] for name in written}
    # Only the embedding may come later: a table can be begun without it.
    preflight.check_columns(beside, types, scores, required=[name for name in types if name != EMBEDDING])
    done = beside.where(F.col(MODEL) == model).select(*map(quoted, key))
    return keys.join(done, list(key), "left_anti")


def _rows_of(rows: DataFrame, missing: DataFrame, count: int, key: Sequence[str]) -> DataFrame:
    """The rows of some keys. Their image bytes are scanned, but not shuffled, while the keys fit a broadcast."""
    return rows.join(F.broadcast(missing) if count <= _BROADCAST_KEYS else missing, list(key), "left_semi")


def _score_and_commit(
    spark: SparkSession,
    table: Source,
    todo: DataFrame,
    struct: Column,
    key: Sequence[str],
    scores: str | None,
    model: str,
    written: Sequence[str],
) -> tuple[dict[str | None, int], dict[str, float]]:
    """Score rows once, commit them at once; count them by their error, and sum what they cost where that is known."""
    made = {
        SCORE: F.col("scored.score"),
        ERROR: F.col("scored.error"),
        MODEL: F.lit(model),
        # One moment for all rows, however often the MERGE plans its source.
        SCORED_AT: F.lit(datetime.now(timezone.utc)),
        EMBEDDING: F.col("scored.embedding"),
    }
    keys = [F.col(quoted(column)) for column in key]
    # Kept on the executors' disks: counting and committing then score no row a second time.
    kept = todo.select(*keys, struct.alias("scored")).persist(StorageLevel.DISK_ONLY)
    name = f"spark_aesthetic_{uuid4().hex}"
    kept.select(*keys, *[made[name].alias(name) for name in written]).createTempView(name)
    try:
        error = F.col("scored.error").alias("error")
        counted = [row.asDict() for row in kept.groupBy(error).agg(F.count("*").alias("rows"), *_costs(kept)).collect()]
        if scores is None:
            _merge_in_place(spark, table.identifier, name, key, written)
        else:
            _insert_beside(spark, identifier(scores), name, key, written)
    finally:
        spark.catalog.dropTempView(name)
        kept.unpersist()
    by_reason = {row.pop("error"): row.pop("rows") for row in counted}
    # Nothing is counted where another run has scored these rows since they were looked for.
    names = counted[0] if counted else ()
    costs = {name: (max if name == "peak_memory_bytes" else sum)(row[name] for row in counted) for name in names}
    return by_reason, costs


def _costs(kept: DataFrame) -> list[Column]:
    if STAGES[0] not in kept.select("scored.*").columns:
        return []
    return [(F.max if name == "peak_memory_bytes" else F.sum)(f"scored.{name}").alias(name) for name in STAGES]


def _merge_in_place(spark: SparkSession, target: str, scored: str, key: Sequence[str], written: Sequence[str]) -> None:
    updates = ", ".join(f"{name} = scored.{name}" for name in written)
    spark.sql(
        f"MERGE WITH SCHEMA EVOLUTION INTO {target} AS target USING {scored} AS scored "
        f"ON {_same_key(key, 'target')} WHEN MATCHED THEN UPDATE SET {updates}"
    )


def _make_scores_table(
    spark: SparkSession, target: str, rows: DataFrame, key: Sequence[str], written: Sequence[str]
) -> None:
    types = {field.name: field.dataType for field in rows.select(*map(quoted, key)).schema}
    types |= {name: _TYPES[name] for name in written}
    columns = ", ".join(f"{quoted(name)} {data_type.simpleString()}" for name, data_type in types.items())
    spark.sql(f"CREATE TABLE IF NOT EXISTS {target} ({columns}) USING delta")


def _insert_beside(spark: SparkSession, target: str, scored: str, key: Sequence[str], written: Sequence[str]) -> None:
    columns = [*map(quoted, key), *written]
    # A MERGE and not an append: of two runs at once Delta lets one commit, where two appends would both.
    spark.sql(
        f"MERGE WITH SCHEMA EVOLUTION INTO {target} AS target USING {scored} AS scored "
        f"ON {_same_key(key, 'target')} AND target.{MODEL} = scored.{MODEL} "
        f"WHEN NOT MATCHED THEN INSERT ({', '.join(columns)}) "
        f"VALUES ({', '.join(f'scored.{column}' for column in columns)})"
    )


def _make_view(
    spark: SparkSession, view: str, table: Source, scores: str, key: Sequence[str], model: str, written: Sequence[str]
) -> None:
    own = ", ".join(f"source.{quoted(name)}" for name in table.rows.columns if name.lower() not in written)
    made = ", ".join(f"scored.{name}" for name in written)
    spark.sql(
        f"CREATE OR REPLACE VIEW {view} AS SELECT {own}, {made} FROM {table.identifier} AS source "
        f"LEFT JOIN {scores} AS scored ON {_same_key(key, 'source')} AND scored.{MODEL} = '{model}'"
    )


def _same_key(key: Sequence[str], other: str) -> str:
    return " AND ".join(f"{other}.{quoted(column)} = scored.{quoted(column)}" for column in key)
