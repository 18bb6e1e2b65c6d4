"""Score the rows of a Delta table that have no score yet, chunk by chunk."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, TextIO

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from spark_aesthetic.delta import identity, schemas, tables
from spark_aesthetic.delta.naming import quoted
from spark_aesthetic.delta.sessions import in_own_session
from spark_aesthetic.errors import TableError
from spark_aesthetic.functions import inputs, udfs
from spark_aesthetic.functions.columns import embedding_columns
from spark_aesthetic.options import OptionArgs, Options, check_files, in_bytes
from spark_aesthetic.predictors import weights
from spark_aesthetic.predictors.recipe import DEFAULT, Predictor, resolve
from spark_aesthetic.scoring import checks, in_place, views
from spark_aesthetic.scoring.beside import bring_up_to_date
from spark_aesthetic.scoring.chunks import never
from spark_aesthetic.scoring.plan import Asked
from spark_aesthetic.scoring.runs import Run
from spark_aesthetic.scoring.summary import Summary, summed_up
from spark_aesthetic.scoring.target import EMBEDDING, ERROR, MODEL, SCORE, SCORED_AT, TYPES, Target
from spark_aesthetic.scoring.writer import Writer

if TYPE_CHECKING:
    from typing_extensions import Unpack

# After a kill, at most about this much of the source is read and scored again.
MAX_BYTES_PER_CHUNK = "8g"


@in_own_session
def score_table(
    spark: SparkSession,
    *,
    source: str,
    key: str | Sequence[str],
    image_col: str | None = None,
    embedding_col: str | None = None,
    scores: str | None = None,
    view: str | None = None,
    view_model: str | None = None,
    predictor: str | Predictor = DEFAULT,
    with_embedding: bool = False,
    checkpoint: str | None = None,
    max_bytes_per_chunk: str | int = MAX_BYTES_PER_CHUNK,
    max_files_per_chunk: int | None = None,
    reconcile: bool = False,
    version_col: str | None = None,
    retry_failed: bool = False,
    shared_keys: bool = False,
    dry_run: bool = False,
    every: str | None = None,
    stopping: Callable[[], bool] = never,
    progress_file: TextIO | None = None,
    **options: Unpack[OptionArgs],
) -> Summary:
    """Add scores to the rows of a Delta table that this model has not scored yet.

    With `scores`, the scores go to a separate, narrow table, with the key and aesthetic_scored_at (timestamp). If it is
    missing, it is created. The source is not changed, so this is the choice for tables of images. Structured Streaming
    reads the source chunk by chunk. Each chunk is one commit, made exactly once even if the run is killed and started
    again, and each run reads only what is new.

    Without `scores`, the source itself gets the columns aesthetic_score (float), aesthetic_error (string) and
    aesthetic_model (string). The chunks go to a staging table beside it, and one MERGE on the key then copies the
    scores. Delta rewrites the files of those rows, including the image bytes.

    New rows are detected by the source's commits. Updates and deletes are applied if the source has a change data feed;
    without one they stop the run with an error. A row that failed counts as scored: it is not scored again unless
    `retry_failed` is set.

    Args:
        spark: A session with Delta Lake.
        source: Delta table with the rows to score, by catalog name or by path (anything with a slash).
        key: One or more columns that together identify a row, without nulls or duplicates.
        image_col: Binary column of image files. Give either this or `embedding_col`.
        embedding_col: Column of CLIP embeddings, as `array<float>`, `array<double>` or ml Vector. The job normalises
            them.
        scores: Delta table for the scores, by name or by path. Without it the scores go into `source` itself.
        view: Name of a view that joins source and scores. The view is created or replaced. It requires `scores`.
        view_model: The `aesthetic_model` that the view shows, or "all" for separate columns of each model. The default
            is the model of this run.
        predictor: Name of a predictor, or the path of its JSON file. In Python also a `Predictor`.
        with_embedding: Also write `clip_embedding` (`array<float>`), so that other heads can score it later.
        checkpoint: Folder for the checkpoints of streams and, without `scores`, for the staging table. The default is
            `_spark_aesthetic` in the folder of the scores table; without `scores`, it is a folder beside `source`
            with the suffix `_spark_aesthetic`.
        max_bytes_per_chunk: Approximate size of the source's files in one commit, in bytes or as text such as "8g".
        max_files_per_chunk: Maximum number of the source's files in one commit, if that limit is reached first.
        reconcile: First compare the keys of source and scores. Score the rows that have no score (with `version_col`
            also changed rows), and drop the scores of deleted rows. Only the images to score are read.
        version_col: Column of the source that changes whenever the image does. It is stored beside the score, so that
            `reconcile` detects changed rows without a change data feed.
        retry_failed: Also score the rows that failed before.
        shared_keys: Equal keys mean the same image in all sources of `scores`, so a row is skipped if its key has a
            score from another source. Without this option, a scores table of another source is refused.
        dry_run: Check everything and count the rows, without writing.
        every: Run until stopped, and look for new rows at this interval, such as "1 minute".
        stopping: Called before each chunk (not on Spark Connect) and each second between chunks; returns whether to
            stop.
        progress_file: Stream for the progress, which is one live line on a terminal. The default is stderr, or in a
            notebook a line in the cell.
        **options: See `spark_aesthetic.Options`.

    Returns:
        Counts; see `Summary`.

    Raises:
        AestheticError: One of its subclasses, before any work, if source, columns, types, key, weights, options or
            devices are wrong. During the work a TableError, if the source's changed rows cannot be identified, or if
            another run is writing the same scores.
    """
    began, key = time.monotonic(), identity.key_names(key)
    checked = Options.of(score_table, **options)
    checks.check_combination(
        image_col=image_col, embedding_col=embedding_col, scores=scores, view=view, view_model=view_model,
        with_embedding=with_embedding, reconcile=reconcile, version_col=version_col, every=every,
        shared_keys=shared_keys,
    )  # fmt: skip
    limit = in_bytes("max_bytes_per_chunk", max_bytes_per_chunk)
    if max_files_per_chunk is not None:
        check_files("max_files_per_chunk", max_files_per_chunk)
    checks.check_session(spark, every=every, view=view, checkpoint=checkpoint)
    table = tables.open_source(spark, source)
    key, kept, column = _columns(table.rows, key, image_col, embedding_col, version_col)
    # From here on weights may be downloaded.
    pinned = weights.pin(resolve(predictor), checked.model_path)
    if scores is not None and view_model not in (None, views.ALL, pinned.model_id):
        views.check_shown(view_model, [pinned.model_id, *views.models_of(spark, scores)])
    target = Target(
        table=in_place.staged(table, checkpoint) if scores is None else scores,
        key=tuple(key),
        model=pinned.model_id,
        kept={name: schemas.column_type(table.rows, quoted(name), "--version-col") for name in kept},
        written=(SCORE, ERROR, MODEL, SCORED_AT, *([EMBEDDING] if with_embedding else [])),
    )
    known = checks.check_target(spark, table, target, is_source=scores is None, shared_keys=shared_keys)
    progress = known.progress.get((target.model, table.id))
    is_sampled = progress is None or progress.column != column
    run = Run(
        spark=spark,
        source=table,
        writer=Writer(
            source=table.origin,
            target=target,
            struct=_struct(table.rows, pinned, image_col, embedding_col, with_embedding, checked, is_sampled),
            column=column,
            info=Writer.told(pinned, table) | {"options": json.dumps(asdict(checked))},
        ),
        where=in_place.unscored(table.rows, target.model, retry_failed=retry_failed) if scores is None else None,
        stopping=stopping,
        folder=checkpoint,
        max_bytes_per_chunk=limit,
        max_files_per_chunk=max_files_per_chunk,
        rows_read=table.rows.count(),
        every=every,
        backbone=pinned.embedding_id,
        shared_keys=shared_keys,
        progress_file=progress_file,
    )
    if dry_run:
        return _looked_at(run, began, retry_failed=retry_failed)
    rewritten, skipped = None, None
    if scores is None:
        rewritten, skipped = in_place.score_in_place(run)
    else:
        by_version, endless = version_col is not None, every is not None
        asked = Asked(reconcile=reconcile, by_version=by_version, retry_failed=retry_failed, endless=endless)
        skipped = bring_up_to_date(run, asked, kept[-1] if by_version else None)
        if view is not None:
            views.show(spark, view, table, target, view_model)
    return summed_up(
        run.tally, model=target.model, began=began, rows_read=run.rows_read, skipped=skipped, bytes_rewritten=rewritten
    )


def _looked_at(run: Run, began: float, *, retry_failed: bool) -> Summary:
    """Return the summary of a dry run, which counts the rows that a run would score."""
    identity.check_key_values(run.source.rows, run.target.key)
    to_score = run.count_unscored(retry_failed=retry_failed)
    return Summary(
        rows_read=run.rows_read, scored=0, failed=0, skipped=run.rows_read - to_score, model=run.target.model,
        seconds=round(time.monotonic() - began, 3), dry_run=True, to_score=to_score,
    )  # fmt: skip


def _columns(
    rows: DataFrame, key: Sequence[str], image_col: str | None, embedding_col: str | None, version_col: str | None
) -> tuple[list[str], list[str], str]:
    """Return the key, all columns to keep and the column to score, as the table spells them."""
    if image_col is not None:
        inputs.check_image_column(rows, image_col)
    identity.check_key_columns(rows, key, reserved=list(TYPES))
    key = [schemas.spelled(rows, name) for name in key]
    column = schemas.holder(rows, str(embedding_col if image_col is None else image_col))
    kept = [*key, *([] if version_col is None else [checks.version_column(rows, version_col, key)])]
    if column in kept:
        raise TableError(
            f"--key, --version-col: expected other columns than the scored one, found {column!r} twice. Name another "
            "column."
        )
    return key, kept, column


def _struct(
    rows: DataFrame,
    pinned: Predictor,
    image_col: str | None,
    embedding_col: str | None,
    with_embedding: bool,
    options: Options,
    is_sampled: bool,
) -> Column:
    """Check the weights, and return a struct column of score, error and optionally embedding and costs.

    The first run over a source checks a sample of its embeddings, because none can be scored if they are of another
    backbone.
    """
    if image_col is not None:
        inputs.warn_of_large_batches(rows.sparkSession)
        checks.check_weights(pinned, options.model_path)
        return udfs.job_udf(pinned, with_embedding, options)(F.col(schemas.column_path(rows, image_col)))
    assert embedding_col is not None, "checked before"
    head = weights.load_head(pinned, options.model_path)
    vector = inputs.check_embedding_type(rows, embedding_col)
    if is_sampled:
        inputs.check_lengths(rows, embedding_col, head.dimension, pinned, vector=vector)
    path = schemas.column_path(rows, embedding_col)
    return embedding_columns(path, predictor=pinned, vector=vector, model_path=options.model_path)
