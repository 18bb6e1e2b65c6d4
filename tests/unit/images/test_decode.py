"""Decoding gives the reference's pixels bit for bit, or the reason why an image has no pixels."""

from __future__ import annotations

import subprocess
import sys
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from spark_aesthetic.images.decode import Rejection, decode
from spark_aesthetic.images.encoder import MEAN, STD, normalize
from spark_aesthetic.options import PILLOW_WARNS_PIXELS
from spark_aesthetic.testing import noise_image, photographs

SIDE = 224


def pixels(data: bytes | None, **options: object) -> np.ndarray:
    decoded = decode(data, **{"side": SIDE, "max_pixels": PILLOW_WARNS_PIXELS, **options})
    assert not isinstance(decoded, Rejection), decoded
    return decoded


def reason(data: bytes | None, **options: object) -> str:
    decoded = decode(data, **{"side": SIDE, "max_pixels": PILLOW_WARNS_PIXELS, **options})
    assert isinstance(decoded, Rejection)
    return str(decoded)


def encoded(image: Image.Image, file_format: str, **options: object) -> bytes:
    file = BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def assert_as_open_clip(data: bytes) -> None:
    transform = open_clip.image_transform(SIDE, is_train=False, mean=MEAN, std=STD)
    with Image.open(BytesIO(data)) as image:
        expected = transform(image)
    ours = normalize(torch.from_numpy(pixels(data))[None])[0]
    assert torch.equal(ours, expected)


@pytest.mark.parametrize("name", sorted(photographs()))
def test_photographs_have_open_clips_pixels_bit_for_bit(name: str) -> None:
    assert_as_open_clip(photographs()[name])


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "AVIF"])
def test_every_format_has_open_clips_pixels_bit_for_bit(file_format: str) -> None:
    assert_as_open_clip(noise_image(0, width=301, height=260, file_format=file_format))


@pytest.mark.parametrize(
    ("mode", "file_format"),
    [
        ("1", "PNG"), ("L", "PNG"), ("L", "JPEG"), ("LA", "PNG"), ("P", "PNG"), ("P", "GIF"),
        ("RGBA", "PNG"), ("RGBA", "WEBP"), ("CMYK", "JPEG"), ("CMYK", "TIFF"), ("YCbCr", "TIFF"),
    ],
)  # fmt: skip
def test_every_mode_has_open_clips_pixels_bit_for_bit(mode: str, file_format: str) -> None:
    assert_as_open_clip(noise_image(1, width=260, height=301, file_format=file_format, mode=mode))


@pytest.mark.parametrize("size", [(224, 224), (225, 224), (224, 227), (223, 9), (10, 223), (1, 1), (449, 448)])
def test_every_size_and_rounding_of_the_crop_is_open_clips(size: tuple[int, int]) -> None:
    assert_as_open_clip(noise_image(2, width=size[0], height=size[1], file_format="PNG"))


@pytest.mark.parametrize(
    ("size", "alpha", "expected"),
    [
        ((SIDE, SIDE), 0, (255, 0, 0)),
        ((SIDE + 76, SIDE + 76), 0, (0, 0, 0)),
        ((SIDE + 76, SIDE), 0, (255, 0, 0)),
        ((SIDE + 76, SIDE + 76), 255, (255, 0, 0)),
    ],
    ids=["clear", "clear and resized", "clear and cropped", "opaque and resized"],
)
def test_wholly_transparent_pixels_come_out_black_where_they_are_resized(
    size: tuple[int, int], alpha: int, expected: tuple[int, int, int]
) -> None:
    data = encoded(Image.new("RGBA", size, (255, 0, 0, alpha)), "PNG")
    assert (pixels(data) == expected).all()
    assert_as_open_clip(data)


@pytest.mark.parametrize("action", ["error", "ignore"])
def test_pillows_warning_of_large_images_changes_no_reason(action: str) -> None:
    header = bytearray(noise_image(0, file_format="BMP"))
    header[18:26] = (10_000).to_bytes(4, "little") * 2
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        assert reason(bytes(header)) == "decode: more pixels than max_pixels"


def test_importing_leaves_the_filters_of_warnings_alone() -> None:
    code = (
        "import warnings, numpy, PIL.Image; before = list(warnings.filters); "
        "import spark_aesthetic.images.decode; assert warnings.filters == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_exif_rotation_is_not_applied() -> None:
    image = Image.fromarray(np.random.default_rng(3).integers(0, 256, (240, 320, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees
    assert (pixels(encoded(image, "JPEG", exif=exif)) == pixels(encoded(image, "JPEG"))).all()


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_sixteen_bit_greyscale_keeps_its_contrast(file_format: str) -> None:
    # The reference would clip all levels except the darkest 256 of 65,536 to white.
    levels = np.linspace(0, 65_535, SIDE * SIDE).reshape(SIDE, SIDE).astype(np.uint16)
    got = pixels(encoded(Image.fromarray(levels), file_format))
    assert (got == (levels >> 8)[:, :, None]).all()


def test_the_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new("RGB", (SIDE, SIDE), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (pixels(data) == (255, 0, 0)).all()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (None, "null"),
        (b"", "decode: empty"),
        (b"not an image", "decode: not an image"),
        (b"\xff\xd8\xff", "decode: damaged JPEG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "decode: unsupported format PostScript"),
        (noise_image(0)[:-400], "decode: truncated JPEG"),
        (noise_image(0)[:-2], "decode: truncated JPEG"),
        (noise_image(0, file_format="PNG")[:-400], "decode: truncated PNG"),
        (noise_image(0, file_format="PNG")[:-1], "decode: truncated PNG"),
        (noise_image(0, file_format="WEBP")[:-100], "decode: truncated WEBP"),
        (noise_image(0, file_format="BMP")[:-100], "decode: truncated BMP"),
        (noise_image(0, file_format="GIF")[:-400], "decode: truncated GIF"),
        (noise_image(0, file_format="TIFF")[:-400], "decode: truncated TIFF"),
        (noise_image(0, file_format="AVIF")[:-100], "decode: truncated AVIF"),
    ],
)
def test_each_kind_of_damage_has_its_reason(data: bytes | None, expected: str) -> None:
    assert reason(data) == expected


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "AVIF"])
def test_a_file_cut_anywhere_in_its_pixels_is_not_accepted(file_format: str) -> None:
    data = noise_image(4, file_format=file_format)
    # The last bytes of a GIF are its trailer and the end mark of its data, not pixels.
    last = 8 if file_format == "GIF" else 1
    for length in np.linspace(0, len(data) - last, 60).astype(int):
        assert reason(data[:length]).startswith("decode: ")


@pytest.mark.parametrize("mode", ["F", "I", "LAB"])
def test_modes_without_a_range_of_their_own_are_refused(mode: str) -> None:
    image = Image.new(mode, (9, 9))
    assert reason(encoded(image, "TIFF")) == f"decode: unsupported mode {mode}"


def test_random_damage_never_raises() -> None:
    generator = np.random.default_rng(5)
    for file_format in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF"):
        original = np.frombuffer(noise_image(6, file_format=file_format), dtype=np.uint8)
        for _ in range(40):
            damaged = original.copy()
            damaged[generator.integers(0, len(damaged), 20)] = generator.integers(0, 256, 20)
            decode(damaged.tobytes(), side=32, max_pixels=10**6)


def test_too_many_pixels_are_refused_by_the_header_alone() -> None:
    header = noise_image(0, width=100, height=50, file_format="PNG")[:60]
    assert reason(header, max_pixels=4999) == "decode: more pixels than max_pixels"
    assert reason(header, max_pixels=5000) == "decode: truncated PNG"


def test_more_pixels_than_pillow_opens_is_a_reason_not_an_error() -> None:
    header = bytearray(noise_image(0, file_format="BMP"))
    header[18:26] = (60_000).to_bytes(4, "little") * 2
    assert reason(bytes(header)) == "decode: more pixels than max_pixels"


def test_an_image_so_thin_that_resizing_would_fill_the_memory_is_refused() -> None:
    thin = encoded(Image.new("RGB", (1, 20_000)), "PNG")
    assert reason(thin, max_pixels=10**6) == "decode: more pixels than max_pixels"


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg", "retina.jpg", "rocket.jpg", "hubble_deep_field.jpg"])
def test_fast_decoding_stays_near_the_exact_pixels(name: str) -> None:
    # These images are as large as those of the benchmark, because smaller images are not shrunk.
    image = Image.open(BytesIO(photographs()[name])).convert("RGB")
    data = encoded(image.resize((1600, 1600 * image.height // image.width), Image.Resampling.LANCZOS), "JPEG")
    with Image.open(BytesIO(data)) as shrunk:
        shrunk.draft(None, (SIDE, SIDE))
        to_the_target = pixels(encoded(shrunk.convert("RGB"), "PNG"))
    exact = pixels(data).astype(int)
    difference = np.abs(pixels(data, fast=True).astype(int) - exact).mean()
    # The larger the size to which libjpeg shrinks, the smaller the difference. Fast decoding shrinks to twice the
    # target, the comparison to the target itself.
    assert 0 < difference < 0.8 * np.abs(to_the_target.astype(int) - exact).mean()


@pytest.mark.parametrize(("side", "shrunk"), [(440, 440), (895, 895), (896, 448), (1800, 450), (3600, 450)])
def test_fast_decoding_shrinks_to_twice_the_target_and_never_below(side: int, shrunk: int) -> None:
    data = noise_image(7, width=side, height=side)
    with Image.open(BytesIO(data)) as image:
        # Pillow chooses libjpeg's factor here. The resize below does what decode does with the result.
        image.draft(None, (448, 448))
        assert image.size == (shrunk, shrunk)
        expected = np.asarray(image.resize((224, 224), Image.Resampling.BICUBIC).convert("RGB"))
    assert (pixels(data, fast=True) == expected).all()


def test_a_lack_of_memory_is_no_fault_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "resize", full)
    assert reason(noise_image(0)) == "decode: out of memory"


# This script prints how many threads the process gains at most while one thread decodes. The decoding thread counts
# too.
AVIF = """
import os, sys, threading
from spark_aesthetic.images.decode import decode
with open(sys.argv[1], "rb") as file:
    data = file.read()
before = len(os.listdir("/proc/self/task"))
thread = threading.Thread(target=lambda: [decode(data, side=224, max_pixels=10**8) for _ in range(3)])
thread.start()
most = 0
while thread.is_alive():
    most = max(most, len(os.listdir("/proc/self/task")))
print(most - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads by /proc")
def test_an_avif_is_decoded_by_the_thread_that_asks(tmp_path: Path) -> None:
    (tmp_path / "image.avif").write_bytes(noise_image(3, width=1200, height=900, file_format="AVIF"))
    command = [sys.executable, "-c", AVIF, str(tmp_path / "image.avif")]
    assert int(subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout) == 1
