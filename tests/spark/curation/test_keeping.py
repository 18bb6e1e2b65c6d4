"""The jobs that make a table of the rows to keep from a scores table, called by their command lines."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, RunHere, bytes_read, last_query
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from spark_aesthetic.cli import curation
from spark_aesthetic.curation.keeping import _write, write_kept
from spark_aesthetic.curation.pool import _open
from spark_aesthetic.errors import OptionError, TableError

MODEL, OTHER = "untrained-vit-b-32@0123456789ab", "laion-aesthetics-v2@875870216cca"

pytestmark = pytest.mark.usefixtures("interpreted")


@pytest.fixture(scope="module")
def tables(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write images in two files of ten rows each, and their scores by two models.

    Two keys of the scores have no image.
    """
    folder = tmp_path_factory.mktemp("keeping")
    images = [(at, bytearray(bytes([at]) * 10_000), "ab"[at % 2]) for at in range(20)]
    for start in range(0, 20, 10):
        part = spark.createDataFrame(images[start : start + 10], "id int, content binary, source string").coalesce(1)
        part.write.format("delta").mode("append").save(str(folder / "images"))
    rows: list[tuple[Any, ...]] = [(at, at / 2, None, MODEL) for at in range(20)] + [(99, 9.75, None, MODEL)]
    rows += [(at, 30.0, None, OTHER) for at in range(20)] + [(100, None, "null", MODEL)]
    schema = "id int, aesthetic_score float, aesthetic_error string, aesthetic_model string"
    scores = spark.createDataFrame(rows, schema).withColumn("clip_embedding", F.expr("array(1F, 0F)"))
    scores.coalesce(1).write.format("delta").save(str(folder / "scores"))
    return folder


@pytest.fixture
def job(tables: Path, run_here: RunHere, capsys: pytest.CaptureFixture[str]) -> RunHere:
    """Return a function that runs a job and returns its JSON, or the exit code and message of a failure."""

    def run(name: str, *arguments: str) -> dict[str, Any]:
        try:
            return run_here(f"{name}.py", "--scores", str(tables / "scores"), *arguments)
        except SystemExit as error:
            return {"code": int(str(error.code)), "said": capsys.readouterr().err.splitlines()[-1]}

    return run


def ids(spark: SparkSession, path: Path) -> list[int]:
    return sorted(row.id for row in spark.read.format("delta").load(str(path)).select("id").collect())


def test_a_cut_is_chosen_and_its_images_are_written(
    spark: SparkSession, tables: Path, job: RunHere, tmp_path: Path
) -> None:
    chosen = job("calibrate", "--model", MODEL, "--keep", "0.2", "--out", str(tmp_path / "cut.json"))
    assert (chosen["model"], chosen["target"], chosen["wanted"]) == (MODEL, "keep", 0.2)
    assert (chosen["cuts"][0]["value"], chosen["cuts"][0]["kept"]) == (8.0, 5)
    assert chosen["cuts"][0]["distribution"]["unscored"] == {"null": 1}
    out = tmp_path / "kept"
    images = ["--table", str(tables / "images"), "--key", "id", "--out", str(out)]
    since = last_query(spark)
    done = job("curate", "--calibration", str(tmp_path / "cut.json"), *images)
    # This is measured before the test itself reads the new table.
    read = bytes_read(spark, since, "content")
    assert (done["kept"], done["without_row"], done["model"], done["out"]) == (4, 1, MODEL, str(out))
    written = spark.read.format("delta").load(str(out))
    assert written.columns == [
        "id", "content", "source", "aesthetic_score", "aesthetic_error", "aesthetic_model",
    ]  # fmt: skip
    assert {row.id: (bytes(row.content)[:2], row.aesthetic_score) for row in written.collect()} == {
        at: (bytes([at, at]), at / 2) for at in range(16, 20)
    }
    # The kept images are in the second of two files.
    sizes = spark.sql(f"SELECT max(_metadata.file_size) AS largest FROM delta.`{tables}/images`").collect()[0]
    assert 0 < read < 1.5 * sizes.largest
    told = json.loads(spark.sql(f"DESCRIBE HISTORY delta.`{out}` LIMIT 1").collect()[0].userMetadata)
    assert (told["model"], told["target"], told["wanted"]) == (MODEL, "keep", 0.2)
    refused = job("curate", "--min-score", "1", "--model", MODEL, *images)
    assert refused["code"] == 2
    assert refused["said"].endswith("expected no table there, found one. Replace it with --overwrite.")
    assert job("curate", "--calibration", str(tmp_path / "cut.json"), "--overwrite", *images)["kept"] == 4
    # Column names are case-insensitive.
    images[3] = "ID"
    assert job("curate", "--calibration", str(tmp_path / "cut.json"), "--overwrite", *images)["kept"] == 4


def test_many_rows_are_joined_in_one_read(
    spark: SparkSession, tables: Path, job: RunHere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spark_aesthetic.delta.rows._BROADCAST_ROWS", 0)
    images = ["--table", str(tables / "images"), "--key", "id", "--model", MODEL]
    done = job("curate", "--top-k", "4", *images, "--out", str(tmp_path / "kept"))
    assert (done["kept"], done["without_row"]) == (3, 1)
    assert ids(spark, tmp_path / "kept") == [17, 18, 19]


def test_nothing_is_kept(spark: SparkSession, tables: Path, job: RunHere, tmp_path: Path) -> None:
    images = ["--table", str(tables / "images"), "--key", "id", "--model", MODEL]
    done = job("curate", "--min-score", "9.7", *images, "--out", str(tmp_path / "kept"))
    assert (done["kept"], done["without_row"]) == (0, 1)
    assert ids(spark, tmp_path / "kept") == []


def test_groups_come_from_the_table_of_images(spark: SparkSession, tables: Path, job: RunHere, tmp_path: Path) -> None:
    images = ["--table", str(tables / "images"), "--key", "id"]
    cut = str(tmp_path / "cut.json")
    chosen = job("calibrate", "--model", MODEL, "--top-k", "2", "--by", "source", "--out", cut, *images)
    assert [(part["group"], part["value"]) for part in chosen["cuts"]] == [(["a"], 8.0), (["b"], 8.5)]
    assert job("curate", "--calibration", cut, *images, "--out", str(tmp_path / "kept"))["kept"] == 4
    assert ids(spark, tmp_path / "kept") == [16, 17, 18, 19]


def test_without_images_the_scores_are_written(spark: SparkSession, job: RunHere, tmp_path: Path) -> None:
    done = job("curate", "--min-score", "9", "--model", MODEL, "--out", str(tmp_path / "kept"))
    assert done["kept"] == 3
    assert "without_row" not in done
    assert ids(spark, tmp_path / "kept") == [18, 19, 99]


def test_labels_choose_the_cut(job: RunHere, tmp_path: Path) -> None:
    rows = "".join(f"{at},{at / 2},{'keep' if at > 11 else 'drop'}\n" for at in range(20))
    (tmp_path / "labels.csv").write_text("id,score,label\n" + rows)
    labels = ["--labels", str(tmp_path / "labels.csv"), "--key", "id", "--model", MODEL]
    (cut,) = job("calibrate", "--precision", "1", *labels)["cuts"]
    assert (cut["value"], cut["evidence"]["precision"][0], cut["evidence"]["recall"][0]) == (6.0, 1.0, 1.0)
    assert cut["evidence"]["curve"] == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["calibrate", "--keep", "0.1"],
            r"found laion.* \(20 rows\), untrained.* \(22 rows\)\. Choose one with --model",
        ),
        (["calibrate", "--model", "v2"], r"--model: no model 'v2' in the scores: .*Valid: laion.*, untrained"),
        (["calibrate", "--keep", "0.1", "--top-k", "3"], "not allowed with argument"),
        (["calibrate", "--recall", "0.9", "--model", OTHER], "recall: expected labels with it"),
        (["curate", "--out", "x"], "one of the arguments --calibration --min-score --keep --top-k is required"),
        (["curate", "--out", "x", "--calibration", "none.json"], r"expected a file that Calibration\.save wrote"),
        (["curate", "--out", "x", "--min-score", "1", "--table", "y"], "--table: expected --key with it"),
        (["curate", "--out", "x", "--top-k", "1", "--model", OTHER], "top_k: expected key"),
    ],
)
def test_a_wrong_command_line_is_exit_code_2_and_one_line(job: RunHere, arguments: list[str], said: str) -> None:
    done = job(*arguments)
    assert done["code"] == 2
    assert done["said"].startswith(f"{arguments[0]}: ")
    assert re.search(said, done["said"])


def test_another_model_or_group_than_the_calibrations_is_said(tables: Path, job: RunHere, tmp_path: Path) -> None:
    cut = str(tmp_path / "cut.json")
    job("calibrate", "--model", MODEL, "--top-k", "2", "--out", cut)
    out = ["--calibration", cut, "--out", str(tmp_path / "out")]
    assert "--model: expected the calibration's value" in job("curate", "--model", OTHER, *out)["said"]
    assert "--by: expected the calibration's value" in job("curate", "--by", "source", *out)["said"]
    for name in (f"{tables}/../{tables.name}/scores", f"file:{tables}/scores"):
        same = job("curate", "--min-score", "1", "--overwrite", "--out", name)
        assert "expected a new table, found one that this run reads" in same["said"]


def test_scores_in_the_table_of_images_make_way_for_those_that_are_kept(
    spark: SparkSession, tables: Path, job: RunHere, tmp_path: Path
) -> None:
    rows = [(at, bytearray(b"image"), 1.0, OTHER) for at in range(20)]
    images = spark.createDataFrame(rows, "id int, content binary, aesthetic_score float, aesthetic_model string")
    images.coalesce(1).write.format("delta").save(str(tmp_path / "images"))
    wanted = ["--min-score", "9", "--model", MODEL, "--key", "id", "--table", str(tmp_path / "images")]
    assert job("curate", *wanted, "--out", str(tmp_path / "kept"))["kept"] == 2
    kept = spark.read.format("delta").load(str(tmp_path / "kept")).orderBy("id").collect()
    assert [(row.id, row.aesthetic_score, row.aesthetic_model) for row in kept] == [(18, 9.0, MODEL), (19, 9.5, MODEL)]
    # A repeated image is refused, and so are scores of two models.
    images.where("id = 18").write.format("delta").mode("append").save(str(tmp_path / "images"))
    done = job("curate", *wanted, "--out", str(tmp_path / "other"))
    assert "expected one row of --table for each key, found 2 for 18" in done["said"]
    done = job("curate", "--min-score", "9", *wanted[4:], "--out", str(tmp_path / "other"))
    assert "expected one row of the scores for each key, found 2 for 1" in done["said"]
    assert not (tmp_path / "other").exists()


def test_a_table_is_replaced_only_where_it_is_said(
    spark: SparkSession, tables: Path, job: RunHere, tmp_path: Path
) -> None:
    out = ["--model", MODEL, "--out", str(tmp_path / "kept")]
    assert job("curate", "--min-score", "9", *out)["kept"] == 3
    for mode in ([], ["--mode", "errorifexists"]):
        refused = job("curate", "--min-score", "5", *out, *mode)
        assert refused["code"] == 2
        assert "expected no table there, found one. Replace it with --overwrite." in refused["said"]
    # An append would repeat the rows that both runs keep.
    assert "invalid choice: 'append'" in job("curate", "--min-score", "5", *out, "--mode", "append")["said"]
    assert "not allowed with" in job("curate", "--min-score", "5", *out, "--mode", "overwrite", "--overwrite")["said"]
    assert job("curate", "--min-score", "9.5", *out, "--mode", "overwrite")["kept"] == 2
    with pytest.raises(OptionError, match=r"mode=.append.: .*Valid: errorifexists, overwrite"):
        write_kept(spark, scores=str(tables / "scores"), out=out[-1], wanted={"min_score": 5}, mode="append")
    # A table that was created after the first check is not replaced.
    rows = spark.createDataFrame([(1,)], "other int")
    with pytest.raises(TableError, match="found one that was created since this run began"):
        _write(spark, rows, out[-1], {}, "errorifexists")
    assert ids(spark, tmp_path / "kept") == [19, 99]
    spark.sql("CREATE TABLE kept_by_name (id INT) USING delta")
    try:
        with pytest.raises(TableError, match="found one that was created since this run began"):
            _write(spark, rows, "kept_by_name", {}, "errorifexists")
    finally:
        spark.sql("DROP TABLE kept_by_name")


def test_a_path_is_no_sql(spark: SparkSession, tmp_path: Path) -> None:
    out = f"{tmp_path}/it's `a` ${{system:user.name}} 12\""
    assert _write(spark, spark.range(3), out, {}, "errorifexists") == 3
    assert _open(spark, out, "--table").count() == 3


def test_keys_that_join_no_row_or_several_are_said(
    spark: SparkSession, tables: Path, job: RunHere, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = spark.read.format("delta").load(str(tables / "images"))
    twice = str(tmp_path / "twice")
    images.union(images.where("id IN (1, 2, 3, 4)")).coalesce(1).write.format("delta").save(twice)
    by_twice = ["--model", MODEL, "--by", "source", "--key", "id", "--table", twice]
    done = job("calibrate", "--keep", "0.1", *by_twice)
    assert done["code"] == 2
    assert "expected one row of --table for each key, found 2 for 1, 2 for 2, 2 for 3 and 1 more" in done["said"]
    by_images = [*by_twice[:-1], str(tables / "images")]
    assert sum(cut["distribution"]["rows"] for cut in job("calibrate", *by_images)["cuts"]) == 20
    # Keys 99 and 100 have no image, so they have no source.
    assert "2 rows of --scores are left out: no row of --table has their key" in caplog.text
    scores = spark.read.format("delta").load(str(tables / "scores")).where(f"aesthetic_model = '{MODEL}'")
    no_key = scores.withColumn("id", F.when(F.col("id") < 18, F.col("id")))
    no_key.write.format("delta").save(str(tmp_path / "no_key"))
    with pytest.raises(TableError, match="expected a value in each row of the scores, found 3 rows with a null"):
        write_kept(
            spark, scores=str(tmp_path / "no_key"), out=str(tmp_path / "out"), wanted={"min_score": 1}, key=["id"],
            table=str(tables / "images"),
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_the_commands_of_the_page_are_what_the_jobs_take(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (REPOSITORY / "docs" / "cut.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```bash\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    choose, keep = block.replace("\\\n", " ").strip().splitlines()
    monkeypatch.setattr("sys.argv", shlex.split(choose.partition("jobs/")[2]))
    chosen = curation.calibrate_arguments()
    monkeypatch.setattr("sys.argv", shlex.split(keep.partition("jobs/")[2]))
    kept = curation.curate_arguments()
    assert chosen.out == kept.calibration == "demo-output/best.json"
    assert (kept.table, kept.key, kept.overwrite) == ("demo-output/photographs", ["name"], True)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("nosuch.kept", "--out 'nosuch.kept': expected a schema that exists"),
        ("default.`it's`", "--out .*: expected ASCII letters, digits and _"),
        ("a b", "table 'a b': expected a name or a path"),
        ("nosuch://bucket/kept", "No FileSystem for scheme"),
    ],
)
def test_a_place_that_no_table_can_be_at_is_refused_before_the_work(
    spark: SparkSession, tables: Path, out: str, message: str
) -> None:
    with pytest.raises(TableError, match=message):
        # The place is checked before the model, which does not exist either.
        write_kept(spark, scores=str(tables / "scores"), out=out, wanted={"keep": 0.5}, model="none")


def test_columns_that_need_column_mapping_are_kept(spark: SparkSession, tables: Path, tmp_path: Path) -> None:
    scores, out = str(tmp_path / "scores"), str(tmp_path / "out")
    rows = spark.read.format("delta").load(str(tables / "scores")).withColumnRenamed("id", "id nr, (new)")
    rows.write.format("delta").option("delta.columnMapping.mode", "name").save(scores)
    given: dict[str, Any] = {"scores": scores, "wanted": {"min_score": 9.0}, "model": MODEL}
    assert write_kept(spark, out=out, **given).kept == 3
    assert write_kept(spark, out=out, mode="overwrite", **given).kept == 3
    assert sorted(row[0] for row in spark.read.format("delta").load(out).collect()) == [18, 19, 99]
    plain = str(tmp_path / "plain")
    spark.range(1).write.format("delta").save(plain)
    with pytest.raises(TableError, match=r"--out .*expected a table with column mapping"):
        write_kept(spark, out=plain, mode="overwrite", **given)
