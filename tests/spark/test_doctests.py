"""The examples in the docstrings."""

from __future__ import annotations

import ast
import doctest
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

PACKAGE = REPOSITORY / "spark_aesthetic"
HOLDERS = ast.Module | ast.ClassDef | ast.FunctionDef
PARSER = doctest.DocTestParser()


def examples(file: Path) -> dict[str, list[doctest.Example]]:
    """Return the examples in each docstring of ``file``, by the line and the name of the documented object.

    They are read from the source, because ``doctest.testmod`` skips a class if its ``__module__`` names a different
    module.
    """
    found = {}
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, HOLDERS) and (text := ast.get_docstring(node)) and (some := PARSER.get_examples(text)):
            found[f"{getattr(node, 'lineno', 1)} {getattr(node, 'name', 'module')}"] = some
    return found


FILES = {str(file.relative_to(REPOSITORY)): file for file in sorted(PACKAGE.rglob("*.py")) if examples(file)}


@pytest.mark.parametrize("name", FILES)
def test_docstrings(spark: SparkSession, name: str) -> None:
    module = import_module(name.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for place, some in examples(FILES[name]).items():
        # The examples of Spark functions use these names without defining them.
        given = {**vars(module), "spark": spark, "F": F, "np": np}
        runner.run(doctest.DocTest(some, given, place, name, None, None))
    assert runner.tries > 0
    assert runner.failures == 0
