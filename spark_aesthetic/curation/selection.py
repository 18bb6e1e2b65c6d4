"""Keep the rows at or above a score threshold (a cut)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql.types import DataType, DoubleType, StringType, StructField, StructType

from spark_aesthetic.curation.calibration import Calibration, check_agreement, check_target, rows_of
from spark_aesthetic.curation.columns import check_columns, check_score, in_type, reaches
from spark_aesthetic.curation.histogram import BIN_WIDTH, Group, histograms
from spark_aesthetic.curation.models import is_score
from spark_aesthetic.delta.naming import has_column, names, quoted
from spark_aesthetic.errors import OptionError
from spark_aesthetic.scoring.target import MODEL, SCORE

_CUT, _REST, _RANK = "_aesthetic_cut", "_aesthetic_rest", "_aesthetic_rank"


def curate(
    df: DataFrame,
    calibration: Calibration | None = None,
    *,
    min_score: float | None = None,
    keep: float | None = None,
    top_k: int | None = None,
    by: str | Sequence[str] | None = None,
    key: str | Sequence[str] | None = None,
    score_col: str = SCORE,
) -> DataFrame:
    """Keep the rows at or above a score threshold (a cut), or an exact number of the best rows.

    Null, NaN and infinite scores are never kept. A score that equals the threshold is kept in every type of column: 5.1
    as FLOAT reaches 5.1. With a calibration or `min_score` the result is a lazy filter, and Spark can skip files by
    their statistics. With `keep` and `top_k` the call counts the scores once, and the result filters `df` twice: for
    the rows clearly above the threshold, and for the few rows in the bin of the last kept row, which are sorted. Write
    the scores to a table first, and join wide rows afterwards.

    Args:
        df: Scores of one model.
        calibration: Keep the rows at or above the threshold of their group in this calibration.
        min_score: Keep the rows with at least this score.
        keep: Keep this share of the scored rows, above 0 and up to 1, rounded up to a whole row.
        top_k: Keep this many rows, or all scored rows if there are fewer.
        by: With `keep` and `top_k`: columns that divide the table into groups; this share or number of rows is kept in
            each group.
        key: With `keep` and `top_k`: columns that identify a row. Among equal scores, the first rows in the order of
            the key are kept. A calibration or `min_score` does not need it.
        score_col: Column of the scores. A calibration sets `score_col` and `by`.

    Returns:
        The kept rows of `df` with its columns, in no particular order.

    Raises:
        OptionError: Not exactly one of the first four is given; `keep` or `top_k` has no `key`; a value is outside its
            range; `by` or `score_col` differs from the calibration.
        TableError: A column is missing; `keep` or `top_k` is used with scores of several models.
        pyspark.errors.PySparkException: When the frame is evaluated: a row has a different model than the calibration,
            or the calibration has no threshold for the row's group.

    Examples:
        >>> rows = spark.createDataFrame([(1, 5.5), (2, 6.5), (3, None), (4, 6.5)], "id int, aesthetic_score float")
        >>> [row.id for row in curate(rows, min_score=6).collect()]
        [2, 4]
        >>> [row.id for row in curate(rows, top_k=1, key="id").collect()]
        [2]
    """
    wanted = {"calibration": calibration, "min_score": min_score, "keep": keep, "top_k": top_k}
    given = [name for name, value in wanted.items() if value is not None]
    if len(given) != 1:
        raise OptionError(f"expected one of {', '.join(wanted)}, found {', '.join(given) or 'none'}. Give one.")
    if calibration is not None:
        check_agreement(
            ("by", None if by is None else names(by), calibration.by),
            ("score_col", None if score_col == SCORE else score_col, calibration.score_col),
        )
        return _at_cuts(df, calibration)
    if min_score is not None:
        least = check_target("min_score", min_score)
        return df.where(is_score(F.col(quoted(score_col))) & reaches(df, score_col, least))
    return _best(df, given[0], wanted[given[0]], names(by), names(key), score_col)


def _at_cuts(df: DataFrame, calibration: Calibration) -> DataFrame:
    kind = check_score(df, calibration.score_col)
    check_columns(df, calibration.by, "by")
    known = {cut.group: cut.value for cut in calibration.cuts if cut.value is not None}
    if not known:
        raise OptionError("calibration: expected one with a cut, found none. Give calibrate a target such as keep=0.1.")
    score = F.col(quoted(calibration.score_col))
    # No row below the lowest threshold is kept; a constant lets Spark skip files by their statistics.
    kept = df.where(is_score(score) & reaches(df, calibration.score_col, min(known.values())))
    if calibration.model is not None and has_column(df.columns, MODEL):
        message = F.concat(
            F.lit(f"curate: expected scores of {calibration.model}, the calibration's model, found "),
            F.coalesce(F.col(MODEL), F.lit("no model")),
            F.lit(". Filter the rows by that model, or calibrate again."),
        )
        same = F.col(MODEL).eqNullSafe(calibration.model)
        kept = kept.where(F.when(same, F.lit(True)).otherwise(F.raise_error(message).cast("boolean")))
    if not calibration.by:
        return kept
    found = F.concat_ws(
        ", ", *[F.coalesce(F.col(quoted(name)).cast("string"), F.lit("null")) for name in calibration.by]
    )
    message = F.concat(
        F.lit(f"curate: expected a cut for each {', '.join(calibration.by)}, found none for "),
        found,
        F.lit(". Calibrate again with the rows of that group."),
    )
    # Raise inside the comparison: from score >= cut alone, Spark infers that cut is not null and drops unknown groups.
    kind, least = in_type(kind, list(known.values()))
    values = {group: (value,) for group, value in zip(known, least, strict=True)}
    cut = F.coalesce(F.col(_CUT), F.raise_error(message).cast(kind))
    return _with_values(kept, calibration.by, values, [_CUT], kind).where(score >= cut).drop(_CUT)


def _best(
    df: DataFrame, target: str, given: object, by: Sequence[str], key: Sequence[str], score_col: str
) -> DataFrame:
    if not key:
        raise OptionError(f"{target}: expected key, which orders equal scores, found none. Name the key columns.")
    check_columns(df, key, "key")
    wanted = check_target(target, given)
    _, counted = histograms(df, score_col=score_col, by=by)
    values: dict[Group, tuple[float, ...]] = {}
    for group, histogram in counted.items():
        if histogram.scored:
            rows = min(rows_of(target, wanted, histogram.scored), histogram.scored)
            least = histogram.cut(rows)
            values[group] = (least, float(rows - int(histogram.above(least + BIN_WIDTH))))
    if not values:
        return df.limit(0)
    score = F.col(quoted(score_col))
    lowest = min(cut for cut, _ in values.values())
    with_cut = _with_values(
        df.where(is_score(score) & (score >= F.lit(lowest))), by, values, [_CUT, _REST], DoubleType()
    )
    cut, border = F.col(_CUT), F.col(_CUT) + F.lit(BIN_WIDTH)
    order = Window.partitionBy(*([quoted(name) for name in by] or [_REST])).orderBy(
        score.desc(), *[F.col(quoted(name)) for name in key]
    )
    above = with_cut.where(score >= border)
    last = (
        with_cut.where((score >= cut) & (score < border))
        .withColumn(_RANK, F.row_number().over(order))
        .where(F.col(_RANK) <= F.col(_REST))
        .drop(_RANK)
    )
    return above.unionByName(last).drop(_CUT, _REST)


def _with_values(
    df: DataFrame,
    by: Sequence[str],
    values: Mapping[Group, Sequence[float | int | Decimal]],
    called: Sequence[str],
    kind: DataType,
) -> DataFrame:
    """Add the numbers of each row's group, as columns of type `kind`; null for an unknown group."""
    if not by:
        return df.withColumns({name: F.lit(value).cast(kind) for name, value in zip(called, values[()], strict=True)})
    at = [f"_aesthetic_group_{number}" for number in range(len(by))]
    schema = StructType([StructField(name, StringType()) for name in at] + [StructField(name, kind) for name in called])
    table = df.sparkSession.createDataFrame([(*group, *numbers) for group, numbers in values.items()], schema)
    same = [F.col(quoted(name)).cast("string").eqNullSafe(F.col(alias)) for name, alias in zip(by, at, strict=True)]
    return df.join(F.broadcast(table), same, "left").drop(*at)
