"""Exit codes, stdout and stderr of the job. The README's tests show that it succeeds under spark-submit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, RunHere
from pyspark.sql import SparkSession

from spark_aesthetic.testing import PUBLISHED_SCORES, published_embeddings

NOWHERE = "/proc/no/scores"


def submit(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.prefix) / "bin" / "spark-submit"), "--properties-file", "conf/local.conf"]
    # A user's shell does not set PYSPARK_PYTHON. The job itself makes workers run the driver's Python.
    environment = {name: value for name, value in os.environ.items() if name != "PYSPARK_PYTHON"}
    environment |= {
        "PATH": f"{Path(sys.prefix) / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "SPARK_CONF_DIR": str(REPOSITORY / "conf"),
    }
    return subprocess.run(
        [*command, "jobs/score_table.py", *arguments],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip


@pytest.fixture
def embeddings(spark: SparkSession, tmp_path: Path) -> str:
    rows = [(at, row.astype(float).tolist()) for at, row in enumerate(published_embeddings())]
    table = str(tmp_path / "embeddings")
    spark.createDataFrame(rows, "id int, e array<float>").write.format("delta").save(table)
    return table


def test_a_table_is_scored_and_the_summary_is_json(
    spark: SparkSession, embeddings: str, tmp_path: Path, run_here: RunHere
) -> None:
    scores = str(tmp_path / "scores")
    summary = run_here(
        "score_table.py", "--source", embeddings, "--key", "id", "--embedding-col", "e", "--scores", scores
    )
    assert list(summary) == [
        "rows_read", "scored", "failed", "skipped", "model", "seconds", "failed_by_reason", "chunks", "dropped",
    ]  # fmt: skip
    assert (summary["rows_read"], summary["scored"], summary["failed"], summary["skipped"]) == (10, 10, 0, 0)
    written = spark.read.format("delta").load(scores).orderBy("id").collect()
    assert [row.aesthetic_score for row in written] == pytest.approx(PUBLISHED_SCORES, abs=6e-4)
    assert {row.aesthetic_model for row in written} == {summary["model"]}


@pytest.mark.long
def test_what_a_run_refuses_at_work_is_exit_code_2_and_one_line_under_spark_submit(
    spark: SparkSession, embeddings: str, tmp_path: Path, run_here: RunHere
) -> None:
    arguments = ("--source", embeddings, "--key", "id", "--embedding-col", "e", "--scores", str(tmp_path / "scores"))
    run_here("score_table.py", *arguments)
    # A repeated key is found while a chunk is scored, inside Spark's stream.
    repeated = spark.read.format("delta").load(embeddings).where("id = 3")
    repeated.selectExpr("id + 100 AS id", "e").union(repeated.selectExpr("id + 100 AS id", "e")).write.format(
        "delta"
    ).mode("append").save(embeddings)
    done = submit(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    said = [line for line in done.stderr.splitlines() if line.startswith("score_table: ")]
    assert len(said) == 1
    assert "--key id: expected a unique key in each row, found 0 new keys with a null and 1 shared by" in said[0]
    for stack in ("Traceback", "Exception", "\tat ", "ERROR"):
        assert stack not in done.stderr


def test_a_wrong_argument_is_exit_code_2_and_one_line(
    embeddings: str, run_here: RunHere, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run_here("score_table.py", "--source", embeddings, "--key", "id", "--embedding-col", "embedding")
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    said = [line for line in err.splitlines() if line.startswith("score_table: ")]
    assert said == ["score_table: --embedding-col: no column 'embedding' in the table: Valid: id, e"]


def test_a_failure_at_work_is_exit_code_1_with_its_stack_on_stderr(
    embeddings: str, tmp_path: Path, run_here: RunHere, capsys: pytest.CaptureFixture[str]
) -> None:
    # The call is right, but the files of the table are damaged.
    for file in Path(embeddings).glob("*.parquet"):
        file.write_bytes(bytes(file.stat().st_size))
        file.with_name(f".{file.name}.crc").unlink()
    arguments = ("--source", embeddings, "--key", "id", "--embedding-col", "e", "--scores", str(tmp_path / "scores"))
    with pytest.raises(SystemExit) as ended:
        run_here("score_table.py", *arguments)
    assert ended.value.code == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" in err


def test_a_folder_that_nobody_can_make_is_exit_code_2_and_one_line(
    embeddings: str, run_here: RunHere, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run_here("score_table.py", "--source", embeddings, "--key", "id", "--embedding-col", "e", "--scores", NOWHERE)
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert [line for line in err.splitlines() if line.startswith(f"score_table: scores '{NOWHERE}': expected a place")]
    assert "Traceback" not in err


def test_a_misspelt_option_is_exit_code_2_and_one_line(run_here: RunHere, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run_here("score_table.py", "--source", "somewhere", "--key", "id", "--image-col", "e", "--decode", "exakt")
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    said = [line for line in err.splitlines() if line.startswith("score_table: ")]
    assert len(said) == 1
    assert "invalid choice: 'exakt'" in said[0]
    assert "Traceback" not in err
