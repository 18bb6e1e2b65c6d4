"""WebP files to what their decoder needs of them, and whether that decoder needs all of it."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from io import BytesIO

from PIL import Image

from spark_aesthetic.images.formats import MAX_EXIF_BYTES
from spark_aesthetic.images.pixels import image_of
from spark_aesthetic.images.refused import Refused

# An animation has one for each frame.
_MAX_CHUNKS = 65_536

_KEPT = (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM")
_PIXELS = (b"VP8 ", b"VP8L")

# Flags of a VP8X chunk: it has a profile or XMP data; it has Exif data.
_DROPPED_FLAGS, _EXIF_FLAG = 0x24, 0x08

# Coded pixels look like chance. What was lost to a disk or a network is of one byte; so are wide plain areas.
_BLANKS = (bytes(32), b"\xff" * 32)

# What an animation's canvas may have beyond its first picture: four times as much, and this at least.
_MAX_CANVAS_PIXELS = 16_000_000

# libwebp's encoder ends within two bytes of its last bit, libvpx's within four.
_CUT = 16


def plain(data: bytes) -> bytes:
    """The same file without metadata, and of an animation the first picture.

    Raises:
        Refused: It has more chunks than honest files have.
    """
    end = 8 + int.from_bytes(data[4:8], "little")
    view, pieces, pictures, exif = memoryview(data), list[bytes | memoryview](), 0, False
    for kind, at, after in _chunks(data, min(end, len(data))):
        if after > len(data) + 1:
            # Cut off, or damaged: that is for libwebp to refuse.
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
    """The pixels of a WebP file that Pillow has opened, without the copy that it makes of them itself."""
    decoder = getattr(image, "_decoder", None)
    # Pillow's own: another version may keep it elsewhere, and takes more memory then.
    if decoder is None or image.mode not in ("RGB", "RGBA"):
        return image
    found = decoder.get_next()
    if found is None:
        raise Refused("damaged WEBP")
    # With its two canvases.
    del decoder, image._decoder  # type: ignore[attr-defined]
    made = image_of(found[0], image.mode, image.size)
    made.info = image.info
    return made


def is_doubtful(data: bytes) -> bool:
    """Whether the file has a run of one byte, as lost blocks do."""
    return any(blank in data for blank in _BLANKS)


def reads_without_end(data: bytes) -> bool:
    """Whether libwebp gives a picture without the last bytes of its pixels, too.

    It says nothing of damaged pixels, but it does say if it runs out of bytes. A whole picture needs all of them;
    once something else has been read in between, that is so by chance alone.
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
    """Raise Refused if an animation's first picture is lost on its canvas: libwebp holds that twice."""
    if data[12:16] != b"VP8X" or len(data) < max(30, frame + 20):
        return
    canvas = _area(data, 24)
    if canvas > max(_MAX_CANVAS_PIXELS, 4 * _area(data, frame + 14)):
        raise Refused("too large a canvas")


def _area(data: bytes, at: int) -> int:
    width, height = (1 + int.from_bytes(data[start : start + 3], "little") for start in (at, at + 3))
    return width * height


def _chunks(data: bytes, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of each chunk."""
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
