"""Decoded pixels as Pillow's images."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from PIL import Image


def image_of(pixels: Any, mode: str, size: tuple[int, int]) -> Image.Image:
    """Make an image from a buffer without a copy, with one byte per pixel in mode L and four in all other modes."""
    held = pa.py_buffer(pixels)
    values: pa.Array = pa.Array.from_buffers(pa.uint8(), held.size, [None, held])
    if mode != "L":
        values = pa.FixedSizeListArray.from_arrays(values, 4)
    return Image.fromarrow(values, mode, size)
