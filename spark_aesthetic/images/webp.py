"""Reduce WebP files to what their decoder needs, and detect damage that the decoder does not report."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from io import BytesIO

from PIL import Image

from spark_aesthetic.images.formats import MAX_EXIF_BYTES
from spark_aesthetic.images.pixels import image_of
from spark_aesthetic.images.refused import Refused

# An animation has one chunk per frame.
_MAX_CHUNKS = 65_536

_KEPT = (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM")
_PIXELS = (b"VP8 ", b"VP8L")

# Flags of a VP8X chunk: a colour profile or XMP data; Exif data.
_DROPPED_FLAGS, _EXIF_FLAG = 0x24, 0x08

# Coded pixels look random. A block that a disk or network lost repeats one byte, but so does a large plain area.
_BLANKS = (bytes(32), b"\xff" * 32)

# An animation's canvas may have this many pixels, or four times those of its first picture if that is more.
_MAX_CANVAS_PIXELS = 16_000_000

# libwebp's encoder writes at most two bytes after the last needed bit, and libvpx at most four. Without the last 16
# bytes, the data therefore lack needed bits.
_CUT = 16


def plain(data: bytes) -> bytes:
    """Return the file with only the first picture of an animation, and with no metadata except a small Exif chunk.

    Raises:
        Refused: The file has more chunks than any encoder writes, or a canvas that is too large.
    """
    end = 8 + int.from_bytes(data[4:8], "little")
    view, pieces, pictures, exif = memoryview(data), list[bytes | memoryview](), 0, False
    for kind, at, after in _chunks(data, min(end, len(data))):
        if after > len(data) + 1:
            # The file is truncated or damaged, and libwebp refuses it.
            return data
        pictures += kind == b"ANMF"
        if kind == b"ANMF" and pictures == 1:
            _check_canvas(data, at)
        is_exif = kind == b"EXIF" and after - at <= MAX_EXIF_BYTES and not exif
        exif = exif or is_exif
        if kind in _KEPT or is_exif or (kind == b"ANMF" and pictures == 1):
            pieces.append(view[at:after])
    if end > len(data) or not pieces:
        return data
    if pieces[0][:4] == b"VP8X" and len(pieces[0]) >= 18:
        head = bytearray(pieces[0])
        head[8] &= ~(_DROPPED_FLAGS | (0 if exif else _EXIF_FLAG))
        pieces[0] = bytes(head)
    return _file(pieces)


def decoded(image: Image.Image) -> Image.Image:
    """Return the pixels of a WebP file that Pillow has opened, without the copy that Pillow makes."""
    decoder = getattr(image, "_decoder", None)
    # The attribute is private. In a version of Pillow without it, Pillow decodes, which takes more memory.
    if decoder is None or image.mode not in ("RGB", "RGBA"):
        return image
    found = decoder.get_next()
    if found is None:
        raise Refused("damaged WEBP")
    # This frees the two canvases of the decoder.
    del decoder, image._decoder  # type: ignore[attr-defined]
    made = image_of(found[0], image.mode, image.size)
    made.info = image.info
    return made


def is_doubtful(data: bytes) -> bool:
    """Whether the file has a long run of one byte, as lost blocks do."""
    return any(blank in data for blank in _BLANKS)


def reads_without_end(data: bytes) -> bool:
    """Whether libwebp still decodes the picture without the last bytes of its pixels.

    libwebp does not report damaged pixels, but it does report missing bytes. An intact picture needs all bytes. A
    damaged one needs all of them only by chance, because decoding has lost its place in the data.
    """
    view, pieces, cut = memoryview(data), list[bytes | memoryview](), False
    for kind, at, after in _chunks(data, len(data)):
        if kind in _PIXELS:
            length = int.from_bytes(data[at + 4 : at + 8], "little") - _CUT
            if length < _CUT or cut:
                return False
            cut = True
            pieces += [kind, struct.pack("<I", length), view[at + 8 : at + 8 + length], bytes(length % 2)]
        else:
            pieces.append(view[at:after])
    if not cut:
        return False
    try:
        with Image.open(BytesIO(_file(pieces)), formats=("WEBP",)) as image:
            image.load()
    except OSError:
        return False
    return True


def _check_canvas(data: bytes, frame: int) -> None:
    """Raise Refused if an animation's canvas is far larger than its first picture: libwebp holds the canvas twice."""
    if data[12:16] != b"VP8X" or len(data) < max(30, frame + 20):
        return
    canvas = _area(data, 24)
    if canvas > max(_MAX_CANVAS_PIXELS, 4 * _area(data, frame + 14)):
        raise Refused("too large a canvas")


def _area(data: bytes, at: int) -> int:
    width, height = (1 + int.from_bytes(data[start : start + 3], "little") for start in (at, at + 3))
    return width * height


def _chunks(data: bytes, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, start and end of each chunk."""
    at, header = 12, struct.Struct("<4sI")
    for _ in range(_MAX_CHUNKS):
        if at + 8 > end:
            return
        kind, length = header.unpack_from(data, at)
        after = at + 8 + length + length % 2
        yield kind, at, after
        at = after
    raise Refused("too many chunks")


def _file(pieces: list[bytes | memoryview]) -> bytes:
    body = b"".join(pieces)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body
