"""Whether a table of scores is what it should be: its figures, and how far it has moved."""

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

# Those that published data sets were cut at.
CUTS = (4.5, 5.0, 5.5, 6.0, 6.25, 6.5, 7.0)
QUANTILES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)


def describe_scores(df: DataFrame, *, score_col: str = SCORE, cuts: Sequence[float] = CUTS) -> DataFrame:
    """Figures of a table of scores, one row a model.

    A frame, as DataFrame.summary gives one: nothing is read until it is shown, the rows of each day can be appended
    to a table, and SQL can raise an alarm. It takes one pass over narrow columns and a shuffle of counts.

    Args:
        df: Scores, with the columns of a scores table; of several models, too.
        score_col: Column of the scores, any type of number.
        cuts: Scores for `shares`.

    Returns:
        model (string; null where the table names none), rows (bigint), scored (bigint; rows with a finite score),
        unscored (`map<string, bigint>`: the others by `aesthetic_error`, "not finite" or "unscored"), least, greatest
        and mean (double; null without a score), quantiles (`map<double, double>`: 0.01 to 0.99; within 0.0005 of the
        exact ones, which are interpolated as NumPy does by default), shares (`map<double, double>`: of the scored rows
        those at or above each cut, exactly those that `curate(min_score=cut)` keeps).

    Raises:
        TableError: No such column, or scores that are no numbers.
        OptionError: `cuts` are no list of finite numbers.

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
    """One aggregation by model: counts and sums, the middles of the bins at the quantiles, and rows above each cut."""
    rows, edge = F.col("rows"), F.col("bin") * F.lit(BIN_WIDTH)
    has_score = F.col("bin").isNotNull()
    # The bins know the rows above an edge. Other cuts are counted one by one, which costs more.
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
    """A tenth of the scores before: its lowest score, and the shares of scores in it before and after."""

    low: float
    before: float
    after: float


@dataclass(frozen=True, kw_only=True)
class Drift:
    """How far scores have moved.

    Attributes:
        before: Rows with a score before.
        after: Rows with a score after.
        psi: Population stability index over `bands`. By the usual rule of credit scoring (Siddiqi 2006, Credit Risk
            Scorecards) below 0.1 is no change, from 0.25 a large one. Of n and m rows of one distribution it is about
            9 * (1 / n + 1 / m) by chance alone, so the rule wants a thousand rows of each.
        ks: Kolmogorov-Smirnov statistic: the greatest difference between both shares of rows below a score.
        p_value: How probably rows of one distribution differ by as much (Smirnov 1948, Annals of Mathematical
            Statistics 19:279). Of millions of rows the least change is significant: there judge by `ks` and `psi`.
        bands: From the lowest up; ten, or fewer where scores are tied.
    """

    before: int
    after: int
    psi: float
    ks: float
    p_value: float
    bands: tuple[Band, ...]


def score_drift(before: DataFrame, after: DataFrame, *, score_col: str = SCORE) -> Drift:
    """Compare the scores of two tables, or of two versions of one.

    One pass over narrow columns of each. A few numbers about two frames: so an object, as of scipy.stats, and no frame.
    Scores are compared in bins of 1/1024, so `ks` falls short of the exact one by at most the greatest share of rows in
    one bin, about 0.0004 of scores as they are.

    Args:
        before: Scores of one model, such as `spark.read.option("versionAsOf", 3).table("main.default.photo_scores")`.
        after: Later ones, of the same model.
        score_col: Column of the scores in both.

    Returns:
        See `Drift`; the rows without a score are in none of its figures, see `describe_scores`.

    Raises:
        TableError: No such column; scores of several models; no scores in one of both.
    """
    (old_model, old), (new_model, new) = (histograms(df, score_col=score_col) for df in (before, after))
    if None not in (old_model, new_model) and old_model != new_model:
        raise TableError(
            f"expected scores of one model, for each has a scale of its own, found {old_model} before and "
            f"{new_model} after; compare scores of the same"
        )
    for histogram, name in ((old[()], "before"), (new[()], "after")):
        if not histogram.scored:
            raise TableError(f"{name}: expected rows with a score, found none; see describe_scores for the reasons")
    return _drift(old[()], new[()])


def _drift(old: Histogram, new: Histogram) -> Drift:
    tenths = [old.cut(math.ceil(old.scored * share / 10)) for share in range(1, 10)]
    # The lowest band is open below, and the highest above.
    edges = np.unique([*tenths, old.bins[0] * old.width])
    shares = []
    for histogram in (old, new):
        above = histogram.above(edges)
        above[0] = histogram.scored
        shares.append(-np.diff(np.append(above, 0)) / histogram.scored)
    # An empty band would make it infinite: it counts as half a row.
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
    """Kolmogorov's limit distribution: the probability of more than this."""
    # There the series of 100 terms does not converge, and the probability is 1 to 12 digits.
    if statistic < 0.2:
        return 1.0
    terms = ((-1.0) ** (at - 1) * math.exp(-2 * (at * statistic) ** 2) for at in range(1, 101))
    return min(max(2 * sum(terms), 0.0), 1.0)
