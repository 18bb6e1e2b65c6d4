"""What a row of scores is of: which model, whether it is a score, and else why it is none."""

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
    """Whether a score is a number: neither null nor NaN, which Spark sorts above all numbers, nor infinite."""
    return F.coalesce(F.abs(score) < F.lit(math.inf), F.lit(False))


def reason(df: DataFrame, score_col: str) -> Column:
    """Why a row has no score: its `aesthetic_error`, or `NOT_FINITE`, or `UNSCORED`; null where it has one."""
    score = F.col(quoted(score_col)).cast("double")
    # The columns of a view that shows several models end all alike.
    error = ERROR + score_col.removeprefix(SCORE) if score_col.startswith(SCORE) else ERROR
    reasons = [F.col(quoted(error))] if has_column(df.columns, error) else []
    reasons += [F.when(score.isNotNull(), F.lit(NOT_FINITE)), F.lit(UNSCORED)]
    return F.when(~is_score(score), F.coalesce(*reasons))


def model_column(df: DataFrame) -> Column:
    """The model of a row, as in `aesthetic_model`; null where the table names none."""
    return F.col(MODEL) if has_column(df.columns, MODEL) else F.lit(None).cast("string")


def one_model(rows: Mapping[str, int]) -> str | None:
    """The model of some scores, or None where the table names none.

    Args:
        rows: How many rows each model has.

    Raises:
        TableError: There are several.
    """
    if len(rows) > 1:
        found = ", ".join(f"{model} ({count} rows)" for model, count in sorted(rows.items()))
        raise TableError(
            f"expected scores of one model, for those of several have scales of their own, found {found}; choose one "
            f"by --model, or by .where({MODEL} = …)"
        )
    return next(iter(rows), None)


def check_model(model: str, known: list[str]) -> None:
    """Raise TableError unless there are scores of a model."""
    if model not in known:
        raise TableError(f"--model: no model {model!r} in the scores: {nearest(model, sorted(known))}")


def of_model(df: DataFrame, model: str) -> DataFrame:
    """The rows of a model.

    Raises:
        TableError: There are none.
    """
    check_columns(df, [MODEL], "--model")
    chosen = df.where(F.col(MODEL) == model)
    if chosen.isEmpty():
        check_model(model, models_in(df))
    return chosen


def is_untrained(model: str | None) -> bool:
    """Whether its scores mean nothing, being of random weights."""
    return model is not None and model.startswith("untrained-")
