"""`display`: show scored images in a notebook, as a grid of thumbnails and a histogram."""

from __future__ import annotations

from dataclasses import dataclass

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import BinaryType

from spark_aesthetic.curation.columns import check_score, image_column
from spark_aesthetic.curation.models import is_score, is_untrained, model_column
from spark_aesthetic.delta.naming import quoted
from spark_aesthetic.delta.schemas import column_path, column_type
from spark_aesthetic.errors import TableError
from spark_aesthetic.images.thumbnails import data_uri
from spark_aesthetic.options import whole
from spark_aesthetic.pages.gallery import render
from spark_aesthetic.pages.pictures import thumbnail_udf
from spark_aesthetic.scoring.target import SCORE

_BAR_WIDTH = 0.25
_MOST_BARS = 60
_MOST_LETTERS = 500


@dataclass(frozen=True)
class Tile:
    """One image of the grid.

    Attributes:
        score: The score.
        thumbnail: A small WebP as a data URI, or None.
        reason: Why the thumbnail is missing, as in `aesthetic_error`; None otherwise.
        caption: The value of the caption column as text; None without that column, or if the value is null.
    """

    score: float
    thumbnail: str | None
    reason: str | None = None
    caption: str | None = None


@dataclass(frozen=True)
class Bar:
    """The number of rows with a score from `low` up to the next bar, also as a share of the highest bar's number."""

    low: float
    rows: int
    share: float


@dataclass(frozen=True, kw_only=True, repr=False)
class Display:
    """The object that a notebook shows as HTML and `print` as one line.

    Attributes:
        tiles: The images, from the highest score to the lowest.
        bars: The bars of the histogram, from the lowest score to the highest; at most 60.
        bar_width: The width of a bar in points of the score: 0.25, doubled until 60 bars suffice.
        scored: Rows with a score.
        unscored: Rows without a finite score.
        models: The models of the scores; empty if the table does not name them.
    """

    tiles: list[Tile]
    bars: list[Bar]
    bar_width: float
    scored: int
    unscored: int
    models: list[str]

    def __repr__(self) -> str:
        return f"{self.scored} scored, {self.unscored} without a score, {len(self.tiles)} shown"

    def _repr_html_(self) -> str:
        untrained = any(map(is_untrained, self.models))
        return render("display.html.jinja", display=self, untrained=untrained)


def display(
    df: DataFrame, image_col: str = "image", score_col: str = SCORE, *, n: int = 24, caption_col: str | None = None
) -> Display:
    """Show `n` images, evenly spread from the highest score to the lowest, and a histogram of all scores.

    Executors scale the images down, so only thumbnails of a few kilobytes reach the driver. Scores are read three times
    and the images of the chosen rows once. Write the scores to a table first, or each read scores the images again.

    Args:
        df: Rows with an image and a score. If the column `aesthetic_model` names an untrained model, a warning appears.
        image_col: Binary column of image files, or the path of a struct's field, such as "image.bytes".
        score_col: Numeric column of the scores.
        n: The largest number of images, at least 1. With 1, the best image is shown. Only one image per score is shown.
        caption_col: A column, or the path of a struct's field, to show as text below each image, such as its name; at
            most 500 characters of it. The default shows only the score.

    Returns:
        An object that a notebook shows as HTML, which loads nothing from outside.

    Raises:
        TableError: A column is missing or has the wrong type.
        OptionError: `n` is not a whole number of at least 1.
    """
    n = whole("n", n, least=1)
    image, _ = image_column(df, image_col, "image_col")
    check_score(df, score_col)
    caption = F.lit(None).cast("string") if caption_col is None else _caption(df, caption_col)
    given = F.col(quoted(score_col)).cast("double")
    score = F.when(is_score(given), given)
    ranks = [at / (n - 1) for at in range(n)] if n > 1 else [1.0]
    about = df.agg(
        F.percentile_approx(score, ranks).alias("chosen"), F.count(score).alias("scored"),
        F.count_if(score.isNull()).alias("unscored"), F.collect_set(model_column(df)).alias("models"),
        F.min(score).alias("lowest"), F.max(score).alias("highest"),
    ).collect()[0]  # fmt: skip
    width = _BAR_WIDTH
    while about.scored and about.highest // width - about.lowest // width >= _MOST_BARS:
        width *= 2
    return Display(
        tiles=_tiles(df, F.col(image), caption, score, about.chosen or []),
        bars=_bars(df, score, width),
        bar_width=width,
        scored=about.scored,
        unscored=about.unscored,
        models=sorted(about.models),
    )


def _caption(df: DataFrame, column: str) -> Column:
    path = column_path(df, column)
    if isinstance(column_type(df, path, "caption_col"), BinaryType):
        raise TableError(f"caption_col {column!r}: expected text, numbers or dates, found bytes. Name another column.")
    return F.substring(F.col(path).cast("string"), 1, _MOST_LETTERS)


def _tiles(df: DataFrame, image: Column, caption: Column, score: Column, chosen: list[float]) -> list[Tile]:
    both = F.struct(image.alias("image"), caption.alias("caption"))
    without = F.struct(F.lit(None).cast("binary").alias("image"), F.any_value(caption).alias("caption"))
    # If several images have the same score, one of them is shown, and rather one that exists.
    one = F.coalesce(F.any_value(F.when(image.isNotNull(), both), True), without).alias("row")
    one_each = df.where(score.isin(chosen)).groupBy(score.alias("score")).agg(one)
    shown = one_each.select("score", "row.caption", thumbnail_udf()("row.image").alias("made")).collect()
    return [
        Tile(row.score, data_uri(row.made.thumbnail), row.made.reason, row.caption)
        for row in sorted(shown, reverse=True, key=lambda row: row.score)
    ]


def _bars(df: DataFrame, score: Column, width: float) -> list[Bar]:
    bar = F.floor(score / width).alias("bar")
    counted = {
        row.bar: row["count"] for row in df.select(bar).where("bar IS NOT NULL").groupBy("bar").count().collect()
    }
    if not counted:
        return []
    highest = max(counted.values())
    all_bars = range(min(counted), max(counted) + 1)
    return [Bar(at * width, counted.get(at, 0), counted.get(at, 0) / highest) for at in all_bars]
