"""Views of a source with its scores."""

from __future__ import annotations

from collections.abc import Sequence

from pyspark.sql import SparkSession

from spark_aesthetic.preflight import Source, quoted
from spark_aesthetic.scores import MODEL, SCORED_AT, Target, same_key


def make_view(
    spark: SparkSession, view: str, source: Source, target: Target, models: Sequence[str], *, suffixed: bool
) -> None:
    """Make or replace a view of the source with its scores.

    Args:
        spark: The session.
        view: Its name.
        source: The table of images or embeddings.
        target: The scores table.
        models: The models to show.
        suffixed: Name each model's columns by its predictor too; else there is one model.
    """
    made = [name for name in target.written if not suffixed or name not in (MODEL, SCORED_AT)]
    columns = [f"source.{quoted(name)}" for name in source.rows.columns if name.lower() not in target.written]
    joins = []
    for number, model in enumerate(models):
        scored = f"scored_{number}"
        suffix = f"_{_suffix(model, models)}" if suffixed else ""
        columns += [f"{scored}.{name} AS {quoted(name + suffix)}" for name in made]
        joins.append(
            f"LEFT JOIN {target.identifier} AS {scored} "
            f"ON {same_key(target.key, 'source', scored)} AND {scored}.{MODEL} = '{model}'"
        )
    spark.sql(
        f"CREATE OR REPLACE VIEW {view} AS SELECT {', '.join(columns)} FROM {source.identifier} AS source "
        + " ".join(joins)
    )


def _suffix(model: str, models: Sequence[str]) -> str:
    name = model.split("@")[0]
    unique = sum(other.split("@")[0] == name for other in models) == 1
    return "".join(letter if letter.isalnum() else "_" for letter in (name if unique else model))
