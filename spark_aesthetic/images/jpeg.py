"""Reduce JPEG files to what their decoder needs, and decode them with libjpeg's warnings as errors.

libjpeg decodes a damaged file to the end and issues only a warning, which Pillow drops. Not all warnings mean damage.
Those about metadata and unusual headers are avoided, because the header is rewritten.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

from spark_aesthetic.images.pixels import image_of
from spark_aesthetic.images.refused import Refused

# A segment has up to 64 kB, so a photograph with 300 MB of metadata has 5,000 segments.
_MAX_SEGMENTS = 16_384

# libjpeg visits all coefficients of a scan's channels: 0.6 ms per megapixel. A scan of three channels counts as three.
# Files of common encoders count as 14 for colour and 24 for CMYK.
_MAX_SCANS = 200
_MAX_SCANS_OF_LARGE = 32
_MAX_SCANNED_PIXELS = 2_000_000_000
# Arithmetic coding takes a decision per coefficient: 6 ms per megapixel for a scan of only 4 kB.
_MAX_ARITHMETIC_SCANS_OF_LARGE = 16
_MAX_ARITHMETIC_SCANNED_PIXELS = 200_000_000

_NOT_FILL = re.compile(rb"[^\xff]")
# In coded data 0xff 0x00 stands for the byte 0xff. In the worst case, 64 MB of 0xff, the search takes 0.6 seconds.
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")

_SOI, _EOI, _SOS, _COMMENT = 0xD8, 0xD9, 0xDA, 0xFE
_APP0, _APP1, _APP14, _APP15 = 0xE0, 0xE1, 0xEE, 0xEF
_SEQUENTIAL = (0xC0, 0xC1, 0xC9)
_LOSSLESS = 0xC3
# Frames of progressive files.
_SEVERAL = (0xC2, 0xCA)
_ARITHMETIC = (0xC9, 0xCA)
_DECODED = (*_SEQUENTIAL, *_SEVERAL, _LOSSLESS)
# All start-of-frame markers. The range also contains DHT, JPG and DAC, which are not frames.
_FRAMES = tuple(code for code in range(0xC0, 0xD0) if code not in (0xC4, 0xC8, 0xCC))

# Markers without parameters: TEM and the restarts.
_BARE = (0x01, *range(0xD0, 0xD8))


class Jpeg(NamedTuple):
    """A JPEG file as passed to its decoder.

    Attributes:
        data: The same picture with a plain header, without metadata and without data after its end.
        several_scans: Whether the file has several scans. libjpeg then holds all its coefficients in memory.
    """

    data: bytes
    several_scans: bool


class _Frame(NamedTuple):
    code: int
    precision: int
    height: int
    width: int
    components: int
    # The identifiers by which scans refer to the components.
    names: bytes


def plain(data: bytes, *, header_only: bool = False) -> Jpeg:
    """Rewrite a JPEG file in one pass over its markers, or over those before its first scan.

    Raises:
        Refused: The file is truncated or damaged before its pixels, not supported, or built to be slow.
    """
    segments = _Segments(data)
    kept: list[bytes | memoryview] = [data[:2]]
    frame: _Frame | None = None
    jfif = exif = False
    while True:
        code, start, end = segments.after_junk()
        if code == _SOS:
            break
        body = data[start:end]
        if code in _FRAMES:
            frame = _frame(code, body)
        if code == _APP0:
            jfif = jfif or (len(body) >= 16 and body[2:7] == b"JFIF\0")
        elif code == _APP14 and len(body) >= 14 and body[2:7] == b"Adobe":
            kept.append(_adobe(body))
        elif code == _APP1 and not exif and body[2:8] == b"Exif\0\0":
            exif = True
            kept.append(bytes((0xFF, code)) + body)
        elif not _APP0 <= code <= _APP15 and code != _COMMENT:
            kept.append(bytes((0xFF, code)) + body)
    if frame is None:
        raise Refused("damaged JPEG")
    _check(frame, data)
    if jfif:
        kept.insert(1, _JFIF)
    head = _plain_adobe(kept, frame)
    if header_only:
        return Jpeg(b"".join([*head, memoryview(data)[start - 2 : end]]), False)
    # libjpeg reads no further scan of such a file, so the end of this scan need not be searched for.
    if frame.code not in _SEVERAL and data[start + 2] == frame.components:
        return Jpeg(b"".join([*head, *_plain_scan(data, frame, start, end), memoryview(data)[end:]]), False)
    scans = _scans(segments, frame, start, end)
    return Jpeg(b"".join([*head, *scans.pieces]), scans.passed > 1)


def decoded(data: bytes, image: Image.Image) -> Image.Image | None:
    """Decode a plain JPEG file without a copy. The pixels equal Pillow's bit for bit.

    Args:
        data: A file from `plain`.
        image: The same file opened by Pillow. If it has a `draft`, the pixels get that size.

    Returns:
        The image, or None if TurboJPEG does not support the sampling, so that damage cannot be detected.

    Raises:
        Refused: The file is damaged.
    """
    try:
        pixels = _strictly(data, image)
    except ValueError as error:
        message = str(error)
        if "subsampling level" in message:
            return None
        pixels = _without_padding(data, image, message)
    if image.mode == "CMYK":
        # Pillow inverts every CMYK file, as if Adobe had written it.
        np.invert(pixels, out=pixels)
    made = image_of(pixels, image.mode, image.size)
    made.info = image.info
    return made


_COLOURS = {"L": "GRAY", "RGB": "RGBX", "CMYK": "CMYK"}


def _strictly(data: bytes, image: Image.Image) -> npt.NDArray[np.uint8]:
    pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(
        data,
        colorspace=_COLOURS[image.mode],
        fastdct=False,
        fastupsample=False,
        min_height=image.height,
        min_width=image.width,
        strict=True,
    )
    if pixels.shape[:2] != (image.height, image.width):
        raise Refused("damaged JPEG")
    return pixels


_PADDING = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
# Hardware encoders pad the end with zeros to a word or a cache line.
_MAX_PADDING = 64


def _without_padding(data: bytes, image: Image.Image, message: str) -> npt.NDArray[np.uint8]:
    """Decode again without the zeros at the end if they are the only fault."""
    if "nsufficient memory" in message:
        raise MemoryError
    found = _PADDING.search(message)
    zeros = int(found[1]) if found else 0
    end = data.find(bytes(zeros) + b"\xff\xd9") if 0 < zeros <= _MAX_PADDING else -1
    if end != -1:
        try:
            return _strictly(data[:end] + b"\xff\xd9", image)
        except ValueError as error:
            message = str(error)
    raise Refused("truncated JPEG" if "Premature end of JPEG file" in message else "damaged JPEG")


# A JFIF header without density and thumbnail. It is needed because it declares the colours as YCbCr.
_JFIF = b"\xff\xe0\x00\x10JFIF\0\1\1\0\0\1\0\1\0\0"

_ADOBE = b"\xff\xee\x00\x0eAdobe\0\x64\0\0\0\0"


def _adobe(body: bytes) -> bytes:
    return _ADOBE + body[13:14]


def _plain_adobe(kept: list[bytes | memoryview], frame: _Frame) -> list[bytes | memoryview]:
    """Replace unknown colour transforms of Adobe by those that libjpeg would use after a warning."""
    known, usual = ((0, 2), 2) if frame.components == 4 else ((0, 1), 1)
    return [_ADOBE + bytes((usual,)) if piece[:-1] == _ADOBE and piece[-1] not in known else piece for piece in kept]


def _frame(code: int, body: bytes) -> _Frame:
    if len(body) < 8:
        raise Refused("damaged JPEG")
    height, width = struct.unpack_from(">HH", body, 3)
    return _Frame(code, body[2], height, width, body[7], body[8::3][: body[7]])


def _check(frame: _Frame, data: bytes) -> None:
    """Raise Refused if no decoder here reads this kind of frame."""
    if frame.code not in _DECODED:
        raise Refused("unsupported JPEG process")
    if frame.precision != 8:
        valid = 2 <= frame.precision <= 16 if frame.code == _LOSSLESS else frame.precision == 12 and frame.code != 0xC0
        raise Refused("unsupported JPEG precision" if valid else "damaged JPEG")
    if frame.components not in (1, 3, 4):
        raise Refused("unsupported JPEG components" if frame.components == 2 else "damaged JPEG")
    if frame.height == 0 and b"\xff\xdc\x00\x04" in data:
        raise Refused("unsupported JPEG without height")


def _plain_scan(data: bytes, frame: _Frame, start: int, end: int) -> list[bytes]:
    """Return the header of a scan. In sequential files libjpeg ignores its parameters, but warns of unusual ones."""
    if frame.code in _SEQUENTIAL and end - start >= 6:
        return [data[start - 2 : end - 3], b"\x00\x3f\x00"]
    return [data[start - 2 : end]]


def _most_scans(frame: _Frame) -> int:
    of_large, pixels = _MAX_SCANS_OF_LARGE, _MAX_SCANNED_PIXELS
    if frame.code in _ARITHMETIC:
        of_large, pixels = _MAX_ARITHMETIC_SCANS_OF_LARGE, _MAX_ARITHMETIC_SCANNED_PIXELS
    return max(of_large, min(_MAX_SCANS, pixels // max(1, frame.width * frame.height)))


class _Scans(NamedTuple):
    pieces: list[bytes | memoryview]
    passed: int


def _scans(segments: _Segments, frame: _Frame, start: int, end: int) -> _Scans:
    """Return everything from the first scan on, and the number of scans. The first scan's header is at `start`."""
    view = memoryview(segments.data)
    pieces: list[bytes | memoryview] = []
    most = _most_scans(frame)
    count, channels, copied = 0, 0, start - 2
    base, detail = set[int](), set[int]()
    try:
        while True:
            count, channels = count + 1, channels + max(1, view[start + 2] if end > start + 2 else 1)
            if channels > most:
                raise Refused("too many scans")
            named = view[start + 3 : end - 3 : 2]
            # In a progressive file, a scan codes the mean of each block if its spectral selection starts at 0, and
            # detail otherwise.
            (detail if frame.code in _SEVERAL and view[end - 3] else base).update(named)
            pieces += [view[copied : start - 2], *_plain_scan(segments.data, frame, start, end)]
            copied = end
            code, start, end = segments.after_entropy()
            while code not in (_SOS, _EOI):
                code, start, end = segments.after_entropy()
            if code == _EOI:
                pieces.append(view[copied:end])
                if set(frame.names) - base or (frame.code in _SEVERAL and frame.names[0] not in detail):
                    raise Refused("damaged JPEG")
                break
    except _EndsEarly:
        pieces.append(view[copied:])
    return _Scans(pieces, count)


class _EndsEarly(Refused):
    """The file ends early. After the first scan the decoder decides whether it has all the data that it needs."""


class _Segments:
    """Finds the markers of a file, each with the range of its segment from the length field on."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at, self.passed = data, 2, 0

    def after_junk(self) -> tuple[int, int, int]:
        """Return the next marker of the header. Bytes before it are skipped, as by Pillow and libjpeg."""
        while True:
            code, start, end = self._marker(self.data.find(b"\xff", self.at))
            if code in (_EOI, _SOI):
                raise Refused("damaged JPEG")
            # 0xff 0x00 is data, not a marker.
            if code != 0 and code not in _BARE:
                return code, start, end

    def after_entropy(self) -> tuple[int, int, int]:
        """Return the next marker after coded data, except restarts."""
        found = _MARKER.search(self.data, self.at)
        return self._marker(-1 if found is None else found.start())

    def _marker(self, at: int) -> tuple[int, int, int]:
        self.passed += 1
        if self.passed > _MAX_SEGMENTS:
            raise Refused("too many segments")
        if at == -1 or at + 1 >= len(self.data):
            raise _EndsEarly("damaged JPEG")
        code, start = self.data[at + 1], at + 2
        if code == 0xFF:
            found = _NOT_FILL.search(self.data, start)
            if found is None:
                raise _EndsEarly("damaged JPEG")
            code, start = found[0][0], found.end()
        if code in (0, _EOI, _SOI, *_BARE):
            self.at = start
            return code, start, start
        length = int.from_bytes(self.data[start : start + 2], "big")
        end = start + length
        if end > len(self.data) or start + 2 > len(self.data):
            raise _EndsEarly("truncated JPEG")
        if length < 2:
            raise Refused("damaged JPEG")
        self.at = end
        return code, start, end
