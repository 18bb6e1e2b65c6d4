"""Count scores in narrow bins, in one pass over any number of rows."""

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

# About a thousandth of a point. Because it is a power of two, every edge is exact, also in float32, and a filter keeps
# exactly the rows counted at or above an edge.
BIN_WIDTH = 2.0**-10

# The driver collects at most this many counts. One table with scores from 1 to 10 has about 9,000.
MAX_BINS = 2_000_000

# Above this, float64 cannot represent every whole number, so bins would merge.
_EXACT = 2**53

# The values of the columns of `by`, as text.
Group = tuple[str | None, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Histogram:
    """The scores of a table, or of one group of its rows.

    Attributes:
        width: Width of a bin, in points; bin b holds the scores from b * width to below (b + 1) * width.
        bins: int64 of shape (bins,): the bins that contain scores, ascending.
        counts: int64 of the same shape: the number of rows in each bin.
        unscored: Rows without a score, by reason.
        least: The lowest score; None without a score.
        greatest: The highest score; None without a score.
        mean: The mean score; None without a score.
        reaching: Rows with a score of at least `min_score`; None if no `min_score` was given.
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
        """Count the rows at or above each threshold; a bin that a threshold divides is not counted."""
        reversed_sums = np.concatenate([[0], np.cumsum(self.counts[::-1])])
        below = np.searchsorted(self.bins * self.width, cuts, side="left")
        sums: npt.NDArray[np.int64] = reversed_sums[len(self.bins) - below]
        return sums

    def cut(self, rows: int) -> float:
        """Return the highest bin edge that at least `rows` rows reach; the lowest edge if there are fewer rows."""
        sums = self.above(self.bins * self.width)
        reached = np.flatnonzero(sums >= min(rows, self.scored))
        return float(self.bins[reached[-1]] * self.width)

    def quantiles(self, shares: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return the quantiles at `shares`, exact to half a bin width.

        The exact values are those of NumPy's quantile with method="inverted_cdf".
        """
        ranks = np.maximum(np.ceil(np.asarray(shares) * self.scored), 1)
        at = np.searchsorted(np.cumsum(self.counts), ranks, side="left")
        middles: npt.NDArray[np.float64] = (self.bins[at] + 0.5) * self.width
        return np.clip(middles, self.least, self.greatest)


def as_group(values: Sequence[object]) -> Group:
    """Convert the values of a pandas group to a `Group`: NaN becomes None."""
    return tuple(value if isinstance(value, str) else None for value in values)


def binned(
    df: DataFrame,
    *,
    score_col: str,
    by: Sequence[str] = (),
    bin_width: float = BIN_WIDTH,
    cuts: Sequence[float] = (),
) -> DataFrame:
    """Count rows by group, model, reason and bin in one lazy aggregation of narrow columns.

    Returns:
        group_0, group_1 … (string, one for each column of `by`), model (string; null if the table has no model),
        reason (string; null with a score), bin (bigint; null without a score), rows (bigint), least, greatest, total
        (double: minimum, maximum and sum of the scores), reaching_0, reaching_1 … (bigint, one for each of `cuts`: the
        number of scores at or above it, compared as in `curate`).

    Raises:
        TableError: A column is missing, or the scores are not numbers.
        OptionError: `bin_width` is not a power of two.
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
        The model of the scores, or None if the table has no model; and a histogram for each group, in sorted order. If
        `by` is empty, the only group is (), even for a table without rows.

    Raises:
        TableError: As in `binned`; or the table has several models, there are more than `MAX_BINS` counts, or the
            scores are too large for exact bins.
        OptionError: As in `binned`.
    """
    cuts = [] if min_score is None else [min_score]
    lazy = binned(df, score_col=score_col, by=by, bin_width=bin_width, cuts=cuts)
    counts = lazy.limit(MAX_BINS + 1).toArrow().to_pandas()
    if len(counts) > MAX_BINS:
        raise TableError(
            f"expected at most {MAX_BINS} counts of scores by bin and group, found more. Use fewer groups, or "
            f"calibrate with a larger bin_width (--bin-width) than {bin_width}."
        )
    largest = counts[["least", "greatest"]].abs().max().max()
    if largest >= _EXACT * bin_width:
        raise TableError(
            f"expected scores between -{_EXACT * bin_width:g} and {_EXACT * bin_width:g}, the limits for bins of "
            f"{bin_width}, found {largest:g}. Divide the scores, or calibrate with a larger bin_width (--bin-width)."
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
