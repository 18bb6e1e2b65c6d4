"""Progress without a terminal, and the counts within a chunk."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from conftest import CONNECT, descriptions, last_query
from nbclient import NotebookClient
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

import spark_aesthetic as sa
from spark_aesthetic.delta.sessions import settings
from spark_aesthetic.scoring import jobs, live
from spark_aesthetic.scoring.live import ProgressListener, Tasks
from spark_aesthetic.testing import published_embeddings


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def listener(file: StringIO) -> ProgressListener:
    return ProgressListener(
        "scoring", rows_to_do=lambda: 10, bytes_a_row=1.0, rows_a_chunk=10, tasks=Tasks(), failed=Counter(), file=file
    )


def test_without_a_terminal_there_is_a_log_line_and_no_live_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # PySpark imports ipykernel wherever it is installed.
    import ipykernel  # noqa: F401

    monkeypatch.setattr(live, "_LOG_EVERY_SECONDS", 0.05)
    file, terminal = StringIO(), Terminal()
    with caplog.at_level("INFO", logger="spark_aesthetic"):
        for shown in (listener(file), listener(terminal)):
            shown._closed.wait(0.3)
            shown.close()
    assert file.getvalue() == ""
    assert "scoring: 0 of 10 rows" in caplog.text
    assert "scoring: " in terminal.getvalue()


IN_A_CELL = """
import time
from collections import Counter
import spark_aesthetic.images.architectures
from spark_aesthetic.scoring.live import ProgressListener, Tasks
shown = ProgressListener(
    "scoring", rows_to_do=lambda: 10, bytes_a_row=1.0, rows_a_chunk=10, tasks=Tasks(), failed=Counter(), file=None
)
time.sleep(2.5)
shown.add(4)
time.sleep(2.5)
shown.add(6)
shown.close()
"""


def test_a_saved_notebook_has_the_last_line_only() -> None:
    """The cell runs in a real kernel without ipywidgets, and no warning says that they are missing."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(IN_A_CELL)])
    NotebookClient(notebook, timeout=240, kernel_name="python3").execute()
    (output,) = notebook.cells[0].outputs
    assert output.output_type == "display_data"
    assert re.match(r"scoring: 100%.* 10/10 .*about 10\.0B of 10\.0B", output.data["text/plain"]), output


@pytest.fixture
def slow(spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Write a table of 20 rows in 8 files, each of which takes some time to score."""

    @F.pandas_udf("boolean")
    def wait(ids: pd.Series) -> pd.Series:
        time.sleep(0.4)
        return ids.notna()

    plan = jobs._struct
    monkeypatch.setattr(jobs, "_struct", lambda *given: F.when(wait.asNondeterministic()(F.col("id")), plan(*given)))
    monkeypatch.setattr(live, "_LIVE_EVERY_SECONDS", 0.1)
    path = str(tmp_path / "source")
    embeddings = published_embeddings().astype(float).tolist()
    rows = spark.createDataFrame([(at, embeddings[at % 10]) for at in range(20)], "id bigint, e array<float>")
    rows.repartition(8).write.format("delta").save(path)
    with settings(spark, {"spark.sql.files.minPartitionNum": "8"}):
        yield path


@pytest.mark.skipif(CONNECT, reason="there another process writes the chunks, and knows of their tasks")
@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("way", ["chunk", "in place", pytest.param("keys", marks=pytest.mark.long)])
def test_within_a_chunk_rows_go_with_its_tasks(spark: SparkSession, slow: str, tmp_path: Path, way: str) -> None:
    scores = None if way == "in place" else str(tmp_path / "scores")
    if way == "keys":
        # The stream then has no new rows, so all rows are scored by their keys.
        sa.score_table(spark, source=slow, key=["id"], embedding_col="e", scores=scores)
        spark.sql(f"DELETE FROM delta.`{scores}`")
    before, file = last_query(spark), Terminal()
    done = sa.score_table(
        spark, source=slow, key=["id"], embedding_col="e", scores=scores, reconcile=way == "keys", progress_file=file
    )
    assert done.scored == 20
    lines = file.getvalue().split("\r")
    counted = [re.search(r" (\d+)/20 .*chunk 1 at work, (\d) of 8 tasks", line) for line in lines]
    seen = [(int(found[1]), int(found[2])) for found in counted if found is not None]
    assert len({rows for rows, _ in seen if 0 < rows < 20}) > 1, seen
    assert all(rows == 20 * tasks // 8 for rows, tasks in seen)
    assert any(re.search(r" 20/20 .*about", line) and "at work" not in line for line in lines[-2:]), lines[-2:]
    said = {"in place": f"scoring in place delta.`{slow}`", "keys": f"scoring keys of delta.`{slow}`"}
    if way in said:
        assert f"spark-aesthetic: {said[way]}" in descriptions(spark, before)
    # The properties of the thread are restored for later queries.
    for name in ("spark.jobGroup.id", "spark.job.description"):
        assert spark.sparkContext.getLocalProperty(name) is None
