"""Choosing the cut, and keeping the rows at or above it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from conftest import last_query, planned
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType
from sklearn.metrics import precision_score, recall_score, roc_auc_score, roc_curve

from spark_aesthetic import Calibration, calibrate, curate, describe_scores, files
from spark_aesthetic.curation import histogram
from spark_aesthetic.curation import labels as labels_module
from spark_aesthetic.curation.columns import in_type
from spark_aesthetic.curation.evidence import weights_of
from spark_aesthetic.errors import OptionError, TableError

MODEL = "untrained-vit-b-32@0123456789ab"
SCHEMA = "id int, aesthetic_score float, aesthetic_error string, aesthetic_model string, source string"

pytestmark = pytest.mark.usefixtures("interpreted")

Make = Callable[..., DataFrame]


@pytest.fixture(scope="module")
def scores() -> np.ndarray:
    return np.random.default_rng(0).normal(5, 1, 2000).astype(np.float32)


@pytest.fixture(scope="module")
def table(spark: SparkSession, scores: np.ndarray) -> DataFrame:
    """Return 2,000 scores of two sources, b 1.5 points above a, and ten rows without a finite score."""
    rows: list[tuple[object, ...]] = [
        (at, float(score) + 1.5 * (at % 2), None, MODEL, "ab"[at % 2]) for at, score in enumerate(scores)
    ]
    rows += [(2000 + at, None, "decode: truncated JPEG", MODEL, "a") for at in range(7)]
    rows += [(2007, None, None, None, "a"), (2008, math.nan, None, MODEL, "b"), (2009, math.inf, None, MODEL, "b")]
    return spark.createDataFrame(rows, SCHEMA).coalesce(1)


@pytest.fixture(scope="module")
def known(scores: np.ndarray) -> np.ndarray:
    """Return the scores as the table holds them."""
    return (scores.astype(np.float64) + 1.5 * (np.arange(2000) % 2)).astype(np.float32)


@pytest.fixture
def frame(spark: SparkSession) -> Make:
    def make(scores: Sequence[float | None], model: str = MODEL) -> DataFrame:
        rows = [(at, score, None, model, "a") for at, score in enumerate(scores)]
        return spark.createDataFrame(rows, SCHEMA).coalesce(1)

    return make


def test_the_distribution_is_that_of_numpy(table: DataFrame, known: np.ndarray) -> None:
    found = calibrate(table).cut.distribution
    assert (found.rows, found.scored) == (2010, 2000)
    assert found.unscored == {"decode: truncated JPEG": 7, "not finite": 2, "unscored": 1}
    assert (found.least, found.greatest) == (known.min(), known.max())
    assert found.mean == pytest.approx(known.mean(dtype=np.float64), rel=1e-12)
    for share, quantile in found.quantiles.items():
        assert abs(quantile - np.quantile(known, share, method="inverted_cdf")) <= 2**-11
    assert {5.0, 5.5, 6.0, 6.5} <= found.shares.keys()
    for cut, share in found.shares.items():
        assert share == (known >= cut).mean()


@pytest.mark.parametrize(("target", "rows"), [({"keep": 0.1}, 200), ({"top_k": 5000}, 2000)])
def test_a_cut_keeps_so_many_rows_and_no_bin_more(
    table: DataFrame, known: np.ndarray, target: dict[str, float], rows: int
) -> None:
    chosen = calibrate(table, **target)  # type: ignore[arg-type]
    kept = curate(table, chosen).count()
    assert chosen.cut.value is not None
    assert chosen.cut.kept == kept == (known >= chosen.cut.value).sum()
    assert chosen.cut.share == kept / 2000
    assert kept >= rows
    assert (known >= chosen.cut.value + 2**-10).sum() < rows or rows == 2000


def test_a_cut_of_ones_own_keeps_what_spark_finds_above_it(table: DataFrame, known: np.ndarray) -> None:
    # This cut is between two edges of bins.
    chosen = calibrate(table, min_score=5.1003)
    assert chosen.cut.value == 5.1003
    assert chosen.cut.kept == (known.astype(np.float64) >= 5.1003).sum()
    assert curate(table, chosen).count() == curate(table, min_score=5.1003).count() == chosen.cut.kept


def test_a_score_on_the_cut_is_kept_and_neither_nan_nor_infinity(frame: Make) -> None:
    rows = frame([5.0, 4.9990, float("nan"), float("inf"), float("-inf"), None, 7.0])
    assert sorted(row.id for row in curate(rows, min_score=5.0).collect()) == [0, 6]
    assert calibrate(rows, top_k=2).cut.value == 7.0 - 2
    assert calibrate(frame([0.3] * 4), keep=0.5).cut.kept == 4


@pytest.mark.parametrize(
    ("number", "kind", "expected"),
    [
        (5.7, "float", 5.699999809265137), (5.7, "double", 5.7), (1e300, "float", math.inf),
        (-0.3, "decimal(3,1)", "-0.3"), (5.7, "decimal(4,1)", "5.7"), (5.65, "decimal(4,1)", "5.7"),
        (5.61, "decimal(10,1)", "5.7"), (-5.65, "decimal(4,1)", "-5.6"), (999.91, "decimal(4,1)", 999.91),
        (5.7, "decimal(38,20)", "5.70000000000000000000"), (6, "int", 6), (5.01, "tinyint", 6),
        (-5.01, "smallint", -5), (127.5, "tinyint", 127.5), (-300, "tinyint", -300.0), (1e19, "bigint", 1e19),
    ],
)  # fmt: skip
def test_a_number_has_its_place_among_the_values_of_a_type(number: float, kind: str, expected: object) -> None:
    made, (value,) = in_type(StructType.fromDDL(f"s {kind}")["s"].dataType, [number])
    assert value == (Decimal(expected) if isinstance(expected, str) else expected)
    assert made.simpleString() in (kind, "double")


@pytest.mark.parametrize(
    ("kind", "cut", "literal"), [("float", 5.7, "5.7"), ("decimal(4,1)", 5.65, "5.7"), ("int", 5.2, "6")]
)
def test_a_score_that_equals_the_cut_is_kept_in_every_type(
    spark: SparkSession, tmp_path: Path, kind: str, cut: float, literal: str
) -> None:
    numbers = [-3, 4, 5, 6, 7, 8] if kind == "int" else [-2.3, 4.9, 5.6, 5.7, 5.7, 7.4]
    texts = [(at, str(number), "ab"[at % 2]) for at, number in enumerate(numbers)]
    given = spark.createDataFrame(texts, "id int, s string, g string").coalesce(1)
    given.withColumn("s", F.col("s").cast(kind)).write.format("delta").save(str(tmp_path / "scores"))
    rows = spark.read.format("delta").load(str(tmp_path / "scores"))
    labels = labels_of(spark, [(at, "keep" if at in (3, 0) else "drop") for at in range(6)])
    chosen = calibrate(rows, labels, min_score=cut, score_col="s", key="id")
    by_group = calibrate(rows, min_score=cut, score_col="s", by="g")
    assert chosen.cut.kept == sum(part.kept or 0 for part in by_group.cuts) == 3
    assert chosen.cut.evidence is not None
    assert chosen.cut.evidence.precision is not None
    assert chosen.cut.evidence.precision.value == pytest.approx(1 / 3)
    filtered = curate(rows, min_score=cut, score_col="s")
    for kept in (filtered, curate(rows, chosen), curate(rows, by_group)):
        assert sorted(row.id for row in kept.collect()) == [3, 4, 5]
    shares = describe_scores(rows, score_col="s", cuts=[cut, 4.0]).collect()[0].shares
    assert shares == {cut: 3 / 6, 4.0: 5 / 6}
    # With this filter, files are skipped by their statistics.
    assert f"GreaterThanOrEqual(s,{literal})" in planned(filtered)


def test_a_table_without_scores_has_a_distribution_and_no_cut(frame: Make) -> None:
    for rows in (frame([None, None]), frame([1.0]).limit(0)):
        found = calibrate(rows, keep=0.5)
        assert found.cut.value is None
        assert found.cut.distribution.scored == 0
        assert "with a score" in repr(found)
        assert curate(rows, top_k=3, key="id").count() == 0
        with pytest.raises(OptionError, match="expected one with a cut"):
            curate(rows, found)


def test_each_group_has_a_cut_of_its_own(table: DataFrame, known: np.ndarray) -> None:
    chosen = calibrate(table, keep=0.1, by="source")
    a, b = chosen.cuts
    assert (a.group, b.group) == (("a",), ("b",))
    assert (a.distribution.rows, b.distribution.rows) == (1008, 1002)
    assert 1.2 < b.value - a.value < 1.8  # type: ignore[operator]
    kept = {row.source: row["count"] for row in curate(table, chosen).groupBy("source").count().collect()}
    assert kept == {"a": a.kept, "b": b.kept}
    assert curate(table, chosen).columns == table.columns
    with pytest.raises(OptionError, match="one for each source"):
        _ = chosen.cut


@pytest.mark.parametrize(("wanted", "rows"), [({"top_k": 101}, 101), ({"keep": 0.033}, 66)])
def test_the_best_are_exactly_so_many(table: DataFrame, known: np.ndarray, wanted: dict[str, float], rows: int) -> None:
    kept = curate(table, **wanted, key="id")  # type: ignore[arg-type]
    order = np.lexsort((np.arange(2000), -known))
    assert kept.columns == table.columns
    assert sorted(row.id for row in kept.collect()) == sorted(order[:rows])


def test_ties_are_told_apart_by_the_key(frame: Make) -> None:
    rows = frame([4.0, 6.0, 6.0, 6.0001, 6.0, None, 6.0])
    for copy in (rows, rows.orderBy("id", ascending=False).coalesce(1)):
        assert sorted(row.id for row in curate(copy, top_k=3, key="id").collect()) == [1, 2, 3]


def test_the_best_of_each_group(table: DataFrame, known: np.ndarray) -> None:
    kept = curate(table, top_k=40, by="source", key=["id"]).collect()
    for number, source in enumerate("ab"):
        own = np.arange(number, 2000, 2)
        best = own[np.argsort(-known[own], kind="stable")[:40]]
        assert sorted(row.id for row in kept if row.source == source) == sorted(best)


def test_a_group_without_a_name_is_one(spark: SparkSession) -> None:
    rows = spark.createDataFrame(
        [(1, 5.0, None), (2, 6.0, None), (3, 1.0, "a")], "id int, aesthetic_score float, g string"
    )
    chosen = calibrate(rows, top_k=1, by="g")
    assert [cut.group for cut in chosen.cuts] == [(None,), ("a",)]
    assert sorted(row.id for row in curate(rows, chosen).collect()) == [2, 3]
    assert sorted(row.id for row in curate(rows, top_k=1, by="g", key="id").collect()) == [2, 3]


def test_a_group_that_the_calibration_does_not_know_is_an_error(table: DataFrame, frame: Make) -> None:
    chosen = calibrate(table.where("source = 'b'"), keep=0.5, by="source")
    with pytest.raises(PySparkException, match="expected a cut for each source, found none for a"):
        curate(frame([9.0]), chosen).collect()


def test_scores_of_another_model_are_an_error(frame: Make) -> None:
    chosen = calibrate(frame([1.0, 2.0]), keep=0.5)
    other = frame([9.0], model="laion-aesthetics-v2@875870216cca")
    with pytest.raises(PySparkException, match="found laion-aesthetics-v2@875870216cca"):
        curate(other, chosen).collect()
    both = frame([1.0]).unionByName(other)
    for call in (lambda: calibrate(both), lambda: curate(both, top_k=1, key="id")):
        with pytest.raises(
            TableError, match=r"found laion.* \(1 rows\), untrained.* \(1 rows\)\. Choose one with --model"
        ):
            call()


def test_a_filter_by_a_calibration_is_lazy_and_reaches_the_files(
    spark: SparkSession, frame: Make, tmp_path: Path
) -> None:
    frame([1.0, 2.0]).write.format("delta").save(str(tmp_path / "scores"))
    table = spark.read.format("delta").load(str(tmp_path / "scores"))
    since = last_query(spark)
    chosen = calibrate(table, keep=0.5)
    counted = last_query(spark)
    assert counted > since
    kept = curate(table, chosen)
    assert last_query(spark) == counted
    # Planning the filter reads Delta's log, so the queries are counted before it.
    plan = planned(kept)
    assert "GreaterThanOrEqual(aesthetic_score," in plan
    assert "Exchange" not in plan


def test_a_calibration_is_saved_and_loaded(
    table: DataFrame, spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = labels_of(spark, [(at, "keep" if at % 3 else "drop") for at in range(100)])
    for made in (
        calibrate(table, labels, keep=0.2, key="id"), calibrate(table, top_k=5, by=["source"]), calibrate(table),
    ):  # fmt: skip
        path = tmp_path / "cut.json"
        made.save(str(path))
        assert Calibration.load(str(path)) == made
        json.dumps(made.to_dict(), allow_nan=False)
    monkeypatch.setattr(files, "_MOUNT", f"{tmp_path}/mount/")
    made.save("dbfs:/cuts/cut.json")
    assert (tmp_path / "mount" / "cuts" / "cut.json").read_text() == path.read_text()
    assert Calibration.load("dbfs:/cuts/cut.json") == made
    path.write_text("{}")
    with pytest.raises(OptionError, match=r"expected a file that Calibration\.save wrote"):
        Calibration.load(str(path))


def test_a_calibration_reads_well(table: DataFrame, spark: SparkSession) -> None:
    labels = labels_of(spark, [(at, "keep" if at % 3 else "drop") for at in range(100)] + [(2000, "drop")])
    lines = repr(calibrate(table, labels, keep=0.2, key="id")).splitlines()
    assert lines[0] == f"Calibration of aesthetic_score by {MODEL}, keep=0.2"
    assert lines[1] == "  untrained weights: these scores mean nothing"
    assert lines[2].startswith("  2,010 rows, 2,000 with a score; decode: truncated JPEG: 7; ")
    assert re.fullmatch(r"  cut 6\.\d{4} keeps 40\d of 2,000, 20\.\d\d%", lines[4])
    assert lines[5].startswith("  labels: 66 keep, 34 drop; AUC 0.")
    assert lines[-1] == "  labels left out because their row has no score: 1"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"keep": 0.1, "top_k": 3}, "expected one target at most, found keep, top_k"),
        ({"keep": 0.0}, "keep=0.0: expected a share above 0"),
        ({"keep": 1.5}, "keep=1.5: expected a share above 0"),
        ({"keep": "0.1"}, "keep='0.1': expected a finite number above 0 and at most 1, such as 0.1 for a tenth"),
        ({"keep": True}, "keep=True: expected a finite number above 0"),
        ({"top_k": 0}, "top_k=0: expected a whole number of rows of at least 1"),
        ({"top_k": float("nan")}, "top_k=nan: expected a whole number of rows"),
        ({"top_k": float("inf")}, "top_k=inf: expected a whole number of rows"),
        ({"top_k": "3"}, "top_k='3': expected a whole number of rows"),
        ({"min_score": float("nan")}, "min_score=nan: expected a finite number"),
        ({"min_score": "5"}, "min_score='5': expected a finite number"),
        ({"precision": float("nan")}, "precision=nan: expected a finite number"),
        ({"bin_width": "x"}, "bin_width='x': expected a finite number, a power of two"),
        ({"bin_width": -0.5}, "bin_width=-0.5: expected a power of two"),
        ({"recall": 0.9}, "recall: expected labels with it"),
        ({"bin_width": 0.001}, "bin_width=0.001: expected a power of two"),
        (
            {"score_col": "aesthetic_scor"},
            "score_col: no column 'aesthetic_scor' in the table: did you mean 'aesthetic_sc",
        ),
        ({"score_col": "source"}, "score_col 'source': expected numbers, found string"),
        ({"by": "sauce"}, "by: no column 'sauce' in the table: did you mean 'source'"),
    ],
)
def test_what_cannot_be_is_said_before_any_work(table: DataFrame, given: dict[str, object], said: str) -> None:
    with pytest.raises((OptionError, TableError), match=said):
        calibrate(table, **given)  # type: ignore[arg-type]


def test_numbers_of_numpy_are_numbers(table: DataFrame) -> None:
    assert calibrate(table, keep=np.float32(0.25)) == calibrate(table, keep=0.25)
    assert calibrate(table, top_k=np.int16(100)) == calibrate(table, top_k=100)
    assert calibrate(table, top_k=100.0, bin_width=np.float64(2**-8)) == calibrate(table, top_k=100, bin_width=2**-8)
    json.dumps(calibrate(table, min_score=np.float32(5.5)).to_dict())
    assert curate(table, min_score=np.float32(5.5)).count() == curate(table, min_score=Decimal("5.5")).count()
    for wrong in ({"keep": "0.1"}, {"top_k": math.nan}, {"min_score": True}, {"min_score": "x"}, {"top_k": [1]}):
        with pytest.raises(OptionError, match=r"expected a (finite number|whole number of rows)"):
            curate(table, **wrong, key="id")  # type: ignore[arg-type]


def test_curate_takes_one_way_and_a_key_for_ties(table: DataFrame) -> None:
    with pytest.raises(OptionError, match=r"found none\. Give one"):
        curate(table)
    with pytest.raises(OptionError, match=r"found min_score, top_k\. Give one"):
        curate(table, min_score=5, top_k=1)
    with pytest.raises(OptionError, match="top_k: expected key"):
        curate(table, top_k=1)
    other = replace(calibrate(table, keep=0.5), score_col="source")
    for call in (lambda: curate(table, min_score=5.0, score_col="source"), lambda: curate(table, other)):
        with pytest.raises(TableError, match="score_col 'source': expected numbers, found string"):
            call()
    chosen = calibrate(table, min_score=5)
    with pytest.raises(OptionError, match="by: expected the calibration's value"):
        curate(table, chosen, by="source")
    with pytest.raises(OptionError, match="score_col: expected the calibration's value"):
        curate(table, chosen, score_col="id")


def test_scores_too_large_for_bins_are_said(spark: SparkSession) -> None:
    scores = spark.createDataFrame([(at, 1e16 + 2 * at) for at in range(4)], "id int, aesthetic_score double")
    with pytest.raises(TableError, match=r"expected scores between -8.79609e\+12 and 8.79609e\+12, .* found 1e\+16"):
        curate(scores, top_k=2, key="id")
    with pytest.raises(TableError, match="Divide the scores, or calibrate with a larger bin_width"):
        calibrate(scores, keep=0.5)
    assert calibrate(scores, keep=0.5, bin_width=2.0).cut.kept == 2


def test_too_many_counts_are_said(table: DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(histogram, "MAX_BINS", 100)
    with pytest.raises(TableError, match="Use fewer groups, or calibrate with a larger bin_width"):
        calibrate(table)
    assert calibrate(table, bin_width=0.25, keep=0.5).cut.kept == pytest.approx(1000, abs=250)


# Cuts from labels


def labels_of(
    spark: SparkSession, rows: Sequence[tuple[object, ...]], schema: str = "id int, label string"
) -> DataFrame:
    return spark.createDataFrame(rows, schema).coalesce(1)


@pytest.fixture(scope="module")
def judged(known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of a plain sample of the table, and whether each is kept.

    A row with a higher score is more likely to be kept.
    """
    random = np.random.default_rng(1)
    rows = random.choice(2000, 400, replace=False)
    return rows, random.random(400) < 1 / (1 + np.exp(-2 * (known[rows] - 6)))


def test_evidence_is_that_of_sklearn(
    spark: SparkSession, table: DataFrame, known: np.ndarray, judged: tuple[np.ndarray, np.ndarray]
) -> None:
    rows, keep = judged
    labels = labels_of(spark, [(int(at), "keep" if good else "drop") for at, good in zip(rows, keep, strict=True)])
    chosen = calibrate(table, labels, min_score=5.5, key="id")
    evidence, scores = chosen.cut.evidence, known[rows].astype(np.float64)
    counted = histogram.histograms(table, score_col="aesthetic_score")[1][()]
    weights = weights_of(scores, counted)
    assert evidence is not None
    assert (evidence.keep, evidence.drop) == (keep.sum(), (~keep).sum())
    assert evidence.auc.value == pytest.approx(roc_auc_score(keep, scores, sample_weight=weights), abs=1e-12)
    above = scores >= 5.5
    assert evidence.precision is not None
    assert evidence.precision.value == pytest.approx(precision_score(keep, above, sample_weight=weights), abs=1e-12)
    assert evidence.recall is not None
    assert evidence.recall.value == pytest.approx(recall_score(keep, above, sample_weight=weights), abs=1e-12)
    # The sample is plain, so the weights change little.
    assert evidence.auc.value == pytest.approx(roc_auc_score(keep, scores), abs=0.01)
    binned = np.floor(scores * 1024) / 1024
    false_positive, true_positive, cuts = roc_curve(keep, binned, sample_weight=weights, drop_intermediate=False)
    roc = {cut: (x, y) for cut, x, y in zip(cuts, false_positive, true_positive, strict=True)}
    assert len(evidence.curve) == 200
    for point in evidence.curve:
        assert (point.false_positive_rate, point.recall) == pytest.approx(roc[point.cut], abs=1e-12)
        assert point.precision == pytest.approx(precision_score(keep, scores >= point.cut, sample_weight=weights))


def test_the_cut_for_a_precision_is_the_lowest_and_for_a_recall_the_highest(
    spark: SparkSession, table: DataFrame, judged: tuple[np.ndarray, np.ndarray]
) -> None:
    labels = labels_of(spark, [(int(at), "keep" if good else "drop") for at, good in zip(*judged, strict=True)])
    precise = calibrate(table, labels, precision=0.8, key="id").cut
    complete = calibrate(table, labels, recall=0.9, key="id").cut
    for found, name in ((precise, "precision"), (complete, "recall")):
        assert found.evidence is not None
        assert found.value is not None
        wanted, is_precision = (0.8, True) if name == "precision" else (0.9, False)
        assert getattr(found.evidence, name).value >= wanted
        for point in found.evidence.curve:
            if (point.cut < found.value) if is_precision else (point.cut > found.value):
                assert getattr(point, name) < wanted
        assert found.kept == curate(table, min_score=found.value).count()


def test_a_precision_that_no_cut_reaches_is_said(spark: SparkSession, table: DataFrame, known: np.ndarray) -> None:
    upside_down = [(int(at), "drop" if known[at] > 5 else "keep") for at in range(200)]
    with pytest.raises(TableError, match=r"precision=0.9: .* found 0\.\d+ at best, at the threshold"):
        calibrate(table, labels_of(spark, upside_down), precision=0.9, key="id")


def test_labels_of_groups_give_each_its_cut(spark: SparkSession, table: DataFrame, known: np.ndarray) -> None:
    # A row is labelled "keep" if it is above the middle of its source.
    rows = [(at, "keep" if known[at] > 5 + 1.5 * (at % 2) else "drop") for at in range(200)]
    a, b = calibrate(table, labels_of(spark, rows), precision=1.0, by="source", key="id").cuts
    assert a.value == pytest.approx(5, abs=0.1)
    assert b.value == pytest.approx(6.5, abs=0.1)
    own = [(known[at], "ab"[at % 2], label) for at, label in rows if at % 2 or at < 3]
    by_score = labels_of(
        spark, [(float(s), g, label) for s, g, label in own], "score double, source string, label string"
    )
    c, d = calibrate(table, by_score, keep=0.5, by="source").cuts
    assert c.evidence is None
    assert d.evidence is not None
    with pytest.raises(TableError, match="labels of group a: expected at least 2 of keep and 2 of drop"):
        calibrate(table, by_score, recall=0.5, by="source")


def test_labels_come_from_the_csv_of_the_review_page(spark: SparkSession, tmp_path: Path) -> None:
    keys = ['a, "quoted" one', "two\nlines", "ü", "plain", "=5", "gone", "unscored", "not marked"]
    rows = [(key, float(at)) for at, key in enumerate(keys[:5])] + [("unscored", None), ("not marked", 9.0)]
    table = spark.createDataFrame(rows, "name string, aesthetic_score float").coalesce(1)
    lines = [
        f'"{key.replace(chr(34), chr(34) * 2)}",0.5,{"keep" if at > 2 else "drop"}' for at, key in enumerate(keys[:-1])
    ]
    file = tmp_path / "labels.csv"
    file.write_bytes("\r\n".join(["name,score,label", *lines, '"not marked",9,', ""]).encode())
    chosen = calibrate(table, str(file), precision=1.0, key="name")
    # The scores are those of the table, not those of the file.
    assert chosen.cut.value == 3
    assert chosen.labels_without_score == 2
    assert chosen.cut.evidence is not None
    assert (chosen.cut.evidence.keep, chosen.cut.evidence.drop) == (2, 3)
    with pytest.raises(TableError, match="expected a CSV file with a header"):
        calibrate(table, str(tmp_path / "none.csv"), key="name")


def test_labels_that_cannot_be_read_are_refused_before_the_scores_are(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Counting these scores would fail.
    scores = spark.range(3).selectExpr("id", "CAST(raise_error('counted') AS FLOAT) AS aesthetic_score", "'m' AS error")
    for path, message in (
        ("nosuch://bucket/l.csv", "labels 'nosuch:.*No FileSystem for scheme"),
        ("~/none.csv", "labels '~/none.csv': expected a CSV file with a header, found none"),
    ):
        with pytest.raises(TableError, match=message):
            calibrate(scores, path, key="id")
    (tmp_path / "l[1] {a}.csv").write_text("name,label\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(TableError, match="labels: no column 'id'"):
        calibrate(scores, "~/l[1] {a}.csv", key="id")


def test_the_key_of_a_csv_is_taken_for_what_it_is_in_the_table(
    spark: SparkSession, table: DataFrame, known: np.ndarray, tmp_path: Path
) -> None:
    file = tmp_path / "labels.csv"
    best = np.argsort(-known)
    rows = [(at, "keep") for at in best[:5]] + [(at, "drop") for at in best[-5:]] + [("no number", "drop")]
    file.write_text("id,score,label\n" + "".join(f"{at},{5},{label}\n" for at, label in rows))
    chosen = calibrate(table, str(file), recall=1.0, key="id")
    assert chosen.cut.kept == 5
    assert chosen.labels_without_score == 1


def test_labels_of_one_row_that_agree_count_once_and_others_are_said(
    spark: SparkSession, table: DataFrame, tmp_path: Path
) -> None:
    rows = [(at, "keep" if at % 3 else "drop") for at in range(90)]
    once = calibrate(table, labels_of(spark, rows), min_score=5, key="id")
    # Row 2003 has no score, and a null key belongs to no row.
    again = [*rows, *rows[:7], rows[3], (2003, "keep"), (2003, "drop"), (None, "keep"), (None, "drop")]
    twice = calibrate(table, labels_of(spark, again), min_score=5, key="id")
    assert (once.labels_without_score, once.labels_repeated) == (0, 0)
    assert (twice.labels_without_score, twice.labels_repeated) == (4, 8)
    assert twice.cut.evidence == once.cut.evidence
    assert repr(twice).splitlines()[-1] == "  labels left out because they repeat another label: 8"
    twice.save(str(tmp_path / "cut.json"))
    assert Calibration.load(str(tmp_path / "cut.json")) == twice
    torn = [*rows, *((at, "drop" if at % 3 else "keep") for at in range(20, 25))]
    with pytest.raises(TableError, match=r"found keep and drop for 20, 21, 22 and 2 more\. Keep only one"):
        calibrate(table, labels_of(spark, torn), min_score=5, key="id")
    # Labels without a key are all counted.
    by_score = [(float(at % 5) + 3, "keep" if at % 2 else "drop") for at in range(20)]
    loose = calibrate(table, labels_of(spark, by_score, "score double, label string"), min_score=5)
    assert loose.labels_repeated == 0
    assert loose.cut.evidence is not None
    assert (loose.cut.evidence.keep, loose.cut.evidence.drop) == (10, 10)


def test_columns_may_be_called_as_those_of_the_plans(spark: SparkSession) -> None:
    names = ["number", "key_0", "group_0", "bin", "reason", "reaches_0", "label_", "model"]
    rows = [(*[f"{name}{at}" for name in names[:-1]], "ab"[at % 2], at / 2) for at in range(20)]
    frame = spark.createDataFrame(rows, [*names, "score"]).coalesce(1)
    labels = frame.selectExpr("*", "IF(score > 4, 'keep', 'drop') AS label")
    chosen = calibrate(frame, labels, precision=1.0, by="model", key=names[:-1], score_col="score")
    assert [cut.value for cut in chosen.cuts] == [5.0, 4.5]
    assert curate(frame, chosen).count() == 11
    best = curate(frame, top_k=2, by="model", key=names[:-1], score_col="score")
    assert sorted(row.score for row in best.collect()) == [8.0, 8.5, 9.0, 9.5]


@pytest.mark.parametrize(
    ("rows", "schema", "given", "said"),
    [
        ([(1, "keep"), (2, "maybe")], "id int, label string", {"key": "id"}, "expected keep or drop .* found 'maybe'"),
        ([(1, "keep"), (2, "keep")], "id int, label string", {"key": "id"}, "at least .* found 2 and 0"),
        ([(1, "keep")], "id int, label string", {}, "expected a column score or --key"),
        ([(1, "keep")], "id int, mark string", {"key": "id"}, "labels: no column 'label'"),
        ([(1, "keep")], "no int, label string", {"key": "id"}, "labels: no column 'id'"),
        ([(99.0, "keep"), (98.0, "drop")] * 2, "score double, label string", {}, "expected scores of this table"),
    ],
)
def test_labels_that_cannot_be_are_said(
    spark: SparkSession, table: DataFrame, rows: list[tuple[object, str]], schema: str, given: dict[str, str], said: str
) -> None:
    with pytest.raises(TableError, match=said):
        calibrate(table, labels_of(spark, rows, schema), keep=0.5, **given)  # type: ignore[arg-type]


def test_labels_are_limited_and_a_key_is_of_one_row(
    spark: SparkSession, table: DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = labels_of(spark, [(1, "keep"), (2, "keep"), (3, "drop"), (4, "drop")])
    with pytest.raises(TableError, match="key id: expected one row of the scores for each label"):
        calibrate(table.unionByName(table), labels, key="id")
    # Key 1 is repeated and key 4 is missing, so rows and labels are equal in number.
    gone = table.where("id != 4").unionByName(table.where("id = 1"))
    with pytest.raises(TableError, match="key id: expected one row of the scores for each label"):
        calibrate(gone, labels, key="id")
    monkeypatch.setattr(labels_module, "MAX_LABELS", 3)
    with pytest.raises(TableError, match="expected 3 rows at most, found 4"):
        calibrate(table, labels, key="id")
