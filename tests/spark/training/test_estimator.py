"""Trained heads: the fit, its report, the rows that are left out, and where a head is saved."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from conftest import RunHere
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.linalg import Vectors
from pyspark.ml.tuning import ParamGridBuilder
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType
from scipy.stats import pearsonr, spearmanr
from sklearn.linear_model import Ridge

import spark_aesthetic as sa
from spark_aesthetic import AestheticEstimator, AestheticScorer, files
from spark_aesthetic.cli.curation import train_head_arguments
from spark_aesthetic.errors import OptionError, PredictorError, TableError
from spark_aesthetic.predictors import weights
from spark_aesthetic.training import ratings
from spark_aesthetic.training.ridge import cross_validate, solve, squares

pytestmark = pytest.mark.usefixtures("interpreted")

ROWS, WIDTH = 600, 12
# Nobody published this backbone. Its checksum is given, so that no file is read for it.
BACKBONE = {"backbone": "ViT-B-32", "backboneWeights": "/models/mine.safetensors", "backboneSha256": "0" * 64}
TRUE_WEIGHT = np.random.default_rng(1).standard_normal(WIDTH)
TRUE_BIAS = 5.25


def unit(rows: int, width: int) -> np.ndarray:
    """Return float32 embeddings of unit length that are not centred, as CLIP's are not."""
    drawn = np.random.default_rng(0).standard_normal((rows, width)) + 0.5
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


EMBEDDINGS = unit(ROWS, WIDTH)
# The fit normalizes the embeddings in float64.
X = EMBEDDINGS / np.linalg.norm(EMBEDDINGS.astype(np.float64), axis=1, keepdims=True)
NOISE = np.random.default_rng(2).standard_normal(ROWS)
EXACT = X @ TRUE_WEIGHT + TRUE_BIAS
NOISY = EXACT + 0.5 * NOISE

Make = Callable[..., AestheticEstimator]


def frame_of(spark: SparkSession, embeddings: np.ndarray, rated: np.ndarray) -> DataFrame:
    rows = list(zip(embeddings.astype(float).tolist(), rated.tolist(), strict=True))
    return spark.createDataFrame(rows, "e array<float>, stars double").coalesce(1)


@pytest.fixture(scope="module")
def noisy(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> DataFrame:
    path = str(tmp_path_factory.mktemp("rated") / "table")
    frame_of(spark, EMBEDDINGS, NOISY).write.parquet(path)
    return spark.read.parquet(path)


@pytest.fixture
def make(spark: SparkSession, tmp_path: Path) -> Make:
    def estimator(**params: Any) -> AestheticEstimator:
        given = {"inputCol": "e", "labelCol": "stars", "name": "mine", "path": str(tmp_path / "heads"), **BACKBONE}
        return AestheticEstimator(**(given | params))

    return estimator


@pytest.fixture(scope="module")
def fitted(noisy: DataFrame, tmp_path_factory: pytest.TempPathFactory) -> AestheticScorer:
    path = str(tmp_path_factory.mktemp("fitted"))
    return AestheticEstimator(inputCol="e", labelCol="stars", name="mine", path=path, **BACKBONE).fit(noisy)


def head_of(scorer: AestheticScorer) -> tuple[np.ndarray, float]:
    head = weights.load_head(scorer.getPredictor())
    return head.weight.astype(np.float64), head.bias


def folds_of(noisy: DataFrame) -> np.ndarray:
    """Return the fold of each row of EMBEDDINGS, by Spark's hash."""
    rows = noisy.select("stars", F.expr("pmod(xxhash64(e), 5)").alias("fold")).collect()
    by_rating = {row.stars: row.fold for row in rows}
    return np.array([by_rating[rating] for rating in NOISY.tolist()])


def test_ridge_from_sums_is_that_of_the_rows() -> None:
    tried = [1e-4, 0.1]
    for reg_param, found in zip(tried, solve(squares(X, NOISY), tried), strict=True):
        expected = Ridge(alpha=reg_param * ROWS, solver="cholesky").fit(X, NOISY)
        assert found == pytest.approx([*expected.coef_, expected.intercept_], abs=1e-9)


def test_cross_validation_takes_the_penalty_that_is_best_on_rows_left_out() -> None:
    # With much noise and few rows, the best penalty is neither the least nor the largest.
    x, y = X[:60], EXACT[:60] + NOISE[:60]
    parts = np.array_split(np.arange(60), 5)
    tried = [1e-6, 1e-4, 1e-2, 1e-1, 10.0]

    def error(reg_param: float) -> float:
        squared = 0.0
        for part in parts:
            others = np.setdiff1d(np.arange(60), part)
            ridge = Ridge(alpha=reg_param * len(others)).fit(x[others], y[others])
            squared += ((ridge.predict(x[part]) - y[part]) ** 2).sum()
        return squared

    found = cross_validate(np.stack([squares(x[part], y[part]) for part in parts]), tried)
    assert found.reg_param == min(tried, key=error)
    assert tried[0] < found.reg_param < tried[-1]


def test_a_known_head_is_recovered(spark: SparkSession, make: Make) -> None:
    scorer = make(regParams=[1e-12]).fit(frame_of(spark, EMBEDDINGS, EXACT))
    weight, bias = head_of(scorer)
    assert weight == pytest.approx(TRUE_WEIGHT, abs=1e-6)
    assert bias == pytest.approx(TRUE_BIAS, abs=1e-6)
    assert scorer.report is not None
    assert scorer.report.own.r2 == pytest.approx(1, abs=1e-9)
    assert scorer.report.own.spearman == pytest.approx(1)


def test_the_head_and_its_figures_are_those_of_the_rows(noisy: DataFrame, fitted: AestheticScorer) -> None:
    report = fitted.report
    assert report is not None
    expected = Ridge(alpha=report.reg_param * ROWS, solver="cholesky").fit(X, NOISY)
    weight, bias = head_of(fitted)
    assert weight == pytest.approx(expected.coef_, abs=1e-6)
    assert bias == pytest.approx(expected.intercept_, abs=1e-6)

    folds = folds_of(noisy)
    assert np.bincount(folds).min() > 60
    predicted = np.zeros(ROWS)
    for fold in range(5):
        inside = folds == fold
        ridge = Ridge(alpha=report.reg_param * (~inside).sum(), solver="cholesky").fit(X[~inside], NOISY[~inside])
        predicted[inside] = ridge.predict(X[inside])
    own = report.own
    assert own.rmse == pytest.approx(np.sqrt(((predicted - NOISY) ** 2).mean()), rel=1e-9)
    assert own.r2 == pytest.approx(1 - ((predicted - NOISY) ** 2).mean() / NOISY.var(), rel=1e-9)
    assert own.pearson == pytest.approx(pearsonr(predicted, NOISY).statistic, rel=1e-9)
    assert own.spearman == pytest.approx(spearmanr(predicted, NOISY).statistic, rel=1e-9)
    tenths = np.array_split(np.argsort(predicted), 10)
    assert [tenth.rows for tenth in own.calibration] == [60] * 10
    assert [tenth.mean_score for tenth in own.calibration] == pytest.approx([predicted[at].mean() for at in tenths])
    assert [tenth.mean_rating for tenth in own.calibration] == pytest.approx([NOISY[at].mean() for at in tenths])
    assert (report.rows, report.left_out, report.num_folds, report.published) == (ROWS, {}, 5, None)


def test_partitions_change_nothing_and_the_same_ones_give_the_same_bits(
    noisy: DataFrame, fitted: AestheticScorer, make: Make
) -> None:
    rows = ratings.rated(noisy, F.col("e"), F.col("stars"), 5)
    whole, _ = ratings.add_up(rows, WIDTH, 5)
    scattered = rows.repartitionByRange(4, "rating").sortWithinPartitions("rating").union(rows.limit(0))
    apart, _ = ratings.add_up(scattered, WIDTH, 5)
    assert apart == pytest.approx(whole, rel=1e-12)
    assert ratings.add_up(scattered, WIDTH, 5)[0].tobytes() == apart.tobytes()
    assert fitted.report is not None
    again = make().fit(noisy).report
    assert again is not None
    assert replace(again, predictor=fitted.report.predictor) == fitted.report


def test_rows_that_cannot_be_used_are_left_out_and_counted(
    spark: SparkSession, noisy: DataFrame, fitted: AestheticScorer, make: Make
) -> None:
    good = EMBEDDINGS[0].astype(float).tolist()
    nan, inf = float("nan"), float("inf")
    damaged = [
        (None, 5.0), (None, None), (good[1:], 5.0), ([], 5.0), ([nan, *good[1:]], 5.0), ([None, *good[1:]], 5.0),
        ([1e300, *good[1:]], 5.0), ([0.0] * WIDTH, 5.0), (good, None), (good, nan), (good, -inf),
    ]  # fmt: skip
    bad = spark.createDataFrame(damaged, "e array<double>, stars double").coalesce(1)
    both = noisy.union(bad.withColumn("e", F.col("e").cast("array<float>")))
    # A wrong length is one that differs from the backbone's known length. The length of this backbone is unknown.
    with pytest.raises(TableError, match="embeddings of one length, found 0, 11, 12"):
        make().fit(both)
    sums, left_out = ratings.add_up(ratings.rated(both, F.col("e"), F.col("stars"), 5), WIDTH, 5)
    assert left_out == {
        "embedding: not finite": 3, "embedding: null": 2, "embedding: wrong length": 2, "embedding: zero norm": 1,
        "rating: not finite": 2, "rating: null": 1,
    }  # fmt: skip
    assert ratings.check_sums(sums, left_out) == ROWS
    of_one_length = both.where("e IS NULL OR size(e) = 12")
    scorer = make().fit(of_one_length)
    assert scorer.report is not None
    assert sum(scorer.report.left_out.values()) == 9
    assert head_of(scorer)[0] == pytest.approx(head_of(fitted)[0], abs=1e-6)


def test_vectors_and_longer_embeddings_give_the_same_head(
    spark: SparkSession, fitted: AestheticScorer, make: Make
) -> None:
    # Each half is scaled by a power of two, so that normalizing gives the same bits.
    longer = EMBEDDINGS.astype(float) * np.where(np.arange(ROWS) % 2, 4.0, 0.25)[:, None]
    rows = [(Vectors.dense(row), float(rating)) for row, rating in zip(longer, NOISY, strict=True)]
    # These embeddings hash to different folds, so the penalty is given.
    assert fitted.report is not None
    scorer = make(regParams=[fitted.report.reg_param]).fit(spark.createDataFrame(rows, ["e", "stars"]).coalesce(1))
    assert head_of(scorer)[0] == pytest.approx(head_of(fitted)[0], abs=1e-6)
    assert scorer.transform(spark.createDataFrame(rows[:1], ["e", "stars"])).head().aesthetic_score is not None


def test_the_published_head_is_compared_where_the_backbone_is_its_own(spark: SparkSession, cache: Path) -> None:
    embeddings = unit(80, 768)
    scores = weights.load_head(sa.resolve(sa.DEFAULT))(embeddings).astype(np.float64)
    rated = scores + NOISE[:80]
    frame = frame_of(spark, embeddings, rated).toDF("clip_embedding", "rating")
    report = AestheticEstimator().fit(frame).report
    assert report is not None
    assert report.model.startswith("own-head@")
    assert report.predictor == str(cache / "heads" / "own-head.json")
    assert report.published_model == sa.resolve(sa.DEFAULT).model_id
    assert report.published is not None
    assert report.published.rmse == pytest.approx(np.sqrt((NOISE[:80] ** 2).mean()), abs=1e-5)
    assert report.published.pearson == pytest.approx(pearsonr(scores, rated).statistic, abs=1e-5)
    assert report.published.spearman == pytest.approx(spearmanr(scores, rated).statistic, abs=1e-9)
    assert sum(tenth.rows for tenth in report.published.calibration) == 80


def test_the_saved_predictor_scores_as_the_scorer_does(noisy: DataFrame, fitted: AestheticScorer) -> None:
    report, head = fitted.report, fitted.getPredictor()
    assert report is not None
    saved = Path(report.predictor)
    assert head.model_id == report.model == sa.resolve(str(saved)).model_id
    assert Path(head.head_weights).name == f"head-{str(head.head_sha256)[:12]}.safetensors"
    names = {"mine.json", "mine.report.json", Path(head.head_weights).name}
    assert {file.name for file in saved.parent.iterdir()} == names
    assert json.loads((saved.parent / "mine.report.json").read_text()) == json.loads(json.dumps(report.to_dict()))
    scored = fitted.transform(noisy).orderBy("stars").collect()
    weight, bias = head_of(fitted)
    expected = (EMBEDDINGS @ weight + bias)[np.argsort(NOISY)]
    assert [row.aesthetic_score for row in scored] == pytest.approx(expected, abs=1e-5)
    by_path = AestheticScorer(inputCol="e", inputKind="embedding", predictor=report.predictor)
    assert by_path.transform(noisy).orderBy("stars").collect() == scored


def test_a_folder_at_an_address_or_moved_keeps_its_head(noisy: DataFrame, make: Make, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    scorer = make(path="memory://bucket/heads").fit(noisy)
    assert scorer.report is not None
    assert scorer.report.predictor == "memory://bucket/heads/mine.json"
    assert len(memory.ls("/bucket/heads")) == 3
    head = sa.resolve("memory://bucket/heads/mine.json")
    assert head.head_weights.startswith("memory://bucket/heads/head-")
    # The head is fetched and verified, as every head at an address is.
    assert weights.load_head(head).dimension == WIDTH
    memory.get("/bucket/heads", str(tmp_path / "moved"), recursive=True)
    moved = sa.Predictor.load(tmp_path / "moved" / "mine.json")
    assert Path(moved.head_weights).parent == tmp_path / "moved"
    assert moved.model_id == head.model_id


def test_in_a_pipeline_that_is_saved(spark: SparkSession, noisy: DataFrame, make: Make, tmp_path: Path) -> None:
    pipeline = Pipeline(stages=[make(outputCol="mine")])
    pipeline.write().overwrite().save(str(tmp_path / "pipeline"))
    (stage,) = Pipeline.load(str(tmp_path / "pipeline")).getStages()
    assert stage.extractParamMap() == pipeline.getStages()[0].extractParamMap()
    model = pipeline.fit(noisy)
    model.write().overwrite().save(str(tmp_path / "model"))
    expected = model.transform(noisy).collect()
    assert expected[0].mine is not None
    assert PipelineModel.load(str(tmp_path / "model")).transform(noisy).collect() == expected


def test_params_are_set_got_and_explained() -> None:
    made = AestheticEstimator()
    assert (made.getInputCol(), made.getLabelCol(), made.getName()) == ("clip_embedding", "rating", "own-head")
    given = {
        "InputCol": "e", "LabelCol": "stars", "OutputCol": "s", "Name": "mine", "Path": "/heads",
        "Backbone": "ViT-B-32", "BackboneWeights": "b.safetensors", "BackboneSha256": "0" * 64, "NumFolds": 3,
        "RegParams": [0.5],
    }  # fmt: skip
    for name, value in given.items():
        assert getattr(made, f"set{name}")(value) is made
        assert getattr(made, f"get{name}")() == value
    explained = made.explainParams()
    for param in made.params:
        assert f"{param.name}: " in explained
    copied = made.copy({made.numFolds: 4})
    assert (copied.getNumFolds(), made.getNumFolds()) == (4, 3)


def test_a_wrong_argument_is_an_error_at_the_call() -> None:
    with pytest.raises(OptionError, match="numFolds=1: expected 2 to 20"):
        AestheticEstimator(numFolds=1)
    for wrong in ([], [0.0], [float("nan")]):
        with pytest.raises(OptionError, match=r"regParams=.*above zero"):
            AestheticEstimator(regParams=wrong)
    with pytest.raises(OptionError, match="did you mean 'numFolds'"):
        AestheticEstimator().setParams(numFold=3)
    with pytest.raises(OptionError, match="did you mean 'regParams'"):
        AestheticEstimator(regParam=[1.0])


def test_a_value_that_is_refused_leaves_the_stage_as_it_was() -> None:
    made = AestheticEstimator(numFolds=4, regParams=[0.5])
    for wrong in (
        {"numFolds": 21},
        {"numFolds": "x"},
        {"regParams": 0.1},
        {"name": 5},
        {"regParams": [1.0], "numFolds": 0},
    ):
        with pytest.raises(OptionError, match=r"=.*: expected"):
            made.setParams(**wrong)
    assert made.setName("x").getNumFolds() == 4
    assert made.getRegParams() == [0.5]
    made.setParams(numFolds=np.int32(3), regParams=np.array([0.25, 1], np.float32))
    assert (made.getNumFolds(), made.getRegParams()) == (3, [0.25, 1.0])


def test_params_that_pass_no_setter_are_checked_when_they_are_used(noisy: DataFrame, make: Make) -> None:
    stage = make()
    unread = noisy.withColumn("e", F.expr("array(float(raise_error('read')))"))
    grid = ParamGridBuilder().addGrid(stage.numFolds, [1, 2]).build()
    for fit in (
        lambda: stage.fit(unread, {stage.numFolds: 1}),
        lambda: stage.fit(unread, grid),
        lambda: Pipeline(stages=[stage.copy({stage.numFolds: 50})]).fit(unread),
        lambda: stage.copy({stage.numFolds: 0}).transformSchema(unread.schema),
    ):
        with pytest.raises(OptionError, match=r"numFolds=\d+: expected 2 to 20"):
            fit()
    with pytest.raises(OptionError, match=r"regParams=\[-1.0\]: expected numbers above zero"):
        stage.fit(unread, {stage.regParams: [-1.0]})
    with pytest.raises(OptionError, match="numFolds='two': expected"):
        stage.fit(unread, {stage.numFolds: "two"})
    assert stage.copy({stage.numFolds: None}).getNumFolds() == 5
    assert stage.fit(noisy, {stage.numFolds: 2}).report.num_folds == 2


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("photo array<float>, stars int", "inputCol: no column 'e'"),
        ("e array<float>, rating int", "labelCol: no column 'stars'"),
        ("e binary, stars int", "inputCol e: expected array<float>.*found binary"),
        ("e array<float>, stars string", "labelCol stars: expected a number, found string"),
    ],
)
def test_a_wrong_table_is_an_error_before_any_row(spark: SparkSession, make: Make, schema: str, message: str) -> None:
    with pytest.raises(TableError, match=message):
        make().transformSchema(StructType.fromDDL(schema))
    with pytest.raises(TableError, match=message):
        make().fit(spark.createDataFrame([], schema))


def test_the_schema_is_that_of_the_scorer(make: Make) -> None:
    schema = StructType.fromDDL("e array<float>, stars decimal(3,1)")
    expected = StructType.fromDDL("e array<float>, stars decimal(3,1), s float")
    assert make(outputCol="s").transformSchema(schema) == expected
    with pytest.raises(TableError, match="output column 'stars': the table has a column of that name"):
        make(outputCol="stars").transformSchema(schema)


def test_what_cannot_be_saved_or_named_is_an_error_before_any_row(spark: SparkSession, make: Make) -> None:
    # Reading a row of this table would raise a different error.
    unread = spark.range(1).select(F.expr("array(float(raise_error('read')))").alias("e"), F.lit(1).alias("stars"))
    for path in ("/proc/no/heads", "nosuch://bucket/heads"):
        with pytest.raises(OptionError, match="path: expected a folder that can be written"):
            make(path=path).fit(unread)
    with pytest.raises(OptionError, match="backboneWeights: expected the file of backbone 'ViT-H-14'"):
        make(backbone="ViT-H-14", backboneWeights=None).fit(unread)
    with pytest.raises(PredictorError, match="Rename it"):
        make(name="my head").fit(unread)
    with pytest.raises(PredictorError, match="untrained-"):
        make(backboneWeights="untrained:0", backboneSha256=None).fit(unread)


def test_rows_that_make_no_head_are_an_error(noisy: DataFrame, make: Make) -> None:
    with pytest.raises(TableError, match="expected ratings that differ, found 3 in all 600 rows"):
        make().fit(noisy.withColumn("stars", F.lit(3.0)))
    few = noisy.limit(30).union(noisy.limit(2).withColumn("stars", F.lit(None).cast("double")))
    with pytest.raises(TableError, match=r"at least 50 rows .* 5 folds, found 30, and left out: 2 \(rating: null\)"):
        make().fit(few)
    with pytest.raises(TableError, match="in each of 5 folds, found them in 1"):
        make().fit(noisy.withColumn("e", F.lit(EMBEDDINGS[0].tolist()).cast("array<float>")))
    with pytest.raises(TableError, match="expected 768 numbers of ViT-L-14-quickgelu, found 12"):
        make(backbone=None, backboneWeights=None).fit(noisy)
    with pytest.raises(TableError, match="expected embeddings, found only nulls"):
        make().fit(noisy.where("false"))


def test_the_job_fits_a_head_that_the_next_job_scores_with(
    spark: SparkSession, tmp_path: Path, run_here: RunHere
) -> None:
    table, out = str(tmp_path / "rated"), str(tmp_path / "heads")
    frame = frame_of(spark, EMBEDDINGS[:80], NOISY[:80]).withColumn("id", F.monotonically_increasing_id())
    frame.write.format("delta").save(table)
    report = run_here(
        "train_head.py", "--table", table, "--embedding-col", "e", "--label-col", "stars", "--name", "mine",
        "--out", out, "--backbone", "ViT-B-32", "--backbone-weights", "/models/mine.safetensors",
        "--backbone-sha256", "0" * 64,
    )  # fmt: skip
    assert (report["rows"], report["left_out"], report["predictor"]) == (80, {}, f"{out}/mine.json")
    scores = str(tmp_path / "scores")
    scored = sa.score_table(
        spark, source=table, key=["id"], embedding_col="e", scores=scores, predictor=f"{out}/mine.json",
        progress_file=io.StringIO(),
    )  # fmt: skip
    assert scored.model == report["model"]
    assert spark.read.format("delta").load(scores).where("aesthetic_score IS NOT NULL").count() == 80


def test_the_job_names_the_arguments_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["train_head", "--table", "t", "--label-col", "stars", "--name", "mine"])
    with pytest.raises(OptionError, match="the following arguments are required: --embedding-col, --out; see --help"):
        train_head_arguments()


def test_files_are_where_databricks_mounts_them(tmp_path: Path) -> None:
    assert files.absolute("dbfs:/heads") == "/dbfs/heads"
    assert files.absolute("file:/heads") == files.absolute("file:///heads") == "/heads"
    assert files.absolute("heads") == str(Path.cwd() / "heads")
    files.check_writable(str(tmp_path / "new"), "path")
    assert list((tmp_path / "new").iterdir()) == []


def test_first_rows_of_another_length_do_not_refuse_the_rest(
    spark: SparkSession, caplog: pytest.LogCaptureFixture
) -> None:
    def lengths(*sizes: int) -> DataFrame:
        rows = [([0.5] * size, 1.0, 0) for size in sizes]
        return spark.createDataFrame(rows, "embedding array<float>, rating double, fold int").coalesce(1)

    first_wrong = lengths(*[5] * 1200, 12, 12)
    assert ratings.width_of(first_wrong, 12, "ViT") == 12
    assert "expected 12 numbers of ViT, found 5 in the first 1000 rows" in caplog.text
    with pytest.raises(TableError, match=r"expected 7 numbers of ViT, found 5\. Set backbone"):
        ratings.width_of(first_wrong, 7, "ViT")
    # If the backbone's length is unknown, the order of the rows does not decide.
    for rows in (first_wrong, lengths(12, *[5] * 1200)):
        with pytest.raises(TableError, match="expected embeddings of one length, found 5, 12"):
            ratings.width_of(rows, None, "ViT")
    assert ratings.width_of(lengths(5, 5), None, "ViT") == 5
