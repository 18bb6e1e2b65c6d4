"""The scores of a table in hundredths, and a sample of its rows in bands of scores for the page of `review`."""

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

# Of the histogram, and the steps of the cut: so the page's counts of kept rows are exact.
BINS_PER_POINT = 100

# Scores beyond 100 points are counted as 100; it bounds what one wild score costs.
_MOST_BINS = 100.0 * BINS_PER_POINT

_MAX_BANDS = 24

# Widths of bars and bands, in bins, that read well.
_WIDTHS: list[int] = [step * 10**power for power in range(6) for step in (1, 2, 5)]


@dataclass(frozen=True)
class Hundredths:
    """Rows by score: `counts[i]` have a score of at least `first + i` hundredths, and less than the next."""

    first: int
    counts: list[int]

    @property
    def rows(self) -> int:
        """All of them."""
        return sum(self.counts)

    def quantile(self, share: float) -> int:
        """The bin, in hundredths, below which about that share of the rows lies."""
        wanted = share * self.rows
        return self.first + next(at for at, below in enumerate(accumulate(self.counts)) if below >= wanted)

    def between(self, low: int, high: int) -> int:
        """Rows from `low` to below `high`, in hundredths."""
        return sum(self.counts[max(low - self.first, 0) : max(high - self.first, 0)])


@dataclass(frozen=True)
class Section:
    """Rows with a score from `low` to below `high`, in hundredths, and how many of them to show."""

    low: int
    high: int
    rows: int
    quota: int


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The rows that a page shows, and the scores from which they were drawn.

    Attributes:
        model: The `aesthetic_model` of the scores, or None if the table names none.
        histogram: All scores of that model.
        unscored: Rows without a score, by reason.
        is_float: Whether the scores are of the type FLOAT.
        cut: In hundredths.
        bands: From the lowest score to the highest.
        seed: Another seed gives another sample.
        rows: From the highest score to the lowest, with the columns key (struct), text (of the key's columns),
            score_text, bin and band (the number of its band).
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
    """Count all scores, and draw the rows to show in bands around the cut; without a cut it keeps half of the rows."""
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
    """The narrow columns of both passes: key, its text, score, model, and bin or the reason for which there is none."""
    given = F.col(quoted(score_col))
    score = given.cast("double")
    why_none = F.coalesce(reason(scores, score_col), F.when(has_null(key), "key: null"))
    # The nearest hundredth, or the one below it where the score does not reach that, compared in the type of the scores
    # as `curate` does: of a FLOAT that is the bin of 5.10 for a score of 5.1.
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
    """In one pass: the model, the histogram, and the rows without a score by reason."""
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
        # A table scored in place has rows of no model yet.
        if row.reason is not None and row.model in (model, None):
            unscored[row.reason] += row["count"]
        elif row.model == model:
            bins[row.bin] += row["count"]
        elif row.model is None:
            unscored["of no model"] += row["count"]
    by_reason = dict(sorted(unscored.items()))
    if not bins:
        raise TableError(f"expected rows with a score, found none; rows without one by reason: {by_reason or 'none'}")
    return model, Hundredths(min(bins), [bins[at] for at in range(min(bins), max(bins) + 1)]), by_reason


def _bands(histogram: Hundredths, n: int, cut: int | None) -> list[Section]:
    """Bands of equal width over all but the outermost rows, which belong to the outermost bands; and their quotas."""
    low, high = histogram.quantile(0.005), histogram.quantile(0.995)
    width = readable_width(high - low + 1, _MAX_BANDS)
    edges = list(range(low // width * width, high + 1, width))
    starts = [min(histogram.first, edges[0]), *edges[1:]]
    ends = [*edges[1:], max(histogram.first + len(histogram.counts), edges[-1] + width)]
    rows = [histogram.between(*edge) for edge in zip(starts, ends, strict=True)]
    # By distance in bands.
    weights = [1.0 if cut is None else 1 / (1 + abs(edge // width - cut // width)) for edge in edges]
    return [Section(*band) for band in zip(starts, ends, rows, _quotas(rows, weights, n), strict=True)]


def _quotas(rows: Sequence[int], weights: Sequence[float], n: int) -> list[int]:
    """Share out `n` by weight; what bands have too few rows for goes to the others."""
    quotas = [0] * len(rows)
    left, weight_left = n, sum(weights)
    for at in sorted(range(len(rows)), key=lambda at: rows[at] / weights[at]):
        quotas[at] = min(rows[at], round(left * weights[at] / weight_left))
        left -= quotas[at]
        weight_left -= weights[at]
    return quotas


def readable_width(bins: int, most: int) -> int:
    """The narrowest width, in hundredths, that reads well and gives at most `most` bars or bands."""
    # One more where the first does not begin at a multiple.
    return next(width for width in _WIDTHS if bins / width + 1 <= most)


def _sample(columns: DataFrame, bands: list[Section], key: Sequence[str], model: str | None, seed: int) -> list[Row]:
    """Of each band the rows whose key has the least hashes, from the highest score to the lowest."""
    # Ordering bands of millions of rows would cost more than all else: of each only as many as are expected to hold
    # its quota twice go further. That fewer than the quota pass is next to impossible.
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
            f"--key {', '.join(key)}: expected one score for each key, found several for {', '.join(repeated[0])}; "
            "add a column to the key or drop those rows"
        )
    return sorted(sample, key=lambda row: (-float(row.score_text), row.text))
