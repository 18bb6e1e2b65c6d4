"""One pass over an image file before a decoder sees it: what the pixels need, within budgets.

Decoders read metadata, comments and frames that nobody asked for, some of them one by one in Python, and their limits,
if they have any, are those of the whole process. So they get a file of the picture alone, and a file of more parts
than any encoder makes is refused. The pass looks at each part of a file once.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple
from zlib import crc32

from spark_aesthetic.images import avif, bmp, jpeg, tiff, webp
from spark_aesthetic.images.formats import MAX_EXIF_BYTES
from spark_aesthetic.images.refused import Refused

# libpng and ImageMagick write chunks of 8 and 32 kB; at 1 kB each this is a file of 64 MB.
_MAX_CHUNKS = 65_536

# Parts of a GIF's comments and extensions are of 255 bytes at most: 64 MB of them.
_MAX_BLOCKS = 262_144


class Plain(NamedTuple):
    """An image file as its decoder gets it.

    Attributes:
        data: The same picture without most of what is no pixel.
        several_scans: Of a JPEG: all its coefficients are held at once.
        fault: What is wrong behind the header, such as `truncated PNG`; None if nothing is that can be told here.
    """

    data: bytes
    several_scans: bool = False
    fault: str | None = None


def plain(data: bytes, name: str, *, max_pixels: int = 0, header_only: bool = False) -> Plain:
    """Go once through the parts of a file.

    Args:
        data: The bytes of a whole file.
        name: Its format, one of `formats.READ`.
        max_pixels: Nothing is made of a larger image, which is for the caller to refuse; 0 if no pixel is wanted.
        header_only: Stop where the pixels begin, where that saves something.

    Raises:
        Refused: It has more parts than honest files have, or is of a kind that is not read.
    """
    if name == "JPEG":
        return Plain(*jpeg.plain(data, header_only=header_only))
    if name == "TIFF":
        return Plain(tiff.plain(data))
    if name == "WEBP":
        return Plain(webp.plain(data))
    if name == "BMP":
        return Plain(data if header_only else bmp.plain(data, max_pixels))
    try:
        if name in ("PNG", "GIF"):
            return (_png if name == "PNG" else _gif)(data, header_only)
        return Plain(data, fault=avif.fault(data, max_pixels))
    except struct.error:
        # Cut off within a header: its decoder finds the words.
        return Plain(data)


def _joined(data: bytes, ranges: list[tuple[int, int]]) -> bytes:
    """Some ranges of bytes as one file; the same object if they are all of it."""
    merged: list[tuple[int, int]] = []
    for start, end in ranges:
        if merged and merged[-1][1] == start:
            start = merged.pop()[0]
        merged.append((start, end))
    if merged == [(0, len(data))]:
        return data
    view = memoryview(data)
    return b"".join(view[start:end] for start, end in merged)


_PNG_KEPT = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")


def _png(data: bytes, header_only: bool) -> Plain:
    ranges, at, length_and_kind, fault = [(0, 8)], 8, struct.Struct(">I4s"), None
    view = memoryview(data)
    for _ in range(_MAX_CHUNKS):
        if at + 12 > len(data):
            return Plain(_joined(data, [*ranges, (at, len(data))]), fault="truncated PNG")
        length, kind = length_and_kind.unpack_from(data, at)
        end = at + 12 + length
        if kind == b"CgBI":
            raise Refused("unsupported PNG of Apple")
        if kind in _PNG_KEPT or (kind == b"eXIf" and length <= MAX_EXIF_BYTES):
            ranges.append((at, min(end, len(data))))
        if end > len(data):
            return Plain(_joined(data, ranges), fault="truncated PNG")
        if kind == b"IEND" or (header_only and kind == b"IDAT"):
            return Plain(_joined(data, ranges), fault=fault)
        # Pillow looks at the checksums of all others, and not at that of the pixels in every file.
        if kind == b"IDAT" and crc32(view[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            fault = "damaged PNG"
        at = end
    raise Refused("too many chunks")


_EXTENSION, _IMAGE, _TRAILER, _CONTROL = 0x21, 0x2C, 0x3B, 0xF9
_GIF_PART = re.compile(rb"[\x21\x2c\x3b]")


# A picture's descriptor, its palette of 256 colours, and the size of its codes, which Pillow reads with them.
_GIF_HEAD_BYTES = 10 + 768 + 1


def _gif(data: bytes, header_only: bool) -> Plain:
    """The file from its first picture on, with what is said of that one's transparency."""
    start = at = 13 + (3 << (data[10] % 8 + 1) if data[10:11] >= b"\x80" else 0) if len(data) > 12 else len(data)
    ranges, blocks = [(0, start)], 0
    while found := _GIF_PART.search(data, at):
        at = found.start()
        if data[at] == _IMAGE:
            end = min(len(data), at + _GIF_HEAD_BYTES) if header_only else len(data)
            return Plain(_joined(data, [*ranges, (at, end)]))
        if data[at] == _TRAILER:
            break
        start, control = at, data[at + 1 : at + 2] == bytes((_CONTROL,))
        at += 2
        while at < len(data) and data[at]:
            at += 1 + data[at]
            blocks += 1
            if blocks > _MAX_BLOCKS:
                raise Refused("too many blocks")
        at, blocks = at + 1, blocks + 1
        if control:
            ranges.append((start, at))
            if len(ranges) > _MAX_CHUNKS:
                raise Refused("too many blocks")
    return Plain(_joined(data, ranges), fault="truncated GIF")
