"""Read the model of a row, whether it has a score, and the reason if it has none."""

from __future__ import annotations

import math
from collections.abc import Mapping

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from spark_aesthetic.curation.columns import check_columns
from spark_aesthetic.delta.naming import has_column, quoted
from spark_aesthetic.errors import TableError, nearest
from spark_aesthetic.scoring.target import ERROR, MODEL, SCORE, models_in

NOT_FINITE, UNSCORED = "not finite", "unscored"


def is_score(score: Column) -> Column:
    """Whether a score is finite: not null, not infinite and not NaN, which Spark sorts above all numbers."""
    return F.coalesce(F.abs(score) < F.lit(math.inf), F.lit(False))


def reason(df: DataFrame, score_col: str) -> Column:
    """Return why a row has no score: its `aesthetic_error`, `NOT_FINITE` or `UNSCORED`; null if it has a score."""
    score = F.col(quoted(score_col)).cast("double")
    # In a view of several models, the columns of one model share a suffix.
    error = ERROR + score_col.removeprefix(SCORE) if score_col.startswith(SCORE) else ERROR
    reasons = [F.col(quoted(error))] if has_column(df.columns, error) else []
    reasons += [F.when(score.isNotNull(), F.lit(NOT_FINITE)), F.lit(UNSCORED)]
    return F.when(~is_score(score), F.coalesce(*reasons))


def model_column(df: DataFrame) -> Column:
    """Return the model of a row, as in `aesthetic_model`; null if the table has no model column."""
    return F.col(MODEL) if has_column(df.columns, MODEL) else F.lit(None).cast("string")


def one_model(rows: Mapping[str, int]) -> str | None:
    """Return the only model of the scores, or None if the table has no model.

    Args:
        rows: The number of rows of each model.

    Raises:
        TableError: There are several models.
    """
    if len(rows) > 1:
        found = ", ".join(f"{model} ({count} rows)" for model, count in sorted(rows.items()))
        raise TableError(
            f"expected scores of one model, because each model has its own scale, found {found}. Choose one with "
            f"--model, or with .where({MODEL} = …)."
        )
    return next(iter(rows), None)


def check_model(model: str, known: list[str]) -> None:
    """Raise TableError if the scores do not have this model."""
    if model not in known:
        raise TableError(f"--model: no model {model!r} in the scores: {nearest(model, sorted(known))}")


def of_model(df: DataFrame, model: str) -> DataFrame:
    """Return the rows of a model.

    Raises:
        TableError: The model has no rows.
    """
    check_columns(df, [MODEL], "--model")
    chosen = df.where(F.col(MODEL) == model)
    if chosen.isEmpty():
        check_model(model, models_in(df))
    return chosen


def is_untrained(model: str | None) -> bool:
    """Whether the model has random weights, so its scores mean nothing."""
    return model is not None and model.startswith("untrained-")
