"""Expand BMP files with run-length coding, which Pillow decodes pixel by pixel in Python."""

from __future__ import annotations

import struct

import numpy as np

from spark_aesthetic.images.refused import Refused

# A run takes 0.4 to 1 us. A scanned page has a few hundred thousand runs.
_MAX_RUNS = 1_000_000

_RUNS_OF_8, _RUNS_OF_4 = 1, 2
_HEAD = struct.Struct("<iiHHIIiiI")
_HEAD_AT = 18

# The two 4-bit pixels of each byte value.
_PAIRS = [bytes((byte >> 4, byte & 15)) for byte in range(256)]
_ALL_PAIRS = np.array([list(pair) for pair in _PAIRS], dtype=np.uint8)


def plain(data: bytes, max_pixels: int) -> bytes:
    """Expand a file to one byte per pixel if it has runs and at most `max_pixels`.

    Raises:
        Refused: The file is damaged, or has more runs than any encoder writes, or too few pixels.
    """
    if len(data) < _HEAD_AT + _HEAD.size or int.from_bytes(data[14:18], "little") < 40:
        return data
    width, height, planes, bits, compression, size, across, down, colours = _HEAD.unpack_from(data, _HEAD_AT)
    if compression not in (_RUNS_OF_8, _RUNS_OF_4) or not 0 < width * abs(height) <= max_pixels:
        return data
    if bits not in (4, 8) or width < 0:
        raise Refused("damaged BMP")
    start = int.from_bytes(data[10:14], "little")
    pixels = _expanded(data, start, width, width * abs(height), pairs=compression == _RUNS_OF_4)
    rows = np.frombuffer(pixels, np.uint8).reshape(abs(height), width)
    if width % 4:
        rows = np.pad(rows, ((0, 0), (0, -width % 4)))
    head = bytearray(data[:start])
    _HEAD.pack_into(head, _HEAD_AT, width, height, planes, 8, 0, size, across, down, colours or 1 << bits)
    return b"".join((head, rows.data))


def _expanded(data: bytes, at: int, width: int, size: int, *, pairs: bool) -> bytearray:
    """Return the pixels of a file, row by row. A run longer than its row is truncated, as in Pillow."""
    pixels, across, runs = bytearray(), 0, 0
    while len(pixels) < size and at + 1 < len(data):
        count, value = data[at], data[at + 1]
        at += 2
        runs += 1
        if runs > _MAX_RUNS:
            raise Refused("too many runs")
        if count:
            count = max(0, min(count, width - across))
            pixels += (_PAIRS[value] * (count // 2 + 1))[:count] if pairs else bytes((value,)) * count
            across += count
        elif value == 0:
            pixels += bytes(-len(pixels) % width)
            across = 0
        elif value == 1:
            if len(pixels) < size and at + 1 >= len(data):
                # The file is valid, but Pillow does not read files in which some pixels have no value.
                raise Refused("unsupported BMP layout")
            break
        elif value == 2 and at + 1 >= len(data):
            break
        elif value == 2:
            pixels += bytes(min(size - len(pixels), data[at] + data[at + 1] * width))
            at, across = at + 2, len(pixels) % width
        else:
            count = min(size - len(pixels), value)
            length = (count + 1) // 2 if pairs else count
            literal = data[at : at + length]
            pixels += _ALL_PAIRS[list(literal)].tobytes()[:count] if pairs and literal else literal
            at, across = at + length, across + value
            # The next code begins at an even offset.
            at += at % 2
    if len(pixels) < size:
        raise Refused("truncated BMP" if at + 1 >= len(data) else "damaged BMP")
    return pixels[:size]
