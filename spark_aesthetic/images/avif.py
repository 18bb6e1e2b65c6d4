"""Limit the number of boxes in an AVIF file, and the size of the pictures in it.

The container states the size of the picture, and each AV1 picture in it states its own. libavif decodes pictures at
their own size, however large, and then scales them. Sizes are read as in the AV1 Bitstream & Decoding Process
Specification, 5.5.1 (sequence header) and 5.9.2 (frame header), and boxes as in ISO/IEC 14496-12.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from spark_aesthetic.images.refused import Refused

# The metadata of an AVIF of 256 tiles, with transparency and thumbnails, takes 40 kB.
_MAX_META_BYTES = 1 << 20
# libavif searches for each item among all earlier ones, so the time grows with the square of their number.
_MAX_ITEMS = 4096
# The limit for boxes, extents of items, and units of AV1 data together.
_MAX_PARTS = 16_384
_MAX_DEPTH = 12

# Sequence and frame headers are much shorter than this.
_HEADER_BYTES = 512

_NEEDED = (b"ftyp", b"meta", b"moov", b"mdat")

# Boxes that contain boxes, and the number of bytes before the first.
_OUTER = {
    b"iprp": 0,
    b"ipco": 0,
    b"iref": 4,
    b"dinf": 0,
    b"trak": 0,
    b"mdia": 0,
    b"minf": 0,
    b"stbl": 0,
    b"grpl": 0,
}


def fault(data: bytes, max_pixels: int) -> str | None:
    """Check the boxes and the pictures of a file in one pass.

    Args:
        data: The bytes of a whole file.
        max_pixels: Most pixels of a picture; 0 skips the check of the pictures.

    Returns:
        The damage after the header, such as `truncated AVIF`; None if this pass detects none.

    Raises:
        Refused: The file is damaged, has more parts than any encoder writes, or has a picture with more pixels.
    """
    file = _File(data)
    found = None
    for kind, start, end in file.boxes(0, len(data)):
        # Bytes after the last box can look like a box, so only the kinds that are needed count.
        if end > len(data):
            found = "truncated AVIF" if kind in _NEEDED else None
            break
        if kind in (b"meta", b"moov"):
            if end - start > _MAX_META_BYTES:
                raise Refused("too much metadata")
            # `meta` is a full box, in which version and flags come first.
            file.descend(start + 4 if kind == b"meta" else start, end, _MAX_DEPTH)
    if max_pixels:
        for picture in file.pictures():
            file.check_size(picture, max_pixels)
    return found


@dataclass
class _Track:
    """The position of a track's first sample."""

    starts: list[int] = field(default_factory=list)
    size: int = 0


class _File:
    """Counts the boxes of an ISO file, and collects the positions of its pictures."""

    def __init__(self, data: bytes) -> None:
        self.data, self.passed = data, 0
        self.coded = set[int]()
        self.locations = list[int]()
        self.inner_data = 0
        self.tracks = list[_Track]()

    def boxes(self, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
        """Yield kind, start of the content and end of each box. The last box may end beyond the end of the file."""
        while start + 8 <= end:
            self._pass()
            length, kind = struct.unpack_from(">I4s", self.data, start)
            head = 8
            if length == 1 and start + 16 <= end:
                head, length = 16, self._number(start + 8, 8)
            after = start + length if length else end
            if after < start + head:
                raise Refused("damaged AVIF")
            yield kind, start + head, after
            start = after

    def descend(self, start: int, end: int, depth: int) -> None:
        """Read the boxes inside a box."""
        if depth == 0:
            raise Refused("too many boxes")
        for kind, inner, after in self.boxes(start, end):
            if after > end:
                raise Refused("damaged AVIF")
            if kind == b"stbl":
                self.tracks.append(_Track())
            if kind in _OUTER:
                self.descend(inner + _OUTER[kind], after, depth - 1)
            else:
                self._note(kind, inner, after, depth)

    def pictures(self) -> Iterator[memoryview]:
        """Yield the AV1 data of each item, and of the first sample of each track."""
        view, seen, joined = memoryview(self.data), set[tuple[tuple[int, int], ...]](), 0
        for extents in self._extents():
            if extents in seen:
                continue
            seen.add(extents)
            if len(extents) > 1:
                joined += sum(end - start for start, end in extents)
                # Extents that overlap would let a small file fill the memory.
                if joined > len(self.data):
                    raise Refused("damaged AVIF")
                yield memoryview(b"".join(view[start:end] for start, end in extents))
            elif extents:
                yield view[slice(*extents[0])]
        for track in self.tracks:
            for start in track.starts:
                yield view[start : start + track.size]

    def check_size(self, picture: memoryview, max_pixels: int) -> None:
        """Raise Refused if AV1 data have more than `max_pixels`."""
        sequence: _Sequence | None = None
        for kind, content in self._units(picture):
            if kind == _SEQUENCE:
                sequence = _sequence(_Bits(content))
                pixels = sequence.width * sequence.height
            elif kind in _FRAMES and sequence is not None and _has_own_size(sequence, _Bits(content)):
                pixels = 1 << sequence.width_bits + sequence.height_bits
            else:
                continue
            if pixels > max_pixels:
                raise Refused("more pixels than max_pixels")

    def _note(self, kind: bytes, inner: int, after: int, depth: int) -> None:
        if kind == b"iinf":
            # The number of items follows version and flags. It has 16 bits in version 0 and 32 bits later.
            bytes_of_number = 4 if self._number(inner, 1) else 2
            if self._number(inner + 4, bytes_of_number) > _MAX_ITEMS:
                raise Refused("too many items")
            self.descend(inner + 4 + bytes_of_number, after, depth - 1)
        elif kind == b"infe":
            bytes_of_id = 4 if self._number(inner, 1) >= 3 else 2
            # The kind follows the id and a protection index of two bytes.
            kind_at = inner + 4 + bytes_of_id + 2
            if self.data[kind_at : kind_at + 4] == b"av01":
                self.coded.add(self._number(inner + 4, bytes_of_id))
        elif kind == b"iloc":
            self.locations.append(inner)
        elif kind == b"idat":
            self.inner_data = inner
        elif kind in (b"stco", b"co64") and self.tracks:
            self.tracks[-1].starts.append(self._number(inner + 8, 4 if kind == b"stco" else 8))
        elif kind == b"stsz" and self.tracks:
            # The box holds one size for all samples, or zero, their number, and the size of each.
            size = self._number(inner + 4, 4) or self._number(inner + 12, 4)
            self.tracks[-1].size = max(size, self.tracks[-1].size)

    def _extents(self) -> Iterator[tuple[tuple[int, int], ...]]:
        """Yield start and end of the extents of each item that is a picture."""
        for at in self.locations:
            version, sizes = self._number(at, 1), self._number(at + 4, 2)
            offset_bytes, length_bytes, base_bytes = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
            index_bytes = sizes & 15 if version else 0
            bytes_of_id = 4 if version >= 2 else 2
            count, at = self._number(at + 6, bytes_of_id), at + 6 + bytes_of_id
            if count > _MAX_ITEMS:
                raise Refused("too many items")
            for _ in range(count):
                item, at = self._number(at, bytes_of_id), at + bytes_of_id
                method, at = (self._number(at, 2) & 15, at + 2) if version else (0, at)
                # The two skipped bytes are a data reference, which can name another file. No decoder reads other files.
                base, at = self._number(at + 2, base_bytes), at + 2 + base_bytes
                extents, at = self._number(at, 2), at + 2
                base += self.inner_data if method == 1 else 0
                an_extent = index_bytes + offset_bytes + length_bytes
                if item in self.coded:
                    yield tuple(
                        self._extent(start + index_bytes, base, offset_bytes, length_bytes)
                        for start in range(at, at + extents * an_extent, an_extent or 1)
                    )
                at += extents * an_extent

    def _extent(self, at: int, base: int, offset_bytes: int, length_bytes: int) -> tuple[int, int]:
        self._pass()
        start = min(base + self._number(at, offset_bytes), len(self.data))
        length = self._number(at + offset_bytes, length_bytes)
        # An extent without a length ends with the file.
        return start, min(start + length, len(self.data)) if length else len(self.data)

    def _units(self, picture: memoryview) -> Iterator[tuple[int, memoryview]]:
        """Yield kind and content of each open bitstream unit (OBU)."""
        at = 0
        while at < len(picture):
            self._pass()
            head = picture[at]
            # A byte with the layer may follow, then the size in groups of seven bits. Without a size the unit is the
            # last.
            at += 2 if head & 4 else 1
            size, shift, more = 0, 0, bool(head & 2)
            if not more:
                size = len(picture) - at
            while more and at < len(picture) and shift < 56:
                size |= (picture[at] & 127) << shift
                more, shift, at = picture[at] > 127, shift + 7, at + 1
            yield head >> 3 & 15, picture[at : at + size]
            at += size

    def _number(self, at: int, size: int) -> int:
        return int.from_bytes(self.data[at : at + size], "big")

    def _pass(self) -> None:
        self.passed += 1
        if self.passed > _MAX_PARTS:
            raise Refused("too many boxes")


# Types of OBUs: a sequence header; a frame header alone, with its tiles, or repeated.
_SEQUENCE, _FRAMES = 1, (3, 6, 7)

# Types of frames.
_KEY, _SWITCH = 0, 3

# The value in a sequence header that leaves a setting to each frame.
_ITS_OWN = 2


class _Bits:
    """Reads bits from the start of some bytes, and zeros after their end."""

    def __init__(self, content: memoryview) -> None:
        self.left = 8 * _HEADER_BYTES
        self.value = int.from_bytes(bytes(content[:_HEADER_BYTES]).ljust(_HEADER_BYTES, b"\0"), "big")

    def take(self, count: int = 1) -> int:
        """Read a number of `count` bits."""
        self.left -= count
        return self.value >> self.left & ((1 << count) - 1) if self.left >= 0 else 0

    def skip_exp_golomb(self) -> None:
        """Skip an Exp-Golomb number. The number of its leading zeros gives its length."""
        zeros = 0
        while zeros < 32 and not self.take():
            zeros += 1
        if zeros < 32:
            self.take(zeros)


@dataclass(frozen=True, kw_only=True)
class _Sequence:
    """The fields of a sequence header that sizes depend on."""

    width: int
    height: int
    width_bits: int
    height_bits: int
    is_reduced: bool
    time_bits: int
    id_bits: int
    screen_content: int
    integer_motion: int


def _sequence(bits: _Bits) -> _Sequence:
    # Skip seq_profile and still_picture.
    bits.take(4)
    is_reduced = bool(bits.take())
    time_bits = 0
    if is_reduced:
        bits.take(5)
    else:
        time_bits = _timing(bits)
    width_bits, height_bits = bits.take(4) + 1, bits.take(4) + 1
    width, height = bits.take(width_bits) + 1, bits.take(height_bits) + 1
    id_bits, screen_content, integer_motion = 0, _ITS_OWN, _ITS_OWN
    if not is_reduced:
        if bits.take():
            id_bits = bits.take(4) + bits.take(3) + 3
        # Skip the flags of blocks of 128 pixels, of two intra filters and of four inter tools.
        bits.take(7)
        # enable_order_hint is followed by two more flags.
        if bits.take():
            bits.take(2)
        if not bits.take():
            screen_content = bits.take()
        if screen_content and not bits.take():
            integer_motion = bits.take()
    return _Sequence(
        width=width, height=height, width_bits=width_bits, height_bits=height_bits, is_reduced=is_reduced,
        time_bits=time_bits, id_bits=id_bits, screen_content=screen_content, integer_motion=integer_motion,
    )  # fmt: skip


def _timing(bits: _Bits) -> int:
    """Skip timing and operating points, and return the number of bits of a shown frame's time."""
    time_bits = delay_bits = 0
    if bits.take():
        bits.take(64)
        if equal_intervals := bits.take():
            bits.skip_exp_golomb()
        if bits.take():
            delay_bits = bits.take(5) + 1
            bits.take(32 + 5)
            time_bits = bits.take(5) + 1
            if equal_intervals:
                time_bits = 0
    has_display_delay = bits.take()
    for _ in range(bits.take(5) + 1):
        bits.take(12)
        if bits.take(5) > 7:
            bits.take()
        if delay_bits and bits.take():
            bits.take(2 * delay_bits + 1)
        if has_display_delay and bits.take():
            bits.take(4)
    return time_bits


def _has_own_size(sequence: _Sequence, bits: _Bits) -> bool:
    """Whether a frame states its own size, which may be as large as its number of bits allows."""
    # A frame that is shown again (show_existing_frame) states no size.
    if sequence.is_reduced or bits.take():
        return False
    kind, is_shown = bits.take(2), bits.take()
    if is_shown:
        bits.take(sequence.time_bits)
    else:
        bits.take()
    if kind != _SWITCH and not (kind == _KEY and is_shown):
        bits.take()
    bits.take()
    screen_content = bits.take() if sequence.screen_content == _ITS_OWN else sequence.screen_content
    if screen_content and sequence.integer_motion == _ITS_OWN:
        bits.take()
    bits.take(sequence.id_bits)
    return kind == _SWITCH or bool(bits.take())
