"""Summarise a histogram for a user who chooses a threshold: quantiles, shares above it, and rows without a score."""

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
        scored: Rows with a finite score.
        unscored: Rows without one, by reason: `aesthetic_error`, "not finite" or "unscored".
        least: The lowest score; None without a score.
        greatest: The highest score; None without a score.
        mean: The mean score; None without a score.
        quantiles: Scores by the share of scored rows below them, exact to half a bin width (0.0005 by default).
        shares: Exact shares of scored rows at or above evenly spaced thresholds, by threshold.
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
    """Summarise a histogram."""
    scored = histogram.scored
    quantiles: dict[float, float] = {}
    shares: dict[float, float] = {}
    if histogram.least is not None and histogram.greatest is not None:
        quantiles = dict(zip(QUANTILES, map(float, histogram.quantiles(QUANTILES)), strict=True))
        # About 16 to 32 thresholds, each at the edge of a bin. For scores from 1 to 10 they are 1, 1.5, 2 … 10.
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
