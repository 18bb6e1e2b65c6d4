"""Count the scores of a table in hundredths, and sample its rows in bands of scores, for the page of `review`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from pyspark.sql import DataFrame, Row
from pyspark.sql import functions as F
from pyspark.sql.types import FloatType

from spark_aesthetic.curation.columns import check_score
from spark_aesthetic.curation.models import check_model, model_column, one_model, reason
from spark_aesthetic.delta.identity import has_null
from spark_aesthetic.delta.naming import quoted
from spark_aesthetic.errors import TableError

# The histogram's bins are as wide as the steps of the threshold, so the page's counts of kept rows are exact.
BINS_PER_POINT = 100

# Scores beyond ±100 points count as ±100, so that an outlier cannot make the histogram large.
_MOST_BINS = 100.0 * BINS_PER_POINT

_MAX_BANDS = 24

# Readable widths of bars and bands, in bins.
_WIDTHS: list[int] = [step * 10**power for power in range(6) for step in (1, 2, 5)]


@dataclass(frozen=True)
class Hundredths:
    """A histogram: `counts[i]` rows have a score from `first + i` to below `first + i + 1` hundredths."""

    first: int
    counts: list[int]

    @property
    def rows(self) -> int:
        """The number of rows."""
        return sum(self.counts)

    def quantile(self, share: float) -> int:
        """Return the bin, in hundredths, up to which about that share of the rows lies."""
        wanted = share * self.rows
        return self.first + next(at for at, below in enumerate(accumulate(self.counts)) if below >= wanted)

    def between(self, low: int, high: int) -> int:
        """Count the rows from `low` to below `high`, in hundredths."""
        return sum(self.counts[max(low - self.first, 0) : max(high - self.first, 0)])


@dataclass(frozen=True)
class Section:
    """A band of scores from `low` to below `high`, in hundredths: the page shows `quota` of its `rows` rows."""

    low: int
    high: int
    rows: int
    quota: int


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The rows that a page shows, and the histogram of all scores.

    Attributes:
        model: The `aesthetic_model` of the scores, or None if the table does not name it.
        histogram: All scores of that model.
        unscored: Rows without a score, by reason.
        is_float: Whether the scores are of the type FLOAT.
        cut: The threshold in hundredths.
        bands: The bands, from the lowest score to the highest.
        seed: The seed of the sample.
        rows: The sampled rows, from the highest score to the lowest, with the columns key (struct), text (the key
            columns as text), score_text, bin and band (the number of the row's band).
    """

    model: str | None
    histogram: Hundredths
    unscored: dict[str, int]
    is_float: bool
    cut: int
    bands: list[Section]
    seed: int
    rows: list[Row]


def draw(
    scores: DataFrame, key: Sequence[str], score_col: str, *, cut: float | None, n: int, seed: int, model: str | None
) -> Sample:
    """Count all scores and sample rows in bands. Without `cut`, the median is used and all bands weigh the same."""
    columns = _columns(scores, key, score_col)
    model, histogram, unscored = _distribution(columns, model)
    cut_bin = histogram.quantile(0.5) if cut is None else round(cut * BINS_PER_POINT)
    bands = _bands(histogram, n, None if cut is None else cut_bin)
    return Sample(
        model=model,
        histogram=histogram,
        unscored=unscored,
        is_float=_is_float(scores, score_col),
        cut=cut_bin,
        bands=bands,
        seed=seed,
        rows=_sample(columns, bands, key, model, seed),
    )


def _columns(scores: DataFrame, key: Sequence[str], score_col: str) -> DataFrame:
    """Select the narrow columns of both passes: the key, its text, the score, the model, and the bin or the reason."""
    given = F.col(quoted(score_col))
    score = given.cast("double")
    why_none = F.coalesce(reason(scores, score_col), F.when(has_null(key), "key: null"))
    # The bin is the nearest hundredth, or the one below if the score is less than that. `curate` compares in the type
    # of the scores, and this does too: the FLOAT 5.1 is in the bin of 5.10.
    hundredths = F.round(F.least(F.greatest(score * BINS_PER_POINT, F.lit(-_MOST_BINS)), F.lit(_MOST_BINS)))
    edge = hundredths / BINS_PER_POINT
    below = given < (edge.cast("float") if _is_float(scores, score_col) else edge)
    bin_number = F.greatest(hundredths - F.when(below, 1).otherwise(0), F.lit(-_MOST_BINS))
    names = [F.col(quoted(column)) for column in key]
    return scores.select(
        F.struct(*names).alias("key"),
        F.array(*[name.cast("string") for name in names]).alias("text"),
        given.cast("string").alias("score_text"),
        model_column(scores).alias("model"),
        why_none.alias("reason"),
        F.when(why_none.isNull(), bin_number.cast("int")).alias("bin"),
    )


def _is_float(scores: DataFrame, score_col: str) -> bool:
    return isinstance(check_score(scores, score_col), FloatType)


def _distribution(columns: DataFrame, model: str | None) -> tuple[str | None, Hundredths, dict[str, int]]:
    """Find the model, the histogram, and the rows without a score by reason, in one pass."""
    counted = columns.groupBy("model", "reason", "bin").count().collect()
    models: Counter[str] = Counter()
    for row in counted:
        if row.model is not None:
            models[row.model] += row["count"]
    if model is None:
        model = one_model(models)
    else:
        check_model(model, list(models))
    unscored: Counter[str] = Counter()
    bins: Counter[int] = Counter()
    for row in counted:
        # In a table scored in place, rows that are not scored yet have no model.
        if row.reason is not None and row.model in (model, None):
            unscored[row.reason] += row["count"]
        elif row.model == model:
            bins[row.bin] += row["count"]
        elif row.model is None:
            unscored["of no model"] += row["count"]
    by_reason = dict(sorted(unscored.items()))
    if not bins:
        raise TableError(
            f"scores: expected rows with a score, found none. Rows without a score, by reason: {by_reason or 'none'}"
        )
    return model, Hundredths(min(bins), [bins[at] for at in range(min(bins), max(bins) + 1)]), by_reason


def _bands(histogram: Hundredths, n: int, cut: int | None) -> list[Section]:
    """Make bands of equal width from the 0.5 % to the 99.5 % quantile; the outer bands take the rows beyond."""
    low, high = histogram.quantile(0.005), histogram.quantile(0.995)
    width = readable_width(high - low + 1, _MAX_BANDS)
    edges = list(range(low // width * width, high + 1, width))
    starts = [min(histogram.first, edges[0]), *edges[1:]]
    ends = [*edges[1:], max(histogram.first + len(histogram.counts), edges[-1] + width)]
    rows = [histogram.between(*edge) for edge in zip(starts, ends, strict=True)]
    # The weight falls with the distance from the threshold, in bands.
    weights = [1.0 if cut is None else 1 / (1 + abs(edge // width - cut // width)) for edge in edges]
    return [Section(*band) for band in zip(starts, ends, rows, _quotas(rows, weights, n), strict=True)]


def _quotas(rows: Sequence[int], weights: Sequence[float], n: int) -> list[int]:
    """Divide `n` among the bands by weight. No quota exceeds its band's rows; the rest goes to the other bands."""
    quotas = [0] * len(rows)
    left, weight_left = n, sum(weights)
    for at in sorted(range(len(rows)), key=lambda at: rows[at] / weights[at]):
        quotas[at] = min(rows[at], round(left * weights[at] / weight_left))
        left -= quotas[at]
        weight_left -= weights[at]
    return quotas


def readable_width(bins: int, most: int) -> int:
    """Return the narrowest readable width, in hundredths, that gives at most `most` bars or bands."""
    # The 1 is for a first bar that does not begin at a multiple of the width.
    return next(width for width in _WIDTHS if bins / width + 1 <= most)


def _sample(columns: DataFrame, bands: list[Section], key: Sequence[str], model: str | None, seed: int) -> list[Row]:
    """Take each band's quota of rows with the smallest hashes of the key, and sort them by score, highest first."""
    # Sorting bands of millions of rows would dominate the cost. A bound on the hash lets about 2 * quota + 64 rows of
    # each band pass, so it is next to impossible that fewer rows than the quota pass.
    shares = [min(1.0, (2 * band.quota + 64) / max(band.rows, 1)) for band in bands]
    bounds = F.lit([min(int(share * (1 << 63)), (1 << 63) - 1) for share in shares]).cast("array<bigint>")
    number = sum((F.when(F.col("bin") >= band.low, 1).otherwise(0) for band in bands[1:]), F.lit(0))
    candidates = (
        columns.where(F.col("bin").isNotNull() & F.col("model").eqNullSafe(F.lit(model)))
        .withColumn("band", number)
        .withColumn("hash", F.shiftrightunsigned(F.xxhash64("text", F.lit(seed)), 1))
        .where(F.col("hash") <= F.element_at(bounds, F.col("band") + 1))
        .drop("model", "reason")
        .collect()
    )
    sample: list[Row] = []
    for at, band in enumerate(bands):
        ordered = sorted((row for row in candidates if row.band == at), key=lambda row: (row.hash, row.text))
        sample += ordered[: band.quota]
    repeated = [text for text, count in Counter(tuple(row.text) for row in sample).items() if count > 1]
    if repeated:
        raise TableError(
            f"--key {', '.join(key)}: expected one score for each key, found several for {', '.join(repeated[0])}. "
            "Add a column to the key, or drop those rows."
        )
    return sorted(sample, key=lambda row: (-float(row.score_text), row.text))
