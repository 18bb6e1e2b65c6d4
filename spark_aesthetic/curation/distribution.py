"""What a user sees of a histogram before choosing a cut: quantiles, shares above cuts, and rows without a score."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from spark_aesthetic.curation.histogram import Histogram

QUANTILES = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999)


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """How scores are distributed.

    Attributes:
        rows: All rows.
        scored: Those with a score; NaN and infinity are none.
        unscored: The others by reason: `aesthetic_error`, or "not finite", or "unscored".
        least: The lowest score, or None where there is none.
        greatest: The highest one.
        mean: Their mean.
        quantiles: Scores by the share of scored rows below them, off by half a bin's width at most (0.0005).
        shares: Exact shares of scored rows at or above the cuts of a grid.
    """

    rows: int
    scored: int
    unscored: dict[str, int]
    least: float | None
    greatest: float | None
    mean: float | None
    quantiles: dict[float, float]
    shares: dict[float, float]


def distribution_of(histogram: Histogram) -> Distribution:
    """The figures of a histogram."""
    scored = histogram.scored
    quantiles: dict[float, float] = {}
    shares: dict[float, float] = {}
    if histogram.least is not None and histogram.greatest is not None:
        quantiles = dict(zip(QUANTILES, map(float, histogram.quantiles(QUANTILES)), strict=True))
        # Between 16 and 32 cuts, each at the edge of a bin: 2, 2.5, 3 … where scores go from 1 to 10.
        spread = max(histogram.greatest - histogram.least, histogram.width)
        step = max(2.0 ** math.ceil(math.log2(spread / 32)), histogram.width)
        first, last = math.floor(histogram.least / step), math.floor(histogram.greatest / step)
        cuts = np.arange(first, last + 1) * step
        shares = dict(zip(map(float, cuts), map(float, histogram.above(cuts) / scored), strict=True))
    return Distribution(
        rows=scored + sum(histogram.unscored.values()),
        scored=scored,
        unscored=histogram.unscored,
        least=histogram.least,
        greatest=histogram.greatest,
        mean=histogram.mean,
        quantiles=quantiles,
        shares=shares,
    )
