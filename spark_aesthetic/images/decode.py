"""Image bytes to pixels, or to the reason why not.

Follows the preprocessing of the reference, open_clip's `image_transform`, on the PIL image: shorter side to
the target (bicubic, antialiased), centre crop, and only then conversion to RGB. So an alpha channel is
dropped, not laid over a background. Pillow weighs colours by their alpha while it resizes: what is wholly
transparent comes out black, except where the image has the target's size already and is not resized; then it
keeps the colour that the file stores. A palette image is resized by nearest neighbour. EXIF rotation is not
applied. One departure: 16-bit greyscale is brought to 8 bits first (the high byte), where the reference would
clip nearly all of it to white.

Pure functions of bytes, safe in threads: Pillow releases the GIL while it decodes and resizes.
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

# Pillow keeps an image in blocks of 16 MB, which glibc takes from a thread's own heap and keeps there when they are
# freed: 200 MB for each thread that ever met 50 megapixels. Blocks above glibc's largest threshold of 32 MB go back.
Image.core.set_block_size(256 << 20)  # type: ignore[attr-defined]  # as the documentation of its block allocator has it

# Else every image of this format starts a thread for each core of the machine, whatever Spark gave to the task.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1

_SIXTEEN_BIT = {"I;16", "I;16L", "I;16B", "I;16N"}
_TO_RGB = {"1", "L", "LA", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}

# Largest "fast" JPEG shrink keeps this many times the target side; 1 costs 2.1 of 255 in the mean pixel, 2
# costs 0.4 (measured on 1600 x 1068 photographs).
_FAST_SIDE_FACTOR = 2


class Rejection(str):
    """Why an image has no pixels, short and without figures, so that rows can be grouped by it."""


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
        max_pixels: Most pixels that are decoded, by the header; also the most that resizing may make of
            a very long and thin image.
        fast: Let libjpeg shrink a JPEG while decoding, and resize no more than the crop.
        holding: Entered, with the bytes that decoding takes at most, while they are held.
        preprocess: Makes the pixels of an image instead, for backbones with a preprocessing of their own.

    Returns:
        uint8 of shape (side, side, 3), RGB, row-major, or what `preprocess` makes; or a `Rejection`. Damage in a file
        is never raised.
    """
    if data is None:
        return NULL
    if not data:
        return EMPTY
    # Given back when the image is no more: Pillow frees its memory, and a WebP's canvases, with the object.
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
                # draft never goes below the size asked for.
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
    # Decoders raise nearly anything on damaged input (OSError, SyntaxError, ValueError, struct.error, ...),
    # and whatever it is, it costs this row only.
    except Exception as error:
        return _rejection(data, name, error)


def _format(data: bytes) -> str | Rejection:
    name = sniff(data)
    if name is None:
        return NOT_AN_IMAGE
    return name if name in READ else Rejection(f"decode: unsupported format {name}")


def _loaded(image: Image.Image, file: Plain, name: str) -> Image.Image:
    """The image with its pixels, or one that will have them when they are asked for."""
    if name == "WEBP":
        if webp.is_doubtful(file.data) and webp.reads_without_end(file.data):
            raise Refused("damaged WEBP")
        return webp.decoded(image)
    made = jpeg.decoded(file.data, image) if name == "JPEG" else None
    return image if made is None else made


class Header(NamedTuple):
    """What an image file says of itself.

    Attributes:
        width: In pixels, as stored: EXIF rotation is not applied.
        height: The same.
        format: In Pillow's name, one of `formats.READ`.
    """

    width: int
    height: int
    format: str


def read_header(data: bytes | None) -> Header | Rejection:
    """Read the header of an image file; no pixel is decoded, so damage behind the header is not found.

    Args:
        data: The bytes of a whole file, or None.

    Returns:
        What it says, or the reason that `decode` has for the same bytes.
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
    # Of its warning Pillow prints a line, once: silencing it would take a filter for the whole process, or one that
    # is not safe in threads. Where such a filter makes it an error, all images of so many pixels are refused.
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return TOO_MANY_PIXELS
    if isinstance(error, UnidentifiedImageError):
        layout = name == "TIFF" and tiff.is_valid(data)
        return Rejection("decode: unsupported TIFF layout") if layout else _damaged(data, name, "")
    # No fault of the file's.
    if isinstance(error, MemoryError):
        return OUT_OF_MEMORY
    # As Pillow says of what it does not read.
    if str(error).startswith("Unsupported BMP"):
        return Rejection("decode: unsupported BMP layout")
    return _damaged(data, name, str(error))


# Of a pixel, in Pillow's memory.
_RGB_BYTES = 4


def _held_bytes(image: Image.Image, file: Plain, data: bytes) -> int:
    """What is held however small a JPEG is decoded: the plain file, and libjpeg's 16 bits of each channel at most."""
    coefficients = image.width * image.height * 2 * len(image.getbands()) if file.several_scans else 0
    return coefficients + (0 if file.data is data else len(file.data))


def _pixel_bytes(image: Image.Image, name: str | None) -> int:
    """Most memory that Pillow and the library below it take to decode an image and to prepare it for resizing."""
    a_pixel = 4 if len(image.getbands()) > 1 else 1
    if image.mode in ("RGBA", "LA"):
        a_pixel = 8  # resized with the colours multiplied by alpha, in a copy
    elif image.mode in _SIXTEEN_BIT:
        a_pixel = 8  # the image, its array, the shifted and the narrowed one
    if name == "WEBP":
        a_pixel += 8  # two canvases
    elif name == "AVIF":
        a_pixel += 12  # the frame in its own colours, in ours, and as bytes
    return image.width * image.height * a_pixel


def _resizing_bytes(image: Image.Image, width: int, height: int) -> int:
    """The result of resizing, and that of its first pass, which is across."""
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
    # Rounds halves to even, as torchvision's center_crop does.
    left, top = round((width - side) / 2), round((height - side) / 2)
    right, bottom = left + side, top + side
    if boxed:
        # Resizes no more than the crop: a fifth of the time of a shrunk JPEG. Pillow holds a box in float32, which
        # moves single values by one.
        across, down = image.width / width, image.height / height
        box = (left * across, top * down, min(right * across, image.width), min(bottom * down, image.height))
        square = image.resize((side, side), Image.Resampling.BICUBIC, box=box)
    else:
        square = image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, right, bottom))
    return np.array(square.convert("RGB"), dtype=np.uint8)


def _damaged(data: bytes, name: str, message: str) -> Rejection:
    # A RIFF file states its length; libwebp does not say why it refuses a file.
    cut_off = name == "WEBP" and int.from_bytes(data[4:8], "little") + 8 > len(data)
    word = "truncated" if cut_off or "truncated" in message.lower() else "damaged"
    return Rejection(f"decode: {word} {name}")
