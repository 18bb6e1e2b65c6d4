"""Inside a Python worker: what the headers of image files say."""

from __future__ import annotations

import pandas as pd

from spark_aesthetic.errors import MissingDependencyError

HEADER = "struct<width: int, height: int, format: string, error: string>"


def read_headers(images: pd.Series) -> pd.DataFrame:
    """Columns as in `HEADER` of a column of file bytes; `error` says why the others are null."""
    # Here, because a driver without Pillow imports this module too.
    try:
        from spark_aesthetic.decode import Header, read_header
    except ImportError as missing:
        raise MissingDependencyError(
            f"headers of images need Pillow and simplejpeg on every executor (found: {missing}): "
            "pip install 'spark-aesthetic[image]'"
        ) from missing

    rows = []
    for data in images:
        header = read_header(data)
        rows.append((*header, None) if isinstance(header, Header) else (None, None, None, str(header)))
    frame = pd.DataFrame(rows, columns=["width", "height", "format", "error"], dtype=object)
    return frame.astype({"width": "Int32", "height": "Int32"})
