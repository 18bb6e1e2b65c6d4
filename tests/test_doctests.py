"""The examples in the docstrings."""

from __future__ import annotations

import doctest
from importlib import import_module

import numpy as np
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

WITH_EXAMPLES = ["", ".errors", ".options", ".predictors", ".head", ".embeddings", ".formats", ".budget", ".testing"]
WITH_EXAMPLES += [".files", ".preflight", ".functions", ".sql", ".curation.ridge", ".curation.estimator"]
WITH_EXAMPLES += [".curation.evidence", ".curation.selection", ".curation.quality"]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_docstrings(spark: SparkSession, name: str) -> None:
    # What the examples of Spark functions take as given.
    given = {"spark": spark, "F": F, "np": np}
    result = doctest.testmod(
        import_module(f"spark_aesthetic{name}"), extraglobs=given, optionflags=doctest.NORMALIZE_WHITESPACE
    )
    assert result.attempted > 0
    assert result.failed == 0
