"""The display of scored images in a notebook."""

from __future__ import annotations

import re
from base64 import b64decode
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from pyspark.sql import SparkSession

import spark_aesthetic as sa
from spark_aesthetic.errors import OptionError, TableError
from spark_aesthetic.testing import noise_image

pytestmark = pytest.mark.connect

ROWS = [(at, bytearray(noise_image(at)), at / 4, "mine@0") for at in range(20)]
ROWS += [(20, bytearray(b"no image"), 9.5, "mine@0"), (21, None, None, "mine@0")]
# This row has no image. Its score was made from a kept embedding.
ROWS += [(22, None, 9.75, "mine@0")]
SCHEMA = "id int, image binary, aesthetic_score float, aesthetic_model string"


def test_images_are_spread_over_the_ranking_and_all_scores_are_counted(spark: SparkSession) -> None:
    shown = sa.display(spark.createDataFrame(ROWS, SCHEMA).repartition(3), n=5)
    assert [tile.score for tile in shown.tiles] == [9.75, 4.0, 2.5, 1.25, 0.0]
    assert [tile.thumbnail is None for tile in shown.tiles] == [True, False, False, False, False]
    assert (shown.scored, shown.unscored, repr(shown)) == (22, 1, "22 scored, 1 without a score, 5 shown")
    assert [bar.rows for bar in shown.bars] == [1] * 20 + [0] * 18 + [1, 1]
    html = shown._repr_html_()
    assert html.count("data:image/webp;base64,") == 4
    assert [tile.reason for tile in shown.tiles] == ["null", None, None, None, None]
    assert '<div class="none">null</div>' in html
    assert html.count('class="bar"') == 40
    assert "untrained" not in html
    assert "http" not in html


def test_one_image_is_the_best_and_bars_stay_few(spark: SparkSession) -> None:
    scores = [float("nan"), float("-inf"), float("inf"), -1000.0, 4.0, 25.0]
    rows = [(at, bytearray(noise_image(at)), score, "mine@0") for at, score in enumerate(scores)]
    shown = sa.display(spark.createDataFrame(rows, SCHEMA), n=1)
    assert [tile.score for tile in shown.tiles] == [25.0]
    assert (shown.scored, shown.unscored, shown.bar_width) == (3, 3, 32.0)
    assert len(shown.bars) == 33
    assert sum(bar.rows for bar in shown.bars) == 3
    assert "32.00</span>" in shown._repr_html_()


def test_a_caption_is_that_of_its_image(spark: SparkSession) -> None:
    # If scores are equal, a row that has an image is shown, with its own caption.
    rows = [(9, None, 1.5, "mine@0"), *((at, bytearray(noise_image(at)), at / 2, "mine@0") for at in range(4))]
    rows += [(8, None, 0.5, "mine@0"), (4, None, 5.0, "mine@0")]
    named = (
        spark.createDataFrame(rows, SCHEMA)
        .coalesce(1)
        .selectExpr(
            "*", "IF(id = 2, NULL, concat('s3a://lake/<b>', id)) AS path", "named_struct('name', id * 10) AS about"
        )
    )
    shown = sa.display(named, n=9, caption_col="PATH")
    assert [tile.caption for tile in shown.tiles] == [
        f"s3a://lake/<b>{at}" if at != 2 else None for at in (4, 3, 2, 1, 0)
    ]
    assert [tile.thumbnail is None for tile in shown.tiles] == [True, False, False, False, False]
    html = shown._repr_html_()
    assert "<bdi>s3a://lake/&lt;b&gt;3</bdi>" in html
    assert html.count('<div class="caption"') == 4
    assert [tile.caption for tile in sa.display(named, n=9, caption_col="about.name").tiles][:2] == ["40", "30"]
    assert 'class="caption"' not in sa.display(named, n=1)._repr_html_()
    with pytest.raises(TableError, match="caption_col"):
        sa.display(named, caption_col="nme")
    with pytest.raises(TableError, match="caption_col 'image': expected text"):
        sa.display(named, caption_col="image")


def test_no_full_image_reaches_the_driver(spark: SparkSession) -> None:
    large = bytearray(noise_image(1, width=2000, height=1500))
    shown = sa.display(spark.createDataFrame([(1, large, 5.0, "untrained-x@0")], SCHEMA), n=1)
    assert len(shown.tiles[0].thumbnail or "") < len(large) / 10
    html = shown._repr_html_()
    assert "These scores mean nothing" in html
    assert len(re.findall(r"5.00 \(untrained\)", html)) == 1


def test_images_are_decoded_as_for_scores_and_shown_upright(spark: SparkSession) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    files = {"JPEG": {"exif": exif}, "PPM": {}, "PNG": {}}
    rows = []
    for at, (kind, options) in enumerate(files.items()):
        file = BytesIO()
        Image.new("RGBA" if kind == "PNG" else "RGB", (30, 10)).save(file, kind, **options)
        rows.append((at, (bytearray(file.getvalue()), "a"), float(at), "mine@0"))
    rows.append((3, (bytearray(noise_image(0)[:-900]), "b"), 3.0, "mine@0"))
    schema = "id int, image struct<bytes: binary, path: string>, aesthetic_score float, aesthetic_model string"
    shown = sa.display(spark.createDataFrame(rows, schema), "image.bytes", n=np.int32(4))
    reasons = ["decode: truncated JPEG", None, "decode: unsupported format PPM", None]
    assert [tile.reason for tile in shown.tiles] == reasons
    sizes = [
        Image.open(BytesIO(b64decode(tile.thumbnail.partition(",")[2]))).size for tile in shown.tiles if tile.thumbnail
    ]
    assert sizes == [(30, 10), (10, 30)]
    with pytest.raises(TableError, match=r"image_col image: .* Name its field bytes: image_col image.bytes"):
        sa.display(spark.createDataFrame(rows, schema))


def test_a_table_without_scores_shows_that(spark: SparkSession) -> None:
    shown = sa.display(spark.createDataFrame([(1, None, None, None)], SCHEMA))
    assert (shown.tiles, shown.bars, shown.unscored) == ([], [], 1)
    assert "1 without a score" in shown._repr_html_()


def test_wrong_columns_are_told(spark: SparkSession) -> None:
    frame = spark.createDataFrame(ROWS, SCHEMA)
    with pytest.raises(TableError, match="did you mean 'image'"):
        sa.display(frame, "imge")
    with pytest.raises(TableError, match=r"no column .aesthetic_scor. in the table: did you mean"):
        sa.display(frame, score_col="aesthetic_scor")
    with pytest.raises(TableError, match="score_col 'aesthetic_model': expected numbers, found string"):
        sa.display(frame, score_col="aesthetic_model")
    for n in (0, -1, 2.5, True, "3", float("nan"), None):
        with pytest.raises(OptionError, match=r"n=.*expected a whole number of at least 1"):
            sa.display(frame, n=n)  # type: ignore[arg-type]
    with pytest.raises(TableError, match="expected binary"):
        sa.display(frame, "id")
