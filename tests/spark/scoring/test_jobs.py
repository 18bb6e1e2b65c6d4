"""Both modes on Delta tables, by name and by path: no row is lost or repeated, and errors come before any work."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from conftest import CONNECT, last_query, plan_metrics
from pyspark.ml.linalg import Vectors
from pyspark.sql import DataFrame, SparkSession

import spark_aesthetic as sa
from spark_aesthetic.delta.naming import identifier
from spark_aesthetic.errors import AestheticError, OptionError, PredictorError, TableError, WeightsNotFoundError
from spark_aesthetic.predictors import weights
from spark_aesthetic.testing import PUBLISHED_SCORES, noise_image, published_embeddings, small_predictor

V2 = weights.pin(sa.resolve("laion-aesthetics-v2")).model_id
V1 = weights.pin(sa.resolve("laion-aesthetics-v1")).model_id
_number = count()
pytestmark = pytest.mark.usefixtures("interpreted")


@pytest.fixture
def path(tmp_path: Path) -> Any:
    """Return a function that makes the paths of new tables, for tests that need no names."""
    return lambda: str(tmp_path / f"table_{next(_number)}")


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Return a function that makes the names of new tables, as paths or as names in the catalog."""
    if request.param == "path":
        return lambda: str(tmp_path / f"table_{next(_number)}")
    return lambda: f"default.table_{next(_number)}"


def write(frame: DataFrame, table: str, mode: str = "error") -> str:
    writer = frame.write.format("delta").mode(mode)
    if "/" in table:
        writer.save(table)
    else:
        writer.saveAsTable(table)
    return table


def embeddings(spark: SparkSession, start: int = 0, stop: int = 10) -> DataFrame:
    rows = [(at, f"photo {at}", row.astype(float).tolist()) for at, row in enumerate(published_embeddings())]
    return spark.createDataFrame(rows[start:stop], "id bigint, title string, e array<float>")


def version(spark: SparkSession, table: str) -> int:
    return int(spark.sql(f"DESCRIBE HISTORY {identifier(table)} LIMIT 1").collect()[0].version)


def scores_by_id(spark: SparkSession, table: str, model: str = V2) -> dict[int, float]:
    rows = spark.table(identifier(table)).where(f"aesthetic_model = '{model}'").collect()
    assert len({row.id for row in rows}) == len(rows)
    return {row.id: row.aesthetic_score for row in rows}


def assert_published(found: dict[int, float], stop: int) -> None:
    assert [found[at] for at in range(stop)] == pytest.approx(PUBLISHED_SCORES[:stop], abs=6e-4)
    assert len(found) == stop


@pytest.mark.long
@pytest.mark.parametrize(("place", "beside"), [("path", True), ("name", False)], indirect=["place"])
def test_a_second_run_writes_nothing_and_a_third_scores_just_the_new_rows(
    spark: SparkSession, place: Any, beside: bool
) -> None:
    source = write(embeddings(spark, stop=7), place())
    scores = place() if beside else None
    target = scores or source

    def run() -> sa.Summary:
        return sa.score_table(spark, source=source, key="id", embedding_col="e", scores=scores)

    first = run()
    assert (first.rows_read, first.scored, first.failed, first.skipped, first.model) == (7, 7, 0, 0, V2)
    assert_published(scores_by_id(spark, target), 7)
    versions = version(spark, source), version(spark, target)

    second = run()
    assert (second.rows_read, second.scored, second.failed, second.skipped) == (7, 0, 0, 7)
    assert (version(spark, source), version(spark, target)) == versions

    write(embeddings(spark, start=7), source, mode="append")
    third = run()
    assert (third.rows_read, third.scored, third.failed, third.skipped) == (10, 3, 0, 7)
    assert_published(scores_by_id(spark, target), 10)
    if beside:
        assert spark.table(identifier(source)).columns == ["id", "title", "e"]


def test_in_place_adds_the_columns_and_keeps_the_rest(spark: SparkSession, path: Any) -> None:
    source = write(embeddings(spark), path())
    sa.score_table(spark, source=source, key=["id"], embedding_col="e")
    table = spark.table(identifier(source))
    assert [(field.name, field.dataType.simpleString()) for field in table.schema][3:] == [
        ("aesthetic_score", "float"), ("aesthetic_error", "string"), ("aesthetic_model", "string"),
    ]  # fmt: skip
    kept = table.select("id", "title", "e")
    assert sorted(kept.collect()) == sorted(embeddings(spark).collect())


@pytest.mark.long
def test_another_model_replaces_in_place_and_stands_beside_in_a_scores_table(spark: SparkSession, path: Any) -> None:
    source, scores = write(embeddings(spark), path()), path()
    for predictor in ("laion-aesthetics-v2", "laion-aesthetics-v1"):
        for target in (None, scores):
            done = sa.score_table(
                spark, source=source, key=["id"], embedding_col="e", scores=target, predictor=predictor
            )
            assert done.scored == 10
    assert set(scores_by_id(spark, source, V1)) == set(range(10))
    assert scores_by_id(spark, source, V2) == {}
    assert_published(scores_by_id(spark, scores, V2), 10)
    assert scores_by_id(spark, scores, V1) == scores_by_id(spark, source, V1)


def test_rows_that_fail_keep_their_reason_and_are_not_tried_again(spark: SparkSession, path: Any) -> None:
    odd = spark.createDataFrame([(10, "", None), (11, "", [1.0]), (12, "", [0.0] * 768)], embeddings(spark).schema)
    source = write(embeddings(spark).union(odd), path())
    first = sa.score_table(spark, source=source, key=["id"], embedding_col="e")
    assert (first.scored, first.failed) == (10, 3)
    assert first.failed_by_reason == {"embedding: wrong length": 1, "embedding: zero norm": 1, "null": 1}
    rows = {row.id: row for row in spark.table(identifier(source)).collect()}
    assert (rows[11].aesthetic_score, rows[11].aesthetic_error) == (None, "embedding: wrong length")
    assert rows[11].aesthetic_model == V2
    assert sa.score_table(spark, source=source, key=["id"], embedding_col="e").skipped == 13


@pytest.mark.long
@pytest.mark.parametrize("place", ["path", "name"], indirect=True)
def test_a_view_joins_source_and_scores(spark: SparkSession, place: Any) -> None:
    source, scores, view = write(embeddings(spark), place()), place(), f"view_{next(_number)}"
    sa.score_table(spark, source=source, key=["id"], embedding_col="e", scores=scores, view=view)
    best = spark.sql(f"SELECT title, aesthetic_score FROM {view} ORDER BY aesthetic_score DESC LIMIT 1").collect()[0]
    assert (best.title, round(best.aesthetic_score, 3)) == ("photo 9", 5.747)
    write(embeddings(spark, stop=1).selectExpr("id + 100 AS id", "title", "e"), source, mode="append")
    unscored = spark.table(view).where("aesthetic_score IS NULL").collect()
    assert [row.id for row in unscored] == [100]


def test_a_dry_run_counts_and_writes_nothing(spark: SparkSession, path: Any) -> None:
    source, scores = write(embeddings(spark), path()), path()
    done = sa.score_table(spark, source=source, key=["id"], embedding_col="e", scores=scores, dry_run=True)
    assert (done.rows_read, done.scored, done.to_score, done.dry_run) == (10, 0, 10, True)
    assert done.to_dict()["to_score"] == 10
    with pytest.raises(TableError, match="found none"):
        sa.score_table(spark, source=scores, key=["id"], embedding_col="e")
    assert version(spark, source) == 0


def test_an_empty_table_is_no_error(spark: SparkSession, path: Any) -> None:
    source = write(embeddings(spark, stop=0), path())
    view = f"view_{next(_number)}"
    sa.score_table(spark, source=source, key=["id"], embedding_col="e", scores=path(), view=view)
    assert spark.table(view).count() == 0
    done = sa.score_table(spark, source=source, key=["id"], embedding_col="e")
    assert (done.rows_read, done.scored, done.failed, done.skipped) == (0, 0, 0, 0)


@pytest.mark.long
def test_a_key_may_have_several_columns_and_any_name(spark: SparkSession, tmp_path: Path) -> None:
    frame = embeddings(spark).selectExpr("id % 2 AS `shard.no`", "id AS Id", "e")
    source, scores = write(frame, str(tmp_path / "source")), str(tmp_path / "scores")
    for target in (scores, None):
        done = sa.score_table(spark, source=source, key=["shard.no", "id"], embedding_col="e", scores=target)
        assert done.scored == 10
        assert (
            sa.score_table(spark, source=source, key=["shard.no", "id"], embedding_col="e", scores=target).scored == 0
        )


@pytest.mark.long
def test_columns_may_be_named_in_any_case(spark: SparkSession, path: Any) -> None:
    odd = spark.createDataFrame([(10, "", [1.0])], embeddings(spark).schema)
    source, scores = write(embeddings(spark).union(odd), path()), path()

    def run(**options: Any) -> sa.Summary:
        return sa.score_table(
            spark, source=source, key=["ID"], embedding_col="E", version_col="TITLE", scores=scores, **options
        )

    assert (run().scored, run().scored) == (10, 0)
    assert run(retry_failed=True).failed == 1
    spark.sql(f"DELETE FROM {identifier(scores)} WHERE id IN (3, 4)")
    spark.sql(f"DELETE FROM {identifier(source)} WHERE id = 5")
    done = run(reconcile=True)
    assert (done.scored, done.dropped) == (2, 1)
    assert spark.table(identifier(scores)).columns[:2] == ["id", "title"]


def image_table(spark: SparkSession, table: str, rows: dict[str, bytes | None]) -> str:
    listed = [(name, None if data is None else bytearray(data)) for name, data in rows.items()]
    # One file is one task. A Python worker takes ten seconds to import open_clip, and two workers would share the
    # cores.
    return write(spark.createDataFrame(listed, "name string, image binary").coalesce(1), table)


def rows_through_python(spark: SparkSession, since: int) -> int:
    """Return how many rows the Python workers of image functions gave back in the queries after query `since`."""
    seen: dict[int, int] = {}
    for node, name, number, text in plan_metrics(spark, since):
        if node.name() == "ArrowEvalPython" and name == "number of output rows":
            # A cached plan is part of several queries, and only one of them has the count.
            seen[number] = max(seen.get(number, 0), int((text or "0").replace(",", "")))
    return sum(seen.values())


@pytest.mark.parametrize(
    "beside", [pytest.param(False, marks=pytest.mark.long), True], ids=["in place", "scores table"]
)
def test_images_are_scored_once_and_with_their_reasons(spark: SparkSession, tmp_path: Path, beside: bool) -> None:
    rows = {f"{seed}.jpg": noise_image(seed) for seed in range(9)}
    source = image_table(spark, str(tmp_path / "images"), rows | {"bad": b"no image", "null": None})
    scores = str(tmp_path / "scores") if beside else None
    before = last_query(spark)

    def run() -> sa.Summary:
        return sa.score_table(
            spark, source=source, key=["name"], image_col="image", scores=scores, predictor=small_predictor(),
            with_embedding=True,
        )  # fmt: skip

    first = run()
    assert (first.scored, first.failed_by_reason) == (9, {"decode: not an image": 1, "null": 1})
    assert rows_through_python(spark, before) == 11
    assert first.model.startswith("untrained-")
    # On Connect, a separate process runs the chunks and has these figures.
    if not CONNECT:
        stages = first.to_dict()["stages"]
        assert list(stages) == ["decode", "transfer", "infer", "wait"]
        assert 0 <= stages["transfer"] < stages["infer"] < first.seconds
        # The peak includes torch, which takes more than 0.2 GB.
        assert 0.2e9 < first.to_dict()["peak_memory_bytes"] < 2e9
    written = spark.table(identifier(scores or source))
    assert {len(row.clip_embedding) for row in written.where("aesthetic_score IS NOT NULL").collect()} == {384}

    more = image_table(spark, str(tmp_path / "more"), {"new.jpg": noise_image(99)})
    spark.sql(f"INSERT INTO {identifier(source)} (name, image) SELECT name, image FROM {identifier(more)}")
    second = run()
    assert (second.rows_read, second.scored, second.failed, second.skipped) == (12, 1, 0, 11)
    assert rows_through_python(spark, before) == 12
    again = small_predictor()
    from_kept = written.select(
        "aesthetic_score", sa.aesthetic_score_from_embedding("clip_embedding", predictor=again).alias("again")
    )
    assert all(row.again == pytest.approx(row.aesthetic_score, abs=1e-5) for row in from_kept.dropna().collect())


def test_two_runs_at_once_leave_one_score_for_each_row(spark: SparkSession, tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    source, scores = write(embeddings(spark), str(tmp_path / "source")), str(tmp_path / "scores")
    # The scores table exists first, so that the runs meet at the commit and not at its creation.
    write(embeddings(spark, stop=1), str(tmp_path / "one"))
    sa.score_table(spark, source=str(tmp_path / "one"), key=["id"], embedding_col="e", scores=scores)

    def run(_: int) -> Exception | None:
        try:
            sa.score_table(spark, source=source, key=["id"], embedding_col="e", scores=scores, shared_keys=True)
        except Exception as error:
            return error
        return None

    with ThreadPoolExecutor(2) as pool:
        errors = [error for error in pool.map(run, range(2)) if error is not None]
    assert all(isinstance(error, TableError) for error in errors), errors
    assert len(errors) < 2
    assert_published(scores_by_id(spark, scores), 10)


# Errors come before any work


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"source": "no.such.table"}, TableError, "expected a Delta table"),
        ({"source": "default.no_such_table"}, TableError, "expected a Delta table, found none"),
        ({"source": "/no/such/path"}, TableError, "expected a Delta table, found none"),
        ({"key": ["idd"]}, TableError, "--key: no column 'idd' in the table: did you mean 'id'"),
        ({"key": "id,title"}, TableError, "--key: no column 'id,title' in the table"),
        ({"key": []}, TableError, "--key: expected the columns .* found none. Name them"),
        ({"key": ["title"]}, TableError, "each of the 10 rows, found 10 with a duplicate key. Add"),
        ({"key": ["maybe"]}, TableError, "each of the 10 rows, found 1 with a null. Add"),
        ({"embedding_col": "embeding"}, TableError, "--embedding-col: no column 'embeding'"),
        ({"embedding_col": "title"}, TableError, "expected array<float>, array<double> or an ml Vector, found string"),
        ({"embedding_col": None}, TableError, "found both or neither"),
        ({"image_col": "title"}, TableError, "found both or neither"),
        ({"embedding_col": None, "image_col": "title"}, TableError, "expected binary .*found string"),
        ({"embedding_col": None, "image_col": "none"}, TableError, "--image-col: no column 'none'"),
        ({"predictor": "laion-aesthetics-v1-b32"}, TableError, "expected 512 numbers .* found 768"),
        ({"predictor": "laion"}, PredictorError, "no predictor 'laion'"),
        ({"view": "some_view"}, TableError, "--view: expected --scores"),
        ({"view": "not a name", "scores": "NEW"}, TableError, "--view: expected a name .* 'not a name'. Put"),
        ({"view": "default.taken", "scores": "NEW"}, TableError, "--view: .* found the table"),
        ({"key": ["id", "ID"]}, TableError, "expected each column once"),
        ({"embedding_col": "short_vector"}, TableError, "expected 768 numbers .* found 2"),
        ({"with_embedding": True}, TableError, "--with-embedding: expected --image-col"),
        ({"scores": "SOURCE"}, TableError, "expected a table other than --source"),
        ({"scores": "OTHER"}, TableError, "column aesthetic_score: expected float, found none"),
        ({"max_files_per_chunk": 0}, OptionError, "max_files_per_chunk=0: expected a whole number"),
        ({"max_files_per_chunk": -1}, OptionError, "max_files_per_chunk=-1: expected a whole number"),
        ({"max_bytes_per_chunk": "99999999t"}, OptionError, "max_bytes_per_chunk='99999999t': .* below 2.63"),
        ({"every": "foo", "scores": "NEW"}, OptionError, "every='foo': expected an interval"),
        ({"every": "1 month", "scores": "NEW"}, OptionError, "every='1 month': .* without months"),
        ({"every": "-1 minute", "scores": "NEW"}, OptionError, "every='-1 minute': expected an interval"),
        ({"every": "1 minute", "scores": "NEW", "view": "some_view"}, OptionError, "--view: expected no --every"),
        ({"every": "1 minute", "scores": "NEW", "reconcile": True}, OptionError, "--reconcile: expected no --every"),
        ({"model_path": "/no/such", "embedding_col": None, "image_col": "image"}, WeightsNotFoundError, "model_path"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_before_any_work(
    spark: SparkSession, odd_tables: dict[str, str], change: dict[str, Any], error: type[AestheticError], message: str
) -> None:
    source = odd_tables["SOURCE"]
    arguments: dict[str, Any] = {"source": source, "key": ["id"], "embedding_col": "e"} | change
    if "scores" in change:
        arguments["scores"] = odd_tables[change["scores"]]
    with pytest.raises(error, match=message):
        sa.score_table(spark, **arguments)
    assert version(spark, source) == 0
    assert not Path(odd_tables["NEW"]).exists()


@pytest.fixture(scope="module")
def odd_tables(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("odd")
    short = spark.createDataFrame([(at, Vectors.dense([1.0, 2.0])) for at in range(10)], ["id", "short_vector"])
    frame = embeddings(spark).selectExpr(
        "id", "'same' AS title", "e", "nullif(id, 3) AS maybe", "CAST('x' AS binary) AS image"
    )
    spark.sql("CREATE TABLE IF NOT EXISTS default.taken (id int) USING delta")
    return {
        "SOURCE": write(frame.join(short, "id"), str(folder / "source")),
        "OTHER": write(embeddings(spark), str(folder / "other")),
        "NEW": str(folder / "new"),
    }


def test_weights_that_do_not_fit_are_found_before_any_work(spark: SparkSession, tmp_path: Path) -> None:
    source = image_table(spark, str(tmp_path / "images"), {"a.jpg": noise_image(0)})
    small = small_predictor()
    for predictor, error, message in (
        (replace(small, backbone="ViT-S-23"), PredictorError, "did you mean 'ViT-S-32'"),
        (replace(small, head_weights="package:laion-aesthetics-v2"), AestheticError, "768.*384|384.*768"),
    ):
        with pytest.raises(error, match=message):
            sa.score_table(spark, source=source, key=["name"], image_col="image", predictor=predictor)


@pytest.mark.long
@pytest.mark.parametrize("embedding_first", [True, False])
def test_embeddings_may_come_to_a_scores_table_later_or_end(
    spark: SparkSession, tmp_path: Path, embedding_first: bool
) -> None:
    scores = str(tmp_path / "scores")
    for name, with_embedding in (("one", embedding_first), ("two", not embedding_first)):
        source = image_table(spark, str(tmp_path / name), {f"{name}.jpg": noise_image(0)})
        done = sa.score_table(
            spark, source=source, key=["name"], image_col="image", scores=scores, predictor=small_predictor(),
            with_embedding=with_embedding, shared_keys=True,
        )  # fmt: skip
        assert done.scored == 1
    found = {row.name: row.clip_embedding is None for row in spark.read.format("delta").load(scores).collect()}
    assert found == {"one.jpg": not embedding_first, "two.jpg": embedding_first}


def test_ml_vectors_are_scored_and_the_null_among_them_has_its_reason(spark: SparkSession, tmp_path: Path) -> None:
    rows = [(at, Vectors.dense(row.astype(float))) for at, row in enumerate(published_embeddings())]
    source = write(spark.createDataFrame([*rows, (10, None)], ["id", "e"]), str(tmp_path / "source"))
    done = sa.score_table(spark, source=source, key=["id"], embedding_col="e")
    assert (done.scored, done.failed_by_reason) == (10, {"null": 1})
    found = scores_by_id(spark, source)
    assert_published({at: found[at] for at in range(10)}, 10)


def test_key_columns_may_be_called_anything(spark: SparkSession, tmp_path: Path) -> None:
    source = write(embeddings(spark).selectExpr("id AS count", "title AS `a-b.c`", "e"), str(tmp_path / "source"))
    scores = str(tmp_path / "scores")
    for target in (scores, None):
        done = sa.score_table(spark, source=source, key=["count", "a-b.c"], embedding_col="e", scores=target)
        assert done.scored == 10


@pytest.mark.long
def test_columns_to_score_may_have_a_dot_or_be_fields_of_a_struct_which_itself_is_refused(
    spark: SparkSession, tmp_path: Path
) -> None:
    source = write(embeddings(spark).selectExpr("id", "e AS `a.e`", "struct(e) AS s"), str(tmp_path / "source"))
    scores = str(tmp_path / "scores-of-embeddings")
    for name in ("A.E", "s.e"):
        told = sa.score_table(spark, source=source, key=["id"], embedding_col=name, scores=scores, dry_run=True)
        assert told.to_score == 10
    assert sa.score_table(spark, source=source, key=["id"], embedding_col="a.e", scores=scores).scored == 10
    rows = spark.createDataFrame([(0, bytearray(noise_image(0)))], "id int, `seg.jpg` binary")
    images = write(rows.selectExpr("*", "struct(`seg.jpg` AS jpg) AS s"), str(tmp_path / "images"))
    scored = {"key": ["id"], "scores": str(tmp_path / "scores"), "predictor": small_predictor()}
    with pytest.raises(TableError, match=r"--image-col s: expected binary .*Name its field jpg"):
        sa.score_table(spark, source=images, image_col="s", **scored)
    assert not (tmp_path / "scores").exists()
    assert sa.score_table(spark, source=images, image_col="seg.jpg", **scored).scored == 1
    of_field = scored | {"scores": str(tmp_path / "of-field")}
    assert sa.score_table(spark, source=images, image_col="S.jpg", **of_field).scored == 1
    # With `reconcile`, a row is found by its key and read only from its file.
    assert sa.score_table(spark, source=images, image_col="s.jpg", reconcile=True, **of_field).skipped == 1


def test_a_table_that_is_not_delta_is_named_as_such(spark: SparkSession, tmp_path: Path) -> None:
    embeddings(spark).write.parquet(str(tmp_path / "parquet"))
    with pytest.raises(TableError, match="expected a Delta table"):
        sa.score_table(spark, source=str(tmp_path / "parquet"), key=["id"], embedding_col="e")


def test_a_folder_of_other_files_is_no_place_for_scores(spark: SparkSession, tmp_path: Path) -> None:
    source = write(embeddings(spark), str(tmp_path / "source"))
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(TableError, match=r"scores .*other.*: expected a Delta table or an empty folder"):
        sa.score_table(spark, source=source, key=["id"], embedding_col="e", scores=str(other))
    assert [path.name for path in other.iterdir()] == ["notes.txt"]


def test_a_score_column_of_another_type_is_refused(spark: SparkSession, tmp_path: Path) -> None:
    source = write(embeddings(spark).selectExpr("*", "'5' AS aesthetic_score"), str(tmp_path / "source"))
    with pytest.raises(TableError, match="column aesthetic_score: expected float, found string"):
        sa.score_table(spark, source=source, key=["id"], embedding_col="e")
