"""Damaged images get a reason, whole images get Pillow's pixels, and no image takes long or much memory."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
import warnings
from collections import Counter
from io import BytesIO
from itertools import islice
from pathlib import Path
from time import monotonic, thread_time

import damaged_images
import hostile_images
import numpy as np
import pytest
from hostile_images import (
    SLOW,
    bmp_runs,
    box,
    chunk,
    empty_blocks,
    encoded,
    grey_jpeg,
    many_scans,
    png,
    riff,
    tiff,
    tiff_of_shared,
)
from PIL import Image

from spark_aesthetic.images import formats
from spark_aesthetic.images.decode import Header, Rejection, decode, read_header
from spark_aesthetic.images.guards import plain
from spark_aesthetic.images.refused import Refused
from spark_aesthetic.images.thumbnails import thumbnail
from spark_aesthetic.options import PILLOW_WARNS_PIXELS
from spark_aesthetic.testing import noise_image

SIDE = 224
# Pillow warns of broken metadata, which is no fault of the pixels. Pytest would turn these warnings into errors.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def pixels_or_reason(data: bytes, **options: object) -> np.ndarray | Rejection:
    return decode(data, **{"side": SIDE, "max_pixels": PILLOW_WARNS_PIXELS, **options})


def reason(data: bytes) -> str | None:
    decoded = pixels_or_reason(data)
    return str(decoded) if isinstance(decoded, Rejection) else None


def pillows(data: bytes) -> np.ndarray:
    with Image.open(BytesIO(data)) as image:
        across = SIDE if image.width <= image.height else int(SIDE * image.width / image.height)
        down = SIDE if image.height <= image.width else int(SIDE * image.height / image.width)
        left, top = round((across - SIDE) / 2), round((down - SIDE) / 2)
        square = image.resize((across, down), Image.Resampling.BICUBIC).crop((left, top, left + SIDE, top + SIDE))
        return np.array(square.convert("RGB"))


def spoiled(found: np.ndarray, whole: np.ndarray) -> bool:
    return bool((np.abs(found.astype(int) - whole).max(axis=2) > 16).mean() > 0.1)


def found_and_missed(files: list[damaged_images.Damaged]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for file in files:
        got = pixels_or_reason(file.data)
        whole = pixels_or_reason(file.whole)
        assert not isinstance(whole, Rejection)
        counts["found"] += isinstance(got, Rejection)
        counts["missed"] += not isinstance(got, Rejection) and spoiled(got, whole)
    return counts


@pytest.mark.parametrize("encoding", ["JPEG baseline", "JPEG progressive", "JPEG restarts", "PNG"])
def test_lost_blocks_are_found(encoding: str) -> None:
    files = [file for file in islice(damaged_images.damaged([encoding]), 64) if file.kind != "bit"]
    assert found_and_missed(files)["missed"] == 0


@pytest.mark.parametrize("encoding", ["WebP lossy", "WebP lossless"])
def test_blocks_of_zeros_in_a_webp_are_found(encoding: str) -> None:
    files = [file for file in islice(damaged_images.damaged([encoding]), 32) if file.kind in ("zeros", "half")]
    assert found_and_missed(files)["found"] == len(files)


@pytest.mark.long
def test_of_jpegs_that_damage_spoils_at_least_95_of_100_are_found() -> None:
    names = [name for name in damaged_images.ENCODINGS if name.startswith("JPEG")]
    spoiled_files: Counter[str] = Counter()
    for file in damaged_images.damaged(names):
        got, whole = pixels_or_reason(file.data), pillows(file.whole)
        try:
            is_spoiled = spoiled(pillows(file.data), whole)
        except OSError:
            is_spoiled = True
        spoiled_files["all"] += is_spoiled
        spoiled_files["found"] += is_spoiled and isinstance(got, Rejection)
    assert spoiled_files["all"] > 300
    assert spoiled_files["found"] >= 0.95 * spoiled_files["all"]


def assert_whole(file: damaged_images.Whole, *, as_pillow: bool = True) -> None:
    got = pixels_or_reason(file.data)
    assert not isinstance(got, Rejection), (file.label, got)
    assert isinstance(read_header(file.data), Header), file.label
    assert thumbnail(file.data)[1] is None, file.label
    if as_pillow:
        assert (got == pillows(file.data)).all(), file.label


# Pillow refuses these files for faults outside their pixels.
ONLY_OURS = ("PNG with text", "PNG with profile", "PNG with text of a wrong checksum")


def test_odd_files_that_are_whole_have_pillows_pixels() -> None:
    for file in damaged_images.odd(hostile_images.noise(0, 301, 203)):
        assert_whole(file, as_pillow=file.label not in ONLY_OURS)


@pytest.mark.long
def test_of_thousands_of_whole_files_none_is_refused() -> None:
    count = 0
    for file in damaged_images.whole():
        assert_whole(file, as_pillow=file.label not in ONLY_OURS)
        count += 1
    assert count > 2000


@pytest.mark.parametrize("sampling", [(1, 1), (2, 1), (1, 2), (2, 2), (4, 1), (1, 4)])
@pytest.mark.parametrize("side", [449, 897, 1801])
def test_fast_decoding_has_pillows_draft(sampling: tuple[int, int], side: int) -> None:
    # The strict decoder knows only these samplings.
    data = grey_jpeg(side, side + 100, sampling=[sampling, (1, 1), (1, 1)])
    with Image.open(BytesIO(data)) as image:
        image.draft(None, (2 * SIDE, 2 * SIDE))
        down = int(SIDE * image.height / image.width)
        top, y = round((down - SIDE) / 2), image.height / down
        expected = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC, (0, top * y, image.width, (top + SIDE) * y))
    assert (pixels_or_reason(data, fast=True) == np.asarray(expected)).all()


FTYP = b"\0\0\0\x18ftyp"


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (FTYP + b"heic\0\0\0\0mif1heic", "HEIF"), (FTYP + b"heix\0\0\0\0mif1heic", "HEIF"),
        (FTYP + b"mif1\0\0\0\0mif1heic", "HEIF"), (FTYP + b"msf1\0\0\0\0msf1hevc", "HEIF"),
        (FTYP + b"crx \0\0\0\0crx isom", "CR3"), (FTYP + b"isom\0\0\0\0isommp42", "MP4"),
        (FTYP + b"qt  \0\0\0\0qt  ", "MP4"), (b"\xff\x0a\x00\x10", "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"), (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"\xff\x4f\xff\x51\x00", "JPEG 2000"), (b"8BPS\0\1", "PSD"), (b"P1\n1 1\n0", "PBM"),
        (b"P6 1 1 255 abc", "PPM"), (b"P5\n#x\n1 1 255 a", "PGM"), (b"P7\nWIDTH 1", "PAM"), (b"%PDF-1.7", "PDF"),
        (b"%!PS-Adobe-3.0 EPSF", "PostScript"),
        (b"<svg xmlns='x'/>", "SVG"), (b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- a -->\n<svg >", "SVG"),
        (b"<!DOCTYPE svg PUBLIC 'x'>\n<svg>", "SVG"), (b"\0\0\1\0\1\0", "ICO"), (b"qoif\0", "QOI"), (b"DDS |", "DDS"),
        (b"\x76\x2f\x31\x01", "OpenEXR"), (b"#?RADIANCE\n", "Radiance HDR"), (b"II*\0\x10\0\0\0CR\x02\0", "CR2"),
        (b"FUJIFILMCCD-RAW ", "RAF"), (b"\x1a\x45\xdf\xa3", "Matroska"), (b"RIFF\0\0\0\0AVI LIST", "AVI"),
        (b"\x1f\x8b\x08\0", "gzip"), (b"PK\x03\x04", "ZIP"), (b"gimp xcf v011", "XCF"), (b"\xd7\xcd\xc6\x9a", "WMF"),
        (b"\xff\xd8\xff\xf7\0\x0b", "JPEG-LS"), (b"\0\0\2\0\1\0\x20\x20", "CUR"), (b"\x01\xda\1\1\0\3", "SGI"),
        (b"FLIF1", "FLIF"), (b"SDPX\0\0\x20\0V2.0", "DPX"), (b"XPDS\0\x20\0\0V1.0", "DPX"), (b"<svg:svg x='y'>", "SVG"),
    ],
)  # fmt: skip
def test_formats_that_are_not_read_are_called_by_their_names(data: bytes, name: str) -> None:
    assert reason(data) == str(read_header(data)) == thumbnail(data)[1] == f"decode: unsupported format {name}"


@pytest.mark.parametrize(
    "data",
    [b"hello", b"<!DOCTYPE html><svg>", b"<html><svg></svg>", b"/9j/4AAQSkZJRg==", b"Pq", bytes((0, 0, 2)) + bytes(40)],
)
def test_what_is_no_image_stays_so(data: bytes) -> None:
    assert reason(data) == "decode: not an image"


@pytest.mark.parametrize(
    "brands", [b"avif\0\0\0\0mif1", b"avis\0\0\0\0avif", b"mif1\0\0\0\0mif1avif", b"msf1\0\0\0\0avis"]
)
def test_an_avif_is_known_by_any_of_its_brands(brands: bytes) -> None:
    assert formats.sniff(box(b"ftyp", brands)) == "AVIF"


def jpeg_tiff(sof: int) -> bytes:
    return tiff_of_shared(grey_jpeg(16, 8, sof=sof), 1, compression=7, rows=8)


def test_jpeg_in_a_tiff_is_read() -> None:
    assert reason(jpeg_tiff(0xC0)) is None


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (grey_jpeg(9, 9, sof=0xC1, precision=12), "decode: unsupported JPEG precision"),
        (grey_jpeg(9, 9, sof=0xC2, precision=12), "decode: unsupported JPEG precision"),
        (grey_jpeg(9, 9, sof=0xC3, precision=16), "decode: unsupported JPEG precision"),
        (grey_jpeg(9, 9, sof=0xC5), "decode: unsupported JPEG process"),
        (grey_jpeg(9, 9, sof=0xCB), "decode: unsupported JPEG process"),
        (grey_jpeg(9, 9, sampling=[(1, 1)] * 2), "decode: unsupported JPEG components"),
        (grey_jpeg(9, 9, precision=7), "decode: damaged JPEG"),
        (tiff(9, 9, bits=(16, 16, 16, 16), photometric=1), "decode: unsupported TIFF layout"),
        (tiff(9, 9, bits=(32, 32, 32), photometric=2), "decode: unsupported TIFF layout"),
        (jpeg_tiff(0xC9), "decode: unsupported TIFF compression"),
        (jpeg_tiff(0xCA), "decode: unsupported TIFF compression"),
        (tiff(9, 9, compression=34712), "decode: unsupported TIFF compression"),
        (b"\x89PNG\r\n\x1a\n" + chunk(b"CgBI", b"abcd"), "decode: unsupported PNG of Apple"),
        (bmp_runs(9, 9, b"")[:28] + struct.pack("<HI", 24, 4) + bytes(2000), "decode: unsupported BMP layout"),
    ],
)  # fmt: skip
def test_valid_layouts_that_are_not_read_are_not_damaged(data: bytes, expected: str) -> None:
    assert reason(data) == expected
    if "unsupported" in expected:
        assert str(read_header(data)) == expected


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        # The end mark comes before the last row, so the other pixels have no value.
        (b"\x09\x01\0\0\0\1", "decode: unsupported BMP layout"),
        (b"\x09\x01\0\0\0\1\x09\x01", "decode: damaged BMP"),
        (b"\x09\x01\0\0", "decode: truncated BMP"),
    ],
)
def test_a_bmp_that_ends_before_its_last_row_is_told_by_how_it_ends(runs: bytes, expected: str) -> None:
    assert reason(bmp_runs(9, 9, runs)) == expected


def test_pillows_own_limits_stay_as_they_are() -> None:
    from PIL import ImageFile, PngImagePlugin

    before = (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY, ImageFile.LOAD_TRUNCATED_IMAGES)
    assert reason(png(64, 64, before=hostile_images.compressed_text(8_000_000))) is None
    assert before == (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY, ImageFile.LOAD_TRUNCATED_IMAGES)


def test_run_length_coding_is_read_as_pillow_reads_it() -> None:
    generator = np.random.default_rng(0)
    for _ in range(300):
        four_bits = bool(generator.integers(2))
        width, height = (int(number) for number in generator.integers(1, 40, 2))
        body = b""
        for _ in range(int(generator.integers(1, 80))):
            kind, count = generator.random(), int(generator.integers(3, 30))
            raw = generator.bytes((count + 1) // 2 if four_bits else count)
            literal = bytes((0, count)) + raw + bytes(len(raw) % 2)
            body += (
                bytes((count, raw[0]))
                if kind < 0.6
                else b"\0\0"
                if kind < 0.8
                else b"\0\2\1\1"
                if kind < 0.85
                else literal
            )
        data = bytearray(bmp_runs(width, height, body, four_bits=four_bits))
        data[54:400] = generator.bytes(64 if four_bits else 346) + bytes(data[118 if four_bits else 400 : 400])
        try:
            expected = pillows(bytes(data))
        except (OSError, ValueError):
            assert reason(bytes(data)) is not None
        else:
            assert (pixels_or_reason(bytes(data)) == expected).all()


QUICK = (
    "20,000 scans",
    "1,500 scans of 16 megapixels",
    "90 scans of 16 megapixels",
    "a zTXt of 200 MB",
    "60 zTXt of 60 MB",
    "IDAT of 200 MB for one pixel",
    "runs of 4 bits, 80 megapixels",
    "1,500 strips of the same 1 MB",
    "65,000 strips of the same 1 kB",
    "ends of lines, 80 megapixels",
    "65,000 items",
    "boxes 100,000 deep",
)


@pytest.mark.parametrize("name", QUICK)
def test_no_file_of_two_megabytes_takes_more_than_two_seconds(name: str) -> None:
    data = SLOW[name]()
    for work in (pixels_or_reason, read_header, thumbnail):
        started = thread_time()
        work(data)
        assert thread_time() - started < 2


FRESH = """
import resource, sys, time
from spark_aesthetic.images.thumbnails import thumbnail
from spark_aesthetic.images.decode import decode, read_header
from spark_aesthetic.testing import noise_image
thumbnail(noise_image(0))
data = sys.stdin.buffer.read()
work = {"decode": lambda: decode(data, side=224, max_pixels=89_478_485), "header": lambda: read_header(data),
        "thumbnail": lambda: thumbnail(data)}[sys.argv[1]]
before = resource.getrusage(resource.RUSAGE_SELF)
started = time.process_time()
work()
took, after = time.process_time() - started, resource.getrusage(resource.RUSAGE_SELF)
print(took, (after.ru_maxrss - before.ru_maxrss) >> 10)
"""


@pytest.mark.long
@pytest.mark.parametrize("name", SLOW)
def test_no_file_takes_more_than_two_seconds_or_a_gigabyte(name: str) -> None:
    data = SLOW[name]()
    for work in ("decode", "header", "thumbnail"):
        done = subprocess.run(
            [sys.executable, "-c", FRESH, work], input=data, capture_output=True, check=True, timeout=120
        )
        seconds, megabytes = done.stdout.split()
        assert float(seconds) < 2, work
        assert int(megabytes) < 1024, work


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (many_scans(64, 64, 300), "too many scans"),
        (many_scans(4000, 4000, 40, sof=0xCA), "too many scans"),
        (hostile_images.after_start(noise_image(0), b"\xff\xfe\0\2" * 20_000), "too many segments"),
        (png(9, 9, before=chunk(b"tEXt", b"a\0b") * 70_000), "too many chunks"),
        (hostile_images.gif(b"\x21\xfe\x01a\0" * 300_000), "too many blocks"),
        (bmp_runs(2000, 2000, b"\1\1" * 2_000_000), "too many runs"),
        (tiff(9, 70_000, strips=70_000), "too many strips"),
        (tiff_of_shared(empty_blocks(20_000), 1500), "too many strips"),
        (tiff_of_shared(empty_blocks(20_000), 1500, length=(1 << 32) - 1), "too many strips"),
        (tiff_of_shared(empty_blocks(20_000, 256), 1500, tiled=True, rows=16), "too many strips"),
        (tiff_of_shared(empty_blocks(20_000), 1500, big=True), "too many strips"),
        (hostile_images.webp_with(riff(b"JUNK", b"") * 70_000), "too many chunks"),
        (hostile_images.avif_with(box(b"free") * 20_000), "too many boxes"),
        (hostile_images.avif_with(box(b"meta", bytes(2 << 20))), "too much metadata"),
    ],
    ids=[
        "scans",
        "arithmetic",
        "segments",
        "chunks",
        "blocks",
        "runs",
        "strips",
        "shared",
        "lengths",
        "tiles",
        "big",
        "webp",
        "boxes",
        "metadata",
    ],
)
def test_each_budget_has_its_reason(data: bytes, expected: str) -> None:
    assert reason(data) == f"decode: {expected}"


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_an_avif_is_as_large_as_its_pictures(mode: str, frames: int) -> None:
    image, *others = (hostile_images.noise(n, 320, 240).convert(mode) for n in range(frames))
    if mode == "RGBA":
        image.putalpha(hostile_images.noise(9, 320, 240, "L"))
    data = encoded(image, "AVIF", speed=10, save_all=frames > 1, append_images=others)
    lie = hostile_images.avif_that_lies(data, (320, 240))
    assert [read_header(each)[:2] for each in (data, lie)] == [(320, 240), (64, 48)]
    for each in (data, lie):
        assert not isinstance(decode(each, side=32, max_pixels=320 * 240), str)
        assert decode(each, side=32, max_pixels=320 * 240 - 1) == "decode: more pixels than max_pixels"
    # Without its items a sequence still has its tracks.
    if frames > 1:
        with pytest.raises(Refused, match="more pixels than max_pixels"):
            plain(lie.replace(b"iloc", b"free"), "AVIF", max_pixels=320 * 240 - 1)


SMALL = hostile_images.av1_sequence(64, 48)
TIMED = hostile_images.av1_sequence(64, 48, timed=True)
LARGE = hostile_images.av1_sequence(20_000, 20_000, timed=True, even=True)
# The last three fields are screen content, integer motion, and whether the frame has a size of its own.
OWN_SIZE, GIVEN_SIZE = (
    hostile_images.av1(*hostile_images.AV1_FRAME, (1, 1), (0, 1), (own, 1), kind=3) for own in (1, 0)
)  # fmt: skip
SHOWN_AT_A_TIME = hostile_images.av1((0, 1), (0, 2), (1, 1), (5, 8), (0, 1), (0, 1), (1, 1), kind=6)
PADDING = hostile_images.av1((1, 8), kind=15)


@pytest.mark.parametrize(
    ("data", "is_large"),
    [
        (hostile_images.avif_of(SMALL), False),
        (hostile_images.avif_of(LARGE), True),
        (hostile_images.avif_of(SMALL, LARGE, inside=True), True),
        (hostile_images.avif_of(SMALL, LARGE, halves=True), True),
        (hostile_images.avif_of(PADDING + SMALL + GIVEN_SIZE), False),
        (hostile_images.avif_of(PADDING + SMALL + GIVEN_SIZE + LARGE), True),
        (hostile_images.avif_of(SMALL + OWN_SIZE), True),
        (hostile_images.avif_of(TIMED + SHOWN_AT_A_TIME, inside=True), True),
        (hostile_images.avif_of(b"".join([SMALL, PADDING[:1], b"\xff" * 9, LARGE])), False),
        (hostile_images.avif_of(SMALL, b"", b"\x0a", b"\x0a\xff"), False),
    ],
    ids=[
        "small", "large", "second", "in halves", "frame", "second sequence", "own size", "timed", "endless", "cut off",
    ],
)  # fmt: skip
def test_the_pictures_of_an_avif_are_found_wherever_they_stand(data: bytes, is_large: bool) -> None:
    if is_large:
        with pytest.raises(Refused, match="more pixels than max_pixels"):
            plain(data, "AVIF", max_pixels=PILLOW_WARNS_PIXELS)
    else:
        assert plain(data, "AVIF", max_pixels=PILLOW_WARNS_PIXELS).fault is None


def test_items_of_an_avif_cannot_multiply_its_bytes() -> None:
    data = hostile_images.avif_of(*[bytes([n]) * 1000 for n in range(200)], halves=True)
    at = data.index(b"iloc") + 14
    for n in range(200):
        # Item n begins at offset n, and its first half has half the length of the file.
        data = data[: at + 8] + struct.pack(">I", n) + data[at + 12 :]
        data = data[: at + 18] + struct.pack(">I", len(data) // 2) + data[at + 22 :]
        at += 30
    with pytest.raises(Refused, match="damaged AVIF"):
        plain(data, "AVIF", max_pixels=PILLOW_WARNS_PIXELS)


@pytest.mark.parametrize(("width", "height", "scans"), [(10_000, 8000, 14), (4000, 3000, 15), (1000, 1000, 100)])
def test_arithmetic_coding_has_the_scans_that_encoders_write(width: int, height: int, scans: int) -> None:
    assert plain(many_scans(width, height, scans, sof=0xCA), "JPEG").several_scans


@pytest.mark.parametrize("scans", [1, 2])
def test_a_jpeg_without_its_last_scans_is_damaged(scans: int) -> None:
    data = encoded(hostile_images.noise(0, 64, 48), "JPEG", progressive=True)
    starts = [found.start() for found in re.finditer(rb"\xff\xda", data)]
    found = reason(data[: starts[scans]] + b"\xff\xd9")
    # The first scan has the mean of each block, the second some detail of the brightness.
    assert found == ("decode: damaged JPEG" if scans == 1 else None)


def test_blank_tiles_that_share_their_bytes_are_read() -> None:
    blank = empty_blocks(0, 4096 * 16)
    data = tiff_of_shared(blank, 1000, tiled=True, width=4096, rows=16)
    assert 1000 * len(blank) > 2 * len(data)
    assert reason(data) is None


def test_the_pass_costs_an_honest_photograph_nearly_nothing() -> None:
    data = encoded(hostile_images.noise(0, 1600, 1068), "JPEG", quality=90)
    started = thread_time()
    for _ in range(20):
        plain(data, "JPEG")
    passes = thread_time() - started
    started = thread_time()
    for _ in range(20):
        pixels_or_reason(data)
    # The pass took 0.2% of the time in a measurement.
    assert passes < 0.03 * (thread_time() - started)


REASON = re.compile(r"(null|decode: [A-Za-z]+( [A-Za-z0-9;_-]+)*)")


def seeds() -> list[bytes]:
    image = hostile_images.noise(1, 40, 30)
    files = [file.data for file in damaged_images.odd(image) if len(file.data) < 20_000]
    for file_format in formats.READ:
        files += [noise_image(2, file_format=file_format)] * 8
    return [*files, many_scans(64, 64, 20), bmp_runs(40, 30, b"\x28\1" * 30)]


def mutated(generator: np.random.Generator, files: list[bytes]) -> bytes:
    data = bytearray(files[int(generator.integers(len(files)))])
    for _ in range(int(generator.integers(1, 6))):
        at, kind, length = (
            int(generator.integers(len(data) + 1)),
            int(generator.integers(6)),
            int(generator.integers(1, 40)),
        )
        if kind == 0:
            data[at : at + length] = generator.bytes(length)
        elif kind == 1 and at < len(data):
            data[at] ^= 1 << int(generator.integers(8))
        elif kind == 2:
            data[at:at] = data[at : at + length] * int(generator.integers(1, 50))
        elif kind == 3:
            del data[at : at + length]
        elif kind == 4:
            data[at : at + 4] = (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\0\0\0\1")[length % 4]
        else:
            other = files[int(generator.integers(len(files)))]
            data[at:] = other[int(generator.integers(len(other))) :]
    return bytes(data)


def test_no_mutation_raises_or_hangs(capsys: pytest.CaptureFixture[str]) -> None:
    """Fuzz the decoders for SPARK_AESTHETIC_FUZZ_SECONDS seconds. A failure names the seed of its input."""
    seconds = float(os.environ.get("SPARK_AESTHETIC_FUZZ_SECONDS", "5"))
    first = int(os.environ.get("SPARK_AESTHETIC_FUZZ_SEED", "0"))
    files, until, seed = seeds(), monotonic() + seconds, first
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        while monotonic() < until:
            data = mutated(np.random.default_rng(seed), files)
            started = thread_time()
            for found in (
                pixels_or_reason(data),
                pixels_or_reason(data, fast=True),
                read_header(data),
                thumbnail(data)[1],
            ):
                assert not isinstance(found, str) or REASON.fullmatch(found), (seed, found)
            assert thread_time() - started < 4, seed
            seed += 1
    with capsys.disabled():
        print(f"\nimages: {seed - first} inputs in {seconds:.0f} s")


def test_a_missing_decoder_is_said_with_its_remedy(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['simplejpeg'] = None\n"
        "import pandas as pd\nfrom spark_aesthetic.images.headers import read_headers\n"
        "try:\n    read_headers(pd.Series([b'x']))\n"
        "except ImportError as error:\n    print(type(error).__name__, error)"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, cwd=tmp_path, env=env)
    assert done.stdout.startswith("MissingDependencyError image headers: expected Pillow and simplejpeg")
