"""Create views that join a source with its scores, and list the models of a scores table."""

from __future__ import annotations

from collections.abc import Sequence

from pyspark.sql import SparkSession

from spark_aesthetic.delta import fitting, tables
from spark_aesthetic.delta.naming import folded, lacking, quoted
from spark_aesthetic.delta.sessions import statement, text_literal
from spark_aesthetic.delta.tables import Source
from spark_aesthetic.errors import TableError, nearest
from spark_aesthetic.scoring.target import MODEL, SCORED_AT, TYPES, Target, models_in, same_key

ALL = "all"


def models_of(spark: SparkSession, scores: str) -> list[str]:
    """Return the models of a scores table; none if the table does not exist."""
    if not tables.is_delta(spark, scores):
        return []
    rows = tables.read_table(spark, scores)
    fitting.check_columns(rows, {MODEL: TYPES[MODEL]}, scores, required=[MODEL])
    return models_in(rows)


def check_shown(shown: str, models: Sequence[str]) -> None:
    """Raise TableError unless `shown` is one of the models or "all"."""
    if shown not in (ALL, *models):
        raise TableError(f"--view-model: no model {shown!r} in the scores: {nearest(shown, [*models, ALL])}")


def show(spark: SparkSession, view: str, source: Source, target: Target, shown: str | None) -> None:
    """Create or replace a view of the source with the scores of one model or of all; the default is the target's model.

    Raises:
        TableError: The scores table has no such model.
    """
    if shown is None:
        _make(spark, view, source, target, [target.model], suffixed=False)
        return
    models = models_of(spark, target.table)
    check_shown(shown, models)
    _make(spark, view, source, target, models if shown == ALL else [shown], suffixed=shown == ALL)


def _make(
    spark: SparkSession, view: str, source: Source, target: Target, models: Sequence[str], *, suffixed: bool
) -> None:
    """Create or replace a view of the source with its scores.

    Args:
        spark: The session.
        view: The name of the view.
        source: The table of images or embeddings.
        target: The scores table.
        models: The models to show.
        suffixed: Whether column names end in the name of their model; if not, there is only one model.
    """
    made = [name for name in target.written if not suffixed or name not in (MODEL, SCORED_AT)]
    columns, joins, taken = [], [], list(target.written)
    for number, (model, suffix) in enumerate(_suffixes(models) if suffixed else [(model, "") for model in models]):
        scored = f"scored_{number}"
        columns += [f"{scored}.{name} AS {quoted(name + suffix)}" for name in made]
        taken += [name + suffix for name in made]
        joins.append(
            f"LEFT JOIN {target.identifier} AS {scored} "
            f"ON {same_key(target.key, 'source', scored)} AND {scored}.{MODEL} = {text_literal(model)}"
        )
    # A source that was saved from such a view already has columns with these names.
    own = [f"source.{quoted(name)}" for name in lacking(taken, source.rows.columns)]
    columns = [*own, *columns]
    statement(
        spark,
        f"CREATE OR REPLACE VIEW {view} AS SELECT {', '.join(columns)} FROM {source.identifier} AS source "
        + " ".join(joins),
    )


def _suffixes(models: Sequence[str]) -> list[tuple[str, str]]:
    """Return the suffix of each model's columns: the predictor's name, or the whole id if the name is not unique.

    Examples:
        >>> _suffixes(["v1@aa", "v2@bb", "v2@cc"])
        [('v1@aa', '_v1'), ('v2@bb', '_v2_bb'), ('v2@cc', '_v2_cc')]
        >>> _suffixes(["a-b@aa", "a.b@aa"])
        [('a-b@aa', '_a_b_aa_0'), ('a.b@aa', '_a_b_aa_1')]
    """

    def named(text: str) -> str:
        return "".join(letter if letter.isalnum() else "_" for letter in text)

    def is_one(text: str, of: Sequence[str]) -> bool:
        return list(map(folded, of)).count(folded(text)) == 1

    short, whole = [named(model.split("@")[0]) for model in models], [named(model) for model in models]
    found = []
    for at, model in enumerate(models):
        long = whole[at] if is_one(whole[at], whole) else f"{whole[at]}_{at}"
        found.append((model, f"_{short[at] if is_one(short[at], short) else long}"))
    return found
