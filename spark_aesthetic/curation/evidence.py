"""Estimate precision, recall, ROC curve and AUC of a score threshold from labels, with 95% confidence intervals."""

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

# Labels are weighted in bands of the score with this many labels each. In wider bands, labels that are dense at one end
# stand for the whole band; in narrower bands the weights vary more by chance, and the intervals are wider.
_LABELS_IN_BAND = 5

# A smaller variance is a variance of zero with rounding errors.
_NO_VARIANCE = 1e-12

# A curve keeps at most this many points.
_CURVE_POINTS = 200


class Interval(NamedTuple):
    """An estimate with its 95% confidence interval, all from 0 to 1."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


class Point(NamedTuple):
    """A threshold (`cut`) with its precision, recall and false positive rate, estimated from the labels."""

    cut: float
    precision: float
    recall: float
    false_positive_rate: float


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Estimates from labels.

    Attributes:
        keep: Rows labelled keep that have a score.
        drop: Rows labelled drop that have a score.
        covered: Share of the table's scored rows at or above the lowest labelled score. Recall and AUC describe only
            these rows.
        auc: Probability that a row to keep scores higher than a row to drop.
        precision: Share of the kept rows that are worth keeping; None without a threshold, or if no label is at or
            above it.
        recall: Share of the rows worth keeping that the threshold keeps; None without a threshold.
        curve: At most 200 points, from the highest threshold to the lowest: `recall` over `false_positive_rate` is the
            ROC curve.
    """

    keep: int
    drop: int
    covered: float
    auc: Interval
    precision: Interval | None
    recall: Interval | None
    curve: tuple[Point, ...]


def wilson(share: float, count: float) -> Interval:
    """Return Wilson's score interval of a share of `count` rows (Wilson 1927, JASA 22:209).

    Examples:
        >>> print(wilson(0.9, 100))
        0.900 (0.826 to 0.945)
    """
    spread = _Z**2 / count
    middle = (share + spread / 2) / (1 + spread)
    half = _Z * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    # Rounding can move a bound past the share.
    return Interval(share, max(min(middle - half, share), 0.0), min(max(middle + half, share), 1.0))


def weighted_share(kept: Bools, weights: Floats) -> Interval:
    """Return the weighted share with Wilson's interval for Kish's effective sample size (Survey Sampling, 1965)."""
    total = weights.sum()
    return wilson(float(weights[kept].sum() / total), float(total**2 / (weights**2).sum()))


def auc(scores: Floats, keep: Bools, weights: Floats) -> Interval:
    """Return the area under the ROC curve; a tie counts one half.

    The variance is DeLong's (DeLong, DeLong and Clarke-Pearson 1988, Biometrics 44:837), with weights in place of
    counts. The interval is symmetric in the logit, so it stays between 0 and 1. If the labels separate perfectly, or
    all scores are tied, the variance is 0; then the interval is Wilson's for the smaller of the two classes' effective
    sample sizes (Kish).

    Args:
        scores: The score of each labelled row.
        keep: True for rows to keep; at least two are True and two are False.
        weights: Number of table rows that each label represents; only the ratios matter.
    """
    good, bad = scores[keep], scores[~keep]
    good_weights, bad_weights = weights[keep] / weights[keep].sum(), weights[~keep] / weights[~keep].sum()
    # For each good row the share of bad rows below it, and for each bad row the share of good rows above it.
    above = _share_below(good, bad, bad_weights)
    below = 1 - _share_below(bad, good, good_weights)
    area = float(good_weights @ above)
    variance = sum(
        len(parts) / (len(parts) - 1) * float(own**2 @ (parts - area) ** 2)
        for own, parts in ((good_weights, above), (bad_weights, below))
    )
    # Rounding in the sums of weights keeps the variance from being exactly 0, and the area from being exactly 0 or 1.
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
    """Return how many table rows each label represents, so that labels may be denser around a threshold than elsewhere.

    The weight is the number of table rows per label in each band of the score, from the lowest label up
    (poststratification). For a uniform random sample, the weights are equal up to chance.

    Raises:
        TableError: Labels lie in a band where the table has no score.
    """
    first = np.sort(scores)[::_LABELS_IN_BAND]
    edges = np.unique(np.floor(first / histogram.width) * histogram.width)
    rows = -np.diff(np.append(histogram.above(edges), 0))
    band = np.searchsorted(edges, scores, side="right") - 1
    if (rows == 0).any():
        raise TableError(
            "labels: expected scores of this table, found some in a range where it has none. Label rows of this table, "
            "or give --key to take the scores from it."
        )
    weights: Floats = (rows / np.bincount(band, minlength=len(edges)))[band]
    return weights


def curve(scores: Floats, keep: Bools, weights: Floats, width: float) -> list[Point]:
    """Return precision, recall and false positive rate at the lower edge of each bin with a label, highest first."""
    edges = np.floor(scores / width) * width
    cuts = np.unique(edges)[::-1]
    points = []
    order = np.argsort(-edges, kind="stable")
    sums = np.stack([np.cumsum((weights * keep)[order]), np.cumsum((weights * ~keep)[order])])
    good_total, bad_total = sums[:, -1]
    # Index of the last label at or above each cut.
    last = np.searchsorted(-edges[order], -cuts, side="right") - 1
    for cut, (good, bad) in zip(cuts, sums[:, last].T, strict=True):
        points.append(Point(float(cut), *map(float, (good / (good + bad), good / good_total, bad / bad_total))))
    return points


def thinned(points: Sequence[Point]) -> tuple[Point, ...]:
    """Choose evenly spaced points, including the first and the last."""
    chosen = np.unique(np.linspace(0, len(points) - 1, _CURVE_POINTS).astype(int))
    return tuple(points[at] for at in chosen)
