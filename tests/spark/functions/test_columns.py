"""The column functions on a real session: every row and every kind of damage is evaluated once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import native, planned
from pyspark.errors import AnalysisException, PySparkException
from pyspark.ml.linalg import Vectors
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType
from safetensors.numpy import save_file

import spark_aesthetic as sa
from spark_aesthetic import functions
from spark_aesthetic.delta import schemas, sessions
from spark_aesthetic.errors import OptionError, PredictorError, TableError
from spark_aesthetic.functions import columns, inputs, udfs
from spark_aesthetic.images.pipeline import ImageScorer
from spark_aesthetic.predictors import weights
from spark_aesthetic.predictors.recipe import BUILT_IN, PACKAGED
from spark_aesthetic.testing import PUBLISHED_SCORES, noise_image, photographs, published_embeddings, small_predictor

SMALL = small_predictor()
MODEL = weights.pin(SMALL).model_id

BAD = {
    "null": None,
    "decode: empty": b"",
    "decode: not an image": b"no image",
    "decode: truncated JPEG": noise_image(0)[:-300],
    "decode: damaged PNG": b"\x89PNG\r\n\x1a\nrest",
    "decode: more pixels than max_pixels": noise_image(1, width=3000, height=2000, file_format="BMP"),
}


def images(spark: SparkSession, rows: list[bytes | None], partitions: int = 1) -> DataFrame:
    numbered = [(number, None if row is None else bytearray(row)) for number, row in enumerate(rows)]
    return spark.createDataFrame(numbered, "id int, image binary").repartition(partitions)


def python_nodes(frame: DataFrame) -> int:
    return planned(frame).count("ArrowEvalPython")


def expected_scores(rows: list[bytes | None]) -> list[float]:
    scorer = ImageScorer(weights.pin(SMALL), sa.Options(device="cpu", num_threads=2))
    return [float(score) for part in scorer.score(rows) for score in part.scores]


@pytest.mark.connect
def test_photographs_score_as_without_spark(spark: SparkSession) -> None:
    rows = list(photographs().values())
    scored = images(spark, rows).select("id", sa.aesthetic_score("image", predictor=SMALL).alias("score"))
    found = {row.id: row.score for row in scored.collect()}
    assert scored.schema["score"].dataType.simpleString() == "float"
    assert [found[number] for number in range(len(rows))] == pytest.approx(expected_scores(rows), abs=1e-5)


@pytest.mark.connect
def test_each_bad_row_has_a_reason_and_costs_no_other_row(spark: SparkSession) -> None:
    good = noise_image(2)
    rows = [row for bad in BAD.values() for row in (bad, good)]
    scored = images(spark, rows, 1).select(
        "id", sa.score_image("image", predictor=SMALL, max_pixels=10**6, batch_size=4).alias("s")
    )
    found = sorted(scored.select("id", "s.*").collect())
    assert [row.error for row in found] == [reason for bad in BAD for reason in (bad, None)]
    assert all((row.score is None) == (row.error is not None) for row in found)
    assert {row.model for row in found} == {MODEL}
    assert len({row.score for row in found}) == 2  # None, and the one score of the one good image


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [None],
        [None] * 20,
        [None, *[noise_image(3)] * 2],
        [noise_image(seed) for seed in range(15)],  # across Arrow batches of 7 and forward passes of 4
    ],
    ids=["none", "one null", "all null", "null first", "several batches"],
)
def test_any_number_of_rows_keeps_its_order(spark: SparkSession, rows: list[bytes | None]) -> None:
    scored = images(spark, rows, 1).select("id", sa.aesthetic_score("image", predictor=SMALL, batch_size=4).alias("s"))
    found = [float("nan") if row.s is None else row.s for row in sorted(scored.collect())]
    np.testing.assert_allclose(found, expected_scores(rows), atol=1e-5)


def test_an_empty_partition_is_no_error(spark: SparkSession) -> None:
    scored = images(spark, [noise_image(4)], 3).select(sa.aesthetic_score("image", predictor=SMALL).alias("s"))
    assert scored.where("s IS NOT NULL").count() == 1


def test_embeddings_are_unit_length_and_lead_to_the_same_score(spark: SparkSession) -> None:
    frame = images(spark, [noise_image(5), None])
    both = frame.select(
        sa.score_image("image", predictor=SMALL, with_embedding=True).alias("s"),
        sa.clip_embedding("image", predictor=SMALL).alias("e"),
    ).select("s.*", "e", sa.aesthetic_score_from_embedding("s.embedding", predictor=SMALL).alias("again"))
    first, second = sorted(both.collect(), key=lambda row: row.score is None)
    assert np.linalg.norm(first.e) == pytest.approx(1, abs=1e-6)
    assert first.e == pytest.approx(first.embedding, abs=1e-6)
    assert first.again == pytest.approx(first.score, abs=1e-5)
    assert (second.score, second.embedding, second.e, second.again, second.error) == (None, None, None, None, "null")


@pytest.mark.connect
def test_the_fields_of_score_image_are_one_evaluation(spark: SparkSession) -> None:
    scored = images(spark, [noise_image(6)]).select(sa.score_image("image", predictor=SMALL).alias("s"))
    assert python_nodes(scored.select("s.score", "s.error", "s.model")) == 1
    assert python_nodes(scored.where("s.score > 5").select("s.score", "s.error")) == 1


@pytest.mark.connect
def test_an_embedding_that_is_made_and_scored_in_one_query_is_made_once(spark: SparkSession) -> None:
    frame, made = images(spark, [noise_image(6), None]), sa.clip_embedding("image", predictor=SMALL)
    known = sa.score_image(made, predictor=SMALL, input_kind="embedding")
    for column in (known, sa.aesthetic_score_from_embedding(made, predictor=SMALL)):
        (line,) = (line for line in planned(frame.select(column)).splitlines() if "ArrowEvalPython" in line)
        assert line.count("clip_embedding(") == 1
    assert frame.select(known).columns == ["score_image"]
    made_at_once = frame.select(sa.score_image("image", predictor=SMALL).alias("s")).select("s.*")
    scored, unscored = sorted(frame.select(known.alias("s")).select("s.*").collect(), key=lambda row: row.score is None)
    assert scored.score == pytest.approx(made_at_once.first().score, abs=1e-5)  # type: ignore[union-attr]
    assert (unscored.score, unscored.error, unscored.model) == (None, "null", scored.model)


def test_a_filter_on_another_column_passes_below_aesthetic_score(spark: SparkSession, tmp_path: Path) -> None:
    images(spark, [noise_image(7)] * 4).write.parquet(str(tmp_path / "images"))
    scored = spark.read.parquet(str(tmp_path / "images")).withColumn("s", sa.aesthetic_score("image", predictor=SMALL))
    plan = planned(scored.where("id = 2"), "Optimized Logical Plan")
    assert plan.index("ArrowEvalPython") < plan.index("Filter")
    assert scored.where("id = 2").agg(F.count("s")).collect()[0][0] == 1


def test_aesthetic_score_stands_inside_an_aggregate(spark: SparkSession) -> None:
    rows = [noise_image(seed) for seed in (8, 9)]
    mean = images(spark, rows).agg(F.avg(sa.aesthetic_score("image", predictor=SMALL))).collect()[0][0]
    assert mean == pytest.approx(np.mean(expected_scores(rows)), abs=1e-5)


def test_a_text_column_is_refused_with_the_remedy(spark: SparkSession) -> None:
    frame = spark.createDataFrame([("photo.jpg",)], "image string")
    with pytest.raises(PySparkException, match=r"expected the bytes of image files \(binary\).*unbase64"):
        frame.select(sa.aesthetic_score("image", predictor=SMALL)).collect()


def test_wrong_arguments_are_errors_at_the_call() -> None:
    with pytest.raises(PredictorError, match="did you mean 'laion-aesthetics-v2'"):
        functions.aesthetic_score("image", predictor="laion-aesthetic-v2")
    with pytest.raises(OptionError, match="did you mean 'batch_size'"):
        functions.score_image("image", bach_size=3)  # type: ignore[call-arg]
    with pytest.raises(OptionError, match="max_pixels"):
        functions.clip_embedding("image", max_pixels=10**9)
    with pytest.raises(OptionError, match="input_kind=None: Valid: image, embedding"):
        functions.score_image("image", input_kind=None)  # type: ignore[arg-type]
    for predictor in (None, 5):
        with pytest.raises(PredictorError, match=f"predictor={predictor}: expected a Predictor, the name of one"):
            functions.aesthetic_score("image", predictor=predictor)  # type: ignore[arg-type]
    misspelt = replace(SMALL, backbone="ViT-S-23")
    for function in (functions.aesthetic_score, functions.clip_embedding, functions.score_image):
        with pytest.raises(PredictorError, match="no architecture 'ViT-S-23': did you mean 'ViT-S-32'"):
            function("image", predictor=misspelt)


@pytest.mark.parametrize(
    ("function", "misspelt", "meant"),
    [
        (functions.aesthetic_score, "predicter", "predictor"),
        (functions.clip_embedding, "predictr", "predictor"),
        (functions.image_embedding, "normalise", "normalize"),
        (functions.score_image, "inputkind", "input_kind"),
        (functions.score_image, "with_embeding", "with_embedding"),
        (functions.aesthetic_score_from_embedding, "vectr", "vector"),
        (sa.register, "prefx", "prefix"),
    ],
)
def test_a_misspelt_keyword_is_told_by_the_nearest_of_the_function_itself(
    function: Callable[..., object], misspelt: str, meant: str
) -> None:
    with pytest.raises(OptionError, match=f"no option '{misspelt}': did you mean '{meant}'"):
        function("any", **{misspelt: "x"})


def test_a_misspelt_keyword_of_a_job_is_told_too(spark: SparkSession) -> None:
    with pytest.raises(OptionError, match="no option 'scoers': did you mean 'scores'"):
        sa.score_table(spark, source="s", key=["id"], scoers="x")  # type: ignore[call-arg]


@pytest.mark.parametrize("name", [name for name, known in BUILT_IN.items() if known.head_weights.startswith(PACKAGED)])
def test_the_text_of_weights_is_short_and_is_them(spark: SparkSession, name: str) -> None:
    head = weights.load_head(weights.pin(sa.resolve(name)))
    (read,) = spark.sql(f"SELECT from_json('{head.weight_text}', 'array<float>')").collect()
    assert read[0] == head.weight.tolist()
    assert len(head.weight_text) < 12 * head.dimension


# Embeddings: the Spark expression and the pandas UDF must agree on every row.

UNIT = published_embeddings()[9].astype(float).tolist()
ODD_VECTORS = [
    (None, "null"),
    ([], "embedding: wrong length"),
    ([1.0], "embedding: wrong length"),
    ([float("nan"), *UNIT[1:]], "embedding: not finite"),
    ([float("inf"), *UNIT[1:]], "embedding: not finite"),
    ([0.0] * 768, "embedding: zero norm"),
    ([1e-30] * 768, "embedding: zero norm"),  # its square is 0 in float32
    ([1e30] * 768, "embedding: not finite"),  # its square overflows float32
]


def score_rows(column: object, frame: DataFrame) -> list[tuple[float | None, str | None]]:
    found = frame.select("id", column.alias("s")).select("id", "s.score", "s.error")  # type: ignore[attr-defined]
    return [(row.score, row.error) for row in sorted(found.collect(), key=lambda row: row.id)]


def both_ways(frame: DataFrame, *, vector: bool = False) -> list[list[tuple[float | None, str | None]]]:
    pinned = weights.pin(sa.resolve(sa.DEFAULT))
    native = columns.embedding_columns("e", predictor=pinned, vector=vector)
    return [score_rows(native, frame), score_rows(udfs.vector_udf(pinned, True, None)("e"), frame)]


@pytest.mark.connect
@pytest.mark.parametrize("kind", ["array<float>", "array<double>", "vector"])
@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_published_embeddings_have_the_published_scores(spark: SparkSession, kind: str, scale: float) -> None:
    vectors = [(number, (scale * row.astype(float)).tolist()) for number, row in enumerate(published_embeddings())]
    if kind == "vector":
        frame = spark.createDataFrame([(number, Vectors.dense(row)) for number, row in vectors], ["id", "e"])
    else:
        frame = spark.createDataFrame(vectors, f"id int, e {kind}")
    for found in both_ways(frame, vector=kind == "vector"):
        assert [score for score, _ in found] == pytest.approx(PUBLISHED_SCORES, abs=6e-4)
        assert {error for _, error in found} == {None}


@pytest.mark.parametrize("kind", ["array<float>", "array<double>", "vector"])
def test_odd_embeddings_have_their_reason(spark: SparkSession, kind: str) -> None:
    rows = [row for row, _ in ODD_VECTORS] + [UNIT]
    reasons = [reason for _, reason in ODD_VECTORS] + [None]
    if kind == "vector":
        rows = [None if row is None else Vectors.dense(row) for row in rows]
        frame = spark.createDataFrame(list(enumerate(rows)), ["id", "e"])
    else:
        frame = spark.createDataFrame(list(enumerate(rows)), f"id int, e {kind}")
    for found in both_ways(frame, vector=kind == "vector"):
        assert [error for _, error in found] == reasons
        assert [score is None for score, _ in found] == [reason is not None for reason in reasons]


def test_a_null_inside_an_embedding_is_not_finite(spark: SparkSession) -> None:
    frame = spark.createDataFrame([(0, [None, *UNIT[1:]])], "id int, e array<float>")
    for found in both_ways(frame):
        assert found == [(None, "embedding: not finite")]


def test_a_sparse_vector_scores_as_its_dense_form(spark: SparkSession) -> None:
    rows = [(0, Vectors.sparse(768, {3: 2.0})), (1, Vectors.dense([2.0 * (at == 3) for at in range(768)]))]
    for found in both_ways(spark.createDataFrame(rows, ["id", "e"]), vector=True):
        assert found[0] == found[1]
        assert found[0][1] is None


def test_an_embedding_at_right_angles_to_the_weights_scores_as_the_bias(spark: SparkSession) -> None:
    head = weights.load_head(weights.pin(sa.resolve(sa.DEFAULT)))
    row = [float(head.weight[1]), -float(head.weight[0]), *[0.0] * 766]
    for found in both_ways(spark.createDataFrame([(0, row)], "id int, e array<float>")):
        assert found == [(pytest.approx(head.bias, abs=1e-6), None)]


def test_weights_of_all_zeros_score_as_the_bias(spark: SparkSession, tmp_path: Path) -> None:
    file = tmp_path / "zeros.safetensors"
    save_file({"weight": np.zeros((1, 768), np.float32), "bias": np.full(1, 4.0, np.float32)}, file)
    zeros = sa.Predictor(
        name="untrained-zeros", backbone="ViT-L-14-quickgelu", backbone_weights="untrained:0", head_weights=str(file)
    )
    column = sa.aesthetic_score_from_embedding("e", predictor=zeros)
    assert spark.createDataFrame([(UNIT,)], "e array<float>").select(column).collect() == [(4.0,)]


def test_without_normalisation_the_length_counts_and_zeros_score_as_the_bias(spark: SparkSession) -> None:
    head = weights.load_head(weights.pin(sa.resolve(sa.DEFAULT)))
    rows = [UNIT, [2 * value for value in UNIT], [0.0] * 768, [float("nan"), *UNIT[1:]], [None, *UNIT[1:]], [1.0], None]
    frame = spark.createDataFrame(list(enumerate(rows)), "id int, e array<float>").orderBy("id")
    native = sa.aesthetic_score_from_embedding("e", normalize=False)
    by_udf = udfs.vector_udf(weights.pin(sa.resolve(sa.DEFAULT)), False, None)("e").getField("score")
    for column in (native, by_udf):
        unit, double, zeros, *odd = (score for (score,) in frame.select(column).collect())
        assert zeros == pytest.approx(head.bias, abs=1e-5)
        assert double - zeros == pytest.approx(2 * (unit - zeros), abs=1e-5)
        assert odd == [None] * 4


@native
@pytest.mark.parametrize("normalize", [True, False])
def test_an_embedding_is_read_once(
    spark: SparkSession, tmp_path: Path, capsys: pytest.CaptureFixture[str], normalize: bool
) -> None:
    # The rows come from a file, because a local relation is computed before any code is generated.
    spark.createDataFrame([(UNIT,)], "e array<float>").write.parquet(str(tmp_path / "rows"))
    frame = spark.read.parquet(str(tmp_path / "rows"))
    sa.register(spark)
    in_sql = F.expr("aesthetic_score_from_embedding(e)")
    score = functions.aesthetic_score_from_embedding("e", normalize=normalize)
    with_reason = columns.embedding_columns("e", predictor=weights.pin(sa.resolve(sa.DEFAULT)))
    for column in [score, *([in_sql, with_reason] if normalize else [])]:
        capsys.readouterr()
        frame.select(column).explain("codegen")
        code = capsys.readouterr().out
        used, unused = ("CosineSimilarity", "InnerProduct") if normalize else ("InnerProduct", "CosineSimilarity")
        assert code.count(f"expressions.VectorFunctionImplUtils.vector{used}(") == 1
        assert code.count(f"expressions.VectorFunctionImplUtils.vector{unused}(") == 0
        # The norm is computed only in branches: for a similarity of 0, which may be an overflow, and for the reason of
        # a null.
        norms = 2 if column is with_reason else int(normalize)
        assert code.count("expressions.VectorFunctionImplUtils.vectorNorm(") == norms


@native
def test_an_affine_head_needs_no_python_worker(spark: SparkSession) -> None:
    frame = spark.createDataFrame([(UNIT,)], "e array<float>").select(sa.aesthetic_score_from_embedding("e"))
    assert python_nodes(frame) == 0
    assert frame.columns == ["aesthetic_score_from_embedding"]


@pytest.fixture
def relu_predictor(tmp_path: Path) -> sa.Predictor:
    generator = np.random.default_rng(0)
    tensors = {}
    for at, shape in zip((0, 3, 6, 9, 11), ((8, 768), (8, 8), (8, 8), (8, 8), (1, 8)), strict=True):
        tensors[f"layers.{at}.weight"] = generator.standard_normal(shape).astype(np.float32)
        tensors[f"layers.{at}.bias"] = generator.standard_normal(shape[0]).astype(np.float32)
    save_file(tensors, tmp_path / "relu.safetensors")
    return sa.Predictor(
        name="untrained-relu",
        backbone="ViT-L-14-quickgelu",
        backbone_weights="untrained:0",
        head_weights=str(tmp_path / "relu.safetensors"),
    )


def test_a_head_with_relu_runs_as_a_pandas_udf(spark: SparkSession, relu_predictor: sa.Predictor) -> None:
    embeddings = published_embeddings()
    rows = [(number, row.astype(float).tolist()) for number, row in enumerate(embeddings)]
    frame = spark.createDataFrame([*rows, (10, None)], "id int, e array<float>")
    scored = frame.select("id", sa.aesthetic_score_from_embedding("e", predictor=relu_predictor).alias("s"))
    assert python_nodes(scored) == 1
    *found, last = [row.s for row in sorted(scored.collect())]
    head = weights.load_head(weights.pin(relu_predictor))
    assert not head.affine
    assert found == pytest.approx(head(embeddings).tolist(), abs=1e-4)
    assert last is None


@pytest.mark.connect
@pytest.mark.parametrize("native_head", [True, False])
@pytest.mark.parametrize("value", ["id", "CAST(id AS STRING)", "struct(id)", "X'00'"])
def test_a_column_that_holds_no_embeddings_is_an_error_when_the_query_is_analysed(
    spark: SparkSession, relu_predictor: sa.Predictor, native_head: bool, value: str
) -> None:
    predictor = sa.DEFAULT if native_head else relu_predictor
    frame = spark.range(2).selectExpr(f"{value} AS e")
    for column in (
        sa.aesthetic_score_from_embedding("e", predictor=predictor),
        sa.score_image("e", predictor=predictor, input_kind="embedding"),
    ):
        with pytest.raises(AnalysisException) as raised:
            _ = frame.select(column).schema
        # The plan, with the weights in it, is below the first line.
        assert "cannot cast" in str(raised.value).splitlines()[0]


def test_scoring_embeddings_needs_the_head_alone_and_making_them_the_backbone_alone(spark: SparkSession) -> None:
    v2 = sa.resolve(sa.DEFAULT)
    head_alone = replace(v2, name="head", backbone_weights="/nowhere/clip.safetensors", backbone_sha256=None)
    frame = spark.createDataFrame([(UNIT, bytearray(noise_image(0)))], "e array<float>, image binary")
    score = frame.select(sa.aesthetic_score_from_embedding("e", predictor=head_alone).alias("s")).collect()[0].s
    assert score == pytest.approx(PUBLISHED_SCORES[9], abs=6e-4)
    backbone_alone = replace(SMALL, head_weights="/nowhere/head.safetensors", head_sha256=None)
    row = frame.select(
        sa.clip_embedding("image", predictor=backbone_alone).alias("found"),
        sa.clip_embedding("image", predictor=SMALL).alias("expected"),
    ).collect()[0]
    assert row.found == row.expected


# SQL


@pytest.mark.connect
def test_sql_has_the_same_functions(spark: SparkSession) -> None:
    sa.register(spark, predictor=SMALL, prefix="small_", max_pixels=10**6)
    images(spark, [noise_image(10), *BAD.values()]).createOrReplaceTempView("sql_images")
    rows = spark.sql(
        "SELECT id, s.*, small_aesthetic_score(image) AS alone, size(small_clip_embedding(image)) AS length "
        "FROM (SELECT id, image, small_score_image(image) AS s FROM sql_images) ORDER BY id"
    ).collect()
    assert [row.error for row in rows] == [None, *BAD]
    assert rows[0].alone == pytest.approx(rows[0].score, abs=1e-6)
    assert rows[0].length == 384
    assert [row.alone for row in rows[1:]] == [None] * len(BAD)


@pytest.mark.parametrize("kind", ["array<float>", "array<double>"])
def test_sql_scores_embeddings_as_the_column_function_does(spark: SparkSession, kind: str) -> None:
    sa.register(spark)
    sa.register(spark, predictor="laion-aesthetics-v1", prefix="v1_")
    rows = [row for row, _ in ODD_VECTORS] + published_embeddings().astype(float).tolist()
    frame = spark.createDataFrame(list(enumerate(rows)), f"id int, e {kind}")
    frame.createOrReplaceTempView("sql_embeddings")
    query = "SELECT id, aesthetic_score_from_embedding(e) AS v2, v1_aesthetic_score_from_embedding(e) AS v1"
    found = sorted(spark.sql(f"{query} FROM sql_embeddings").collect())
    for name, predictor in (("v2", "laion-aesthetics-v2"), ("v1", "laion-aesthetics-v1")):
        column = sa.aesthetic_score_from_embedding("e", predictor=predictor).alias("s")
        expected = [row.s for row in sorted(frame.select("id", column).collect())]
        assert [row[name] for row in found] == pytest.approx(expected, abs=1e-5)
    assert [row.v2 for row in found[len(ODD_VECTORS) :]] == pytest.approx(PUBLISHED_SCORES, abs=6e-4)


def test_sql_scores_embeddings_with_a_relu_head_too(spark: SparkSession, relu_predictor: sa.Predictor) -> None:
    sa.register(spark, predictor=relu_predictor, prefix="relu_")
    frame = spark.createDataFrame([(UNIT,)], "e array<float>")
    expected = float(weights.load_head(weights.pin(relu_predictor))(published_embeddings()[9:])[0])
    assert frame.selectExpr("relu_aesthetic_score_from_embedding(e) AS s").collect()[0].s == pytest.approx(
        expected, abs=1e-4
    )
    for value, found in (("1", "int 1"), ("X'00'", "bytes"), ("struct(1 AS x)", "a struct of x"), ("'a'", "str a")):
        with pytest.raises(Exception, match=rf"embedding column: expected array<float>, .*found {found}"):
            frame.selectExpr(f"relu_aesthetic_score_from_embedding({value}) AS s").collect()


def test_a_predictor_is_registered_in_the_place_of_one_of_another_kind(
    spark: SparkSession, relu_predictor: sa.Predictor
) -> None:
    frame = spark.createDataFrame([(UNIT,)], "e array<float>")
    scores = []
    for predictor in (sa.DEFAULT, relu_predictor, sa.DEFAULT):
        sa.register(spark, predictor=predictor, prefix="again_")
        scores.append(frame.selectExpr("again_aesthetic_score_from_embedding(e) AS s").collect()[0].s)
    assert scores[0] == scores[2] != scores[1]


def test_sql_filters_and_aggregates_by_score(spark: SparkSession) -> None:
    sa.register(spark, predictor=SMALL)
    images(spark, [noise_image(11), None]).createOrReplaceTempView("sql_two")
    assert spark.sql("SELECT id FROM sql_two WHERE aesthetic_score(image) IS NOT NULL").count() == 1
    assert spark.sql("SELECT count(aesthetic_score(image)) AS n FROM sql_two").collect()[0].n == 1


@pytest.mark.connect
def test_a_column_is_found_by_its_name_whatever_it_is_and_else_by_its_path(spark: SparkSession) -> None:
    rows = spark.sql(
        """SELECT named_struct('bytes', X'01', 'path', 'a', 'of original', named_struct('raw', X'02')) AS photo,
        X'03' AS `photo.path`, X'04' AS `a``b`"""
    )
    for given, expected in {
        "PHOTO.bytes": b"\x01", "photo.`of original`.raw": b"\x02", "photo.path": b"\x03", "Photo.Path": b"\x03",
        "a`b": b"\x04",
    }.items():  # fmt: skip
        assert bytes(rows.select(schemas.column_path(rows, given)).collect()[0][0]) == expected
    with pytest.raises(
        TableError,
        match=r"--image-col photo: expected binary .* Name its field bytes or `of original`.raw: "
        r"--image-col photo.bytes",
    ):
        inputs.check_image_type(rows.schema["photo"].dataType, "--image-col photo")
    # Spark's image source gives pixels, not the bytes of files.
    with pytest.raises(TableError, match=r"inputCol image: .*Read files with format binaryFile"):
        inputs.check_image_type(StructType.fromDDL("height int, nChannels int, data binary"), "inputCol image")


@pytest.mark.connect
@pytest.mark.parametrize("function", ["score_image", "aesthetic_score", "clip_embedding"])
def test_an_image_in_a_struct_is_named_by_its_path(spark: SparkSession, function: str) -> None:
    score = partial(getattr(sa, function), predictor=SMALL)
    row = (1, (bytearray(noise_image(1)), "a.jpg"), "text")
    frame = spark.createDataFrame([row], "id int, image struct<bytes: binary, path: string>, name string")
    plain = images(spark, [noise_image(1)])
    scored = frame.select(score("image.bytes"))
    assert scored.columns == [f"{function}(image.bytes)"]
    assert scored.collect()[0][0] == plain.select(score("image")).collect()[0][0]
    # Nothing of the check is left in the plan.
    for made in (scored, plain.select(score(F.col("image")))):
        assert "CASE" not in planned(made, "Optimized Logical Plan")
        assert "raise_error" not in planned(made)
    for wrong in ("image", F.col("image")):
        with pytest.raises(AnalysisException, match=r"name the field of a struct, as in image\.bytes"):
            _ = frame.select(score(wrong)).schema
    with pytest.raises(Exception, match="expected the bytes of image files"):
        frame.select(score("name").alias("s")).collect()


def test_batches_that_are_large_by_default_are_told(spark: SparkSession, caplog: pytest.LogCaptureFixture) -> None:
    name = "spark.sql.execution.arrow.pythonUDF.columnarInput.enabled"
    with sessions.settings(spark, {name: None}):
        large = sessions.setting(spark, name) == "true"
        inputs.warn_of_large_batches(spark)
    assert (name in caplog.text) == large
    assert sessions.setting(spark, "spark.sql.no.such.setting") is None
    caplog.clear()
    inputs.warn_of_large_batches(spark)
    assert not caplog.text
