"""The examples in the docstrings."""

from __future__ import annotations

import doctest
import re
from importlib import import_module

import numpy as np
import pytest
from conftest import REPOSITORY
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

PACKAGE = REPOSITORY / "spark_aesthetic"
WITH_EXAMPLES = [
    ".".join(file.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
    for file in sorted(PACKAGE.rglob("*.py"))
    if re.search(r"^ *>>> ", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_docstrings(spark: SparkSession, name: str) -> None:
    # What the examples of Spark functions take as given.
    given = {"spark": spark, "F": F, "np": np}
    result = doctest.testmod(import_module(name), extraglobs=given, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted > 0
    assert result.failed == 0
