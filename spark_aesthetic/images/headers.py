"""Read the headers of image files in Python workers."""

from __future__ import annotations

import pandas as pd

from spark_aesthetic.errors import MissingDependencyError

HEADER = "struct<width: int, height: int, format: string, error: string>"


def read_headers(images: pd.Series) -> pd.DataFrame:
    """Read the headers of a column of file bytes. The columns are those of `HEADER`; `error` explains nulls."""
    rows = [header_of(data) for data in images]
    frame = pd.DataFrame(rows, columns=["width", "height", "format", "error"], dtype=object)
    return frame.astype({"width": "Int32", "height": "Int32"})


def header_of(data: bytes | None) -> tuple[int | None, int | None, str | None, str | None]:
    """Return (width, height, format, None), or (None, None, None, reason) if the header cannot be read.

    Raises:
        MissingDependencyError: Pillow or simplejpeg is not installed.
    """
    # Imported here, because a driver without Pillow imports this module too.
    try:
        from spark_aesthetic.images.decode import Header, read_header
    except ImportError as missing:
        raise MissingDependencyError(
            f"image headers: expected Pillow and simplejpeg on every executor, found: {missing}. "
            "Run pip install 'spark-aesthetic[image]' there."
        ) from missing
    header = read_header(data)
    return (*header, None) if isinstance(header, Header) else (None, None, None, str(header))
