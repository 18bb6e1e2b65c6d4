"""Reduce TIFF files to what their decoder needs: one directory with the picture's own tags, within limits."""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from spark_aesthetic.images.refused import Refused

# Strips or tiles. Pillow decodes each with a call in Python that takes 15 us.
_MAX_STRIPS = 65_536

# Strips may share bytes, and each is decoded separately: 1 MB of empty deflate blocks takes 1.5 ms. In a normal file,
# all blank tiles may refer to the same few bytes; their lengths add up to at most this.
_MAX_SHARED_BYTES = 64 << 20

_MAX_TAGS = 4096

# Most bytes of a tag that the picture needs. The largest, except the positions of strips, is a 16-bit palette.
_MAX_TAG_BYTES = 1 << 20

# The tags that the decoders read, including the orientation. Metadata, which may be most of a file, is dropped.
_KEPT = frozenset(
    (254, 255, 256, 257, 258, 259, 262, 263, 264, 265, 266, 273, 274, 277, 278, 279, 282, 283, 284, 292, 293, 296, 317,
     318, 319, 320, 322, 323, 324, 325, 332, 334, 338, 339, 347, 512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530,
     531, 532)
)  # fmt: skip
_STARTS, _LENGTHS = (273, 324), (279, 325)
_PLACES = (*_STARTS, *_LENGTHS)
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _SAMPLES = 256, 257, 258, 259, 277
_UNCOMPRESSED, _OLD_JPEG, _JPEG = 1, 6, 7

# The frame header of an arithmetic-coded JPEG. No TIFF encoder writes it, and a few MB of its scans take seconds.
_ARITHMETIC_JPEG = re.compile(rb"\xff[\xc9\xca]\x00[\x0b-\x26]\x08")

# The compressions that Pillow reads; see its TiffImagePlugin.COMPRESSION_INFO.
_COMPRESSIONS = frozenset((1, 2, 3, 4, 5, 6, 7, 8, 32771, 32773, 32809, 32946, 34676, 34677, 34925, 50000, 50001))

_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}

# The integer types of tags. libtiff accepts only these for the positions of strips.
_WHOLE = {1: "u1", 3: "u2", 4: "u4", 6: "u1", 8: "u2", 9: "u4", 16: "u8", 17: "u8"}


class _Layout(NamedTuple):
    """The byte order, and whether the file is a BigTIFF, which can exceed 4 GB."""

    order: str
    big: bool

    @property
    def entry(self) -> struct.Struct:
        return struct.Struct(self.order + ("HHQ8s" if self.big else "HHI4s"))

    @property
    def length(self) -> struct.Struct:
        return struct.Struct(self.order + ("Q" if self.big else "H"))

    @property
    def offset(self) -> struct.Struct:
        return struct.Struct(self.order + ("Q" if self.big else "I"))


class _Tag(NamedTuple):
    number: int
    kind: int
    values: int
    value: bytes


def plain(data: bytes) -> bytes:
    """Return the file with only its first directory, and without metadata.

    Raises:
        Refused: The file has more strips or tags than any encoder writes, or a compression that is not supported.
    """
    layout, at, tags = _directory(data)
    kept = [tag for tag in tags if tag.number in _KEPT]
    for tag in kept:
        if tag.number in _PLACES and tag.values > _MAX_STRIPS:
            raise Refused("too many strips")
        if tag.number not in _PLACES and tag.values * _TYPE_BYTES.get(tag.kind, 1) > _MAX_TAG_BYTES:
            raise Refused("too much metadata")
        if tag.number == _COMPRESSION and _first(layout, tag) not in _COMPRESSIONS:
            raise Refused("unsupported TIFF compression")
    made = _with_directory(data, layout, at, kept)
    codings = {_first(layout, tag) for tag in kept if tag.number == _COMPRESSION}
    if codings & {_OLD_JPEG, _JPEG} and _ARITHMETIC_JPEG.search(made):
        raise Refused("unsupported TIFF compression")
    # Pillow itself reads uncompressed files, and only as far as the pixels of a strip, so they need no check.
    if codings - {_UNCOMPRESSED}:
        _check_strips(made, layout, kept)
    return made


def _check_strips(data: bytes, layout: _Layout, tags: list[_Tag]) -> None:
    """Raise Refused if the strips together refer to far more bytes than the file has."""
    # libtiff uses the first of two equal tags.
    first = {tag.number: tag for tag in reversed(tags)}
    for number in _LENGTHS:
        if number in first:
            lengths = np.minimum(_numbers(data, layout, first[number]), len(data))
            if int(lengths.sum()) > max(2 * len(data), _MAX_SHARED_BYTES):
                raise Refused("too many strips")


def _numbers(data: bytes, layout: _Layout, tag: _Tag) -> npt.NDArray[np.uint64]:
    """Return the values of a tag of integers, as far as the file contains them."""
    kind = np.dtype(layout.order + _WHOLE.get(tag.kind, "u1"))
    size = tag.values * kind.itemsize
    within = size <= len(tag.value)
    at = 0 if within else layout.offset.unpack(tag.value)[0]
    raw = (tag.value if within else data)[at : at + size]
    return np.frombuffer(raw, kind, len(raw) // kind.itemsize).astype(np.uint64)


def is_valid(data: bytes) -> bool:
    """Whether the directory has all that a picture needs, so that a decoder refuses the file only for its layout."""
    layout, _, found = _directory(data)
    tags = {tag.number: tag for tag in found}
    sized = all(number in tags and _first(layout, tags[number]) > 0 for number in (_WIDTH, _HEIGHT))
    samples = _first(layout, tags[_SAMPLES]) if _SAMPLES in tags else 1
    bits = tags.get(_BITS)
    return sized and 0 < samples <= 64 and (bits is None or bits.values in (1, samples))


def _directory(data: bytes) -> tuple[_Layout, int, list[_Tag]]:
    layout = _layout(data)
    try:
        (at,) = layout.offset.unpack_from(data, 8 if layout.big else 4)
        (count,) = layout.length.unpack_from(data, at)
        if count > _MAX_TAGS:
            raise Refused("too many tags")
        start, size = at + layout.length.size, layout.entry.size
        return layout, at, [_Tag(*layout.entry.unpack_from(data, start + n * size)) for n in range(count)]
    # The offset is beyond the end of the file, and perhaps too large for an index.
    except (struct.error, OverflowError):
        raise Refused("truncated TIFF") from None


def _layout(data: bytes) -> _Layout:
    # If the version number has the other byte order, Pillow follows the letters, and so does this function.
    return _Layout("<" if data[:1] == b"I" else ">", 43 in data[2:4])


def _first(layout: _Layout, tag: _Tag) -> int:
    """Return the value of a tag with one integer, as nearly all tags have; 0 if it has another type."""
    letter = {1: "B", 3: "H", 4: "I", 16: "Q"}.get(tag.kind)
    fits = letter is not None and struct.calcsize(letter) <= len(tag.value)
    return int(struct.unpack_from(layout.order + letter, tag.value)[0]) if letter is not None and fits else 0


def _with_directory(data: bytes, layout: _Layout, at: int, tags: list[_Tag]) -> bytes:
    """Return the file with a shorter directory in place of its first one, which no directory follows."""
    directory = (
        layout.length.pack(len(tags)) + b"".join(layout.entry.pack(*tag) for tag in tags) + layout.offset.pack(0)
    )
    view = memoryview(data)
    return b"".join((view[:at], directory, view[at + len(directory) :]))
