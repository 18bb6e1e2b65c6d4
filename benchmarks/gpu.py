"""Measure this package on a GPU in some minutes; needs neither Java, Spark and open_clip nor a network.

    python benchmarks/gpu.py --minutes 8 --out DIR [--device cuda:0]

It needs torch, torchvision, NumPy, Pillow, safetensors, simplejpeg and platformdirs. The weights are seeded and random,
the images are made by code. Each part writes its rows at once to gpu.json and gpu.md in DIR, the most important ones
first, so a run that is cut short leaves what it has measured. A part that this machine cannot run is a row with the
reason. The limit is the measured rate of the tower's largest matrix product alone, in the same run and dtype.

On a CPU the script checks itself, with a tiny tower, small batches and one round of each measurement.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from gpu_tower import ARCHITECTURES, VARIANTS, captured, operations, seeded
from PIL import Image

from spark_aesthetic import DEFAULT, resolve
from spark_aesthetic.images.decode import decode
from spark_aesthetic.images.encoder import Encoder
from spark_aesthetic.images.pipeline import Pipeline
from spark_aesthetic.images.tower import VisionTower
from spark_aesthetic.options import Decode, Options
from spark_aesthetic.predictors import weights

_PIXELS = Options().max_pixels


@dataclass
class Bench:
    """The machine, the time that is left, and the rows so far.

    Attributes:
        device: A torch device.
        ends: When the last measurement must have begun, on the clock of perf_counter.
        out: The folder of the results.
        rows: What was measured: part, what, value, unit and a note.
        limits: The measured rate of a matrix product in operations per second, by dtype.
    """

    device: str
    ends: float
    out: Path
    rows: list[dict[str, Any]] = field(default_factory=list)
    limits: dict[torch.dtype, float] = field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU; elsewhere everything is small."""
        return self.device.startswith("cuda")

    def add(self, part: str, what: str, value: float | None, unit: str = "images/s", note: str = "") -> None:
        """Add a row, and write all rows."""
        self.rows.append(
            {
                "part": part,
                "what": what,
                "value": None if value is None else round(value, 4),
                "unit": unit,
                "note": note,
            }
        )
        (self.out / "gpu.json").write_text(json.dumps({"machine": machine(self.device), "rows": self.rows}, indent=1))
        lines = [f"| {' | '.join(str(row[name]) for name in row)} |" for row in self.rows]
        head = ["| part | what | value | unit | note |", "|---|---|---|---|---|"]
        (self.out / "gpu.md").write_text("\n".join([machine(self.device), "", *head, *lines, ""]))

    def attempt(self, part: str, what: str, measure: Callable[[], None]) -> None:
        """Measure something, unless the time is over; what fails is a row with its reason."""
        if perf_counter() > self.ends:
            self.add(part, what, None, "", "no time left")
            return
        try:
            measure()
        # A kernel or a codec that this machine lacks fails in many ways, and the rest must still be measured.
        except Exception as error:
            said = str(error).partition("\n")[0]
            self.add(part, what, None, "", f"{type(error).__name__}: {said}")
        if self.on_gpu:
            torch.cuda.empty_cache()

    def rate(self, call: Callable[[], object], count: int) -> float:
        """Return how many of `count` things a call does in a second, after a first call that is not timed."""
        call()
        self.finish()
        started = perf_counter()
        call()
        self.finish()
        # The device is waited for each tenth of a second, so that it is never idle for long.
        burst = max(1, int(0.1 / (perf_counter() - started)))
        done, started = 0, perf_counter()
        while not done or perf_counter() - started < (1.0 if self.on_gpu else 0.0):
            for _ in range(burst):
                call()
            self.finish()
            done += burst
        return done * count / (perf_counter() - started)

    def finish(self) -> None:
        """Wait for the device."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)


def machine(device: str) -> str:
    """Return the names of the device, the number of cores, and the version of torch."""
    card = torch.cuda.get_device_name(device) if device.startswith("cuda") else "CPU"
    return f"{card}, {os.cpu_count()} cores, torch {torch.__version__}"


def limit(bench: Bench, dtype: torch.dtype) -> None:
    """Measure the largest matrix product of ViT-L/14 alone."""
    rows = 256 * 257 if bench.on_gpu else 512
    tokens = torch.randn(rows, 1024, device=bench.device).to(dtype)
    weight = torch.randn(4096, 1024, device=bench.device).to(dtype)
    rate = bench.rate(lambda: torch.nn.functional.linear(tokens, weight), 2 * rows * 1024 * 4096)
    bench.limits[dtype] = rate
    bench.add("limit", str(dtype), rate / 1e12, "TFLOP/s")


@torch.inference_mode()
def pixels(bench: Bench, tower: VisionTower, what: str, rows: int, way: str = "eager") -> None:
    """Measure images per second from pixels on the device to embeddings."""
    held = torch.randint(0, 256, (rows, 224, 224, 3), dtype=torch.uint8, device=bench.device)
    call: Callable[[], object] = partial(tower, held)
    if way == "CUDA graph":
        call = captured(tower, held)
    elif way != "eager":
        torch._dynamo.reset()  # type: ignore[no-untyped-call]
        call = partial(torch.compile(tower.__call__, mode=way), held)
    started = perf_counter()
    call()
    bench.finish()
    first, rate = perf_counter() - started, bench.rate(call, rows)
    dtype = tower.blocks[0].wide_weight.dtype
    share = rate * operations(tower) / bench.limits[dtype]
    note = f"{share:.0%} of the limit" + ("" if way == "eager" else f"; first pass {first:.1f} s")
    bench.add("pixels", f"{what}, {dtype}, {way}, batch {rows}", rate, note=note)


def sweep(bench: Bench, name: str, dtype: torch.dtype, batches: list[int]) -> None:
    """Measure a further tower in all batches."""
    tower = seeded(name, dtype, bench.device)
    for rows in batches:
        bench.attempt("pixels", f"{name}, {dtype}, batch {rows}", partial(pixels, bench, tower, name, rows))


@torch.inference_mode()
def variant(bench: Bench, tower: VisionTower, name: str, pictures: torch.Tensor, exact: Any, rows: int) -> None:
    """Measure a tower with one step changed, and how far its scores of pictures are from the exact ones."""
    held = torch.randint(0, 256, (rows, 224, 224, 3), dtype=torch.uint8, device=bench.device)
    with VARIANTS[name]() if name in VARIANTS else nullcontext():
        rate, moved = bench.rate(partial(tower, held), rows), np.abs(scores(tower, pictures) - exact)
    note = f"scores move by {moved.mean():.5f} on average, {moved.max():.5f} at most"
    bench.add("variants", f"{name}, {tower.blocks[0].wide_weight.dtype}", rate, note=note)


@torch.inference_mode()
def scores(tower: VisionTower, pictures: torch.Tensor) -> Any:
    """Return the scores of uint8 pixels (n, 224, 224, 3) by the default head, as a worker computes them."""
    return _head()(torch.nn.functional.normalize(tower(pictures), dim=-1).float().cpu().numpy())


def _head() -> Any:
    return weights.load_head(weights.pin_head(resolve(DEFAULT)))


@torch.inference_mode()
def transfer(bench: Bench, tower: VisionTower, rows: int) -> None:
    """Measure copies of pixels to the device, and passes with a copy before or beside them."""
    shape = (rows, 224, 224, 3)
    plain = torch.randint(0, 256, shape, dtype=torch.uint8)
    pinned = plain.pin_memory() if bench.on_gpu else plain
    copy = partial(pinned.to, bench.device, non_blocking=True)
    bench.add("transfer", "copy, then pass", bench.rate(lambda: tower(copy()), rows))
    if not bench.on_gpu:
        return
    size = plain.numel() / 1e9
    bench.add("transfer", "copy from pageable memory", bench.rate(lambda: plain.to(bench.device), 1) * size, "GB/s")
    bench.add("transfer", "copy from pinned memory", bench.rate(copy, 1) * size, "GB/s")
    copying = torch.cuda.Stream()
    held = [copy(), copy()]

    def overlapped() -> None:
        for at in (0, 1):
            copying.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(copying):
                held[1 - at].copy_(pinned, non_blocking=True)
            tower(held[at])
            torch.cuda.current_stream().wait_stream(copying)

    bench.add("transfer", "copy beside the pass, on a stream of its own", bench.rate(overlapped, 2 * rows))


def picture(seed: int) -> bytes:
    """Return a JPEG of 640 x 480 with large and small forms, of about the size of a photograph's."""
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(
        (640, 480), Image.Resampling.BICUBIC
    )
    noisy = np.asarray(coarse, dtype=np.int16) + draw.normal(0, 10, (480, 640, 3)).astype(np.int16)
    file = BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def _ways_to_decode(bench: Bench) -> dict[str, Callable[[list[bytes]], Any]]:
    """Return functions from files to uint8 pixels of shape (n, 224, 224, 3), on the device or not."""
    ways: dict[str, Callable[[list[bytes]], Any]] = {
        "exact": lambda files: [decode(file, side=224, max_pixels=_PIXELS) for file in files],
        "fast": lambda files: [decode(file, side=224, max_pixels=_PIXELS, fast=True) for file in files],
    }

    def by_torchvision(files: list[bytes], device: str) -> torch.Tensor:
        from torchvision.io import ImageReadMode, decode_jpeg
        from torchvision.transforms.v2 import functional as vision

        data = [torch.frombuffer(bytearray(file), dtype=torch.uint8) for file in files]
        planes = decode_jpeg(data, mode=ImageReadMode.RGB, device=device)
        cubic = vision.InterpolationMode.BICUBIC
        resized = [
            vision.center_crop(vision.resize(plane, [224], cubic, antialias=True), [224, 224]) for plane in planes
        ]
        return torch.stack(resized).permute(0, 2, 3, 1)

    ways["torchvision, libjpeg"] = partial(by_torchvision, device="cpu")
    if bench.on_gpu:
        ways["torchvision, nvJPEG"] = partial(by_torchvision, device=bench.device)
    return ways


def decoding(
    bench: Bench, name: str, threads: int, files: list[bytes], exact: torch.Tensor, tower: VisionTower, expected: Any
) -> None:
    """Measure files per second of one way to decode, and how far pixels and scores are from the exact ones."""
    way = _ways_to_decode(bench)[name]
    parts = [files[at::threads] for at in range(threads)]
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        rate = bench.rate(lambda: list(pool.map(way, parts)), len(files))
    found = torch.as_tensor(np.stack([np.asarray(one.cpu() if torch.is_tensor(one) else one) for one in way(files)]))
    moved = np.abs(scores(tower, found.to(bench.device)) - expected).max()
    far = (found.float() - exact.float()).abs().mean()
    note = f"pixels move by {far:.2f} of 255 on average, scores by {moved:.5f} at most"
    bench.add("decode", f"{name}, {threads} threads", rate, note=note)


def engine_rate(device: str, how: Decode, seconds: float, rows: int) -> float:
    """Return images per second of the engine as a Spark worker runs it: JPEG bytes to scores."""
    name, dtype = ("ViT-L/14", torch.float16) if device.startswith("cuda") else ("tiny", torch.float32)
    tower = seeded(name, dtype, device)
    shape, _, dimension = ARCHITECTURES[name]
    encoder = Encoder(tower, side=shape.side, dimension=dimension, row_bytes=tower.row_bytes, device=device)
    options = Options(device=device, batch_size=rows, num_threads=os.cpu_count() or 1, decode=how)
    files = [picture(seed) for seed in range(64)]
    ending = perf_counter() + seconds

    def images() -> Iterator[bytes]:
        while perf_counter() < ending:
            yield from files

    count, started = 0, 0.0
    for scored in Pipeline(encoder, _head(), options).score(images()):
        if started:
            assert not any(scored.errors), scored.errors
            count += len(scored.errors)
        else:
            # The first batch waits for all threads to begin.
            started = perf_counter()
    return count / (perf_counter() - started)


def engine(bench: Bench, how: str, rows: int, processes: int) -> None:
    """Measure the engine in processes of its own, which share the device and the cores."""
    given = ["--device", bench.device, "--engine", how, "--rows", str(rows), "--seconds", "12" if bench.on_gpu else "1"]
    command = [sys.executable, __file__, *given]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
    rate = sum(float(process.communicate(timeout=120)[0]) for process in running)
    alone = max(row["value"] or 0.0 for row in bench.rows if row["part"] == "pixels")
    note = f"{rate / alone:.0%} of the best rate from pixels" if alone else ""
    bench.add("engine", f"JPEG bytes to scores, {how}, batch {rows}, {processes} processes", rate, note=note)


def run(bench: Bench) -> None:
    """Measure all parts, the most important ones first."""
    half = [torch.float16, torch.bfloat16] if bench.on_gpu else [torch.float32]
    batches = [256, 512, 1024, 128, 64] if bench.on_gpu else [2]
    names = ["ViT-L/14", "ViT-B/32"] if bench.on_gpu else ["tiny"]
    for dtype in half:
        bench.attempt("limit", str(dtype), partial(limit, bench, dtype))
    large = seeded(names[0], half[0], bench.device)
    for rows in batches:
        bench.attempt("pixels", f"batch {rows}", partial(pixels, bench, large, names[0], rows))
    engines = (
        [("fast", 256, 1), ("exact", 256, 1), ("fast", 340, 1), ("fast", 256, 2)] if bench.on_gpu else [("fast", 4, 1)]
    )
    for how, rows, processes in engines:
        bench.attempt("engine", f"{how}, {processes} processes", partial(engine, bench, how, rows, processes))
    files = [picture(seed) for seed in range(256 if bench.on_gpu else 4)]
    exact = torch.as_tensor(np.stack([decode(file, side=224, max_pixels=_PIXELS) for file in files]))  # type: ignore[arg-type]
    judge = seeded(names[0], torch.float32, bench.device)
    expected = scores(judge, exact.to(bench.device))
    cores = [count for count in (1, 2, 4, 8, 16) if count <= (os.cpu_count() or 1)]
    for name in _ways_to_decode(bench):
        for threads in [1] if "nvJPEG" in name else cores:
            measure = partial(decoding, bench, name, threads, files, exact, judge, expected)
            bench.attempt("decode", f"{name}, {threads} threads", measure)
    shown = exact[:64].to(bench.device)
    for name in ["unchanged", *VARIANTS]:
        bench.attempt("variants", name, partial(variant, bench, large, name, shown, expected[:64], batches[0]))
    bench.attempt("transfer", "", partial(transfer, bench, large, batches[0]))
    ways = ["CUDA graph", "default", "reduce-overhead", "max-autotune"] if bench.on_gpu else []
    for way in ways:
        bench.attempt("pixels", way, partial(pixels, bench, large, names[0], 256, way))
    # The first pair is `large`, which is measured already.
    for name, dtype in list(product(names, half))[1:]:
        bench.attempt("pixels", f"{name}, {dtype}", partial(sweep, bench, name, dtype, batches))


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, default=8.0, help="no measurement begins after this time")
    parser.add_argument("--out", type=Path, help="folder of the results")
    # Options that only this script passes, to processes that it starts.
    for hidden, kind in (("--engine", str), ("--rows", int), ("--seconds", float)):
        parser.add_argument(hidden, type=kind, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.engine is not None:
        print(engine_rate(args.device, args.engine, args.seconds, args.rows))
        return
    if args.out is None:
        parser.error("--out: expected a folder for the results, found none")
    args.out.mkdir(parents=True, exist_ok=True)
    run(Bench(device=args.device, ends=perf_counter() + 60 * args.minutes, out=args.out))
    print((args.out / "gpu.md").read_text())


if __name__ == "__main__":
    main()
