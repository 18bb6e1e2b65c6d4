"""Decode image bytes to pixels, or to the reason why they cannot be decoded.

The preprocessing is that of the reference, open_clip's `image_transform`, on the PIL image: resize the shorter side to
the target (bicubic, antialiased), crop the centre, and only then convert to RGB. It has these effects:

- An alpha channel is dropped, not laid over a background. Pillow weights colours by alpha while it resizes, so a fully
  transparent area becomes black. An image of the target's size is not resized and keeps the stored colours.
- A palette image is resized by nearest neighbour.
- EXIF rotation is not applied.

One step differs: 16-bit greyscale is reduced to 8 bits first (the high byte), because the reference would clip nearly
all of it to white.

All functions are pure and thread-safe. Pillow releases the GIL while it decodes and resizes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from io import BytesIO
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import AvifImagePlugin, Image, UnidentifiedImageError

from spark_aesthetic.images import jpeg, tiff, webp
from spark_aesthetic.images.formats import READ, sniff
from spark_aesthetic.images.guards import Plain, plain
from spark_aesthetic.images.refused import Refused

Pixels: TypeAlias = npt.NDArray[np.uint8]

# By default Pillow stores an image in blocks of 16 MB. glibc takes those from a heap per thread, and keeps them there
# when they are freed: 200 MB for each thread that ever decoded 50 megapixels. Blocks above glibc's largest threshold,
# 32 MB, are returned to the system.
Image.core.set_block_size(256 << 20)  # type: ignore[attr-defined]  # see Pillow's documentation of its block allocator

# Without this, each AVIF image starts one thread per core of the machine, regardless of how many cores Spark gave the
# task.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1

_SIXTEEN_BIT = {"I;16", "I;16L", "I;16B", "I;16N"}
_TO_RGB = {"1", "L", "LA", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}

# "fast" shrinks a JPEG to no less than this many times the target side. Pixels then differ by 0.4 of 255 on average;
# with 1 they would differ by 2.1 (measured on 1600 x 1068 photographs).
_FAST_SIDE_FACTOR = 2


class Rejection(str):
    """The reason why an image has no pixels, short and without figures, so that rows can be grouped by it."""


NULL = Rejection("null")
EMPTY = Rejection("decode: empty")
NOT_AN_IMAGE = Rejection("decode: not an image")
OUT_OF_MEMORY = Rejection("decode: out of memory")
TOO_MANY_PIXELS = Rejection("decode: more pixels than max_pixels")


def decode(
    data: bytes | None,
    *,
    side: int,
    max_pixels: int,
    fast: bool = False,
    holding: Callable[[int], AbstractContextManager[Any]] = nullcontext,
    preprocess: Callable[[Image.Image], Pixels] | None = None,
) -> Pixels | Rejection:
    """Decode one image to the square that the backbone takes.

    Args:
        data: The bytes of a file, or None.
        side: Height and width of the result in pixels.
        max_pixels: Most pixels of an image according to its header, and after resizing, which enlarges a very long and
            thin image.
        fast: Let libjpeg shrink a JPEG while decoding, and resize only the crop.
        holding: Returns a context manager that reserves the most bytes that decoding takes. It is exited when they are
            freed.
        preprocess: Computes the pixels from the decoded image instead, for encoders with their own preprocessing.

    Returns:
        uint8 of shape (side, side, 3), RGB, row-major, or the result of `preprocess`; or a `Rejection`. A damaged file
        never raises.
    """
    if data is None:
        return NULL
    if not data:
        return EMPTY
    # The reservation ends after the image object is deleted, because only then does Pillow free the image's memory and
    # a WebP's canvases.
    with ExitStack() as held:
        return _decode(data, side, max_pixels, fast, lambda taken: held.enter_context(holding(taken)), preprocess)


def _decode(
    data: bytes,
    side: int,
    max_pixels: int,
    fast: bool,
    hold: Callable[[int], object],
    preprocess: Callable[[Image.Image], Pixels] | None,
) -> Pixels | Rejection:
    name = _format(data)
    if isinstance(name, Rejection):
        return name
    try:
        file = plain(data, name, max_pixels=max_pixels)
        with Image.open(BytesIO(file.data), formats=(name,)) as image:
            if image.width * image.height > max_pixels:
                return TOO_MANY_PIXELS
            if image.mode not in _TO_RGB and image.mode not in _SIXTEEN_BIT:
                return Rejection(f"decode: unsupported mode {image.mode}")
            if file.fault is not None:
                return Rejection(f"decode: {file.fault}")
            needed = _held_bytes(image, file, data)
            shrunk = fast and name == "JPEG"
            if shrunk:
                # draft never goes below the requested size.
                image.draft(None, (_FAST_SIDE_FACTOR * side, _FAST_SIDE_FACTOR * side))
            width, height = _resized(image.width, image.height, side)
            if width * height > max(max_pixels, side * side):
                return TOO_MANY_PIXELS
            needed += _pixel_bytes(image, name)
            if preprocess is not None:
                hold(needed + _resizing_bytes(image, width, height) + _RGB_BYTES * image.width * image.height)
                return preprocess(_eight_bit(_loaded(image, file, name)))
            hold(needed + _resizing_bytes(image, width, height))
            return _square(_eight_bit(_loaded(image, file, name)), width, height, side, boxed=shrunk)
    # Decoders raise many kinds of errors for damaged input (OSError, SyntaxError, ValueError, struct.error, ...).
    # Each affects this row only.
    except Exception as error:
        return _rejection(data, name, error)


def _format(data: bytes) -> str | Rejection:
    name = sniff(data)
    if name is None:
        return NOT_AN_IMAGE
    return name if name in READ else Rejection(f"decode: unsupported format {name}")


def _loaded(image: Image.Image, file: Plain, name: str) -> Image.Image:
    """Return the image with its pixels, or one that decodes them on first access."""
    if name == "WEBP":
        if webp.is_doubtful(file.data) and webp.reads_without_end(file.data):
            raise Refused("damaged WEBP")
        return webp.decoded(image)
    made = jpeg.decoded(file.data, image) if name == "JPEG" else None
    return image if made is None else made


class Header(NamedTuple):
    """The size and format in the header of an image file.

    Attributes:
        width: Width in pixels as stored, without EXIF rotation.
        height: Height in pixels as stored, without EXIF rotation.
        format: Pillow's name of the format, one of `formats.READ`.
    """

    width: int
    height: int
    format: str


def read_header(data: bytes | None) -> Header | Rejection:
    """Read the header of an image file. No pixel is decoded, so damage after the header is not detected.

    Args:
        data: The bytes of a whole file, or None.

    Returns:
        The header, or the reason that `decode` gives for the same bytes.
    """
    if data is None:
        return NULL
    if not data:
        return EMPTY
    name = _format(data)
    if isinstance(name, Rejection):
        return name
    try:
        with Image.open(BytesIO(plain(data, name, header_only=True).data), formats=(name,)) as image:
            return Header(image.width, image.height, name)
    except Exception as error:
        return _rejection(data, name, error)


def _rejection(data: bytes, name: str, error: Exception) -> Rejection:
    if isinstance(error, Refused):
        return Rejection(f"decode: {error}")
    # Pillow prints its warning once. Silencing it would take a filter for the whole process, or one that is not
    # thread-safe. If a filter turns the warning into an error, all images with so many pixels are refused.
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return TOO_MANY_PIXELS
    if isinstance(error, UnidentifiedImageError):
        layout = name == "TIFF" and tiff.is_valid(data)
        return Rejection("decode: unsupported TIFF layout") if layout else _damaged(data, name, "")
    # The file is not at fault.
    if isinstance(error, MemoryError):
        return OUT_OF_MEMORY
    # Pillow begins its messages about valid but unsupported BMP files like this.
    if str(error).startswith("Unsupported BMP"):
        return Rejection("decode: unsupported BMP layout")
    return _damaged(data, name, str(error))


# Bytes per RGB pixel in Pillow's memory.
_RGB_BYTES = 4


def _held_bytes(image: Image.Image, file: Plain, data: bytes) -> int:
    """Bytes held even if a JPEG is shrunk: the plain file, and libjpeg's coefficients of 16 bits per pixel and band."""
    coefficients = image.width * image.height * 2 * len(image.getbands()) if file.several_scans else 0
    return coefficients + (0 if file.data is data else len(file.data))


def _pixel_bytes(image: Image.Image, name: str | None) -> int:
    """Most bytes that Pillow and its decoder take to decode an image and to prepare it for resizing."""
    a_pixel = 4 if len(image.getbands()) > 1 else 1
    if image.mode in ("RGBA", "LA"):
        # Resizing makes a copy with the colours multiplied by alpha.
        a_pixel = 8
    elif image.mode in _SIXTEEN_BIT:
        # The image, its array, the shifted array and the uint8 array exist at the same time.
        a_pixel = 8
    if name == "WEBP":
        # The decoder holds two canvases.
        a_pixel += 8
    elif name == "AVIF":
        # The decoder holds the frame in its own colours, in RGB, and as bytes.
        a_pixel += 12
    return image.width * image.height * a_pixel


def _resizing_bytes(image: Image.Image, width: int, height: int) -> int:
    """Bytes of the resized image, and of the result of the first, horizontal pass."""
    return 4 * width * (image.height + height)


def _resized(width: int, height: int, side: int) -> tuple[int, int]:
    if width <= height:
        return side, int(side * height / width)
    return int(side * width / height), side


def _eight_bit(image: Image.Image) -> Image.Image:
    if image.mode not in _SIXTEEN_BIT:
        return image
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))


def _square(image: Image.Image, width: int, height: int, side: int, *, boxed: bool) -> Pixels:
    # round() rounds halves to even, as torchvision's center_crop does.
    left, top = round((width - side) / 2), round((height - side) / 2)
    right, bottom = left + side, top + side
    if boxed:
        # Only the crop is resized, which saves a fifth of the time for a shrunk JPEG. Pillow holds the box in float32,
        # which changes single values by one.
        across, down = image.width / width, image.height / height
        box = (left * across, top * down, min(right * across, image.width), min(bottom * down, image.height))
        square = image.resize((side, side), Image.Resampling.BICUBIC, box=box)
    else:
        square = image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, right, bottom))
    return np.array(square.convert("RGB"), dtype=np.uint8)


def _damaged(data: bytes, name: str, message: str) -> Rejection:
    # libwebp reports no reason for refusing a file, but a RIFF file states its length.
    cut_off = name == "WEBP" and int.from_bytes(data[4:8], "little") + 8 > len(data)
    word = "truncated" if cut_off or "truncated" in message.lower() else "damaged"
    return Rejection(f"decode: {word} {name}")
