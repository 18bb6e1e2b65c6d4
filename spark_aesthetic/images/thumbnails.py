"""Make thumbnails of bounded size from image files, for every page that shows images.

Formats, limits and reasons are the same as for scoring.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from functools import partial
from io import BytesIO

import numpy as np
import pandas as pd
from PIL import Image, ImageOps

from spark_aesthetic.images.decode import Pixels, decode
from spark_aesthetic.options import PILLOW_WARNS_PIXELS

# Sharp at 128 CSS pixels on a screen of double density. Photographs take 7 kB on average.
SIDE = 256

# The limit for a thumbnail of SIDE. It grows with the square of the side. Noise at the first quality takes twice as
# much.
MAX_BYTES = 24_000

_QUALITIES = (75, 40, 10)


def thumbnails(batches: Iterator[pd.Series]) -> Iterator[pd.DataFrame]:
    """Make thumbnails of batches of image files, in the columns thumbnail (bytes or None) and reason (str or None)."""
    for batch in batches:
        made = [thumbnail(None if data is None else bytes(data)) for data in batch]
        yield pd.DataFrame(made, columns=["thumbnail", "reason"], dtype=object)


def thumbnail(data: bytes | None, *, side: int = SIDE) -> tuple[bytes | None, str | None]:
    """Shrink one image for people to look at.

    EXIF rotation is applied and transparent areas become white, as in image viewers. Scoring does neither.

    Args:
        data: The bytes of a file, or None.
        side: The longer side of the thumbnail in pixels; a smaller image keeps its size.

    Returns:
        A WebP file of at most about `MAX_BYTES` (more for a longer side) and None, or None and the reason that scoring
        gives for such a file.
    """
    shrink = partial(_shrunk, side=side)
    pixels = decode(data, side=side, max_pixels=PILLOW_WARNS_PIXELS, fast=True, preprocess=shrink)
    if isinstance(pixels, str):
        return None, str(pixels)
    return _webp(Image.fromarray(pixels), MAX_BYTES * side**2 // SIDE**2), None


def data_uri(webp: bytes | None) -> str | None:
    """Return a thumbnail as a data URI for an HTML page; None stays None."""
    return None if webp is None else f"data:image/webp;base64,{b64encode(webp).decode()}"


def _shrunk(image: Image.Image, side: int) -> Pixels:
    wanted = "RGBA" if image.has_transparency_data else "RGB"
    # A conversion copies the image, which doubles its memory.
    if image.mode != wanted:
        image = image.convert(wanted)
    image.thumbnail((side, side))
    image = _upright(image)
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return np.array(image, dtype=np.uint8)


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    # Pillow raises many kinds of errors for broken Exif data, but the pixels are intact.
    except Exception:
        return image


def _webp(image: Image.Image, max_bytes: int) -> bytes:
    made = b""
    for quality in _QUALITIES:
        file = BytesIO()
        image.save(file, "WEBP", quality=quality)
        made = file.getvalue()
        if len(made) <= max_bytes:
            break
    return made
