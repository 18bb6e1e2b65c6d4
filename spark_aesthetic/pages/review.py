"""`review`: write a page on which people look at scored images around a cut, move it, and label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql.types import AtomicType, BinaryType

from spark_aesthetic import files
from spark_aesthetic.curation.columns import check_score, image_column
from spark_aesthetic.delta import identity, schemas, tables
from spark_aesthetic.delta.naming import names, quoted
from spark_aesthetic.errors import TableError
from spark_aesthetic.options import number, whole
from spark_aesthetic.pages.pictures import sampled_pictures
from spark_aesthetic.pages.review_page import Tile, review_page, without_picture
from spark_aesthetic.pages.sampling import BINS_PER_POINT, Sample, draw
from spark_aesthetic.scoring.target import SCORE

_MAX_SHOWN = 10_000


@dataclass(frozen=True, kw_only=True)
class Review:
    """What a page of review holds.

    Attributes:
        out: Where the page is.
        model: The `aesthetic_model` of its scores, or None where the table names none.
        cut: Where the page's cut stands at first.
        scored: Rows with a score, all of which are in the histogram.
        unscored: Rows without one, by reason.
        shown: Images on the page.
        without_picture: Of those, the ones that have none, by reason.
        page_bytes: Size of the page.
    """

    out: str
    model: str | None
    cut: float
    scored: int
    unscored: dict[str, int]
    shown: int
    without_picture: dict[str, int]
    page_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)


def review(
    scores: DataFrame,
    images: DataFrame | str,
    *,
    key: str | Sequence[str],
    out: str | Path,
    image_col: str = "image",
    score_col: str = SCORE,
    cut: float | None = None,
    n: int = 400,
    seed: int = 0,
    model: str | None = None,
    source: str | None = None,
    overwrite: bool = False,
) -> Review:
    """Write a page to look at scored images around a cut, to move the cut and to label; complete in one file.

    The page has the histogram of all scores and a sample of images in bands of scores: with a cut the more of a band
    the nearer it is to it, without one equally many of each. The sample depends on the rows and the seed alone. People
    mark images as keep or drop; the labels come back as CSV: the key columns, score, label.

    Scores are read twice and without images. Thumbnails are made on the executors, of the sampled rows alone.

    Args:
        scores: The key columns and `score_col`; of one model in `aesthetic_model`, if that column is there.
            `aesthetic_error`, if there, tells why rows have no score.
        images: The key columns and `image_col`. A Delta table, by name or path, of which only the files with
            sampled rows are read; or a DataFrame, of which all rows are.
        key: Columns that together identify a row; of simple types but binary.
        out: The file to write: a path of the driver, dbfs:/, or an address that fsspec knows; its folder is made.
        image_col: Binary column of image files, or the path of a struct's field, such as "image.bytes".
        score_col: Column of the scores, float or double.
        cut: Where the cut stands at first; rounded to hundredths. By default it keeps half of the rows.
        n: How many images to show, 1 to 10,000.
        seed: Another seed gives another sample.
        model: The `aesthetic_model` to show where there are several.
        source: Where the rows come from, for the page to say; by default the images, where they are named.
        overwrite: Replace the file `out` if there is one.

    Returns:
        Counts; see `Review`.

    Raises:
        TableError: Columns are not there or not of those types, there are scores of several models or none at all,
            or a key is not unique.
        OptionError: `n` or `out` cannot be, or a file is at `out` and is not to be replaced.
    """
    # A browser opens no more of them with pleasure.
    n = whole("n", n, least=1, most=_MAX_SHOWN, of="images")
    seed = whole("seed", seed, least=-(2**63), most=2**63 - 1)
    cut = None if cut is None else number("cut", cut)
    files.check_file(str(out), "--out", overwrite=overwrite)
    key = names(key)
    opened = images if isinstance(images, DataFrame) else tables.open_source(scores.sparkSession, images, "images")
    rows = opened if isinstance(opened, DataFrame) else opened.rows
    _check(scores, rows, key, score_col)
    image, holder = image_column(rows, image_col, "image_col")

    sample = draw(scores, key, score_col, cut=cut, n=n, seed=seed, model=model)
    pictures = sampled_pictures(sample.rows, scores, opened, key, image=image, holder=holder)
    tiles = [
        Tile(list(row.text), row.score_text, row.bin, row.band, *picture)
        for row, picture in zip(sample.rows, pictures, strict=True)
    ]
    source = source or (images if isinstance(images, str) else None)
    page = review_page(tiles, sample, key=key, score_col=score_col, source=source).encode()
    files.write(str(out), page)
    return _summary(str(out), tiles, sample, len(page))


def _summary(out: str, tiles: Sequence[Tile], sample: Sample, page_bytes: int) -> Review:
    return Review(
        out=out,
        model=sample.model,
        cut=sample.cut / BINS_PER_POINT,
        scored=sample.histogram.rows,
        unscored=sample.unscored,
        shown=len(tiles),
        without_picture=without_picture(tiles),
        page_bytes=page_bytes,
    )


def _check(scores: DataFrame, images: DataFrame, key: Sequence[str], score_col: str) -> None:
    identity.check_key_columns(scores, key, reserved=["score", "label"])
    identity.check_key_columns(images, key, reserved=[])
    for column in key:
        found = schemas.column_type(scores, quoted(column), "--key")
        if not isinstance(found, AtomicType) or isinstance(found, BinaryType):
            raise TableError(
                f"--key {column}: expected a type that labels can have as text, found {found.simpleString()}; "
                "add a column such as hex(…) to both tables"
            )
    check_score(scores, score_col)
