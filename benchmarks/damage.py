"""Compare Pillow alone with this package: the damage that each detects, false alarms, and CPU time.

    python benchmarks/damage.py [--seconds 5]

A damaged file counts as detected if it gets a reason instead of pixels. It counts as corrupt if it decodes and more
than a tenth of its 224 x 224 pixels differ by more than 16 of 255. Times are CPU times of this thread, compared by the
median ratio of neighbouring calls.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from statistics import median
from time import perf_counter, thread_time

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from damaged_images import ENCODINGS, damaged, whole

from spark_aesthetic.images.decode import Pixels, decode
from spark_aesthetic.testing import photographs

SIDE = 224
MAX_PIXELS = 89_478_485
# The photographs of README's benchmark.
SIZE = (1600, 1068)


def alone(data: bytes, *, fast: bool = False) -> Pixels | None:
    """Return Pillow's pixels, or None if Pillow raises."""
    try:
        with Image.open(BytesIO(data)) as image:
            if fast:
                image.draft(None, (2 * SIDE, 2 * SIDE))
            across = SIDE if image.width <= image.height else int(SIDE * image.width / image.height)
            down = SIDE if image.height <= image.width else int(SIDE * image.height / image.width)
            left, top = round((across - SIDE) / 2), round((down - SIDE) / 2)
            box = (left, top, left + SIDE, top + SIDE)
            if fast:
                x, y = image.width / across, image.height / down
                part = (left * x, top * y, min(box[2] * x, image.width), min(box[3] * y, image.height))
                square = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=part)
            else:
                square = image.resize((across, down), Image.Resampling.BICUBIC).crop(box)
            return np.array(square.convert("RGB"))
    # Pillow raises errors of nearly any type.
    except Exception:
        return None


def ours(data: bytes, *, fast: bool = False) -> Pixels | None:
    """Return this package's pixels, or None if it gives a reason."""
    decoded = decode(data, side=SIDE, max_pixels=MAX_PIXELS, fast=fast)
    return None if isinstance(decoded, str) else decoded


def found() -> None:
    """Print a line for each encoding and kind of damage."""
    counted: dict[tuple[str, str], Counter[str]] = {}
    before: tuple[bytes, Pixels | None] = (b"", None)
    for file in damaged():
        if before[0] is not file.whole:
            before = file.whole, alone(file.whole)
        counts = counted.setdefault((file.encoding, file.kind), Counter())
        by_pillow, by_us = alone(file.data), ours(file.data)
        counts["tried"] += 1
        counts["pillow"] += by_pillow is None
        counts["ours"] += by_us is None
        shown = by_us if by_us is not None else by_pillow
        if shown is not None and before[1] is not None:
            off = (np.abs(shown.astype(int) - before[1]).max(axis=2) > 16).mean()
            if off > 0.1:
                counts["corrupt"] += 1
                counts["corrupt, ours"] += by_us is None
        elif shown is None:
            counts["no pixels"] += 1
    print(
        f"{'encoding':18}{'damage':10}{'tried':>6}{'detected: Pillow':>18}{'ours':>6}"
        f"{'corrupt, decodes':>18}{'detected':>9}"
    )
    for (encoding, kind), counts in counted.items():
        print(
            f"{encoding:18}{kind:10}{counts['tried']:6}{counts['pillow']:18}{counts['ours']:6}"
            f"{counts['corrupt']:18}{counts['corrupt, ours']:9}"
        )
    for group in ("JPEG", "WebP lossy", "WebP lossless", "AVIF", "PNG"):
        total = sum((counts for (name, _), counts in counted.items() if name.startswith(group)), Counter[str]())
        print(f"{group}: {dict(total)}")


def alarms() -> None:
    """Print how many undamaged files are refused, and how many get pixels that differ from Pillow's."""
    counts: Counter[str] = Counter()
    for file in whole():
        by_us, by_pillow = ours(file.data), alone(file.data)
        counts["whole files"] += 1
        if by_us is None:
            counts["refused"] += 1
            print(f"refused: {file.label}")
        elif by_pillow is None:
            counts["refused by Pillow alone"] += 1
        elif not (by_us == by_pillow).all():
            counts["other pixels"] += 1
            print(f"other pixels: {file.label}")
    print(dict(counts))


def cost(seconds: float) -> None:
    """Print the CPU time of this package as a ratio to that of Pillow alone."""
    with Image.open(BytesIO(photographs()["china.jpg"])) as opened:
        image = opened.convert("RGB").resize(SIZE, Image.Resampling.LANCZOS)
    for encoding, (file_format, options) in ENCODINGS.items():
        file = BytesIO()
        (image.convert("L") if "grey" in encoding else image).save(file, file_format, **options)
        for fast in (False, True) if file_format == "JPEG" else (False,):
            ratios, milliseconds = _ratios(file.getvalue(), fast, seconds)
            print(
                f"{encoding:18}{'fast' if fast else 'exact':6} ours/Pillow {ratios:.3f}   Pillow {milliseconds:.1f} ms"
            )


def _ratios(data: bytes, fast: bool, seconds: float) -> tuple[float, float]:
    ratios, times = [], []
    until = perf_counter() + seconds
    while perf_counter() < until:
        first, second = _time(alone, data, fast), _time(ours, data, fast)
        ratios.append(second / first)
        times.append(first)
    return median(ratios), 1000 * median(times)


def _time(decoder: Callable[..., Pixels | None], data: bytes, fast: bool) -> float:
    started = thread_time()
    decoder(data, fast=fast)
    return thread_time() - started


def main() -> None:
    """Print detection, false alarms and cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5, help="Seconds to measure each encoding.")
    arguments = parser.parse_args()
    # Pillow warns about unusual files.
    warnings.simplefilter("ignore")
    found()
    alarms()
    cost(arguments.seconds)


if __name__ == "__main__":
    main()
