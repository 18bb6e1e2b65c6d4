"""Damaged photographs in several encodings, and whole files that are unusual. Code makes them, so none is stored."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from typing import NamedTuple

import hostile_images
import numpy as np
from hostile_images import after_start, encoded, segment
from PIL import Image

from spark_aesthetic.testing import photographs

_HOLE = 4096

ENCODINGS: dict[str, tuple[str, dict[str, object]]] = {
    "JPEG baseline": ("JPEG", {"quality": 90}),
    "JPEG progressive": ("JPEG", {"quality": 90, "progressive": True}),
    "JPEG 4:4:4": ("JPEG", {"quality": 95, "subsampling": 0}),
    "JPEG restarts": ("JPEG", {"quality": 80, "restart_marker_rows": 1}),
    "JPEG grey": ("JPEG", {"quality": 90}),
    "WebP lossy": ("WEBP", {"quality": 80}),
    "WebP lossless": ("WEBP", {"lossless": True}),
    "AVIF": ("AVIF", {"quality": 75, "speed": 9}),
    "PNG": ("PNG", {}),
    "PNG optimised": ("PNG", {"optimize": True}),
}
KINDS = {"zeros": 5, "half": 1, "missing": 5, "bit": 5}


class Damaged(NamedTuple):
    """A photograph's file before and after the damage.

    Attributes:
        encoding: One of `ENCODINGS`.
        kind: One of `KINDS`.
        whole: The file before.
        data: The file after.
    """

    encoding: str
    kind: str
    whole: bytes
    data: bytes


def damaged(names: list[str] | None = None) -> Iterator[Damaged]:
    """Yield 1,440 damaged files (9 photographs, 10 encodings, 16 damages), or those of the encodings in `names`."""
    for seed, (_, photograph) in enumerate(photographs().items()):
        with Image.open(BytesIO(photograph)) as opened:
            image = opened.convert("RGB")
        for name in names or ENCODINGS:
            file_format, options = ENCODINGS[name]
            whole = encoded(image.convert("L") if "grey" in name else image, file_format, **options)
            generator = np.random.default_rng(seed)
            for kind, count in KINDS.items():
                for _ in range(count):
                    yield Damaged(name, kind, whole, _damaged(whole, kind, generator))


def _damaged(whole: bytes, kind: str, generator: np.random.Generator) -> bytes:
    # The damage lies behind the header and before the end.
    hole = min(_HOLE, len(whole) // 8)
    at = int(generator.integers(len(whole) // 8 + 700, len(whole) - hole - 64))
    if kind == "zeros":
        return whole[:at] + bytes(hole) + whole[at + hole :]
    if kind == "missing":
        return whole[:at] + whole[at + hole :]
    if kind == "half":
        half = len(whole) // 2
        return whole[:half] + bytes(len(whole) - half - 64) + whole[-64:]
    changed = bytearray(whole)
    changed[at] ^= 1 << int(generator.integers(8))
    return bytes(changed)


class Whole(NamedTuple):
    """A file that is not damaged, though it may be unusual.

    Attributes:
        label: Describes the file.
        data: The file.
    """

    label: str
    data: bytes


def whole() -> Iterator[Whole]:
    """Yield more than 2,000 whole files of different sizes and encodings, from a photograph and from soft noise."""
    sizes = ((1, 1), (2, 3), (7, 8), (8, 8), (9, 17), (16, 16), (31, 33), (64, 48), (127, 250), (640, 427), (1999, 60))
    for number, (width, height) in enumerate(sizes):
        image = hostile_images.noise(number, width, height)
        yield from _jpegs(image)
        yield from _others(image)
    with Image.open(BytesIO(photographs()["chelsea.png"])) as opened:
        image = opened.convert("RGB")
    yield from _jpegs(image)
    yield from _others(image)
    yield from odd(image)
    yield from odd(hostile_images.noise(99, 301, 203))


def _jpegs(image: Image.Image) -> Iterator[Whole]:
    for mode in ("RGB", "L", "CMYK"):
        converted = image.convert(mode)
        for quality in (5, 50, 90, 100):
            for progressive in (False, True):
                for subsampling in (0, 1, 2) if mode != "L" else (0,):
                    for more in ({}, {"restart_marker_blocks": 3}, {"restart_marker_rows": 1}, {"optimize": True}):
                        options = {"quality": quality, "progressive": progressive, "subsampling": subsampling, **more}
                        yield Whole(f"JPEG {mode} {options}", encoded(converted, "JPEG", **options))


def _others(image: Image.Image) -> Iterator[Whole]:
    alpha = image.convert("RGBA")
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        yield Whole(f"PNG {mode}", encoded(alpha.convert(mode), "PNG"))
    for mode, options in (("RGB", {"quality": 30}), ("RGB", {"quality": 95, "method": 6}), ("RGBA", {"quality": 70}),
                          ("RGB", {"lossless": True}), ("RGBA", {"lossless": True, "exact": True})):  # fmt: skip
        yield Whole(f"WebP {mode} {options}", encoded(alpha.convert(mode), "WEBP", **options))
    for compression in ("raw", "tiff_lzw", "tiff_deflate", "packbits", "jpeg"):
        yield Whole(f"TIFF {compression}", encoded(image, "TIFF", compression=compression))
    yield Whole("GIF", encoded(image, "GIF"))
    yield Whole("BMP", encoded(image, "BMP"))
    for mode in ("RGB", "RGBA", "L"):
        yield Whole(f"AVIF {mode}", encoded(alpha.convert(mode), "AVIF", speed=10, quality=60))


def odd(image: Image.Image) -> Iterator[Whole]:
    """Yield whole files of one image that only some encoders would write."""
    plain = encoded(image, "JPEG", quality=85)
    bare = plain[:2] + plain[20:]
    # Adobe defines no transform 7.
    for transform in (0, 1, 2, 7):
        adobe = segment(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([transform]))
        yield Whole(f"Adobe {transform}", after_start(bare, adobe))
        yield Whole(f"JFIF and Adobe {transform}", after_start(plain, adobe))
        cmyk = encoded(image.convert("CMYK"), "JPEG")
        yield Whole(
            f"CMYK of Adobe {transform}",
            cmyk.replace(b"Adobe\0\x64\0\0\0\0\0", b"Adobe\0\x64\0\0\0\0" + bytes([transform])),
        )
    yield Whole("no JFIF", bare)
    yield Whole("JFIF of version 7", plain.replace(b"JFIF\0\1", b"JFIF\0\7"))
    for count in (1, 100, 100_000):
        for kind in (b"\0", b"\xff", b"x", plain[:2], b"\xff\xd9"):
            yield Whole(f"{count} of {kind!r} behind the end", plain + kind * count)
        yield Whole(f"{count} fill bytes", after_start(plain, b"\xff" * count))
        yield Whole(f"{count} fill bytes before the end", plain[:-2] + b"\xff" * count + plain[-2:])
        yield Whole(f"{count} bytes between segments", plain[:20] + bytes(count) + plain[20:])
    for count in (1, 2, 7, 16, 60):
        yield Whole(f"{count} zeros before the end", plain[:-2] + bytes(count) + plain[-2:])
    for code in range(0xE0, 0xF0):
        yield Whole(f"APP{code - 0xE0}", after_start(plain, segment(code, bytes(500))))
        yield Whole(f"empty APP{code - 0xE0}", after_start(plain, segment(code, b"")))
    yield Whole("comments", after_start(plain, segment(0xFE, b"hello") * 50))
    yield Whole("broken profile", after_start(plain, segment(0xE2, b"ICC_PROFILE\0\5\2xxxx")))
    yield Whole("profile", encoded(image, "JPEG", icc_profile=bytes(150_000)))
    yield Whole("broken Exif", after_start(plain, segment(0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff")))
    yield Whole("zeros for a sequential scan", _with_scan(plain, b"\0\0\0"))
    yield Whole("MPO", encoded(image, "MPO", save_all=True, append_images=[image.rotate(3)]))
    yield Whole("a picture behind a picture", plain + encoded(image.rotate(5), "JPEG"))
    for sampling in ((4, 1), (1, 4), (1, 2), (4, 2), (2, 4), (3, 1), (1, 3), (3, 2)):
        data = hostile_images.grey_jpeg(301, 203, sampling=[sampling, (1, 1), (1, 1)])
        yield Whole(f"sampling {sampling}", data)
    yield Whole("extended", hostile_images.grey_jpeg(99, 77, sof=0xC1))
    yield from _odd_others(image)


def _with_scan(plain: bytes, parameters: bytes) -> bytes:
    at = plain.index(b"\xff\xda")
    end = at + 2 + int.from_bytes(plain[at + 2 : at + 4], "big")
    return plain[: end - 3] + parameters + plain[end:]


def _odd_others(image: Image.Image) -> Iterator[Whole]:
    whole_png = encoded(image, "PNG")
    header = whole_png[:33]
    for label, extra in (
        ("text", hostile_images.compressed_text(3_000_000)),
        ("profile", hostile_images.profile(5_000_000)),
        ("text of a wrong checksum", hostile_images.chunk(b"tEXt", b"a\0b")[:-1] + b"\0"),
        ("unknown chunks", hostile_images.chunk(b"teSt", bytes(1000)) * 100),
        ("gamma", hostile_images.chunk(b"gAMA", (45_455).to_bytes(4, "big"))),
    ):
        yield Whole(f"PNG with {label}", header + extra + whole_png[33:])
    yield Whole("PNG and more", whole_png + bytes(1000))
    yield Whole("PNG of small pieces", hostile_images.png(50, 50, pieces=1))
    yield Whole("PNG interlaced", hostile_images.png(1, 1, interlaced=True))
    yield Whole("transparent palette", encoded(image.convert("P"), "PNG", transparency=3))
    for kind in ("GIF", "WEBP", "AVIF", "PNG"):
        yield Whole(f"{kind} animated", encoded(image, kind, save_all=True, append_images=[image.rotate(5)] * 3))
    yield Whole("GIF with comments", encoded(image, "GIF", comment=b"hello" * 1000))
    yield Whole("GIF with a palette of its picture", hostile_images.gif_of_local_palette(image))
    yield Whole("GIF and more", encoded(image, "GIF") + bytes(1000))
    yield Whole(
        "WebP with profile", encoded(image, "WEBP", icc_profile=bytes(5000), exif=b"Exif\0\0II*\0", xmp=b"<x/>")
    )
    yield Whole("WebP and more", encoded(image, "WEBP") + bytes(1000))
    yield Whole("WebP with chunks", hostile_images.webp_with(hostile_images.riff(b"JUNK", b"x" * 5)))
    yield Whole("AVIF and more", encoded(image, "AVIF") + bytes(1000))
    yield Whole("AVIF and text", encoded(image, "AVIF") + b"x" * 1000)
    yield Whole("TIFF of strips", hostile_images.tiff(50, 40, strips=20))
    yield Whole("TIFF with metadata", hostile_images.tiff(50, 40, tags=[(700, 1, 2000, 8)]))
    yield Whole("TIFF, big", encoded(image, "TIFF", big_tiff=True))
