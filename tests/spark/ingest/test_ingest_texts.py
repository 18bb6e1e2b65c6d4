"""Texts that the first samples lack, or that a shard no longer has."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest
from pyspark.sql import SparkSession
from shard_files import add
from test_ingest import id_of, rows

import spark_aesthetic as sa
from spark_aesthetic.testing import noise_image

pytestmark = pytest.mark.usefixtures("interpreted")


def write_shard(path: Path, samples: dict[str, dict[str, str]], at: int) -> None:
    """Write a shard with an image for each sample and its texts by extension.

    `at` is the time of the shard and the seed of the images.
    """
    with tarfile.open(path, "w") as tar:
        for key, texts in samples.items():
            add(tar, f"{key}.jpg", noise_image(at))
            for extension, text in texts.items():
                add(tar, f"{key}.{extension}", text.encode())
    os.utime(path, (1_000_000_000 + at, 1_000_000_000 + at))


def test_texts_that_the_first_samples_lack_are_taken_in_with_their_column(spark: SparkSession, tmp_path: Path) -> None:
    table, source = tmp_path / "table", str(tmp_path / "*.tar")
    # The reader looks at the first, the middle and the last shard.
    for number, extension in enumerate(("txt", "caption", "txt", "caption", "txt")):
        write_shard(tmp_path / f"{number}.tar", {"a": {extension: f"text {number}"}}, number)
    assert sa.ingest_images(spark, source, str(table), max_files_per_chunk=2).added == 5
    found = rows(spark, table)
    assert {name: (row.txt, row.caption) for name, row in found.items()} == {
        "0.tar#a": ("text 0", None), "1.tar#a": (None, "text 1"), "2.tar#a": ("text 2", None),
        "3.tar#a": (None, "text 3"), "4.tar#a": ("text 4", None),
    }  # fmt: skip
    # Texts that no sample has get no column.
    assert not {"json", "cls", "transcript"} & set(spark.read.format("delta").load(str(table)).columns)


@pytest.mark.long
def test_a_text_that_a_shard_has_no_more_goes_with_the_older_image(spark: SparkSession, tmp_path: Path) -> None:
    table, source = tmp_path / "table", str(tmp_path / "*.tar")
    write_shard(tmp_path / "0.tar", {"a": {"en.txt": "a cat"}, "b": {"en.txt": "a dog"}}, 1)
    sa.ingest_images(spark, source, str(table))
    assert rows(spark, table)["0.tar#a"]["en.txt"] == "a cat"
    # a and b have lost their texts, and c is new and has a text of a different kind.
    write_shard(tmp_path / "0.tar", {"a": {}, "b": {}, "c": {"cls": "7"}}, 1)
    os.utime(tmp_path / "0.tar", (2_000_000_000, 2_000_000_000))
    done = sa.ingest_images(spark, source, str(table))
    assert (done.added, done.replaced, done.unchanged) == (1, 2, 0)
    found = {name: (row["en.txt"], row.cls) for name, row in rows(spark, table).items()}
    assert found == {"0.tar#a": (None, None), "0.tar#b": (None, None), "0.tar#c": (None, "7")}
    assert rows(spark, table)["0.tar#c"].image_id == id_of(noise_image(1))
    assert sa.ingest_images(spark, source, str(table)).chunks == 0
