"""Delta tables: which rows lack a score, score them chunk by chunk, and commit each once."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

from pyspark.errors import AnalysisException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

import spark_aesthetic
from spark_aesthetic.delta import access, fitting, identity, naming, schemas, tables
from spark_aesthetic.delta.commits import Commit, history
from spark_aesthetic.delta.naming import quoted
from spark_aesthetic.delta.sessions import in_own_session
from spark_aesthetic.delta.tables import Source
from spark_aesthetic.errors import OptionError, TableError, nearest
from spark_aesthetic.functions import inputs, udfs
from spark_aesthetic.functions.columns import embedding_columns
from spark_aesthetic.options import OptionArgs, Options, check_files, in_bytes
from spark_aesthetic.predictors import weights
from spark_aesthetic.predictors.recipe import DEFAULT, Predictor, resolve
from spark_aesthetic.scoring import checks, ledger
from spark_aesthetic.scoring.beside import bring_up_to_date
from spark_aesthetic.scoring.chunks import Chunks, never
from spark_aesthetic.scoring.in_place import score_in_place
from spark_aesthetic.scoring.plan import Asked
from spark_aesthetic.scoring.runs import FOLDER, Run
from spark_aesthetic.scoring.target import EMBEDDING, ERROR, MODEL, SCORE, SCORED_AT, TYPES, Target
from spark_aesthetic.scoring.views import make_view

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Summary", "history", "rescore_from_embeddings", "score_table"]

# What a kill may cost: at most so much of the source is read and scored again.
MAX_BYTES_PER_CHUNK = "8g"


@dataclass(frozen=True)
class Summary:
    """What a run did.

    Attributes:
        rows_read: Rows in the source table.
        scored: Rows that got a score in this run.
        failed: Rows that got a reason instead in this run.
        failed_by_reason: The same, counted by `aesthetic_error`.
        skipped: Rows that had a score or a reason of this model before and were left alone, counted in the scores; None
            for a run that was told to end.
        model: Name and content of the predictor, as in `aesthetic_model`.
        seconds: Wall-clock time of the run.
        chunks: Commits of scores in this run.
        dropped: Scores that were dropped, for their rows are no longer in the source.
        bytes_rewritten: In place, bytes of the source's files that held rows to be scored: the commit rewrote them.
        stages: Of images, seconds that the workers' threads took to decode, to transfer to the device and to infer,
            and that they waited for Spark; their sum over the threads passes `seconds` where work was done at once.
        peak_memory_bytes: Of images, the most memory that one worker had resident, shared pages included.
        dry_run: Whether nothing was written.
        to_score: In a dry run, the rows that a run would work on.
    """

    rows_read: int
    scored: int
    failed: int
    skipped: int | None
    model: str
    seconds: float
    failed_by_reason: dict[str, int] = field(default_factory=dict)
    chunks: int | None = None
    dropped: int | None = None
    bytes_rewritten: int | None = None
    stages: dict[str, float] | None = None
    peak_memory_bytes: int | None = None
    dry_run: bool = False
    to_score: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it, without what a run of its kind does not have."""
        return {name: value for name, value in asdict(self).items() if value is not None and value is not False}


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

    With `scores` they go, with the key and aesthetic_scored_at (timestamp), to a narrow table that is made if need be,
    and the source is not touched: the choice for tables of images. Spark's streaming reads the source chunk by chunk;
    each chunk is one commit, made exactly once however often the run is killed and started again, and a run reads
    what is new alone.

    Without `scores` the source itself gets the columns aesthetic_score (float), aesthetic_error (string) and
    aesthetic_model (string): the same chunks go to a table beside it, then one MERGE on the key takes them over. Delta
    rewrites the files of those rows for it, image bytes included.

    New rows are found by what has been committed to the source. Rows that are updated or deleted there are followed
    where the source has a change data feed; without one the run stops with an error that says so. A row that failed
    counts as scored: it keeps its reason.

    Args:
        spark: A session with Delta Lake.
        source: Delta table with the rows to score, by catalog name, or by path (anything with a slash).
        key: Column, or columns that together, identify a row; no nulls, no duplicates.
        image_col: Binary column of image files. Either this or `embedding_col`.
        embedding_col: `array<float>`, `array<double>` or ml Vector column of CLIP embeddings; normalised here.
        scores: Delta table for the scores, by name or by path; without it they go into `source` itself.
        view: With `scores`, a view to make or replace that joins source and scores.
        view_model: The `aesthetic_model` that the view shows, or "all" for columns of each; by default this run's.
        predictor: Name of a predictor, or the path of its JSON file; in Python also a `Predictor`.
        with_embedding: Also write `clip_embedding` (`array<float>`), so that other heads can score it later.
        checkpoint: Folder for the state of streams; by default `_spark_aesthetic` in the folder of the scores table.
        max_bytes_per_chunk: Approximate size of the source's files in one commit: bytes, or text such as "8g".
        max_files_per_chunk: Maximum number of the source's files in one commit, if that limit is reached first.
        reconcile: First compare the keys of source and scores, reading no image but those to be scored: score what is
            missing or changed, drop the scores of rows that are gone.
        version_col: Column of the source that differs where the image does; kept beside the score, so that `reconcile`
            finds changed rows without a change data feed.
        retry_failed: Also score the rows that have failed before.
        shared_keys: Equal keys mean the same image in all sources of `scores`, so a row is skipped if another source
            brought its score. Without it a table with the scores of another source is refused.
        dry_run: Check everything and count, write nothing.
        every: Run until stopped, and look for new rows at this interval, such as "1 minute".
        stopping: Asked before each chunk (not on Spark Connect), and each second between them, whether to end.
        progress_file: Where progress is shown: one live line if it is a terminal, by default stderr.
        **options: See `spark_aesthetic.Options`.

    Returns:
        Counts; see `Summary`.

    Raises:
        AestheticError: One of its kinds, before any work: source, columns, types, key, weights, options or
            devices are not right. During work TableError: the source has changed in a way that it does not tell, or
            another run is at work on the same scores.
    """
    started = time.monotonic()
    key = identity.key_names(key)
    checked = Options.of(score_table, **options)
    pinned = weights.pin(resolve(predictor), checked.model_path)
    model = pinned.model_id
    checks.check_gpu_scheduling(spark)
    _check_combination(
        source, image_col, embedding_col, scores, view, view_model, with_embedding, reconcile, version_col, every,
        shared_keys,
    )  # fmt: skip
    limit = in_bytes("max_bytes_per_chunk", max_bytes_per_chunk)
    if max_files_per_chunk is not None:
        check_files("max_files_per_chunk", max_files_per_chunk)
    if every is not None:
        checks.check_interval(spark, every)
    table = tables.open_source(spark, source)
    struct = _check_and_plan(table, pinned, image_col, embedding_col, with_embedding, options)
    identity.check_key_columns(table.rows, key, reserved=list(TYPES))
    if view is not None:
        checks.check_view(spark, view)
    if scores is not None and view_model not in (None, "all", model):
        _check_shown(view_model, [model, *_models(spark, scores)])

    key = [schemas.spelled(table.rows, name) for name in key]
    column = _top_level(table.rows, str(image_col if embedding_col is None else embedding_col))
    kept = [*key, *([] if version_col is None else [_version_column(table.rows, version_col, key)])]
    if column in kept:
        raise TableError(f"--key, --version-col: expected other columns than the scored one, found {column!r} twice")
    chunks = Chunks(
        source=table,
        target=Target(
            table=_staged(table, checkpoint) if scores is None else scores,
            key=tuple(key),
            model=model,
            kept={name: schemas.column_type(table.rows, quoted(name), "--version-col") for name in kept},
            written=(SCORE, ERROR, MODEL, SCORED_AT, *([EMBEDDING] if with_embedding else [])),
        ),
        struct=struct,
        column=column,
        where=_unscored_in_place(table.rows, model, retry_failed) if scores is None else None,
        info={
            "spark_aesthetic": spark_aesthetic.__version__,
            "model": model,
            "predictor": pinned.to_json(),
            "options": json.dumps(asdict(checked)),
            "source": table.identifier,
            "source_id": table.id,
        },
        stopping=stopping,
    )
    _check_target(spark, chunks, scores, shared_keys=shared_keys)
    if checkpoint is not None:
        _check_checkpoint(spark, checkpoint)
    rows_read = table.rows.count()
    run = Run(
        spark=spark,
        chunks=chunks,
        folder=checkpoint,
        max_bytes_per_chunk=limit,
        max_files_per_chunk=max_files_per_chunk,
        rows_read=rows_read,
        every=every,
        backbone=_backbone(pinned),
        shared_keys=shared_keys,
        progress_file=progress_file,
    )
    if dry_run:
        identity.check_key_values(table.rows, key)
        to_score = run.count_unscored(retry_failed=retry_failed)
        return Summary(
            rows_read=rows_read, scored=0, failed=0, skipped=rows_read - to_score, model=model,
            seconds=round(time.monotonic() - started, 3), dry_run=True, to_score=to_score,
        )  # fmt: skip
    rewritten, skipped = None, None
    if scores is None:
        rewritten, skipped = score_in_place(run)
    else:
        asked = Asked(
            reconcile=reconcile,
            by_version=version_col is not None,
            retry_failed=retry_failed,
            endless=every is not None,
        )
        skipped = bring_up_to_date(run, asked, None if version_col is None else kept[-1])
        if view is not None:
            _make_view(spark, view, table, chunks.target, view_model)
    return _summary(chunks, started, rows_read=rows_read, skipped=skipped, bytes_rewritten=rewritten)


@in_own_session
def rescore_from_embeddings(
    spark: SparkSession,
    *,
    scores: str,
    key: str | Sequence[str],
    predictor: str | Predictor,
    model_path: str | None = None,
) -> Summary:
    """Score with another head the embeddings that a scores table has kept, in one commit, without opening an image.

    Those of every model with the predictor's backbone count, of each key the newest. A score that this model has is
    left alone, unless it is older than the embedding; one whose embedding is gone stays.

    Args:
        spark: A session with Delta Lake.
        scores: Delta table that a run with `with_embedding` has filled, by name or by path.
        key: The column or columns that identify its rows, beside the model.
        predictor: The new predictor, its name, or the path of its JSON file.
        model_path: See `spark_aesthetic.Options`.

    Returns:
        Counts; `rows_read` are the keys that have an embedding.

    Raises:
        TableError: There is no such table, or it has no embedding of this backbone.
    """
    started = time.monotonic()
    key = identity.key_names(key)
    pinned = weights.pin(resolve(predictor), model_path)
    table = tables.open_source(spark, scores, called="scores")
    known = ledger.load(spark, scores)
    fitting = [model for model, backbone in known.backbones().items() if backbone == _backbone(pinned)]
    if EMBEDDING not in table.rows.columns or not fitting:
        raise TableError(
            f"scores {scores!r}: expected the column {EMBEDDING} with embeddings of {pinned.backbone}, found "
            f"{'none' if EMBEDDING not in table.rows.columns else 'those of other backbones'}; score images "
            "--with-embedding first"
        )
    identity.check_key_columns(table.rows, key, reserved=list(TYPES))
    ledger.check_key(known, scores, key)
    key = [schemas.spelled(table.rows, name) for name in key]
    if known.key is None:
        # A table of an earlier release; its rows alone tell what identifies them.
        identity.check_key_values(table.rows, key, beside=(MODEL,))
    chunks = Chunks(
        source=table,
        target=Target(
            table=scores,
            key=tuple(key),
            model=pinned.model_id,
            kept={name: schemas.column_type(table.rows, quoted(name), "--key") for name in key},
            written=(SCORE, ERROR, MODEL, SCORED_AT),
        ),
        struct=embedding_columns(EMBEDDING, predictor=pinned, model_path=model_path),
        column=EMBEDDING,
        where=None,
        info={
            "spark_aesthetic": spark_aesthetic.__version__,
            "model": pinned.model_id,
            "predictor": pinned.to_json(),
            "source": table.identifier,
            "source_id": table.id,
        },
        stopping=never,
    )
    chunks.target.check(spark, tables.detail(spark, scores))
    rows_read = _rescore(spark, chunks, fitting)
    return _summary(chunks, started, rows_read=rows_read, skipped=rows_read - chunks.rows)


def _rescore(spark: SparkSession, chunks: Chunks, fitting: Sequence[str]) -> int:
    """Score the newest embedding of each key, made by one of some models; give the number of keys that have one."""
    table, target, key = chunks.source, chunks.target, list(chunks.target.key)
    names, newest, made_at = list(map(quoted, key)), "_aesthetic_newest", "_aesthetic_made_at"
    embedded = table.rows.where(F.col(MODEL).isin(*fitting) & F.col(EMBEDDING).isNotNull())
    latest = F.max_by(F.struct(EMBEDDING, SCORED_AT), SCORED_AT).alias(newest)
    embedded = embedded.groupBy(*names).agg(latest).select(*names, f"{newest}.*")
    rows_read = embedded.count()
    ledger.save_progress(spark, target, ledger.ended_beginnings(spark, target))
    current = target.rows(spark).select(*names, F.col(SCORED_AT).alias(made_at))
    outdated = F.col(made_at).isNull() | (F.col(made_at) < F.col(SCORED_AT))
    wanted = embedded.join(current, key, "left").where(outdated)
    commit = Commit(info=json.dumps({**chunks.info, "source_version": table.version}))
    chunks.replace_rows(spark, wanted.select(*names, EMBEDDING), commit)
    return rows_read


def _summary(
    chunks: Chunks, started: float, *, rows_read: int, skipped: int | None, bytes_rewritten: int | None = None
) -> Summary:
    failed, costs = chunks.failed.total(), dict(chunks.costs)
    return Summary(
        rows_read=rows_read,
        scored=chunks.rows - failed,
        failed=failed,
        skipped=skipped,
        model=chunks.target.model,
        seconds=round(time.monotonic() - started, 3),
        failed_by_reason=dict(sorted(chunks.failed.items())),
        chunks=chunks.written,
        dropped=chunks.dropped,
        bytes_rewritten=bytes_rewritten,
        peak_memory_bytes=int(costs.pop("peak_memory_bytes")) if costs else None,
        stages={name.removesuffix("_seconds"): round(value, 3) for name, value in costs.items()} or None,
    )


def _check_combination(
    source: str,
    image_col: str | None,
    embedding_col: str | None,
    scores: str | None,
    view: str | None,
    view_model: str | None,
    with_embedding: bool,
    reconcile: bool,
    version_col: str | None,
    every: str | None,
    shared_keys: bool,
) -> None:
    if (image_col is None) == (embedding_col is None):
        raise TableError("expected either --image-col or --embedding-col, found both or neither; give one")
    if scores is None:
        needing = {
            "--view": view, "--reconcile": reconcile or None, "--version-col": version_col, "--every": every,
            "--shared-keys": shared_keys or None,
        }  # fmt: skip
        for option, value in needing.items():
            if value is not None:
                raise TableError(
                    f"{option}: expected --scores with it, found none; without it the source has the columns itself"
                )
    if every is not None:
        for option, given in {"--view": view is not None, "--reconcile": reconcile}.items():
            if given:
                raise OptionError(
                    f"{option}: expected no --every with it, which never comes to it; run once with {option}, then "
                    "--every"
                )
    if view_model is not None and view is None:
        raise TableError("--view-model: expected --view with it, found none; name the view")
    if with_embedding and embedding_col is not None:
        raise TableError("--with-embedding: expected --image-col, found --embedding-col, which holds them already")


def _check_target(spark: SparkSession, chunks: Chunks, scores: str | None, *, shared_keys: bool) -> None:
    """Check where the scores go, before any work.

    Raises:
        TableError: The source takes no updates in place, or the scores table does not fit the run.
    """
    source, target = chunks.source, chunks.target
    if scores is None:
        if source.append_only:
            raise TableError(
                f"source {source.table!r}: expected a table whose rows can be updated in place, found the property "
                "delta.appendOnly = true. Score into a table of its own (--scores), or unset it"
            )
        in_place = {name: TYPES[name] for name in target.written if name != SCORED_AT}
        fitting.check_columns(source.rows, in_place, source.table, required=())
        return
    found = tables.detail(spark, target.table)
    # One table has many names: a path, a link to it, a name of the catalog.
    if found is not None and found.location == source.location:
        raise TableError("--scores: expected another table than --source; leave it out to score in place")
    if found is not None:
        known = ledger.load(spark, scores)
        ledger.check_copy(spark, known, scores, source)
        ledger.check(known, scores, source, target.key, shared_keys=shared_keys)
    target.check(spark, found)


def _check_checkpoint(spark: SparkSession, checkpoint: str) -> None:
    """Raise TableError unless the file system of the checkpoint's folder can be reached."""
    with access.reaching(f"--checkpoint {checkpoint!r}"):
        try:
            access.files_reader(spark).text(naming.whole(checkpoint)).schema  # noqa: B018
        except AnalysisException as error:
            if not access.is_missing(error):
                raise


def _top_level(rows: DataFrame, column: str) -> str:
    """The column of the table that holds a column to score, which may be a field of a struct."""
    column = schemas.spelled(rows, column)
    return column if column in rows.columns else schemas.spelled(rows, column.split(".")[0].strip("`"))


def _version_column(rows: DataFrame, column: str, key: Sequence[str]) -> str:
    name = schemas.spelled(rows, column)
    schemas.column_type(rows, quoted(name), "--version-col")
    naming.check_own_name(name, "--version-col")
    if name in key or name.lower() in TYPES:
        raise TableError(
            f"--version-col: expected a column that is no key and that the job does not write, found {name!r}"
        )
    return name


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
        inputs.warn_of_large_batches(table.rows.sparkSession)
        inputs.check_image_column(table.rows, image_col)
        checks.check_weights(pinned, options.get("model_path"))
        image = F.col(schemas.column_path(table.rows, image_col))
        return udfs.job_udf(pinned, with_embedding, Options.of(**options))(image)
    assert embedding_col is not None, "checked before"
    head = weights.load_head(pinned, options.get("model_path"))
    vector = inputs.check_embedding_column(table.rows, embedding_col, head.dimension, pinned)
    path = schemas.column_path(table.rows, embedding_col)
    return embedding_columns(path, predictor=pinned, vector=vector, model_path=options.get("model_path"))


def _staged(table: Source, checkpoint: str | None) -> str:
    """Where scores wait for the commit in place: beside the source, in which Delta allows no other table."""
    if checkpoint is not None:
        return f"{naming.whole(checkpoint).rstrip('/')}/{table.id}/staged"
    _, _, folders = table.location.partition("://")
    if "__unitystorage" in table.location or (folders and "/" not in folders.strip("/")):
        raise TableError(
            f"source {table.table!r}: expected --checkpoint, a folder such as /Volumes/… or s3://bucket/folder, for a "
            "table beside whose own folder no other can be; or score into a table of its own (--scores)"
        )
    return f"{table.location.rstrip('/')}{FOLDER}/staged"


def _unscored_in_place(rows: DataFrame, model: str, retry_failed: bool) -> Column:
    if MODEL not in [name.lower() for name in rows.columns]:
        return F.lit(True)
    other = ~F.col(MODEL).eqNullSafe(model)
    return other | F.col(ERROR).isNotNull() if retry_failed else other


def _make_view(spark: SparkSession, view: str, table: Source, target: Target, shown: str | None) -> None:
    if shown is None:
        make_view(spark, view, table, target, [target.model], suffixed=False)
        return
    models = _models(spark, target.table)
    _check_shown(shown, models)
    make_view(spark, view, table, target, models if shown == "all" else [shown], suffixed=shown == "all")


def _check_shown(shown: str, models: list[str]) -> None:
    if shown not in ("all", *models):
        raise TableError(f"--view-model: no model {shown!r} in the scores: {nearest(shown, [*models, 'all'])}")


def _models(spark: SparkSession, scores: str) -> list[str]:
    """The models of a scores table, if there is one."""
    if not tables.is_delta(spark, scores):
        return []
    rows = tables.read_table(spark, scores)
    fitting.check_columns(rows, {MODEL: TYPES[MODEL]}, scores, required=[MODEL])
    return sorted(row[0] for row in rows.select(MODEL).distinct().dropna().collect())


def _backbone(pinned: Predictor) -> str:
    """What embeddings depend on: the architecture and the content of its weights."""
    return f"{pinned.backbone}@{pinned.backbone_sha256}"
