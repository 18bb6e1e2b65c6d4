"""Intervals, ROC curves and weights that are computed from labels, without Spark."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from spark_aesthetic.curation.evidence import auc, curve, weighted_share, weights_of, wilson
from spark_aesthetic.curation.histogram import Histogram


def test_wilson_is_the_published_interval() -> None:
    # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3.
    for successes, count, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)):
        assert wilson(successes / count, count)[1:] == pytest.approx((low, high), abs=5e-5)


def test_the_variance_of_auc_is_delongs() -> None:
    # The expected variance is computed by its definition, over all pairs.
    random = np.random.default_rng(2)
    good, bad = random.normal(1, 1, 30).round(1), random.normal(0, 1, 50).round(1)
    pairs = (good[:, None] > bad) + 0.5 * (good[:, None] == bad)
    variance = pairs.mean(1).var(ddof=1) / 30 + pairs.mean(0).var(ddof=1) / 50
    scores, keep = np.concatenate([good, bad]), np.arange(80) < 30
    area = pairs.mean()
    found = auc(scores, keep, np.full(80, 3.0))
    assert found.value == pytest.approx(area, abs=1e-12)
    half = 1.959964 * np.sqrt(variance) / (area * (1 - area))
    logits = np.log(np.array(found[1:]) / (1 - np.array(found[1:])))
    assert logits == pytest.approx([np.log(area / (1 - area)) - half, np.log(area / (1 - area)) + half], abs=1e-6)
    # A row of weight 2 counts as two rows.
    twice = np.where(np.arange(80) % 2, 2.0, 1.0)
    repeated = np.repeat(np.arange(80), twice.astype(int))
    assert auc(scores, keep, twice).value == pytest.approx(roc_auc_score(keep[repeated], scores[repeated]), abs=1e-12)


def test_perfect_order_leaves_doubt() -> None:
    found = auc(np.array([1.0, 2, 3, 4, 5]), np.array([False, False, True, True, True]), np.ones(5))
    assert found.value == found.high == 1
    assert found.low == wilson(1.0, 2).low < 0.4


@pytest.mark.parametrize("value", [1.0, 0.0, 0.5])
def test_labels_in_order_or_all_tied_leave_doubt_whatever_their_weights(value: float) -> None:
    random = np.random.default_rng(5)
    for rows in range(2, 41):
        keep = np.arange(2 * rows) >= rows
        scores = {1.0: np.arange(2.0 * rows), 0.0: -np.arange(2.0 * rows), 0.5: np.ones(2 * rows)}[value]
        found = auc(scores, keep, random.uniform(0.1, 10, 2 * rows))
        assert found.value == value
        assert found.low <= value <= found.high
        # The interval is no narrower than that of a plain sample of as many rows.
        plain = wilson(value, rows)
        assert found.high - found.low >= plain.high - plain.low - 1e-12


def test_intervals_cover_the_truth_19_times_of_20() -> None:
    random = np.random.default_rng(3)
    # AUC of two normal distributions that are one deviation apart: Phi(1 / sqrt 2).
    truth, covered = 0.7602499, 0
    keep = np.arange(100) < 40
    for _ in range(4000):
        _, low, high = auc(random.normal(0, 1, 100) + keep, keep, np.ones(100))
        covered += low <= truth <= high
    # The tolerance of 1% includes the simulation's own standard error of 0.3%.
    assert 0.94 <= covered / 4000 <= 0.96


def test_labels_denser_around_the_cut_tell_of_the_whole_table() -> None:
    random = np.random.default_rng(4)
    table = random.normal(5, 1, 100_000)
    bins, counts = np.unique(np.floor(table * 1024).astype(np.int64), return_counts=True)
    counted = Histogram(
        width=2**-10, bins=bins, counts=counts, unscored={}, least=table.min(), greatest=table.max(), mean=table.mean()
    )
    good = random.random(100_000) < 1 / (1 + np.exp(-2 * (table - 5.5)))
    cut = 5.5
    precision, recall = good[table >= cut].mean(), (table >= cut)[good].mean()
    # Three of four labels lie within a quarter of a point of the cut.
    near = np.flatnonzero(abs(table - cut) < 0.25)
    covered, plain = np.zeros(2), np.zeros(2)
    for _ in range(300):
        rows = np.concatenate([random.choice(near, 300, replace=False), random.choice(100_000, 100, replace=False)])
        scores, keep = table[rows], good[rows]
        weights = weights_of(scores, counted)
        kept = scores >= cut
        found = weighted_share(keep[kept], weights[kept]), weighted_share(kept[keep], weights[keep])
        covered += [low <= truth <= high for (_, low, high), truth in zip(found, (precision, recall), strict=True)]
        alike = wilson(keep[kept].mean(), kept.sum()), wilson(kept[keep].mean(), keep.sum())
        plain += [low <= truth <= high for (_, low, high), truth in zip(alike, (precision, recall), strict=True)]
        points = curve(scores, keep, weights, counted.width)
        assert points[-1].recall == pytest.approx(1)
    assert (covered > 0.94 * 300).all()
    # Intervals that take the labels for a plain sample are wrong most of the time.
    assert (plain < 0.5 * 300).all()
