"""The examples on the pages of docs/ and the notebooks run as they are written."""

from __future__ import annotations

import doctest
import os
import re
import shlex
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import nbformat
import pytest
from confs import properties
from conftest import REPOSITORY, SHARED
from nbclient import NotebookClient
from pyspark.sql import SparkSession

import spark_aesthetic as sa
from spark_aesthetic.cli import curation
from spark_aesthetic.cli.scoring import score_table_arguments
from spark_aesthetic.delta.sessions import settings
from spark_aesthetic.testing import noise_image, published_embeddings

PAGES = sorted((REPOSITORY / "docs").glob("*.md"))
WITH_EXAMPLES = [page for page in PAGES if "```pycon" in page.read_text(encoding="utf-8")]
NOTEBOOKS = REPOSITORY / "notebooks"


def blocks(page: Path, language: str) -> str:
    found = re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return "\n".join(found)


@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=lambda page: page.stem)
def test_examples_give_what_the_page_says(spark: SparkSession, demo_output: str, page: Path) -> None:
    names = {"spark": spark}
    text = blocks(page, "pycon").replace("demo-output", demo_output)
    examples = doctest.DocTestParser().get_doctest(text, names, page.stem, str(page), 0)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    result = runner.run(examples, clear_globs=False)
    assert result.attempted > 0
    assert result.failed == 0
    for statement in filter(str.strip, blocks(page, "sql").replace("demo-output", demo_output).split(";")):
        spark.sql(statement).collect()


# For each job: the function that parses its arguments, and the arguments that name a table.
JOBS = {
    "score_table.py": (score_table_arguments, ("source", "scores")),
    "ingest_images.py": (curation.ingest_arguments, ("source",)),
    "calibrate.py": (curation.calibrate_arguments, ("scores",)),
    "curate.py": (curation.curate_arguments, ("scores",)),
    "review.py": (curation.review_arguments, ("scores",)),
    "train_head.py": (curation.train_head_arguments, ("table",)),
    "export_webdataset.py": (curation.export_arguments, ("table",)),
}


@pytest.mark.long
def test_the_session_of_connect_that_a_page_starts_has_delta(tmp_path: Path) -> None:
    code = blocks(REPOSITORY / "docs" / "notebooks.md", "python")
    code += f"""
assert type(spark).__module__ == "pyspark.sql.connect.session"
spark.range(3).write.format("delta").save({str(tmp_path / "table")!r})
print(spark.read.format("delta").load({str(tmp_path / "table")!r}).count())
"""
    environment = {**os.environ, "PYSPARK_PYTHON": sys.executable}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.stdout.split() == ["3"], done.stderr[-3000:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_are_what_the_job_takes(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for command in blocks(page, "bash").replace("\\\n", " ").splitlines():
        called = command.partition("jobs/")[2].partition(" >> ")[0]
        job = called.split(" ")[0]
        if job not in JOBS:
            continue
        arguments, tables = JOBS[job]
        monkeypatch.setattr("sys.argv", shlex.split(called))
        args = arguments()
        # Except for the commands of a cluster, those of every page run on the output of make demo, without a download.
        named = [getattr(args, table) for table in tables if getattr(args, table) is not None]
        assert named[0].startswith("demo-output/"), command
        # The head for embeddings is part of the package.
        if job == "score_table.py" and args.embedding_col is None:
            assert args.predictor.startswith(("untrained-", "demo-output/"))


def test_the_page_of_the_job_has_its_options(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["score_table.py", "--help"])
    with pytest.raises(SystemExit):
        score_table_arguments()
    usage = capsys.readouterr().out.split("\n\n")[0]
    (synopsis,) = re.findall(r"^score_table.py .*?```", (REPOSITORY / "docs" / "job.md").read_text(), re.DOTALL | re.M)
    assert set(re.findall(r"--[a-z-]+", usage)) == set(re.findall(r"--[a-z-]+", synopsis))


def test_embeddings_that_are_scored_again_have_been_kept_by_a_command_before(monkeypatch: pytest.MonkeyPatch) -> None:
    page = REPOSITORY / "docs" / "job.md"
    kept: dict[str, sa.Predictor] = {}
    again = 0
    for command in blocks(page, "bash").replace("\\\n", " ").splitlines():
        if "jobs/score_table.py" not in command:
            continue
        monkeypatch.setattr("sys.argv", shlex.split(command.partition("jobs/")[2]))
        args = score_table_arguments()
        if args.with_embedding:
            kept[args.scores] = sa.resolve(args.predictor)
        if args.rescore_from_embeddings:
            # An example above the command has saved the predictor.
            (saved,) = re.findall(r"sa\.Predictor\(.*?\n\.\.\. \)", blocks(page, "pycon"), flags=re.DOTALL)
            other = eval(re.sub(r"^\.\.\. ?", "", saved, flags=re.MULTILINE), {"sa": sa})
            assert f'other.save("{args.predictor}")' in blocks(page, "pycon")
            before = kept[args.scores]
            assert (other.backbone, other.backbone_weights) == (before.backbone, before.backbone_weights)
            again += 1
    assert again == 1


def run_cells(notebook: str, spark: SparkSession, given: dict[str, str]) -> None:
    """Run a notebook in Databricks' source format, with different values for the names that it sets first."""
    text = (NOTEBOOKS / notebook).read_text(encoding="utf-8")
    code = "\n".join(line for line in text.splitlines() if not line.startswith("# MAGIC"))
    for name, value in given.items():
        code, changed = re.subn(rf"^{name} = .*$", f"{name} = {value!r}", code, flags=re.MULTILINE)
        assert changed == 1, name
    exec(code, {"spark": spark})


def test_the_databricks_notebook_of_images(
    spark: SparkSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = spark.createDataFrame([(0, bytearray(noise_image(0))), (1, None)], "id int, content binary")
    images.write.format("delta").saveAsTable("nb_photos")
    given = {"source": "nb_photos", "scores": "nb_scores", "view": "nb_scored_photos", "volume": str(tmp_path)}
    run_cells("databricks_score_images.py", spark, given | {"predictor": "untrained-vit-b-32"})
    assert {row.id: row.aesthetic_error for row in spark.table("nb_scored_photos").collect()} == {0: None, 1: "null"}
    assert "untrained-vit-b-32@" in capsys.readouterr().out


def test_the_databricks_notebook_of_embeddings(spark: SparkSession, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [(at, row.astype(float).tolist()) for at, row in enumerate(published_embeddings())]
    embeddings = spark.createDataFrame(rows, "id int, embedding array<float>")
    embeddings.write.format("delta").saveAsTable("nb_embeddings")
    given = {"source": "nb_embeddings", "scored": "nb_scored_embeddings", "function": "nb_aesthetic_score"}
    run_cells("databricks_score_embeddings.py", spark, given)
    assert spark.table("nb_scored_embeddings").where("aesthetic_score > 5").count() == 4
    assert "aesthetic_score_again" in capsys.readouterr().out


CURATION = nbformat.read(NOTEBOOKS / "image_curation.ipynb", as_version=4)


def assert_the_notebook_says_it(text: str) -> None:
    assert "9 scored by untrained-vit-b-32@" in text
    assert "{'decode: truncated JPEG': 1}" in text
    assert "0 scored, 10 skipped" in text
    assert "5 of 10 images kept" in text


def test_the_notebook_runs_in_this_session(
    spark: SparkSession, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No kernel and no JVM is started. The notebook's settings are set in this session, and then restored."""
    monkeypatch.chdir(NOTEBOOKS)
    *cells, last = [cell.source for cell in CURATION.cells if cell.cell_type == "code"]
    assert last == "spark.stop()"
    names = [name for name in properties("local.conf") if name.startswith("spark.sql.")]
    with settings(spark, {name: spark.conf.get(name, None) for name in names if spark.conf.isModifiable(name)}):
        exec("\n".join(cells), {})
    assert_the_notebook_says_it(capsys.readouterr().out)


@pytest.mark.long
def test_the_notebook_runs_from_top_to_bottom() -> None:
    notebook = deepcopy(CURATION)
    # The kernel is that of this environment, whatever kernels the machine has.
    notebook.metadata["kernelspec"]["name"] = "python3"
    done = NotebookClient(notebook, timeout=200, resources={"metadata": {"path": str(NOTEBOOKS)}}).execute()
    text = "".join(output.get("text", "") for cell in done.cells for output in cell.get("outputs", []))
    assert_the_notebook_says_it(text)


def test_committed_outputs_name_no_place_of_a_machine() -> None:
    text = (NOTEBOOKS / "image_curation.ipynb").read_text(encoding="utf-8")
    for place in (str(REPOSITORY), str(SHARED.parent), str(Path.home()), sys.prefix, os.uname().nodename):
        assert place == "/" or f'"{place}' not in text
        assert len(place) < 5 or place not in text


def test_pages_name_the_wheel_that_is_built() -> None:
    for page in [*PAGES, REPOSITORY / "README.md", *NOTEBOOKS.glob("*.py")]:
        named = re.findall(r"spark_aesthetic-([\w.]+)-py3", page.read_text(encoding="utf-8"))
        assert set(named) <= {sa.__version__}, page


def test_the_reference_shows_the_types_that_docstrings_name() -> None:
    public = [getattr(sa, name) for name in dir(sa) if name not in ("DEFAULT", "__version__")]
    for thing in public:
        # The docstrings become Markdown, where a bare <float> is a tag that shows nothing.
        assert not re.search(r"<(float|double|string|binary)\b", re.sub(r"`[^`]*`|>>> .*", "", thing.__doc__)), thing
        # Below "Returns:", a text such as "name: text" would be read as a type.
        assert not re.search(r"Returns:\n\s*\S+: ", thing.__doc__), thing
