"""Make the thumbnails of a page on the executors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pyspark.sql import DataFrame, Row
from pyspark.sql import functions as F
from pyspark.sql.pandas.functions import pandas_udf
from pyspark.sql.types import IntegerType, StructField, StructType

from spark_aesthetic.delta import tables
from spark_aesthetic.delta.naming import quoted
from spark_aesthetic.delta.rows import rows_of_keys
from spark_aesthetic.errors import TableError
from spark_aesthetic.images.thumbnails import data_uri, thumbnails

# The largest total size of the image files that one Spark job reads.
_MAX_BYTES_AT_ONCE = 64 << 30

_AT = "_aesthetic_at"

# The thumbnail as a data URI, or None; and why it is missing, or None.
Picture = tuple[str | None, str | None]


def thumbnail_udf() -> Any:
    """Make the UDF that turns a column of image files into a struct of `thumbnail` and `reason`."""
    # Workers import this module too and have no session, so the UDF cannot be created on import.
    make_udf: Any = pandas_udf
    return make_udf(thumbnails, "thumbnail binary, reason string")


def sampled_pictures(
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
        scores: The table of the sampled rows, which gives the types of the key.
        images: Rows with the key and the image. If it is a table, only its files with sampled rows are read.
        key: Names of the key columns.
        image: The column of image files, as `F.col` takes it.
        holder: The top-level column that contains `image`.

    Returns:
        One picture per sampled row, in the same order.

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
    shrink = thumbnail_udf()
    pictures: dict[int, Picture] = {}
    for part in parts:
        # Broadcasting the sampled keys avoids a shuffle of the images.
        joined = part.join(F.broadcast(numbered), list(key)).select(_AT, F.col(image).alias("image"))
        for row in joined.select(_AT, shrink("image").alias("made")).collect():
            if row[_AT] in pictures:
                raise TableError(
                    f"--key {', '.join(key)}: expected one image for each key, found several for a sampled key. "
                    "Add a column to the key, or drop those rows."
                )
            pictures[row[_AT]] = (data_uri(row.made.thumbnail), row.made.reason)
    return pictures
