"""How scores are distributed: counted in narrow bins, in one pass over any number of rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from spark_aesthetic.curation.columns import check_columns, check_score, reaches
from spark_aesthetic.curation.models import is_score, model_column, one_model, reason
from spark_aesthetic.delta.naming import quoted
from spark_aesthetic.errors import OptionError, TableError
from spark_aesthetic.options import number

# About a thousandth of a point. A power of two: then an edge is an exact number, also as float32, and what is counted
# at or above it is what a filter keeps.
BIN_WIDTH = 2.0**-10

# So many counts come to the driver at most: 9,000 are those of one table whose scores range from 1 to 10.
MAX_BINS = 2_000_000

# From here on not every whole number is one of float64, and bins run into one another.
_EXACT = 2**53

# The values of the columns that part a table, as text.
Group = tuple[str | None, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Histogram:
    """The scores of a table, or of one group of its rows.

    Attributes:
        width: Of a bin, in points; bin b holds the scores from b * width to below (b + 1) * width.
        bins: int64 of shape (bins,): those that hold scores, ascending.
        counts: int64 of the same shape: rows in each.
        unscored: Rows without a score by reason.
        least: The lowest score, or None where there is no score.
        greatest: The highest one.
        mean: Their mean.
        reaching: Rows with a score of at least the `min_score` that was counted, or None.
    """

    width: float
    bins: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    unscored: dict[str, int]
    least: float | None
    greatest: float | None
    mean: float | None
    reaching: int | None = None

    @property
    def scored(self) -> int:
        """Rows with a score."""
        return int(self.counts.sum())

    def above(self, cuts: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Rows at or above each cut: exact at the edge of a bin, else those of the whole bins above it."""
        reversed_sums = np.concatenate([[0], np.cumsum(self.counts[::-1])])
        below = np.searchsorted(self.bins * self.width, cuts, side="left")
        sums: npt.NDArray[np.int64] = reversed_sums[len(self.bins) - below]
        return sums

    def cut(self, rows: int) -> float:
        """The highest edge of a bin that so many rows reach; the lowest bin's where there are no more rows."""
        sums = self.above(self.bins * self.width)
        reached = np.flatnonzero(sums >= min(rows, self.scored))
        return float(self.bins[reached[-1]] * self.width)

    def quantiles(self, shares: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """The scores below which each share of rows lies, off by half a bin's width at most.

        Compared with NumPy's quantile by the method inverted_cdf.
        """
        ranks = np.maximum(np.ceil(np.asarray(shares) * self.scored), 1)
        at = np.searchsorted(np.cumsum(self.counts), ranks, side="left")
        middles: npt.NDArray[np.float64] = (self.bins[at] + 0.5) * self.width
        return np.clip(middles, self.least, self.greatest)


def as_group(values: Sequence[object]) -> Group:
    """The values of pandas' groupby, to which a missing one is NaN or None."""
    return tuple(value if isinstance(value, str) else None for value in values)


def binned(
    df: DataFrame,
    *,
    score_col: str,
    by: Sequence[str] = (),
    bin_width: float = BIN_WIDTH,
    cuts: Sequence[float] = (),
) -> DataFrame:
    """Count rows by group, model, reason and bin: lazy, one aggregation of narrow columns.

    Returns:
        group_0, group_1 … (string, one for each column of `by`), model (string; null where the table names none),
        reason (string; null where there is a score), bin (bigint; null where there is none), rows (bigint), least,
        greatest, total (double, of the scores), reaching_0, reaching_1 … (bigint, one for each of `cuts`: the scores
        that are at least that, as `curate` compares them).

    Raises:
        TableError: No such column, or scores that are no numbers.
        OptionError: `bin_width` is no power of two.
    """
    width = number("bin_width", bin_width, remedy=", a power of two such as 2**-10")
    if width <= 0 or math.frexp(width)[0] != 0.5:
        raise OptionError(f"bin_width={bin_width!r}: expected a power of two such as 2**-10")
    check_score(df, score_col)
    check_columns(df, by, "by")
    score = F.col(quoted(score_col)).cast("double")
    rows = df.select(
        *[F.col(quoted(name)).cast("string").alias(f"group_{at}") for at, name in enumerate(by)],
        model_column(df).alias("model"),
        reason(df, score_col).alias("reason"),
        F.when(is_score(score), score).alias("score"),
        *[reaches(df, score_col, cut).alias(f"reaches_{at}") for at, cut in enumerate(cuts)],
    )
    scored = F.col("score").isNotNull()
    counted = [*(f"group_{at}" for at in range(len(by))), "model", "reason"]
    return rows.groupBy(*counted, F.floor(F.col("score") / F.lit(width)).alias("bin")).agg(
        F.count(F.lit(1)).alias("rows"),
        F.min("score").alias("least"),
        F.max("score").alias("greatest"),
        F.sum("score").alias("total"),
        *[F.count_if(scored & F.col(f"reaches_{at}")).alias(f"reaching_{at}") for at in range(len(cuts))],
    )


def histograms(
    df: DataFrame,
    *,
    score_col: str,
    by: Sequence[str] = (),
    bin_width: float = BIN_WIDTH,
    min_score: float | None = None,
) -> tuple[str | None, dict[Group, Histogram]]:
    """Count a table's scores, in one pass.

    Returns:
        The model of the scores, or None where the table names none; and a histogram of each group, in their order; of
        the group () where `by` is empty, also of a table without rows.

    Raises:
        TableError: As `binned` does; several models in one table; more than `MAX_BINS` counts; scores so large that
            their bins are no exact numbers.
        OptionError: As `binned` does.
    """
    cuts = [] if min_score is None else [min_score]
    lazy = binned(df, score_col=score_col, by=by, bin_width=bin_width, cuts=cuts)
    counts = lazy.limit(MAX_BINS + 1).toArrow().to_pandas()
    if len(counts) > MAX_BINS:
        raise TableError(
            f"expected at most {MAX_BINS} counts of scores by bin and group, found more; take fewer groups, or "
            f"calibrate with a larger bin_width (--bin-width) than {bin_width}"
        )
    largest = counts[["least", "greatest"]].abs().max().max()
    if largest >= _EXACT * bin_width:
        raise TableError(
            f"expected scores between -{_EXACT * bin_width:g} and {_EXACT * bin_width:g}, which bins of {bin_width} "
            f"tell apart, found {largest:g}; divide them, or calibrate with a larger bin_width (--bin-width)"
        )
    model = one_model({str(name): int(rows) for name, rows in counts.groupby("model")["rows"].sum().items()})
    made: dict[Group, Histogram] = {}
    if by:
        keys = [f"group_{at}" for at in range(len(by))]
        for values, part in counts.groupby(keys, dropna=False, sort=False):
            made[as_group(values)] = _histogram(part, bin_width, min_score is not None)
    else:
        made[()] = _histogram(counts, bin_width, min_score is not None)
    in_order = sorted(made, key=lambda group: [(value is not None, value or "") for value in group])
    return model, {group: made[group] for group in in_order}


def _histogram(counts: pd.DataFrame, width: float, reaching: bool) -> Histogram:
    scored = (
        counts[counts["reason"].isna()]
        .groupby("bin")
        .agg({"rows": "sum", "least": "min", "greatest": "max", "total": "sum"})
    )
    rows = scored["rows"].to_numpy(np.int64)
    return Histogram(
        width=width,
        bins=scored.index.to_numpy(np.int64),
        counts=rows,
        unscored={str(reason): int(n) for reason, n in counts.groupby("reason")["rows"].sum().items()},
        least=float(scored["least"].min()) if len(rows) else None,
        greatest=float(scored["greatest"].max()) if len(rows) else None,
        mean=float(scored["total"].sum() / rows.sum()) if len(rows) else None,
        reaching=int(counts["reaching_0"].sum()) if reaching else None,
    )
