"""Reduce an image file to the parts that its pixels need, within limits, before a decoder reads it.

Decoders also read metadata, comments and frames that the pixels do not need, some of them one by one in Python. Their
own limits, if any, apply to the whole process. This module therefore passes on only the picture, and refuses a file
with more parts than any encoder writes. It reads each part once.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple
from zlib import crc32

from spark_aesthetic.images import avif, bmp, jpeg, tiff, webp
from spark_aesthetic.images.formats import MAX_EXIF_BYTES
from spark_aesthetic.images.refused import Refused

# libpng and ImageMagick write chunks of 8 and 32 kB. With chunks of 1 kB this allows a file of 64 MB.
_MAX_CHUNKS = 65_536

# Comments and extensions of a GIF have blocks of at most 255 bytes, so this allows 64 MB of them.
_MAX_BLOCKS = 262_144


class Plain(NamedTuple):
    """An image file as passed to its decoder.

    Attributes:
        data: The same picture without most other data.
        several_scans: Whether it is a JPEG of several scans. libjpeg then holds all its coefficients in memory.
        fault: The damage after the header, such as `truncated PNG`; None if this pass detects none.
    """

    data: bytes
    several_scans: bool = False
    fault: str | None = None


def plain(data: bytes, name: str, *, max_pixels: int = 0, header_only: bool = False) -> Plain:
    """Read the parts of a file once, and keep those that the pixels need.

    Args:
        data: The bytes of a whole file.
        name: Its format, one of `formats.READ`.
        max_pixels: Most pixels of a picture; 0 if only the header is needed. An AVIF with more is refused. A BMP with
            more is returned unexpanded, and the caller must refuse it.
        header_only: Stop at the first pixels if that saves time.

    Raises:
        Refused: The file has more parts than any encoder writes, or is of a kind that is not supported.
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
        # The file ends within a header. The decoder names the reason.
        return Plain(data)


def _joined(data: bytes, ranges: list[tuple[int, int]]) -> bytes:
    """Join ranges of bytes to one file. Returns `data` itself if they cover all of it."""
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
        # Pillow checks the CRCs of all other chunks, but those of the pixels only in some files.
        if kind == b"IDAT" and crc32(view[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            fault = "damaged PNG"
        at = end
    raise Refused("too many chunks")


_EXTENSION, _IMAGE, _TRAILER, _CONTROL = 0x21, 0x2C, 0x3B, 0xF9
_GIF_PART = re.compile(rb"[\x21\x2c\x3b]")


# The descriptor of a picture, a palette of 256 colours, and the LZW code size, which Pillow reads with them.
_GIF_HEAD_BYTES = 10 + 768 + 1


def _gif(data: bytes, header_only: bool) -> Plain:
    """Keep the header, the extensions that set transparency, and everything from the first picture on."""
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
