"""Score stored embeddings with another head."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from spark_aesthetic.delta import identity, schemas, tables
from spark_aesthetic.delta.commits import logged
from spark_aesthetic.delta.naming import quoted
from spark_aesthetic.delta.sessions import in_own_session
from spark_aesthetic.delta.tables import Source
from spark_aesthetic.errors import TableError
from spark_aesthetic.functions.columns import embedding_columns
from spark_aesthetic.predictors import weights
from spark_aesthetic.predictors.recipe import Predictor, resolve
from spark_aesthetic.scoring import ledger
from spark_aesthetic.scoring.ledger import Ledger
from spark_aesthetic.scoring.summary import Summary, summed_up
from spark_aesthetic.scoring.tally import Tally
from spark_aesthetic.scoring.target import EMBEDDING, ERROR, MODEL, SCORE, SCORED_AT, TYPES, Target
from spark_aesthetic.scoring.writer import Writer


@in_own_session
def rescore_from_embeddings(
    spark: SparkSession,
    *,
    scores: str,
    key: str | Sequence[str],
    predictor: str | Predictor,
    model_path: str | None = None,
) -> Summary:
    """Score the embeddings in a scores table with another head, in one commit, without opening an image.

    Each key gets the score of its newest embedding from any model with the predictor's backbone. An existing score of
    this model is replaced only if it is older than the embedding. A score is kept if its embedding no longer exists.

    Args:
        spark: A session with Delta Lake.
        scores: Delta table that a run with `with_embedding` has filled, by name or by path.
        key: The column or columns that, with the model, identify its rows.
        predictor: The new predictor, its name, or the path of its JSON file.
        model_path: See `spark_aesthetic.Options`.

    Returns:
        Counts; `rows_read` is the number of keys that have an embedding.

    Raises:
        TableError: The table does not exist, or has no embedding of this backbone.
    """
    began, key = time.monotonic(), identity.key_names(key)
    pinned = weights.pin(resolve(predictor), model_path)
    table = tables.open_source(spark, scores, called="scores")
    known = ledger.load(spark, scores)
    models = _with_embeddings(known, table, pinned)
    key = _checked_key(known, table, key)
    target = Target(
        table=scores,
        key=tuple(key),
        model=pinned.model_id,
        kept={name: schemas.column_type(table.rows, quoted(name), "--key") for name in key},
        written=(SCORE, ERROR, MODEL, SCORED_AT),
    )
    target.check(spark, tables.detail(spark, scores))
    writer = Writer(
        source=table.origin,
        target=target,
        struct=embedding_columns(EMBEDDING, predictor=pinned, model_path=model_path),
        column=EMBEDDING,
        info=Writer.told(pinned, table),
    )
    tally = Tally()
    newest = _newest(table, key, models)
    rows_read = newest.count()
    ledger.end_beginnings(spark, target)
    outdated = _outdated(newest, target.rows(spark), key)
    alone = partial(_check_alone, spark, writer, table, pinned)
    writer.replace_rows(spark, outdated, writer.commit(table.version), tally, alone=alone)
    return summed_up(tally, model=target.model, began=began, rows_read=rows_read, skipped=rows_read - tally.rows)


def _check_alone(spark: SparkSession, writer: Writer, table: Source, pinned: Predictor) -> None:
    """Raise TableError if another run has written embeddings, or scores of the model, since the table was opened.

    Otherwise the score of a replaced embedding would be newer than the new embedding, so no run would replace it.
    """
    # The first run of a new model may have started since.
    models = [writer.target.model, *_of_backbone(ledger.load(spark, writer.target.table), pinned)]
    found = [
        commit for commit in logged(spark, writer.target.identifier, since=table.version)
        if commit.is_ours and commit.told.get("model") in models
    ]  # fmt: skip
    if found:
        raise TableError(
            f"scores {writer.target.table!r}: expected no other run while its embeddings are scored, found one that "
            f"has written {found[0].told['model']}; this run wrote nothing. Run again when that run has finished."
        )


def _with_embeddings(known: Ledger, table: Source, pinned: Predictor) -> list[str]:
    """Return the models with embeddings for the predictor; raise TableError if there are none."""
    models = _of_backbone(known, pinned)
    if EMBEDDING not in table.rows.columns or not models:
        raise TableError(
            f"scores {table.table!r}: expected the column {EMBEDDING} with embeddings of {pinned.backbone}, found "
            f"{'none' if EMBEDDING not in table.rows.columns else 'embeddings of other backbones'}. Score the "
            "images with --with-embedding first."
        )
    return models


def _of_backbone(known: Ledger, pinned: Predictor) -> list[str]:
    return [model for model, backbone in known.backbones().items() if backbone == pinned.embedding_id]


def _checked_key(known: Ledger, table: Source, key: Sequence[str]) -> list[str]:
    """Return the key as the table spells it; raise TableError if the table has another key."""
    identity.check_key_columns(table.rows, key, reserved=list(TYPES))
    ledger.check_key(known, table.table, key)
    key = [schemas.spelled(table.rows, name) for name in key]
    if known.key is None:
        # A table of an earlier release does not record its key, so check the key against the rows.
        identity.check_key_values(table.rows, key, beside=(MODEL,))
    return key


def _newest(table: Source, key: Sequence[str], models: Sequence[str]) -> DataFrame:
    """Return the newest embedding of each key from some models, with its time."""
    names, newest = list(map(quoted, key)), "_aesthetic_newest"
    embedded = table.rows.where(F.col(MODEL).isin(*models) & F.col(EMBEDDING).isNotNull())
    latest = F.max_by(F.struct(EMBEDDING, SCORED_AT), SCORED_AT).alias(newest)
    return embedded.groupBy(*names).agg(latest).select(*names, f"{newest}.*")


def _outdated(newest: DataFrame, scored: DataFrame, key: Sequence[str]) -> DataFrame:
    """Return the embeddings of keys that have no score or an older one."""
    names, made_at = list(map(quoted, key)), "_aesthetic_made_at"
    current = scored.select(*names, F.col(SCORED_AT).alias(made_at))
    is_outdated = F.col(made_at).isNull() | (F.col(made_at) < F.col(SCORED_AT))
    return newest.join(current, list(key), "left").where(is_outdated).select(*names, EMBEDDING)
