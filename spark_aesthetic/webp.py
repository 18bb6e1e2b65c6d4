"""WebP files to what their decoder needs of them, and whether that decoder needs all of it."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from io import BytesIO

from PIL import Image

from spark_aesthetic.refused import Refused

# An animation has one for each frame.
_MAX_CHUNKS = 65_536

# Of Exif data that are kept for the orientation.
_MAX_EXIF_BYTES = 65_536

_KEPT = (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM")
_PIXELS = (b"VP8 ", b"VP8L")

# Of a VP8X chunk: a profile and XMP data are there; Exif data are there.
_DROPPED_FLAGS, _EXIF_FLAG = 0x24, 0x08

# Coded pixels look like chance. What was lost to a disk or a network is of one byte; so are wide plain areas.
_BLANKS = (bytes(32), b"\xff" * 32)

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
        is_exif = kind == b"EXIF" and after - at <= _MAX_EXIF_BYTES and not exif
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
