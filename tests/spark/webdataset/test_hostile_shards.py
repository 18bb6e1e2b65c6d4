"""Spark reads hostile shards."""

from __future__ import annotations

from pathlib import Path

import hostile_tars
from hostile_tars import BAD_KEYS, END, GOOD_KEYS, member
from pyspark.sql import SparkSession

import spark_aesthetic as sa
from spark_aesthetic.testing import noise_image
from spark_aesthetic.webdataset import shards

HOSTILE = hostile_tars.hostile()


def test_what_is_known_of_shards_comes_from_the_reader(spark: SparkSession, tmp_path: Path) -> None:
    sa.register(spark)
    source = tmp_path / "in"
    source.mkdir()
    urls = [str(source / f"{at}.tar") for at in range(3)]
    names = (
        "__url__",
        "__key__",
        "__KEY__",
        "__version__",
        "__path__",
        "__error__",
        "error",
        "image_id",
        "path",
        "length",
    )
    lies = b"".join(member(f"z.{name}", urls[1].encode()) for name in names)
    texts = (
        member("z.a b.txt")
        + member("z.a\nb.txt")
        + member("z.x,y.json")
        + member("z.\u017feg.txt")
        + member("z.seg.txt")
    )
    for at, path in enumerate(urls):
        Path(path).write_bytes(member("a.jpg", noise_image(at)) + END)
    apart = member("y.jpg", noise_image(8)) + member("z.jpg", noise_image(9)) + lies + texts
    Path(urls[0]).write_bytes(apart + member("y.txt", b"of y") + member("y.__url__", urls[1].encode()) + END)
    Path(urls[2]).write_bytes(HOSTILE["size negative, kind 0"])
    done = sa.ingest_images(spark, str(source), str(tmp_path / "table"), format="webdataset")
    assert (done.listed, done.skipped, done.added) == (3, 0, 5)
    table = spark.read.format("delta").load(str(tmp_path / "table"))
    assert {row["__url__"] for row in table.collect()} == set(urls)
    (of_z,) = table.where("`__key__` = 'z'").collect()
    assert (bytes(of_z.image), of_z.path) == (noise_image(9), f"{urls[0]}#z")
    assert "sample: __url__ is a reserved name" in of_z.error
    (of_y,) = table.where("`__key__` = 'y'").collect()
    assert (bytes(of_y.image), of_y.txt, of_y.error) == (noise_image(8), "of y", "sample: __url__ is a reserved name")
    assert sa.ingest_images(spark, str(source), str(tmp_path / "table"), format="webdataset").chunks == 0


def test_spark_finds_the_same_keys(spark: SparkSession) -> None:
    keys = [(key,) for key in BAD_KEYS + GOOD_KEYS if key != "\ud800"]
    found = spark.createDataFrame(keys, "key string")
    good = [row.key for row in found.where(found.key.rlike(shards.WHOLE_KEY)).collect()]
    assert good == GOOD_KEYS
