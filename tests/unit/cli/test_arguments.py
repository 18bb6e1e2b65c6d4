"""Options that are made from a function's parameters: their types, defaults and explanations."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import pytest

from spark_aesthetic.cli import curation, scoring
from spark_aesthetic.cli.arguments import Parser, taken_by
from spark_aesthetic.errors import OptionError


def work(
    frame: object,
    table: str,
    *,
    by: str | Sequence[str] = (),
    penalties: Sequence[float] = (0.5, 1.0),
    size: str | int = "8g",
    rows: int | None = None,
    share: float = 0.1,
    dry_run: bool = False,
    how: Literal["exact", "fast"] | None = "exact",
    seed: int = 0,
) -> None:
    """Do some work.

    Args:
        frame: Text gives none.
        table: A table, of 100% of
            the rows.
        by: Columns of `table`, not of `frames`.
        penalties: Some.
        size: Of a file: such as "8g".
        rows: Some.
        share: Some.
        dry_run: Do nothing.
        how: This way.
        seed: Some.

    Raises:
        OptionError: None of: these.
    """


def parsed(*given: str, **more: Any) -> dict[str, Any]:
    arguments = Parser(prog="work")
    arguments.take(work, **more)
    return vars(arguments.parse_args(given))


def test_a_parameter_is_an_option_of_its_type_with_its_default() -> None:
    defaults = {
        "table": "t", "by": (), "penalties": (0.5, 1.0), "size": "8g", "rows": None, "share": 0.1, "dry_run": False,
        "how": "exact", "seed": 0,
    }  # fmt: skip
    assert parsed("--table", "t") == defaults
    given = "--table t --by a,b --penalties 1,2e-1 --size 1 --rows 2 --share 3 --dry-run --how fast --seed 4"
    assert parsed(*given.split()) == {
        "table": "t", "by": ["a", "b"], "penalties": [1.0, 0.2], "size": "1", "rows": 2, "share": 3.0, "dry_run": True,
        "how": "fast", "seed": 4,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "the following arguments are required: --table; see --help"),
        ("--table t --how fats", "argument --how: invalid choice: 'fats'"),
        ("--table t --rows 1.5", "argument --rows: invalid int value: '1.5'; see --help"),
        ("--table t --share x", "argument --share: invalid float value: 'x'; see --help"),
        ("--table t --frame x", "unrecognized arguments: --frame x; see --help"),
    ],
)
def test_a_wrong_argument_is_one_line(given: str, message: str) -> None:
    with pytest.raises(OptionError, match=re.escape(message)):
        parsed(*given.split())


def test_a_table_says_where_the_command_line_differs() -> None:
    differs = {
        "table": {"required": False, "flags": ["--source", "--from"]},
        "size": {"required": True},
        "how": {"choices": None},
        "out": {"help": "No parameter."},
    }
    found = parsed("--from", "t", "--size", "1", "--how", "other", without=["share", "seed"], **differs)
    assert (found["source"], found["size"], found["how"], found["out"]) == ("t", "1", "other", None)
    assert not {"share", "seed", "table"} & set(found)


def test_one_of_several_may_be_given_or_must() -> None:
    one_of = ["rows", "share"]
    assert parsed("--table", "t", one_of=one_of)["rows"] is None
    with pytest.raises(OptionError, match="argument --share: not allowed with argument --rows"):
        parsed("--table", "t", "--rows", "1", "--share", "1", one_of=one_of)
    with pytest.raises(OptionError, match="one of the arguments --rows --share is required"):
        parsed("--table", "t", one_of=one_of, needs_one=True)


def test_help_is_what_the_docstring_says_in_the_words_of_a_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    arguments = Parser(prog="work")
    arguments.take(work)
    lines = arguments.format_help().splitlines()
    assert [re.sub(r" {2,}", "  ", line.strip()) for line in lines if line.startswith("  --")] == [
        "--table TABLE  A table, of 100% of the rows.",
        "--by COL[,COL]  Columns of --table, not of `frames`.",
        "--penalties X[,X]  Some. Default: 0.5,1.0.",
        '--size SIZE  Of a file: such as "8g". Default: 8g.',
        "--rows N  Some.",
        "--share X  Some. Default: 0.1.",
        "--dry-run  Do nothing.",
        "--how {exact,fast}  This way. Default: exact.",
        "--seed N  Some. Default: 0.",
    ]


def test_a_function_gets_the_arguments_that_it_takes() -> None:
    assert taken_by(work, argparse.Namespace(table="t", rows=1, other=2)) == {"table": "t", "rows": 1}


@pytest.mark.parametrize(
    "arguments",
    [
        scoring.score_table_arguments,
        scoring.score_stream_arguments,
        curation.train_head_arguments,
        curation.calibrate_arguments,
        curation.curate_arguments,
        curation.review_arguments,
        curation.ingest_arguments,
        curation.export_arguments,
    ],
)
def test_every_option_of_a_job_is_explained_in_sentences(
    arguments: Callable[[], argparse.Namespace], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["job", "--help"])
    monkeypatch.setenv("COLUMNS", "10000")
    with pytest.raises(SystemExit) as ended:
        arguments()
    assert ended.value.code == 0
    _, _, options = capsys.readouterr().out.partition("show this help message and exit\n")
    explained = re.findall(r"^  (--\S+).*?(?:  +|\n {20,})(\S.*)$", options, flags=re.MULTILINE)
    assert len(explained) == len(re.findall(r"^  --", options, flags=re.MULTILINE)) >= 10
    assert [flag for flag, words in explained if not re.match(r"""["`A-Z].* .*\.$""", words)] == []
    assert "None" not in options
