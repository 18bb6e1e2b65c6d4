"""The stage for pyspark.ml: params, schemas, pipelines, saving and loading."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.linalg import Vectors
from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

import spark_aesthetic as sa
from spark_aesthetic import AestheticScorer
from spark_aesthetic.errors import OptionError, PredictorError, TableError
from spark_aesthetic.testing import PUBLISHED_SCORES, noise_image, published_embeddings, small_predictor

pytestmark = pytest.mark.connect

EMBEDDINGS = [row.astype(float).tolist() for row in published_embeddings()]


def test_images_get_score_reason_and_embedding(spark: SparkSession) -> None:
    rows = [(1, bytearray(noise_image(1))), (2, None)]
    frame = spark.createDataFrame(rows, "id int, image binary")
    small = small_predictor()
    scorer = AestheticScorer(inputCol="image", predictor=small, errorCol="reason", embeddingCol="e", batchSize=2)
    scored = scorer.transform(frame)
    assert scored.columns == ["id", "image", "aesthetic_score", "reason", "e"]
    assert scored.schema == scorer.transformSchema(frame.schema)
    good, bad = sorted(scored.collect())
    expected = frame.where("id = 1").select(sa.score_image("image", predictor=small, with_embedding=True).alias("s"))
    assert (good.aesthetic_score, good.reason, good.e) == (
        pytest.approx(expected.collect()[0].s.score, abs=1e-5), None,
        pytest.approx(expected.collect()[0].s.embedding, abs=1e-6),
    )  # fmt: skip
    assert (bad.aesthetic_score, bad.reason, bad.e) == (None, "null", None)


@pytest.mark.parametrize("kind", ["array<float>", "array<double>", "vector"])
def test_embeddings_of_every_type_score(spark: SparkSession, kind: str) -> None:
    rows = [(at, Vectors.dense(row) if kind == "vector" else row) for at, row in enumerate(EMBEDDINGS)]
    frame = spark.createDataFrame(rows, ["id", "e"] if kind == "vector" else f"id long, e {kind}")
    scored = AestheticScorer(inputCol="e", inputKind="embedding", outputCol="s").transform(frame)
    assert [row.s for row in sorted(scored.select("id", "s").collect())] == pytest.approx(PUBLISHED_SCORES, abs=6e-4)


def test_a_stage_in_a_pipeline_is_saved_and_loaded_with_its_own_predictor(spark: SparkSession, tmp_path: Path) -> None:
    frame = spark.createDataFrame([(EMBEDDINGS[4],)], "e array<float>")
    v1 = sa.resolve("laion-aesthetics-v1")
    own = sa.Predictor(
        name="own", backbone=v1.backbone, backbone_weights=v1.backbone_weights, backbone_sha256=v1.backbone_sha256,
        head_weights=v1.head_weights, head_sha256=v1.head_sha256,
    )  # fmt: skip
    stage = AestheticScorer(inputCol="e", inputKind="embedding", predictor=own, outputCol="mine", normalize=False)
    model = Pipeline(stages=[AestheticScorer(inputCol="e", inputKind="embedding"), stage]).fit(frame)
    expected = model.transform(frame).collect()
    assert expected[0].mine != expected[0].aesthetic_score
    model.write().overwrite().save(str(tmp_path / "pipeline"))
    loaded = PipelineModel.load(str(tmp_path / "pipeline"))
    assert loaded.transform(frame).collect() == expected
    assert loaded.stages[1].getPredictor() == own
    assert loaded.stages[1].uid == stage.uid
    stage.save(str(tmp_path / "stage"))
    saved = spark.read.json(str(tmp_path / "stage" / "metadata")).collect()[0]
    # A saved stage outlives the module that it is in today.
    assert saved["class"] == "spark_aesthetic.AestheticScorer"
    alone = AestheticScorer.load(str(tmp_path / "stage"))
    assert alone.getNormalize() is False
    assert alone.extractParamMap() == stage.extractParamMap()


def test_params_are_set_got_and_explained() -> None:
    scorer = AestheticScorer().setInputCol("photo").setBatchSize(8).setDecode("fast").setErrorCol("why")
    assert (scorer.getInputCol(), scorer.getBatchSize(), scorer.getDecode()) == ("photo", 8, "fast")
    assert (scorer.getErrorCol(), scorer.getOutputCol(), scorer.getModelPath()) == ("why", "aesthetic_score", None)
    explained = scorer.explainParams()
    for param in scorer.params:
        assert f"{param.name}: " in explained
    own = small_predictor()
    copied = scorer.copy({scorer.decode: "exact", scorer.predictor: own})
    assert (copied.getDecode(), scorer.getDecode()) == ("exact", "fast")
    assert (copied.getPredictor(), scorer.getPredictor().name) == (own, sa.DEFAULT)


def test_a_param_that_a_copy_sets_to_none_is_saved_and_loaded(spark: SparkSession, tmp_path: Path) -> None:
    scorer = AestheticScorer(inputCol="image", errorCol="why")
    scorer.copy({scorer.errorCol: None}).save(str(tmp_path / "stage"))
    assert AestheticScorer.load(str(tmp_path / "stage")).getErrorCol() is None


def test_a_value_that_is_refused_leaves_the_stage_as_it_was() -> None:
    scorer = AestheticScorer(inputCol="image", decode="fast")
    for wrong in ({"decode": "exat"}, {"outputCol": "s", "errorCol": "S"}, {"maxPixels": 7, "batchSize": "many"}):
        with pytest.raises(OptionError):
            scorer.setParams(**wrong)
    assert (scorer.setNumThreads(1).getDecode(), scorer.getOutputCol()) == ("fast", "aesthetic_score")
    assert scorer.getMaxPixels() == AestheticScorer().getMaxPixels()


def test_params_of_one_call_are_checked_by_it(spark: SparkSession) -> None:
    frame = spark.createDataFrame([(EMBEDDINGS[4],)], "e array<float>")
    scorer = AestheticScorer(inputCol="e", inputKind="embedding")
    for given, said in (
        ({scorer.decode: "exat"}, "did you mean 'exact'"),
        ({scorer.inputKind: "embeddings"}, "did you mean 'embedding'"),
        ({scorer.numThreads: 0}, "num_threads=0: expected a whole number"),
        ({scorer.batchSize: "many"}, "batchSize='many': expected"),
        ({scorer.inputCol: 5}, "inputCol=5: expected"),
        ({scorer.normalize: "yes"}, "normalize='yes': expected"),
    ):
        with pytest.raises(OptionError, match=said):
            scorer.transform(frame, given)
        with pytest.raises(OptionError, match=said):
            scorer.copy(given).transformSchema(frame.schema)
    assert scorer.setMaxPixels(np.int32(7)).getMaxPixels() == 7


def test_an_image_in_a_struct_is_scored_and_the_struct_itself_is_refused(spark: SparkSession) -> None:
    row = (1, (bytearray(noise_image(1)), "a.jpg"))
    frame = spark.createDataFrame([row], "id int, image struct<bytes: binary, path: string>")
    scored = AestheticScorer(inputCol="Image.bytes", predictor=small_predictor(), errorCol="reason").transform(frame)
    assert (scored.collect()[0].reason, scored.collect()[0].aesthetic_score is None) == (None, False)
    for wrong, said in (("image", "Name its field bytes: inputCol image.bytes"), ("image.path", "found string")):
        with pytest.raises(TableError, match=said):
            AestheticScorer(inputCol=wrong).transformSchema(frame.schema)
    with pytest.raises(TableError, match=r"inputCol: no column 'image\.byte'"):
        AestheticScorer(inputCol="image.byte").transform(frame)


def test_a_table_with_two_columns_of_one_name_keeps_both(spark: SparkSession) -> None:
    left, right = (spark.createDataFrame([(1, EMBEDDINGS[4])], "id int, e array<float>").alias(at) for at in "lr")
    joined = left.join(right.select("id").alias("r"), F.col("l.id") == F.col("r.id"))
    scored = AestheticScorer(inputCol="e", inputKind="embedding").transform(joined)
    assert scored.columns == ["id", "e", "id", "aesthetic_score"]
    assert scored.select("aesthetic_score").collect()[0][0] == pytest.approx(PUBLISHED_SCORES[4], abs=6e-4)


def test_a_wrong_argument_is_an_error_at_the_call() -> None:
    with pytest.raises(PredictorError, match="did you mean 'laion-aesthetics-v2'"):
        AestheticScorer(inputCol="x", predictor="laion-aesthetic-v2")
    with pytest.raises(OptionError, match="did you mean 'embedding'"):
        AestheticScorer(inputCol="x", inputKind="embeding")
    with pytest.raises(OptionError, match="did you mean 'exact'"):
        AestheticScorer(inputCol="x").setDecode("exat")
    with pytest.raises(OptionError, match="did you mean 'batchSize'"):
        AestheticScorer().setParams(batchsize=3)
    with pytest.raises(OptionError, match="did you mean 'decode'"):
        AestheticScorer(decod="fast")
    with pytest.raises(OptionError, match="expected inputKind='image'"):
        AestheticScorer(inputCol="e", inputKind="embedding", embeddingCol="e2")
    for twice in ({"errorCol": "aesthetic_score"}, {"outputCol": "s", "embeddingCol": "S"}):
        with pytest.raises(OptionError, match=r"expected a different name for each, found (aesthetic_score|s, S)"):
            AestheticScorer(inputCol="image", **twice)


@pytest.mark.parametrize(
    ("schema", "kind", "message"),
    [
        ("photo binary", "image", "no column 'image'"),
        ("image string", "image", "expected binary.*found string"),
        ("image binary", "embedding", "expected array<float>.*found binary"),
        ("image binary, aesthetic_score int", "image", "the table has a column of that name"),
    ],
)
def test_a_wrong_table_is_an_error_before_any_row(spark: SparkSession, schema: str, kind: str, message: str) -> None:
    scorer = AestheticScorer(inputCol="image", inputKind=kind)
    with pytest.raises(TableError, match=message):
        scorer.transformSchema(StructType.fromDDL(schema))
    with pytest.raises(TableError, match=message):
        scorer.transform(spark.createDataFrame([], schema))


def test_an_input_that_was_not_named_is_an_error(spark: SparkSession) -> None:
    with pytest.raises(OptionError, match="inputCol: expected the name of a column"):
        AestheticScorer().transform(spark.createDataFrame([], "image binary"))
