"""What labelled rows say of a cut: precision, recall, ROC and AUC, with 95% confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from spark_aesthetic.curation.histogram import Histogram
from spark_aesthetic.errors import TableError

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

_Z = NormalDist().inv_cdf(0.975)

# Labels are weighed in bands of the score with so many of them. In wider bands those that are dense at one end pass for
# all of it; in narrower ones weights are more a matter of chance, and intervals wider.
_LABELS_IN_BAND = 5

# What rounding makes of a variance of zero is less.
_NO_VARIANCE = 1e-12

# A curve keeps so many of its points.
_CURVE_POINTS = 200


class Interval(NamedTuple):
    """An estimate with its 95% confidence interval, all from 0 to 1."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


class Point(NamedTuple):
    """What labels say of one cut: the share of kept rows that are good, of good rows kept, of bad rows kept."""

    cut: float
    precision: float
    recall: float
    false_positive_rate: float


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What labels say of scores.

    Attributes:
        keep: Labelled rows that are to be kept and have a score.
        drop: Those that are not.
        covered: Share of the table's scored rows from the lowest labelled score up. Of those below it the labels say
            nothing, so recall and AUC are of those above.
        auc: How probably a row to keep scores higher than one to drop.
        precision: Of the rows that the cut keeps, the share to keep; None without a cut.
        recall: Of the rows to keep, the share that the cut keeps; None without a cut.
        curve: From the highest cut to the lowest, 200 at most: `recall` over `false_positive_rate` is the ROC curve.
    """

    keep: int
    drop: int
    covered: float
    auc: Interval
    precision: Interval | None
    recall: Interval | None
    curve: tuple[Point, ...]


def wilson(share: float, count: float) -> Interval:
    """The score interval of a share of `count` rows (Wilson 1927, JASA 22:209).

    Examples:
        >>> print(wilson(0.9, 100))
        0.900 (0.826 to 0.945)
    """
    spread = _Z**2 / count
    middle = (share + spread / 2) / (1 + spread)
    half = _Z * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    # The share lies between, but for rounding.
    return Interval(share, max(min(middle - half, share), 0.0), min(max(middle + half, share), 1.0))


def weighted_share(kept: Bools, weights: Floats) -> Interval:
    """A share of weighted rows: Wilson's interval for Kish's effective number of them (Survey Sampling, 1965)."""
    total = weights.sum()
    return wilson(float(weights[kept].sum() / total), float(total**2 / (weights**2).sum()))


def auc(scores: Floats, keep: Bools, weights: Floats) -> Interval:
    """Area under the ROC curve; a tie counts one half.

    The variance is DeLong's (DeLong, DeLong and Clarke-Pearson 1988, Biometrics 44:837), with weights in place of
    counts; the interval is symmetric in the logit, so it stays between 0 and 1. Where all rows are in order, or all are
    tied, the variance is 0, and the interval is Wilson's for Kish's effective number of rows of the smaller class.

    Args:
        scores: Of each labelled row.
        keep: Whether it is to be kept; two of each kind at least.
        weights: Rows that each stands for; only their ratios matter.
    """
    good, bad = scores[keep], scores[~keep]
    good_weights, bad_weights = weights[keep] / weights[keep].sum(), weights[~keep] / weights[~keep].sum()
    # Of each good row the share of bad ones below it, of each bad row the share of good ones above it.
    above = _share_below(good, bad, bad_weights)
    below = 1 - _share_below(bad, good, good_weights)
    area = float(good_weights @ above)
    variance = sum(
        len(parts) / (len(parts) - 1) * float(own**2 @ (parts - area) ** 2)
        for own, parts in ((good_weights, above), (bad_weights, below))
    )
    # Sums of weights are off by rounding, so neither is ever quite 0, nor the area 0 or 1.
    if variance < _NO_VARIANCE or not _NO_VARIANCE < area < 1 - _NO_VARIANCE:
        return wilson(
            min(max(round(area, 9), 0.0), 1.0), min(1 / float(own @ own) for own in (good_weights, bad_weights))
        )
    logit, half = math.log(area / (1 - area)), _Z * math.sqrt(variance) / (area * (1 - area))
    return Interval(area, _expit(logit - half), _expit(logit + half))


def _share_below(these: Floats, others: Floats, weights: Floats) -> Floats:
    order = np.argsort(others)
    sums = np.concatenate([[0.0], np.cumsum(weights[order])])
    left = np.searchsorted(others[order], these, side="left")
    right = np.searchsorted(others[order], these, side="right")
    shares: Floats = (sums[left] + sums[right]) / 2
    return shares


def _expit(logit: float) -> float:
    return 0.5 * (1 + math.tanh(logit / 2))


def weights_of(scores: Floats, histogram: Histogram) -> Floats:
    """How many of the table's rows each label stands for, so that labels may be denser around a cut than elsewhere.

    In bands of the score, from the lowest label up: rows of the table by labels there (poststratification). Equal, up
    to chance, where labels are a plain sample.

    Raises:
        TableError: Labels where the table has no score.
    """
    first = np.sort(scores)[::_LABELS_IN_BAND]
    edges = np.unique(np.floor(first / histogram.width) * histogram.width)
    rows = -np.diff(np.append(histogram.above(edges), 0))
    band = np.searchsorted(edges, scores, side="right") - 1
    if (rows == 0).any():
        raise TableError(
            "labels: expected scores of this table, found some where it has none; label its own rows, or give --key to "
            "take the scores from it"
        )
    weights: Floats = (rows / np.bincount(band, minlength=len(edges)))[band]
    return weights


def curve(scores: Floats, keep: Bools, weights: Floats, width: float) -> list[Point]:
    """Precision, recall and false positive rate at each edge of a bin that holds a label, the highest first."""
    edges = np.floor(scores / width) * width
    cuts = np.unique(edges)[::-1]
    points = []
    order = np.argsort(-edges, kind="stable")
    sums = np.stack([np.cumsum((weights * keep)[order]), np.cumsum((weights * ~keep)[order])])
    good_total, bad_total = sums[:, -1]
    # The last row of each edge.
    last = np.searchsorted(-edges[order], -cuts, side="right") - 1
    for cut, (good, bad) in zip(cuts, sums[:, last].T, strict=True):
        points.append(Point(float(cut), *map(float, (good / (good + bad), good / good_total, bad / bad_total))))
    return points


def thinned(points: Sequence[Point]) -> tuple[Point, ...]:
    """Evenly chosen ones, the first and the last among them."""
    chosen = np.unique(np.linspace(0, len(points) - 1, _CURVE_POINTS).astype(int))
    return tuple(points[at] for at in chosen)
