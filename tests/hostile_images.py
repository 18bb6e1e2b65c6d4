"""Image files that are built to be slow, to fill the memory or to be unusual. Code makes them, so none is stored."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable
from io import BytesIO
from itertools import pairwise

import numpy as np
from PIL import Image

from spark_aesthetic.testing import noise_image

MB = 1 << 20


def encoded(image: Image.Image, file_format: str, **options: object) -> bytes:
    """Return an image as the bytes of a file."""
    file = BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def segment(code: int, body: bytes) -> bytes:
    """Return a JPEG segment."""
    return struct.pack(">BBH", 0xFF, code, len(body) + 2) + body


def after_start(jpeg: bytes, extra: bytes) -> bytes:
    """Return a JPEG file with `extra` inserted behind its first marker."""
    return jpeg[:2] + extra + jpeg[2:]


# Each class has one Huffman table, in which all symbols have 8 bits. Symbol 0 is a difference of zero and the end of a
# block.
_TABLES = segment(0xDB, b"\x00" + bytes([1] * 64)) + b"".join(
    segment(0xC4, bytes([kind << 4]) + bytes([0, 0, 0, 0, 0, 0, 0, 16] + [0] * 8) + bytes(range(16))) for kind in (0, 1)
)


def grey_jpeg(
    width: int,
    height: int,
    *,
    sof: int = 0xC0,
    precision: int = 8,
    sampling: Iterable[tuple[int, int]] = ((1, 1),),
    extra: bytes = b"",
) -> bytes:
    """Return a flat grey JPEG file with any sampling, precision and kind of frame.

    Each block takes two zero bytes.
    """
    factors = list(sampling)
    across, down = max(h for h, _ in factors), max(v for _, v in factors)
    units = -(-width // (8 * across)) * -(-height // (8 * down))
    blocks = sum(h * v for h, v in factors) if len(factors) > 1 else 1
    if len(factors) == 1:
        units = -(-width // 8) * -(-height // 8)
    frame = struct.pack(">BHHB", precision, height, width, len(factors)) + b"".join(
        bytes([number, h << 4 | v, 0]) for number, (h, v) in enumerate(factors, 1)
    )
    scan = bytes([len(factors)]) + b"".join(bytes([number, 0]) for number in range(1, len(factors) + 1)) + b"\0\x3f\0"
    return b"".join((
        b"\xff\xd8", extra, _TABLES, segment(sof, frame), segment(0xDA, scan), bytes(2 * blocks * units), b"\xff\xd9",
    ))  # fmt: skip


def many_scans(width: int, height: int, scans: int, *, sof: int = 0xC2) -> bytes:
    """Return a progressive JPEG file with many scans of a few bytes, each of which ends all blocks at once."""
    frame = segment(sof, struct.pack(">BHHB", 8, height, width, 1) + bytes([1, 0x11, 0]))
    # The code 00000000 is EOB14. Followed by 14 bits of 1, it ends a run of 32,767 blocks.
    table = segment(0xC4, bytes([0x10]) + bytes([0, 0, 0, 0, 0, 0, 0, 1] + [0] * 8) + b"\xe0")
    blocks = -(-width // 8) * -(-height // 8)
    runs = -(-blocks // 32_767)
    bits = "".join("00000000" + "1" * 14 for _ in range(runs))
    bits += "1" * (-len(bits) % 8)
    coded = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    first = segment(0xDA, bytes([1, 1, 0, 0, 0, 0])) + bytes(blocks)
    again = segment(0xDA, bytes([1, 1, 0, 1, 63, 0])) + coded
    dc = segment(0xC4, bytes([0]) + bytes([0, 0, 0, 0, 0, 0, 0, 1] + [0] * 8) + b"\0")
    head = b"\xff\xd8" + segment(0xDB, b"\x00" + bytes([1] * 64)) + frame + dc + table
    return head + first + again * scans + b"\xff\xd9"


def chunk(kind: bytes, body: bytes = b"") -> bytes:
    """Return a PNG chunk."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *, before: bytes = b"", data: bytes | None = None, bits: int = 8, colour: int = 0,
        interlaced: bool = False, pieces: int = 0) -> bytes:  # fmt: skip
    """Return a PNG file of zeros, with the chunks `before` ahead of its pixels.

    If `pieces` is given, the pixels are split into chunks of that many bytes.
    """
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced))
    if data is None:
        data = zlib.compress(bytes(height * (1 + -(-width * bits * (3 if colour == 2 else 1) // 8))))
    cut = [data] if not pieces else [data[at : at + pieces] for at in range(0, len(data), pieces)]
    return b"\x89PNG\r\n\x1a\n" + head + before + b"".join(chunk(b"IDAT", each) for each in cut) + chunk(b"IEND")


def compressed_text(size: int) -> bytes:
    """Return a PNG chunk that expands to `size` bytes of text."""
    return chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(size)))


def profile(size: int) -> bytes:
    """Return a PNG chunk that expands to a colour profile of `size` bytes."""
    return chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(size)))


def gif(before: bytes = b"") -> bytes:
    """Return a GIF file with more blocks before its picture."""
    data = noise_image(0, file_format="GIF")
    at = 13 + (3 << (data[10] % 8 + 1))
    return data[:at] + before + data[at:]


def gif_of_local_palette(image: Image.Image) -> bytes:
    """Return a GIF file that stores its 256 colours with its picture, not for the whole file."""
    colours = image.convert("RGB").quantize(256)
    data = encoded(colours, "GIF", optimize=False)
    at = data.index(b"\x2c", 13 + 768)
    head = data[:10] + bytes((data[10] & 0x78,)) + data[11:13] + data[13 + 768 : at + 9]
    return head + bytes((data[at + 9] | 0x87,)) + data[13 : 13 + 768] + data[at + 10 :]


def bmp_runs(width: int, height: int, body: bytes, *, four_bits: bool = False) -> bytes:
    """Return a BMP file with run-length coding."""
    colours = 16 if four_bits else 256
    offset = 54 + 4 * colours
    head = struct.pack("<2sIHHI", b"BM", offset + len(body), 0, 0, offset)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 4 if four_bits else 8, 2 if four_bits else 1, len(body), 1,
                       1, colours, 0)  # fmt: skip
    return head + info + bytes(4 * colours) + body


def tiff(width: int, height: int, *, tags: Iterable[tuple[int, int, int, int]] = (), strips: int = 1,
         bits: tuple[int, ...] = (8,), compression: int = 1, photometric: int = 1, data: bytes | None = None,
         ) -> bytes:  # fmt: skip
    """Return a TIFF file of zeros with `strips` strips and more tags (number, type, count, value or place)."""
    body = bytearray(b"II*\0" + bytes(4))
    pixels = data if data is not None else bytes(width * height * sum(bits) // 8)

    def placed(raw: bytes) -> int:
        at = len(body)
        body.extend(raw + bytes(len(raw) % 2))
        return at

    start = placed(pixels)
    rows = -(-height // strips)
    a_strip = len(pixels) // strips
    offsets = [start + n * a_strip for n in range(strips)]
    listed = [
        (256, 4, 1, width), (257, 4, 1, height), (259, 3, 1, compression), (262, 3, 1, photometric),
        (258, 3, len(bits), bits[0] if len(bits) == 1 else placed(struct.pack(f"<{len(bits)}H", *bits))),
        (273, 4, strips, start if strips == 1 else placed(struct.pack(f"<{strips}I", *offsets))),
        (277, 3, 1, len(bits)), (278, 4, 1, rows),
        (279, 4, strips, len(pixels) if strips == 1 else placed(struct.pack(f"<{strips}I", *[a_strip] * strips))),
        *tags,
    ]  # fmt: skip
    at = placed(
        struct.pack("<H", len(listed)) + b"".join(struct.pack("<HHII", *tag) for tag in sorted(listed)) + bytes(4)
    )
    body[4:8] = struct.pack("<I", at)
    return bytes(body)


def tiff_of_shared(strip: bytes, strips: int, *, tiled: bool = False, big: bool = False, compression: int = 8,
                   length: int | None = None, width: int = 16, rows: int = 1) -> bytes:  # fmt: skip
    """Return a TIFF file in which all strips or tiles, of `rows` rows each, are the same bytes."""
    number = "<Q" if big else "<I"
    start = 16 if big else 8
    places = start + len(strip) + len(strip) % 2
    lengths = places + strips * struct.calcsize(number)
    at = lengths + strips * struct.calcsize(number)
    length = len(strip) if length is None else length
    # A single value is stored in the tag itself.
    where = (places, lengths) if strips > 1 else (start, length)
    kind = 16 if big else 4
    tags = [(256, 4, 1, width), (257, 4, 1, rows * strips), (258, 3, 1, 8), (259, 3, 1, compression), (262, 3, 1, 1),
            (277, 3, 1, 1)]  # fmt: skip
    if tiled:
        tags += [(322, 4, 1, width), (323, 4, 1, rows), (324, kind, strips, where[0]), (325, kind, strips, where[1])]
    else:
        tags += [(273, kind, strips, where[0]), (278, 4, 1, rows), (279, kind, strips, where[1])]
    entry = struct.Struct("<HHQQ" if big else "<HHII")
    head = b"II+\0" + struct.pack("<HHQ", 8, 0, at) if big else b"II*\0" + struct.pack("<I", at)
    count = struct.pack("<Q" if big else "<H", len(tags))
    return b"".join((
        head, strip, bytes(len(strip) % 2), struct.pack(number, start) * strips, struct.pack(number, length) * strips,
        count, *(entry.pack(*tag) for tag in sorted(tags)), bytes(struct.calcsize(number)),
    ))  # fmt: skip


def empty_blocks(count: int, pixels: int = 16) -> bytes:
    """Return Deflate data of `count` empty blocks, then black pixels."""
    coded = zlib.compress(bytes(pixels))
    return coded[:2] + b"\0\0\0\xff\xff" * count + coded[2:]


def riff(kind: bytes, body: bytes) -> bytes:
    """Return a chunk of a RIFF file."""
    return kind + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)


def webp(*chunks: bytes) -> bytes:
    """Return a WebP file of these chunks."""
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def webp_with(extra: bytes) -> bytes:
    """Return a WebP file with more chunks behind its picture."""
    simple = noise_image(0, file_format="WEBP")[12:]
    canvas = bytes([0, 0, 0, 0]) + (63).to_bytes(3, "little") + (47).to_bytes(3, "little")
    return webp(riff(b"VP8X", canvas), simple, extra)


def box(kind: bytes, *bodies: bytes) -> bytes:
    """Return a box of an ISO file."""
    body = b"".join(bodies)
    return struct.pack(">I", len(body) + 8) + kind + body


def avif_with(extra: bytes) -> bytes:
    """Return an AVIF file with more boxes behind its brands."""
    data = noise_image(0, file_format="AVIF")
    at = int.from_bytes(data[:4], "big")
    return data[:at] + extra + data[at:]


def avif_items(count: int) -> bytes:
    """Return an AVIF file that names `count` items."""
    entries = b"".join(box(b"infe", struct.pack(">IHH4sB", 2 << 24, n % 65_536, 0, b"av01", 0)) for n in range(count))
    handler = box(b"hdlr", bytes(8) + b"pict" + bytes(13))
    items = box(b"iinf", struct.pack(">IH", 0, count), entries)
    return box(b"ftyp", b"avif\0\0\0\0avifmif1miaf") + box(b"meta", bytes(4), handler, items)


def avif_that_lies(data: bytes, size: tuple[int, int]) -> bytes:
    """Return an AVIF file after changing its boxes to state 64 x 48 pixels instead of `size`."""
    for said, form in (("ispe", ">II"), ("av01", ">HH"), ("tkhd", ">II")):
        # The header of a track states the size in units of 1/65,536 of a pixel.
        unit = 65_536 if said == "tkhd" else 1
        stated, lie = (struct.pack(form, unit * w, unit * h) for w, h in (size, (64, 48)))
        for found in [at for at in range(len(data)) if data.startswith(said.encode(), at)]:
            at = data.find(stated, found, found + 100)
            data = data if at < 0 else data[:at] + lie + data[at + len(lie) :]
    return data


def av1(*fields: tuple[int, int], kind: int) -> bytes:
    """Return a unit of AV1 data that holds `fields`.

    Each field is a number and its count of bits.
    """
    bits = "".join(f"{value:0{count}b}" for value, count in fields)
    bits += "0" * (-len(bits) % 8)
    body = int(bits, 2).to_bytes(len(bits) // 8, "big")
    return bytes((kind << 3 | 2, len(body))) + body


# A frame header begins with these fields. They describe a key frame that is not shown, so the header also states
# whether the frame resists errors.
AV1_FRAME = [(0, 1), (0, 2), (0, 1), (1, 1), (1, 1), (0, 1)]


def av1_sequence(width: int, height: int, *, timed: bool = False, even: bool = False) -> bytes:
    """Return an AV1 sequence header. Its frames may state their own size of up to 65,536 x 65,536 pixels.

    If `timed`, frames have a clock. If `even`, the ticks of the clock are even; otherwise each shown frame has a time
    of 8 bits.
    """
    ticks = [(1, 1), (0b00101, 5)] if even else [(0, 1)]
    clock = [(1, 32), (1, 32), *ticks, (1, 1), (9, 5), (1, 32), (0, 5), (7, 5)] if timed else []
    points = [(1, 12), (9, 5), (1, 1), *([(1, 1), (3, 20), (0, 1)] if timed else []), (1, 1), (5, 4)]
    sizes = [(15, 4), (15, 4), (width - 1, 16), (height - 1, 16)]
    # Frames have no numbers and no order, and each frame chooses whether it has screen content.
    tools = [(0, 1), (0, 7), (0, 1), (1, 1), (1, 1)]
    head = [(0, 5), (int(timed), 1), *clock, (1, 1), (1, 5)]
    return av1(*head, *points, *points, *sizes, *tools, kind=1)


def avif_of(*pictures: bytes, inside: bool = False, halves: bool = False) -> bytes:
    """Return an AVIF file of AV1 pictures.

    Their data is in the description of the file if `inside`, otherwise behind it. Each picture is in two pieces if
    `halves`, otherwise in one.
    """
    handler = box(b"hdlr", bytes(8) + b"pict" + bytes(13))
    entries = [
        box(b"infe", struct.pack(">IIH4sB", 3 << 24, n, 0, b"av01", 0)) for n in range(1, 1 + len(pictures))
    ]  # fmt: skip
    items = box(b"iinf", struct.pack(">II", 1 << 24, len(pictures)), *entries)

    def located(start: int) -> bytes:
        found = struct.pack(">IHI", 2 << 24, 0x4440, len(pictures))
        for n, picture in enumerate(pictures, 1):
            cuts = [0, len(picture) // 2, len(picture)] if halves else [0, len(picture)]
            found += struct.pack(">IHHIH", n, int(inside), 0, start, len(cuts) - 1)
            found += b"".join(struct.pack(">II", a, b - a) for a, b in pairwise(cuts))
            start += len(picture)
        return box(b"iloc", found)

    brands, body = box(b"ftyp", b"avif\0\0\0\0avifmif1miaf"), b"".join(pictures)
    if inside:
        return brands + box(b"meta", bytes(4), handler, items, located(0), box(b"idat", body))
    before = len(brands + box(b"meta", bytes(4), handler, items, located(0)))
    return brands + box(b"meta", bytes(4), handler, items, located(before + 8)) + box(b"mdat", body)


def nested(depth: int) -> bytes:
    """Return boxes that are nested `depth` deep."""
    body = b""
    for _ in range(depth):
        body = box(b"ipco", body)
    return body


# Each file is made only when a test asks for it, because some have 60 MB.
SLOW: dict[str, Callable[[], bytes]] = {
    "20,000 scans": lambda: many_scans(1000, 1000, 20_000),
    "1,500 scans of 16 megapixels": lambda: many_scans(4000, 4000, 1500),
    "90 scans of 16 megapixels": lambda: many_scans(4000, 4000, 90),
    "30 scans of 80 megapixels": lambda: many_scans(10_000, 8000, 30),
    "60 MB of fill bytes": lambda: after_start(noise_image(0), b"\xff" * 60 * MB),
    "60 MB of fill bytes at the end": lambda: noise_image(0)[:-2] + b"\xff" * 60 * MB + b"\xff\xd9",
    "60 MB of stuffed bytes": lambda: noise_image(0)[:-2] + b"\xff\0" * 30 * MB + b"\xff\xd9",
    "60 MB of restarts": lambda: noise_image(0)[:-2] + b"\xff\xd0" * 30 * MB + b"\xff\xd9",
    "60 MB of junk before the picture": lambda: after_start(noise_image(0), b"\xff\0" * 30 * MB),
    "131 MB of Exif": lambda: after_start(noise_image(0), segment(0xE1, b"Exif\0\0" + bytes(65_000)) * 2100),
    "15 million empty comments": lambda: after_start(noise_image(0), segment(0xFE, b"") * 15_000_000),
    "15 million empty segments at the end": lambda: noise_image(0)[:-2] + segment(0xE5, b"") * 15_000_000 + b"\xff\xd9",
    "3 million tEXt": lambda: png(64, 64, before=chunk(b"tEXt", b"a\0b") * 3_000_000),
    "4 million IDAT": lambda: png(8000, 8000, data=zlib.compress(bytes(8000 * 8001), 0)[: 4 * MB], pieces=1),
    "a zTXt of 200 MB": lambda: png(64, 64, before=compressed_text(200 * MB)),
    "60 zTXt of 60 MB": lambda: png(64, 64, before=compressed_text(60 * MB) * 60),
    "an iCCP of 300 MB": lambda: png(64, 64, before=profile(300 * MB)),
    "IDAT of 200 MB for one pixel": lambda: png(1, 1, data=zlib.compress(bytes(200 * MB))),
    "interlaced, 80 megapixels": lambda: png(10_000, 8000, interlaced=True, data=zlib.compress(bytes(81_000_000), 9)),
    "12 million comments": lambda: gif(b"\x21\xfe\x01a\0" * 12_000_000),
    "60 MB between the blocks": lambda: gif(bytes(60 * MB)),
    "8 million controls": lambda: gif(b"\x21\xf9\x04\0\0\0\0\0" * 7_500_000),
    "60 million parts of a comment": lambda: gif(b"\x21\xfe" + b"\1a" * 30_000_000 + b"\0"),
    "30 million runs": lambda: bmp_runs(6000, 5000, b"\1\1" * 30_000_000),
    "runs of 4 bits, 80 megapixels": lambda: bmp_runs(10_000, 8000, b"\xff\x11" * 330_000, four_bits=True),
    "ends of lines, 80 megapixels": lambda: bmp_runs(10_000, 8000, b"\1\1\0\0" * 8000),
    "runs that lead nowhere": lambda: bmp_runs(2000, 2000, b"\0\2\0\0" * 7_500_000),
    "900,000 strips": lambda: tiff(16, 900_000, strips=900_000),
    "1,500 strips of the same 1 MB": lambda: tiff_of_shared(empty_blocks(200_000), 1500),
    "65,000 strips of the same 1 kB": lambda: tiff_of_shared(empty_blocks(200), 65_000),
    "a tag of 60 MB of numbers": lambda: tiff(64, 64, tags=[(700, 3, 30_000_000, 8)], data=bytes(60 * MB)),
    "a sample format of 60 MB": lambda: tiff(64, 64, tags=[(339, 3, 30_000_000, 8)], data=bytes(60 * MB)),
    "60,000 tags of 8 MB": lambda: tiff(
        64, 64, tags=[(n, 1, 8 * MB, 8) for n in range(1000, 61_000)], data=bytes(8 * MB)
    ),
    "7 million chunks of a WebP": lambda: webp_with(riff(b"JUNK", b"") * 7_000_000),
    "700,000 frames of a WebP": lambda: webp_with(riff(b"ANMF", bytes(80)) * 700_000),
    "65,000 items": lambda: avif_items(65_000),
    "60 MB of boxes": lambda: avif_with(box(b"free") * (60 * MB // 8)),
    "60 MB of boxes within": lambda: avif_with(box(b"meta", bytes(4), box(b"iprp", box(b"free") * (60 * MB // 8)))),
    "boxes 100,000 deep": lambda: avif_with(box(b"meta", bytes(4), nested(100_000))),
}  # fmt: skip


def noise(seed: int, width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Return an image of soft noise, which encoders treat like a photograph."""
    small = np.random.default_rng(seed).integers(0, 256, (max(1, height // 8), max(1, width // 8), 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).convert(mode)
