"""Metadata is saved without pixels: the fields of a struct that stay, and files that exist already."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import last_query, plan_metrics
from pyspark.errors import AnalysisException
from pyspark.sql import SparkSession

import spark_aesthetic as sa
from spark_aesthetic.errors import OptionError, TableError

pytestmark = pytest.mark.usefixtures("interpreted")


def test_one_field_of_a_struct_is_left_out_and_not_read(spark: SparkSession, tmp_path: Path) -> None:
    table, out = str(tmp_path / "table"), str(tmp_path / "out")
    rows = [(at, (bytearray(b"image"), f"{at}.jpg"), (bytearray(b"mask"),)) for at in range(2)]
    schema = "id int, image struct<bytes: binary, path: string>, mask struct<bytes: binary>"
    spark.createDataFrame(rows, schema).coalesce(1).write.format("delta").save(table)
    frame = spark.read.format("delta").load(table)
    since = last_query(spark)
    sa.save_metadata(frame, out, image_cols=["Image.bytes", "mask.bytes"])
    read = [node.desc().partition("ReadSchema")[2] for node, *_ in plan_metrics(spark, since)]
    assert any("path" in schema for schema in read)
    assert not any("bytes" in schema for schema in read)
    found = spark.read.parquet(out)
    # Nothing is left of the second struct.
    assert found.columns == ["id", "image"]
    assert sorted(row.image.asDict()["path"] for row in found.collect()) == ["0.jpg", "1.jpg"]
    assert found.schema["image"].dataType.simpleString() == "struct<path:string>"
    with pytest.raises(TableError, match=r"image_cols: no column 'image\.byte'"):
        sa.save_metadata(frame, out, image_cols="image.byte")


def test_files_that_are_there_are_refused_unless_the_mode_says_so(spark: SparkSession, tmp_path: Path) -> None:
    frame, out = spark.createDataFrame([(1, bytearray(b"x"))], "id int, image binary"), str(tmp_path / "out")
    sa.save_metadata(frame, out)
    for mode in ("errorifexists", "error"):
        with pytest.raises(AnalysisException, match="already exists"):
            sa.save_metadata(frame, out, mode=mode)
    sa.save_metadata(frame, out, mode="append")
    assert spark.read.parquet(out).count() == 2
    sa.save_metadata(frame, out, mode="Overwrite")
    assert spark.read.parquet(out).count() == 1
    with pytest.raises(OptionError, match=r"mode='replace': .*Valid: errorifexists, append, overwrite, ignore"):
        sa.save_metadata(frame, out, mode="replace")
