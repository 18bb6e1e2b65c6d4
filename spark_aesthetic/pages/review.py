"""A page on which people look at scored images around a cut, move it, and label."""

from __future__ import annotations

import json
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from hashlib import sha256
from importlib import resources
from itertools import accumulate
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame, Row
from pyspark.sql import functions as F
from pyspark.sql.pandas.functions import pandas_udf
from pyspark.sql.types import AtomicType, BinaryType, FloatType, IntegerType, StructField, StructType

from spark_aesthetic import files
from spark_aesthetic.curation.columns import check_score, image_column
from spark_aesthetic.curation.models import check_model, is_untrained, model_column, one_model, reason
from spark_aesthetic.delta import identity, schemas, tables
from spark_aesthetic.delta.identity import has_null
from spark_aesthetic.delta.naming import names, quoted
from spark_aesthetic.delta.rows import rows_of_keys
from spark_aesthetic.errors import TableError
from spark_aesthetic.images.thumbnails import data_uri, thumbnails
from spark_aesthetic.options import number, whole
from spark_aesthetic.pages.gallery import render
from spark_aesthetic.scoring.target import SCORE

# Of the histogram, and the steps of the cut: so the page's counts of kept rows are exact.
BINS_PER_POINT = 100

# Scores beyond 100 points are counted as 100; it bounds what one wild score costs.
_MOST_BINS = 100.0 * BINS_PER_POINT

_MAX_SHOWN = 10_000
_MAX_BARS, _MAX_BANDS, _MAX_TICKS = 120, 24, 12

# Widths of bars and bands, in bins, that read well.
_WIDTHS: list[int] = [step * 10**power for power in range(6) for step in (1, 2, 5)]

# Files of images that are read in one Spark job.
_MAX_BYTES_AT_ONCE = 64 << 30

_AT = "_aesthetic_at"

# A thumbnail as a data URI, or None; and why there is none, or None.
Picture = tuple[str | None, str | None]


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


@dataclass(frozen=True)
class Hundredths:
    """Rows by score: `counts[i]` have a score of at least `first + i` hundredths, and less than the next."""

    first: int
    counts: list[int]

    @property
    def rows(self) -> int:
        """All of them."""
        return sum(self.counts)

    def quantile(self, share: float) -> int:
        """The bin, in hundredths, below which about that share of the rows lies."""
        wanted = share * self.rows
        return self.first + next(at for at, below in enumerate(accumulate(self.counts)) if below >= wanted)

    def between(self, low: int, high: int) -> int:
        """Rows from `low` to below `high`, in hundredths."""
        return sum(self.counts[max(low - self.first, 0) : max(high - self.first, 0)])


@dataclass(frozen=True)
class Section:
    """Rows with a score from `low` to below `high`, in hundredths, and how many of them to show."""

    low: int
    high: int
    rows: int
    quota: int


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The rows that a page shows, and the scores from which they were drawn.

    Attributes:
        model: The `aesthetic_model` of the scores, or None if the table names none.
        histogram: All scores of that model.
        unscored: Rows without a score, by reason.
        is_float: Whether the scores are of the type FLOAT.
        cut: In hundredths.
        bands: From the lowest score to the highest.
        seed: Another seed gives another sample.
        rows: From the highest score to the lowest, with the columns key (struct), text (of the key's columns),
            score_text, bin and band (the number of its band).
    """

    model: str | None
    histogram: Hundredths
    unscored: dict[str, int]
    is_float: bool
    cut: int
    bands: list[Section]
    seed: int
    rows: list[Row]


@dataclass(frozen=True)
class Tile:
    """One image of the page.

    Attributes:
        key: Values of the key columns, as text.
        score: As text that reads as the same number.
        bin: The score in whole hundredths.
        band: Number of its band.
        thumbnail: WebP as a data URI, or None.
        reason: Why there is none, or None.
    """

    key: list[str]
    score: str
    bin: int
    band: int
    thumbnail: str | None
    reason: str | None


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
        score_col: float or double column.
        cut: Where the cut stands at first; rounded to hundredths. By default it keeps half of the rows.
        n: How many images to show, 1 to 10,000.
        seed: Another one gives another sample.
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

    sample = _draw(scores, key, score_col, cut=cut, n=n, seed=seed, model=model)
    pictures = _pictures(sample.rows, scores, opened, key, image=image, holder=holder)
    tiles = [
        Tile(list(row.text), row.score_text, row.bin, row.band, *picture)
        for row, picture in zip(sample.rows, pictures, strict=True)
    ]
    source = source or (images if isinstance(images, str) else None)
    page = _page(tiles, sample, key=key, score_col=score_col, source=source).encode()
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
        without_picture=_without_picture(tiles),
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


def _draw(
    scores: DataFrame, key: Sequence[str], score_col: str, *, cut: float | None, n: int, seed: int, model: str | None
) -> Sample:
    """Count all scores, and draw the rows to show in bands around the cut; without a cut it keeps half of the rows."""
    columns = _columns(scores, key, score_col)
    model, histogram, unscored = _distribution(columns, model)
    cut_bin = histogram.quantile(0.5) if cut is None else round(cut * BINS_PER_POINT)
    bands = _bands(histogram, n, None if cut is None else cut_bin)
    return Sample(
        model=model,
        histogram=histogram,
        unscored=unscored,
        is_float=_is_float(scores, score_col),
        cut=cut_bin,
        bands=bands,
        seed=seed,
        rows=_sample(columns, bands, key, model, seed),
    )


def _columns(scores: DataFrame, key: Sequence[str], score_col: str) -> DataFrame:
    """The narrow columns of both passes: key, its text, score, model, and bin or the reason for which there is none."""
    given = F.col(quoted(score_col))
    score = given.cast("double")
    why_none = F.coalesce(reason(scores, score_col), F.when(has_null(key), "key: null"))
    # The nearest hundredth, or the one below it where the score does not reach that, compared in the type of the scores
    # as `curate` does: of a FLOAT that is the bin of 5.10 for a score of 5.1.
    hundredths = F.round(F.least(F.greatest(score * BINS_PER_POINT, F.lit(-_MOST_BINS)), F.lit(_MOST_BINS)))
    edge = hundredths / BINS_PER_POINT
    below = given < (edge.cast("float") if _is_float(scores, score_col) else edge)
    bin_number = F.greatest(hundredths - F.when(below, 1).otherwise(0), F.lit(-_MOST_BINS))
    names = [F.col(quoted(column)) for column in key]
    return scores.select(
        F.struct(*names).alias("key"),
        F.array(*[name.cast("string") for name in names]).alias("text"),
        given.cast("string").alias("score_text"),
        model_column(scores).alias("model"),
        why_none.alias("reason"),
        F.when(why_none.isNull(), bin_number.cast("int")).alias("bin"),
    )


def _is_float(scores: DataFrame, score_col: str) -> bool:
    return isinstance(check_score(scores, score_col), FloatType)


def _distribution(columns: DataFrame, model: str | None) -> tuple[str | None, Hundredths, dict[str, int]]:
    """In one pass: the model, the histogram, and the rows without a score by reason."""
    counted = columns.groupBy("model", "reason", "bin").count().collect()
    models: Counter[str] = Counter()
    for row in counted:
        if row.model is not None:
            models[row.model] += row["count"]
    if model is None:
        model = one_model(models)
    else:
        check_model(model, list(models))
    unscored: Counter[str] = Counter()
    bins: Counter[int] = Counter()
    for row in counted:
        # A table scored in place has rows of no model yet.
        if row.reason is not None and row.model in (model, None):
            unscored[row.reason] += row["count"]
        elif row.model == model:
            bins[row.bin] += row["count"]
        elif row.model is None:
            unscored["of no model"] += row["count"]
    by_reason = dict(sorted(unscored.items()))
    if not bins:
        raise TableError(f"expected rows with a score, found none; rows without one by reason: {by_reason or 'none'}")
    return model, Hundredths(min(bins), [bins[at] for at in range(min(bins), max(bins) + 1)]), by_reason


def _bands(histogram: Hundredths, n: int, cut: int | None) -> list[Section]:
    """Bands of equal width over all but the outermost rows, which belong to the outermost bands; and their quotas."""
    low, high = histogram.quantile(0.005), histogram.quantile(0.995)
    width = _width(high - low + 1, _MAX_BANDS)
    edges = list(range(low // width * width, high + 1, width))
    starts = [min(histogram.first, edges[0]), *edges[1:]]
    ends = [*edges[1:], max(histogram.first + len(histogram.counts), edges[-1] + width)]
    rows = [histogram.between(*edge) for edge in zip(starts, ends, strict=True)]
    # By distance in bands.
    weights = [1.0 if cut is None else 1 / (1 + abs(edge // width - cut // width)) for edge in edges]
    return [Section(*band) for band in zip(starts, ends, rows, _quotas(rows, weights, n), strict=True)]


def _quotas(rows: Sequence[int], weights: Sequence[float], n: int) -> list[int]:
    """Share out `n` by weight; what bands have too few rows for goes to the others."""
    quotas = [0] * len(rows)
    left, weight_left = n, sum(weights)
    for at in sorted(range(len(rows)), key=lambda at: rows[at] / weights[at]):
        quotas[at] = min(rows[at], round(left * weights[at] / weight_left))
        left -= quotas[at]
        weight_left -= weights[at]
    return quotas


def _width(bins: int, most: int) -> int:
    # One more where the first does not begin at a multiple.
    return next(width for width in _WIDTHS if bins / width + 1 <= most)


def _sample(columns: DataFrame, bands: list[Section], key: Sequence[str], model: str | None, seed: int) -> list[Row]:
    """Of each band the rows whose key has the least hashes, from the highest score to the lowest."""
    # Ordering bands of millions of rows would cost more than all else: of each only as many as are expected to hold
    # its quota twice go further. That fewer than the quota pass is next to impossible.
    shares = [min(1.0, (2 * band.quota + 64) / max(band.rows, 1)) for band in bands]
    bounds = F.lit([min(int(share * (1 << 63)), (1 << 63) - 1) for share in shares]).cast("array<bigint>")
    number = sum((F.when(F.col("bin") >= band.low, 1).otherwise(0) for band in bands[1:]), F.lit(0))
    candidates = (
        columns.where(F.col("bin").isNotNull() & F.col("model").eqNullSafe(F.lit(model)))
        .withColumn("band", number)
        .withColumn("hash", F.shiftrightunsigned(F.xxhash64("text", F.lit(seed)), 1))
        .where(F.col("hash") <= F.element_at(bounds, F.col("band") + 1))
        .drop("model", "reason")
        .collect()
    )
    sample: list[Row] = []
    for at, band in enumerate(bands):
        ordered = sorted((row for row in candidates if row.band == at), key=lambda row: (row.hash, row.text))
        sample += ordered[: band.quota]
    repeated = [text for text, count in Counter(tuple(row.text) for row in sample).items() if count > 1]
    if repeated:
        raise TableError(
            f"--key {', '.join(key)}: expected one score for each key, found several for {', '.join(repeated[0])}; "
            "add a column to the key or drop those rows"
        )
    return sorted(sample, key=lambda row: (-float(row.score_text), row.text))


def _pictures(
    sampled: Sequence[Row],
    scores: DataFrame,
    images: DataFrame | tables.Source,
    key: Sequence[str],
    *,
    image: str,
    holder: str,
) -> list[Picture]:
    """Make the thumbnails of sampled rows on the executors.

    Args:
        sampled: Rows with a struct `key`.
        scores: The table from which they were drawn, for the types of the key.
        images: Rows with the key and the image. Of a table only the files with sampled rows are read.
        key: Names of the key's columns.
        image: The column of image files, as `F.col` takes it.
        holder: The top-level column that holds it.

    Returns:
        One picture for each row, in their order.

    Raises:
        TableError: A key has several images.
    """
    keys = StructType([StructField(_AT, IntegerType()), *scores.select(*map(quoted, key)).schema])
    numbered = scores.sparkSession.createDataFrame([(at, *row.key) for at, row in enumerate(sampled)], keys)
    if isinstance(images, DataFrame):
        parts = iter([images.select(*map(quoted, [*key, holder]))])
    else:
        parts = rows_of_keys(
            scores.sparkSession, images, numbered.drop(_AT), len(sampled),
            key=key, kept=key, column=holder, max_bytes=_MAX_BYTES_AT_ONCE,
        )  # fmt: skip
    pictures = _by_number(parts, numbered, key, image)
    return [pictures.get(at, (None, "no row in the images")) for at in range(len(sampled))]


def _by_number(parts: Iterator[DataFrame], numbered: DataFrame, key: Sequence[str], image: str) -> dict[int, Picture]:
    # Made here: where this module is imported on a worker there is no session to make it with.
    make_udf: Any = pandas_udf
    shrink = make_udf(thumbnails, "thumbnail binary, reason string")
    pictures: dict[int, Picture] = {}
    for part in parts:
        # The sampled keys go to the rows, so that no image is shuffled.
        joined = part.join(F.broadcast(numbered), list(key)).select(_AT, F.col(image).alias("image"))
        for row in joined.select(_AT, shrink("image").alias("made")).collect():
            if row[_AT] in pictures:
                raise TableError(
                    f"--key {', '.join(key)}: expected one image for each key, found several for a sampled one; "
                    "add a column to the key or drop those rows"
                )
            pictures[row[_AT]] = (data_uri(row.made.thumbnail), row.made.reason)
    return pictures


def _page(tiles: Sequence[Tile], sample: Sample, *, key: Sequence[str], score_col: str, source: str | None) -> str:
    # Labels belong to these images and scores: the same page made again finds them, another one does not.
    content = json.dumps([sample.model, list(key), [(tile.key, tile.score) for tile in tiles]])
    histogram = sample.histogram
    tick = _width(len(histogram.counts), _MAX_TICKS)
    low = histogram.first // tick * tick
    high = -(-(histogram.first + len(histogram.counts)) // tick) * tick
    shown = [(band, [tile for tile in tiles if tile.band == at]) for at, band in enumerate(sample.bands)]
    script, style = (_text(f"review.{kind}") for kind in ("js", "css"))
    return render(
        "review.html.jinja",
        about={
            "id": sha256(content.encode()).hexdigest()[:12],
            "key": list(key),
            "score": quoted(score_col) if not score_col.isidentifier() else score_col,
            # A literal of the scores' type: 5.10 alone is more to Spark than a FLOAT of 5.1.
            "suffix": "F" if sample.is_float else "",
            "cut": min(max(sample.cut, low), high),
            "first": histogram.first,
            "counts": histogram.counts,
        },
        bands=[(band, inside) for band, inside in reversed(shown) if inside],
        bars=_bars(histogram, low),
        axis=range(low, high + 1, tick),
        rows=histogram.rows,
        shown=len(tiles),
        unscored=sample.unscored,
        without_picture=_without_picture(tiles),
        model=sample.model,
        untrained=is_untrained(sample.model),
        seed=sample.seed,
        source=source,
        made_at=f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
        script=script,
        script_hash=_csp_hash(script),
        style=style,
        style_hash=_csp_hash(style),
    )


def _bars(histogram: Hundredths, low: int) -> str:
    """The histogram as an SVG path, in hundredths from `low` and per cent of the highest bar from above."""
    width = _width(len(histogram.counts), _MAX_BARS)
    start = histogram.first // width * width
    lefts = range(start, histogram.first + len(histogram.counts), width)
    heights = [histogram.between(left, left + width) for left in lefts]
    return "".join(
        # However few rows, one can be seen.
        f"M{left - low} 100V{100 - max(100 * rows / max(heights), 1):.1f}h{width}V100Z"
        for left, rows in zip(lefts, heights, strict=True)
        if rows
    )


def _without_picture(tiles: Sequence[Tile]) -> dict[str, int]:
    return dict(sorted(Counter(tile.reason for tile in tiles if tile.reason is not None).items()))


def _text(name: str) -> str:
    return (resources.files("spark_aesthetic.pages") / "templates" / name).read_text(encoding="utf-8")


def _csp_hash(text: str) -> str:
    """What a Content-Security-Policy knows an inline script or style by."""
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"
