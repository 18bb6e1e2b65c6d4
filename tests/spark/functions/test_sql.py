"""The functions in SQL: in every part of a query, and as the text of a statement for a catalog."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import native
from pyspark.errors import AnalysisException
from pyspark.sql import SparkSession

import spark_aesthetic as sa
from spark_aesthetic.errors import OptionError, PredictorError, WeightsNotFoundError
from spark_aesthetic.testing import PUBLISHED_SCORES, noise_image, published_embeddings, small_predictor

UNIT = published_embeddings()[9].astype(float).tolist()
ODD_VECTORS = [
    None, [], [1.0], [float("nan"), *UNIT[1:]], [float("inf"), *UNIT[1:]], [None, *UNIT[1:]], [0.0] * 768,
    [1e-30] * 768, [1e30] * 768, [2.5 * x for x in UNIT],
]  # fmt: skip


@pytest.fixture
def vectors(spark: SparkSession) -> None:
    rows = [row.astype(float).tolist() for row in published_embeddings()] + ODD_VECTORS
    frame = spark.createDataFrame(list(enumerate(rows)), "id int, e array<float>")
    frame.createOrReplaceTempView("vectors")


@pytest.mark.parametrize("portable", [pytest.param(False, marks=native), True])
@pytest.mark.parametrize("predictor", ["laion-aesthetics-v2", "laion-aesthetics-v1"])
def test_the_function_of_the_text_scores_as_the_package_does(
    spark: SparkSession, vectors: None, predictor: str, portable: bool
) -> None:
    name = f"from_text_{int(portable)}"
    spark.sql(sa.create_function_ddl(name, predictor=predictor, portable=portable))
    try:
        scored = spark.table("vectors").select("id", sa.aesthetic_score_from_embedding("e", predictor=predictor))
        expected = dict(map(tuple, scored.collect()))
        found = dict(map(tuple, spark.sql(f"SELECT id, {name}(e) FROM vectors").collect()))
        assert [key for key, score in found.items() if score is None] == [10, 11, 12, 13, 14, 15, 16, 17, 18]
        assert found == {
            key: value if value is None else pytest.approx(value, abs=1e-5) for key, value in expected.items()
        }
    finally:
        spark.sql(f"DROP FUNCTION {name}")


def test_the_function_of_the_text_says_what_it_is(spark: SparkSession) -> None:
    spark.sql(sa.create_function_ddl("described"))
    try:
        said = "\n".join(row[0] for row in spark.sql("DESCRIBE FUNCTION EXTENDED described").collect())
        assert "laion-aesthetics-v2@875870216cca" in said
        assert sa.resolve(sa.DEFAULT).head_sha256 in said
        assert "Apache-2.0" in said
    finally:
        spark.sql("DROP FUNCTION described")


def test_a_head_that_is_not_affine_has_no_text(published_heads: Path) -> None:
    predictor = sa.resolve("laion-aesthetics-v2-ava-relu")
    with pytest.raises(PredictorError, match=r"expected an affine head.*laion-aesthetics-v2,"):
        sa.create_function_ddl("relu", predictor=predictor, model_path=str(published_heads))


@pytest.mark.connect
def test_registered_functions_stand_wherever_a_query_has_a_column(
    spark: SparkSession, vectors: None, tmp_path: Path
) -> None:
    sa.register(spark)
    score = "aesthetic_score_from_embedding(e)"
    best = spark.sql(
        f"SELECT id, {score} AS s FROM vectors WHERE {score} > 5.5 ORDER BY round(s, 3) DESC, id"
    ).collect()
    # Row 19 is 2.5 times row 9, so both have the same score.
    assert [row.id for row in best] == [9, 19, 8]
    spark.sql(f"CREATE OR REPLACE TEMPORARY VIEW scored AS SELECT id, {score} AS score FROM vectors")
    assert spark.table("scored").where("id = 3").collect()[0].score == pytest.approx(PUBLISHED_SCORES[3], abs=6e-4)
    best_of_all = spark.sql(f"SELECT max({score}) FROM vectors").collect()[0][0]
    assert best_of_all == pytest.approx(max(PUBLISHED_SCORES), abs=6e-4)
    table = f"delta.`{tmp_path / 'ctas'}`"
    spark.sql(f"CREATE TABLE {table} USING delta AS SELECT id, {score} AS score FROM vectors WHERE id < 2")
    spark.sql(
        f"MERGE INTO {table} AS t USING (SELECT id, {score} AS score FROM vectors WHERE id BETWEEN 1 AND 3) AS s "
        "ON t.id = s.id WHEN MATCHED THEN UPDATE SET score = s.score + 10 WHEN NOT MATCHED THEN INSERT *"
    )
    found = {row.id: row.score for row in spark.table(table).collect()}
    expected = {0: PUBLISHED_SCORES[0], 1: PUBLISHED_SCORES[1] + 10, 2: PUBLISHED_SCORES[2], 3: PUBLISHED_SCORES[3]}
    assert found == {key: pytest.approx(value, abs=6e-4) for key, value in expected.items()}


@pytest.mark.connect
def test_prefixes_keep_predictors_and_options_side_by_side(spark: SparkSession) -> None:
    small = small_predictor()
    sa.register(spark, predictor=small, prefix="exact_")
    sa.register(spark, predictor=small, prefix="fast_", decode="fast", max_pixels=100)
    spark.createDataFrame([(bytearray(noise_image(0)),)], "image binary").createOrReplaceTempView("one_image")
    row = spark.sql("SELECT exact_score_image(image) AS a, fast_score_image(image) AS b FROM one_image").collect()[0]
    assert row.a.error is None
    assert row.b.error == "decode: more pixels than max_pixels"


@pytest.mark.parametrize("prefix", ["1_", "a b", "main.", "x`", "ü_"])
def test_a_prefix_that_makes_no_name_is_told_before_anything_is_registered(spark: SparkSession, prefix: str) -> None:
    with pytest.raises(OptionError, match=r"prefix=.*expected ASCII letters"):
        sa.register(spark, prefix=prefix)


@pytest.mark.parametrize("name", ["", "a b", "main.images.scores.f", "f(x)", "a`b", "a-b", "`a"])
def test_a_text_with_no_name_of_a_function_is_told(name: str) -> None:
    with pytest.raises(OptionError, match=r"name=.*expected the name of a function"):
        sa.create_function_ddl(name)


def test_the_text_takes_names_between_backquotes() -> None:
    assert " `my-catalog`.images.f(_aesthetic_embedding " in sa.create_function_ddl("`my-catalog`.images.f")


def test_a_head_that_is_missing_is_told_before_anything_is_registered(spark: SparkSession) -> None:
    gone = replace(sa.resolve(sa.DEFAULT), name="gone", head_weights="/nowhere/head.safetensors")
    with pytest.raises(WeightsNotFoundError, match="expected at /nowhere/head"):
        sa.register(spark, predictor=gone, prefix="gone_")
    assert not spark.catalog.functionExists("gone_aesthetic_score")


NASTY = """it's \\ a "${env:HOME}" ${system:user.name} -- ; ü\n' COMMENT 'x' RETURN 1"""


# Connect warns that the setting is deprecated.
@pytest.mark.filterwarnings("ignore:The SQL config .* has been deprecated")
@pytest.mark.parametrize("escaped", ["false", "true"])
def test_names_of_a_predictor_are_no_sql(spark: SparkSession, interpreted: None, vectors: None, escaped: str) -> None:
    nasty = replace(sa.resolve(sa.DEFAULT), backbone=NASTY, backbone_sha256="0" * 64)
    expected = spark.table("vectors").select("id", sa.aesthetic_score_from_embedding("e")).collect()
    spark.conf.set("spark.sql.parser.escapedStringLiterals", escaped)
    try:
        spark.sql(sa.create_function_ddl("nasty", predictor=nasty))
        said = "\n".join(row[0] for row in spark.sql("DESCRIBE FUNCTION EXTENDED nasty").collect())
        assert "CLIP it_s _ a ___env:HOME__ __system:user.name_ -- _ ___ COMMENT _x_ RETURN 1 embeddings" in said
        assert spark.sql("SELECT id, nasty(e) FROM vectors").collect() == expected
        sa.register(spark, predictor=nasty, prefix="nasty_")
        assert spark.sql("SELECT id, nasty_aesthetic_score_from_embedding(e) FROM vectors").collect() == expected
    finally:
        spark.conf.unset("spark.sql.parser.escapedStringLiterals")
        spark.sql("DROP FUNCTION IF EXISTS nasty")


@native
def test_a_column_of_the_parameters_former_name_is_the_column(
    spark: SparkSession, interpreted: None, vectors: None
) -> None:
    spark.sql("CREATE OR REPLACE TEMPORARY VIEW named AS SELECT id, e AS embedding FROM vectors WHERE id < 10")
    sa.register(spark)
    spark.sql(sa.create_function_ddl("from_catalog"))
    try:
        for query, expected in (
            ("SELECT id FROM named QUALIFY row_number() OVER (ORDER BY id) = 1 AND {f}(embedding) > 0", 0),
            ("SELECT id FROM named LATERAL VIEW explode(array(1)) AS x WHERE {f}(embedding) > 5.7", 9),
            (
                "SELECT id FROM named AS n WHERE EXISTS "
                "(SELECT 1 FROM named AS m WHERE m.id = n.id AND {f}(m.embedding) > 5.7 AND embedding IS NOT NULL)",
                9,
            ),
        ):
            for function in ("aesthetic_score_from_embedding", "from_catalog"):
                assert [row.id for row in spark.sql(query.format(f=function)).collect()] == [expected], query
    finally:
        spark.sql("DROP FUNCTION from_catalog")


@native
@pytest.mark.parametrize(
    "statement",
    [
        "SELECT id FROM vectors ORDER BY aesthetic_score_from_embedding(e)",
        "UPDATE {table} SET s = aesthetic_score_from_embedding(e)",
        "DELETE FROM {table} WHERE aesthetic_score_from_embedding(e) > 5",
        "MERGE INTO {table} AS t USING vectors AS v ON t.id = v.id "
        "WHEN MATCHED THEN UPDATE SET s = aesthetic_score_from_embedding(v.e)",
        "SELECT transform(array(e), x -> aesthetic_score_from_embedding(x)) FROM vectors",
    ],
)
def test_places_where_spark_takes_no_sql_function(
    spark: SparkSession, vectors: None, tmp_path: Path, statement: str
) -> None:
    sa.register(spark)
    table = f"delta.`{tmp_path / 'scored'}`"
    spark.sql(f"CREATE TABLE {table} USING delta AS SELECT id, e, 0F AS s FROM vectors WHERE id < 2")
    with pytest.raises(AnalysisException, match=r"UNSUPPORTED_SQL_UDF_USAGE|LAMBDA_FUNCTION_WITH_SQL_UDF"):
        spark.sql(statement.format(table=table)).collect()


@pytest.mark.connect
@native
def test_a_column_of_another_type_is_an_error_when_the_query_is_analysed(spark: SparkSession, vectors: None) -> None:
    sa.register(spark)
    with pytest.raises(AnalysisException, match=r"DATATYPE_MISMATCH|CAST_WITHOUT_SUGGESTION"):
        spark.sql("SELECT aesthetic_score_from_embedding(id) FROM vectors")
