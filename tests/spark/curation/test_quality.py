"""The statistics of a scores table, and its drift between two versions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pyspark.sql import DataFrame, SparkSession
from scipy.special import kolmogorov
from scipy.stats import ks_2samp

from spark_aesthetic import describe_scores, score_drift
from spark_aesthetic.curation.histogram import Histogram
from spark_aesthetic.curation.quality import _drift
from spark_aesthetic.errors import TableError

SCHEMA = "aesthetic_score float, aesthetic_error string, aesthetic_model string"

pytestmark = pytest.mark.usefixtures("interpreted")


@pytest.fixture(scope="module")
def known() -> np.ndarray:
    # The scores are multiples of a bin's width, so counting them in bins loses nothing.
    return (np.random.default_rng(0).normal(5, 1, 1500) * 1024).round() / 1024


def frame(spark: SparkSession, scores: np.ndarray, model: str | None = "a@1") -> DataFrame:
    return spark.createDataFrame([(float(score), None, model) for score in scores], SCHEMA).coalesce(1)


def test_each_model_is_described_by_the_figures_of_numpy(spark: SparkSession, known: np.ndarray) -> None:
    failed = [(None, "null", "a@1")] * 3 + [(None, "decode: not an image", "a@1")] + [(None, None, None)] * 2
    failed += [(float("nan"), None, "b@2"), (float("inf"), None, "b@2")]
    rows = frame(spark, known).unionByName(spark.createDataFrame(failed, SCHEMA).coalesce(1))
    unscored, a, b = sorted(describe_scores(rows).collect(), key=lambda row: row.model or "")
    assert (a.model, a.rows, a.scored) == ("a@1", 1504, 1500)
    assert a.unscored == {"null": 3, "decode: not an image": 1}
    assert (a.least, a.greatest) == (known.min(), known.max())
    assert a["mean"] == pytest.approx(known.mean(), rel=1e-12)
    assert set(a.quantiles) == {0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99}
    for share, quantile in a.quantiles.items():
        # The tolerance is half a bin's width, which scores on the edges of bins reach. NumPy rounds differently when it
        # interpolates.
        assert abs(quantile - np.quantile(known, share)) <= 2**-11 + 1e-12
    assert a.shares == {cut: (known >= cut).mean() for cut in (4.5, 5.0, 5.5, 6.0, 6.25, 6.5, 7.0)}
    assert (b.rows, b.scored, b.unscored, b.quantiles, b["mean"]) == (2, 0, {"not finite": 2}, None, None)
    assert (unscored.rows, unscored.unscored) == (2, {"unscored": 2})


def test_it_is_described_in_one_pass_of_narrow_columns_when_it_is_asked_for(
    spark: SparkSession, tmp_path: Path
) -> None:
    path = str(tmp_path / "scores")
    frame(spark, np.array([5.0])).write.format("delta").save(path)
    described = describe_scores(spark.read.format("delta").load(path), cuts=[5, 6])
    spark.sql(f"INSERT INTO delta.`{path}` VALUES (7.0, NULL, 'a@1')")
    (row,) = describe_scores(spark.read.format("delta").load(path), cuts=[5, 6]).collect()
    assert row.shares == {5.0: 1.0, 6.0: 0.5}
    assert described.columns[:3] == ["model", "rows", "scored"]


def test_two_versions_of_a_table_are_compared_as_scipy_does(
    spark: SparkSession, known: np.ndarray, tmp_path: Path
) -> None:
    path = str(tmp_path / "scores")
    moved = (np.random.default_rng(1).normal(5.4, 1.1, 700) * 1024).round() / 1024
    frame(spark, known).write.format("delta").save(path)
    frame(spark, moved).write.format("delta").mode("overwrite").save(path)
    before, after = (spark.read.format("delta").option("versionAsOf", at).load(path) for at in (0, 1))
    drift = score_drift(before, after)
    assert (drift.before, drift.after) == (1500, 700)
    assert drift.ks == pytest.approx(ks_2samp(known, moved).statistic, abs=1e-12)
    assert drift.p_value == pytest.approx(kolmogorov(drift.ks * np.sqrt(1500 * 700 / 2200)), rel=1e-9)
    # NumPy counts the same bands. Except for ties, each band has a tenth of the earlier scores.
    assert len(drift.bands) == 10
    borders = [-np.inf, *(band.low for band in drift.bands[1:]), np.inf]
    was, now = (np.histogram(scores, borders)[0] / len(scores) for scores in (known, moved))
    assert [band.before for band in drift.bands] == pytest.approx(was, abs=1e-12)
    assert [band.after for band in drift.bands] == pytest.approx(now, abs=1e-12)
    assert was == pytest.approx(0.1, abs=0.003)
    assert drift.psi == pytest.approx(((now - was) * np.log(now / was)).sum(), abs=1e-12)
    assert 0.1 < drift.psi < 0.25


def test_nothing_has_moved(spark: SparkSession, known: np.ndarray) -> None:
    drift = score_drift(frame(spark, known), frame(spark, known))
    assert (drift.psi, drift.ks, drift.p_value) == (0, 0, 1)


def test_everything_has_moved_and_some_bands_are_empty(spark: SparkSession, known: np.ndarray) -> None:
    drift = score_drift(frame(spark, known), frame(spark, known + 10))
    assert drift.ks == 1
    assert drift.p_value < 1e-100
    assert drift.psi > 5
    tied = score_drift(frame(spark, np.array([5.0] * 9 + [6.0])), frame(spark, np.array([5.0, 6.0])))
    assert [(band.low, band.before, band.after) for band in tied.bands] == [(5.0, 0.9, 0.5), (6.0, 0.1, 0.5)]


def test_chance_moves_psi_by_as_much_as_is_said() -> None:
    random, found = np.random.default_rng(5), []
    for _ in range(200):
        both = [_histogram(random.normal(5, 1, rows)) for rows in (2000, 1000)]
        found.append(_drift(*both).psi)
    assert np.mean(found) == pytest.approx(9 * (1 / 2000 + 1 / 1000), rel=0.1)


def _histogram(scores: np.ndarray) -> Histogram:
    bins, counts = np.unique(np.floor(scores * 1024).astype(np.int64), return_counts=True)
    return Histogram(
        width=2**-10, bins=bins, counts=counts, unscored={}, least=scores.min(), greatest=scores.max(), mean=None
    )


def test_what_cannot_be_compared_is_said(spark: SparkSession, known: np.ndarray) -> None:
    rows = frame(spark, known[:5])
    with pytest.raises(TableError, match="found a@1 before and b@2 after"):
        score_drift(rows, frame(spark, known[:5], "b@2"))
    with pytest.raises(TableError, match="after: expected rows with a score"):
        score_drift(rows, rows.where("aesthetic_score > 100"))
    with pytest.raises(TableError, match=r"found a@1 \(5 rows\), b@2 \(5 rows\)"):
        score_drift(rows.unionByName(frame(spark, known[:5], "b@2")), rows)
