"""Monitor a scores table: summary statistics, and drift between two tables or versions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from spark_aesthetic.curation.histogram import BIN_WIDTH, Histogram, binned, histograms
from spark_aesthetic.errors import OptionError, TableError
from spark_aesthetic.options import number
from spark_aesthetic.scoring.target import SCORE

# Published data sets use these thresholds.
CUTS = (4.5, 5.0, 5.5, 6.0, 6.25, 6.5, 7.0)
QUANTILES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)


def describe_scores(df: DataFrame, *, score_col: str = SCORE, cuts: Sequence[float] = CUTS) -> DataFrame:
    """Summarise a table of scores in one row per model.

    The result is a lazy DataFrame, like that of `DataFrame.summary`: you can append it to a table every day and raise
    an alarm with SQL. Evaluating it takes one pass over the score columns and a shuffle of counts.

    Args:
        df: Scores of one or several models, with the columns of a scores table.
        score_col: Numeric column of the scores.
        cuts: Score thresholds at which to compute `shares`.

    Returns:
        model (string; null if the table has no model), rows (bigint), scored (bigint; rows with a finite score),
        unscored (`map<string, bigint>`: rows without one by `aesthetic_error`, "not finite" or "unscored"), least,
        greatest and mean (double; null without a score), quantiles (`map<double, double>`: 0.01 to 0.99; within 0.0005
        of the exact quantiles with NumPy's default interpolation), shares (`map<double, double>`: for each of `cuts`,
        the share of the scored rows that `curate(min_score=cut)` keeps).

    Raises:
        TableError: A column is missing, or the scores are not numbers.
        OptionError: `cuts` is not a list of finite numbers.

    Examples:
        >>> rows = spark.createDataFrame([(4.5,), (5.5,), (6.5,), (None,)], "aesthetic_score float")
        >>> describe_scores(rows).selectExpr("rows", "scored", "unscored", "shares[5.5] AS above").show(truncate=False)
        +----+------+---------------+------------------+
        |rows|scored|unscored       |above             |
        +----+------+---------------+------------------+
        |4   |3     |{unscored -> 1}|0.6666666666666666|
        +----+------+---------------+------------------+
    """
    if isinstance(cuts, str) or not isinstance(cuts, Iterable):
        raise OptionError(f"cuts={cuts!r}: expected a list of numbers, such as [5.0, 5.5]")
    wanted = [number("cuts", cut) for cut in cuts]
    counted = _counted(df, score_col, wanted)
    within = F.transform("middles", lambda middle: F.least(F.greatest(middle, F.col("least")), F.col("greatest")))
    shares = [F.try_divide(F.col(f"above_{at}"), F.col("scored")) for at in range(len(wanted))]
    return counted.select(
        "model",
        "rows",
        "scored",
        "unscored",
        "least",
        "greatest",
        F.try_divide(F.col("total"), F.col("scored")).alias("mean"),
        F.map_from_arrays(F.lit(list(QUANTILES)), within).alias("quantiles"),
        F.map_from_arrays(F.lit(wanted).cast("array<double>"), F.array(*shares)).alias("shares"),
    )


def _counted(df: DataFrame, score_col: str, cuts: Sequence[float]) -> DataFrame:
    """Aggregate by model: counts and sums, quantiles of the bins' middles, and the rows at or above each cut."""
    rows, edge = F.col("rows"), F.col("bin") * F.lit(BIN_WIDTH)
    has_score = F.col("bin").isNotNull()
    # A threshold at the edge of a bin needs only the counts of the bins. Any other one costs a comparison per row.
    between = [cut for cut in cuts if not (cut / BIN_WIDTH).is_integer()]
    above = [
        F.sum(f"reaching_{between.index(cut)}") if cut in between else F.sum(F.when(edge >= F.lit(cut), rows))
        for cut in cuts
    ]
    by_model = binned(df, score_col=score_col, cuts=between).groupBy("model")
    return by_model.agg(
        F.sum(rows).alias("rows"),
        F.coalesce(F.sum(F.when(has_score, rows)), F.lit(0)).alias("scored"),
        F.map_from_entries(F.collect_list(F.when(~has_score, F.struct("reason", "rows")))).alias("unscored"),
        F.min("least").alias("least"),
        F.max("greatest").alias("greatest"),
        F.sum("total").alias("total"),
        F.percentile(edge + F.lit(BIN_WIDTH / 2), list(QUANTILES), rows).alias("middles"),
        *[F.coalesce(count, F.lit(0)).alias(f"above_{at}") for at, count in enumerate(above)],
    )


class Band(NamedTuple):
    """A tenth of the scores in `before`: its lowest score, and the shares of both tables' scores in it."""

    low: float
    before: float
    after: float


@dataclass(frozen=True, kw_only=True)
class Drift:
    """The difference between two distributions of scores.

    Attributes:
        before: Number of scored rows in the first table.
        after: Number of scored rows in the second table.
        psi: Population stability index over `bands`. By the usual rule of credit scoring (Siddiqi 2006, Credit Risk
            Scorecards), below 0.1 is no change and 0.25 or more is a large change. For n and m rows of one
            distribution, chance alone gives about 9 * (1 / n + 1 / m), so use at least a thousand rows of each.
        ks: Kolmogorov-Smirnov statistic, the largest difference between the two distribution functions.
        p_value: Probability that samples of one distribution differ at least this much (Smirnov 1948, Annals of
            Mathematical Statistics 19:279). With millions of rows every change is significant; then use `ks` and `psi`.
        bands: The tenths of the first table, lowest first; fewer than ten if scores are tied.
    """

    before: int
    after: int
    psi: float
    ks: float
    p_value: float
    bands: tuple[Band, ...]


def score_drift(before: DataFrame, after: DataFrame, *, score_col: str = SCORE) -> Drift:
    """Compare the scores of two tables, or of two versions of one.

    Reads the score columns of each table once. Scores are compared in bins of 1/1024 points, so `ks` is below the exact
    value by at most the largest share of rows in one bin, about 0.0004 for typical scores.

    Args:
        before: Scores of one model, such as `spark.read.option("versionAsOf", 3).table("main.default.photo_scores")`.
        after: Later scores of the same model.
        score_col: Column of the scores in both tables.

    Returns:
        The statistics; see `Drift`. Rows without a score are not counted; see `describe_scores`.

    Raises:
        TableError: A column is missing, the scores are of several models, or one of the tables has no scores.
    """
    (old_model, old), (new_model, new) = (histograms(df, score_col=score_col) for df in (before, after))
    if None not in (old_model, new_model) and old_model != new_model:
        raise TableError(
            f"expected scores of one model, because each model has its own scale, found {old_model} before and "
            f"{new_model} after. Compare scores of the same model."
        )
    for histogram, name in ((old[()], "before"), (new[()], "after")):
        if not histogram.scored:
            raise TableError(f"{name}: expected rows with a score, found none. See describe_scores for the reasons.")
    return _drift(old[()], new[()])


def _drift(old: Histogram, new: Histogram) -> Drift:
    tenths = [old.cut(math.ceil(old.scored * share / 10)) for share in range(1, 10)]
    # The lowest band has no lower bound, and the highest has no upper bound.
    edges = np.unique([*tenths, old.bins[0] * old.width])
    shares = []
    for histogram in (old, new):
        above = histogram.above(edges)
        above[0] = histogram.scored
        shares.append(-np.diff(np.append(above, 0)) / histogram.scored)
    # An empty band would make the index infinite, so it counts as half a row.
    was, now = (np.maximum(share, 0.5 / histogram.scored) for share, histogram in zip(shares, (old, new), strict=True))
    everywhere = np.union1d(old.bins, new.bins) * old.width
    ks = float(np.abs(old.above(everywhere) / old.scored - new.above(everywhere) / new.scored).max())
    return Drift(
        before=old.scored,
        after=new.scored,
        psi=float(((now - was) * np.log(now / was)).sum()),
        ks=ks,
        p_value=_kolmogorov(ks * math.sqrt(old.scored * new.scored / (old.scored + new.scored))),
        bands=tuple(Band(*map(float, band)) for band in zip(edges, *shares, strict=True)),
    )


def _kolmogorov(statistic: float) -> float:
    """Return the probability of a larger statistic under Kolmogorov's limit distribution."""
    # Below 0.2, 100 terms of the series are too few, but the probability there is 1 to 12 digits.
    if statistic < 0.2:
        return 1.0
    terms = ((-1.0) ** (at - 1) * math.exp(-2 * (at * statistic) ** 2) for at in range(1, 101))
    return min(max(2 * sum(terms), 0.0), 1.0)
