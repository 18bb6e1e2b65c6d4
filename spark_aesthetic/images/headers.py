"""Inside a Python worker: what the headers of image files say."""

from __future__ import annotations

import pandas as pd

from spark_aesthetic.errors import MissingDependencyError

HEADER = "struct<width: int, height: int, format: string, error: string>"


def read_headers(images: pd.Series) -> pd.DataFrame:
    """Columns as in `HEADER` of a column of file bytes; `error` says why the others are null."""
    rows = [header_of(data) for data in images]
    frame = pd.DataFrame(rows, columns=["width", "height", "format", "error"], dtype=object)
    return frame.astype({"width": "Int32", "height": "Int32"})


def header_of(data: bytes | None) -> tuple[int | None, int | None, str | None, str | None]:
    """Width, height and format of an image file, and None; or three times None, and why.

    Raises:
        MissingDependencyError: Pillow or simplejpeg is not installed.
    """
    # Here, because a driver without Pillow imports this module too.
    try:
        from spark_aesthetic.images.decode import Header, read_header
    except ImportError as missing:
        raise MissingDependencyError(
            f"headers of images need Pillow and simplejpeg on every executor (found: {missing}): "
            "pip install 'spark-aesthetic[image]'"
        ) from missing
    header = read_header(data)
    return (*header, None) if isinstance(header, Header) else (None, None, None, str(header))
