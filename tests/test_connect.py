"""What Spark Connect cannot do says so in one clear error; all else passes the tests of the classic session."""

from __future__ import annotations

import pytest
from conftest import CONNECT
from pyspark.sql import SparkSession

import spark_aesthetic as sa
from spark_aesthetic.errors import TableError

pytestmark = pytest.mark.skipif(not CONNECT, reason="a session of Spark Connect: make unit runs it the second time")


def test_the_session_is_one_of_connect(spark: SparkSession) -> None:
    assert type(spark).__module__ == "pyspark.sql.connect.session"


def test_what_works_chunk_by_chunk_needs_a_classic_session(spark: SparkSession) -> None:
    with pytest.raises(TableError, match=r"expected a classic session.*jobs/score_table.py"):
        sa.score_table(spark, source="/none", key=["id"], embedding_col="e", scores="/none/scores")
