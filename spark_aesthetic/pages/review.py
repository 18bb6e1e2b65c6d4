"""`review`: write a page on which people look at scored images, move the threshold (the cut) and label images."""

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
    """Counts of a review page.

    Attributes:
        out: The path or address of the page.
        model: The `aesthetic_model` of its scores, or None if the table does not name it.
        cut: The page's initial threshold.
        scored: Rows with a score. The histogram counts all of them.
        unscored: Rows without a score, by reason.
        shown: Images on the page.
        without_picture: Images on the page that have no thumbnail, by reason.
        page_bytes: Size of the page in bytes.
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
        """Return the fields as a dictionary for JSON."""
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
    """Write one HTML file on which people look at scored images, move the threshold (the cut) and label images.

    The page shows the histogram of all scores and a sample of images in bands of scores. With `cut`, bands nearer to it
    get more images; without, all bands get equally many. The sample depends only on the rows, the options and the seed.
    People mark images as keep or drop. The page saves the labels as CSV: the key columns, score, label.

    Scores are read twice, without images. Executors make thumbnails of the sampled rows only.

    Args:
        scores: Rows with the key columns and `score_col`. Two optional columns are used if they exist:
            `aesthetic_model`, the model of a score, and `aesthetic_error`, the reason for a missing score.
        images: Rows with the key columns and `image_col`: a Delta table, by name or path, or a DataFrame. For a table,
            only the files with sampled rows are read; for a DataFrame, all rows are.
        key: Columns that together identify a row, of any simple type except binary.
        out: The file to write: a path on the driver, dbfs:/, or an address that fsspec supports. Missing folders are
            created.
        image_col: Binary column of image files, or the path of a struct's field, such as "image.bytes".
        score_col: Column of the scores, of any numeric type.
        cut: The initial score threshold, rounded to hundredths. By default it keeps half of the rows.
        n: The number of images to show, from 1 to 10,000.
        seed: Seed of the sample.
        model: The `aesthetic_model` to show. Give it if the scores are of several models.
        source: The origin of the rows, to show on the page. By default it is the name or path in `images`.
        overwrite: Replace the file `out` if it exists.

    Returns:
        Counts; see `Review`.

    Raises:
        TableError: A column is missing or has the wrong type, the scores are of several models, no row has a score, or
            a sampled key is not unique.
        OptionError: An option is invalid, or the file `out` exists and `overwrite` is not set.
    """
    # Browsers become slow with more images.
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
                f"--key {column}: expected a type that labels can have as text, found {found.simpleString()}. "
                "Add a column such as hex(…) to both tables, and use it as the key."
            )
    check_score(scores, score_col)
