"""Measure images per second on this GPU, also as a share of its matrix product rate; needs no JVM and no network.

    python benchmarks/gpu.py [--device cuda:0] [--predictor untrained-vit-l-14] [--batch-size 256] [--seconds 10]

It measures two paths: decoded pixels to embeddings (a head adds next to nothing), and JPEG bytes (640x480) to scores by
the engine as a Spark worker runs it. The limit is the measured rate of the tower's largest matrix product alone. On a
CPU the script runs with few images, as a self-check.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from time import perf_counter

import torch

from spark_aesthetic import resolve
from spark_aesthetic.images.pipeline import ImageScorer
from spark_aesthetic.images.tower import VisionTower
from spark_aesthetic.options import Options
from spark_aesthetic.predictors import weights
from spark_aesthetic.testing import noise_image


def main() -> None:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--predictor", default="untrained-vit-l-14")
    parser.add_argument("--batch-size", type=int, default=-1)
    parser.add_argument("--num-threads", type=int, default=os.cpu_count())
    parser.add_argument("--decode", choices=("exact", "fast"), default="fast")
    parser.add_argument("--seconds", type=float, default=10.0)
    args = parser.parse_args()
    options = Options(
        device=args.device, batch_size=args.batch_size, num_threads=args.num_threads, decode=args.decode
    )  # fmt: skip
    scorer = ImageScorer(weights.pin(resolve(args.predictor)), options)
    tower = scorer.encoder.tower
    assert isinstance(tower, VisionTower)
    rows = scorer.batch_rows
    limit = matmul_flops(tower, rows, args.seconds / 4)
    from_pixels = pixels_per_second(scorer, args.seconds)
    from_jpeg, stages = jpegs_per_second(scorer, args.seconds)
    print(
        json.dumps(
            {
                "device": torch.cuda.get_device_name(args.device) if args.device.startswith("cuda") else "cpu",
                "torch": torch.__version__,
                "predictor": args.predictor,
                "dtype": str(tower.blocks[0].wide_weight.dtype),
                "batch_rows": rows,
                "num_threads": args.num_threads,
                "matmul_tflops": round(limit / 1e12, 1),
                "images_per_second_from_pixels": round(from_pixels, 1),
                "share_of_matmul_limit": round(from_pixels * tower_flops(tower) / limit, 3),
                "images_per_second_from_jpeg": round(from_jpeg, 1),
                "stages": stages,
            }
        )
    )


def tower_flops(tower: VisionTower) -> float:
    """Return the floating-point operations of an image's matrix products, without those that this package avoids."""
    length, width = tower.tensors["position"].shape
    layers = len(tower.blocks) - 1
    block = 2 * length * sum(matrix.numel() for matrix in tower.blocks[0] if matrix.dim() == 2)
    attention = 4 * length**2 * width
    last = 2 * length * 2 * width**2 + 2 * (block / 2 / length - 2 * width**2)
    return layers * (block + attention) + last + 2 * (length - 1) * tower.tensors["patch_weight"].numel()


def matmul_flops(tower: VisionTower, rows: int, seconds: float) -> float:
    """Measure the operations per second of the largest matrix product of a forward pass."""
    weight = tower.blocks[0].wide_weight
    tokens = torch.randn(rows * len(tower.tensors["position"]), weight.shape[1], device=weight.device).to(weight.dtype)
    count, started = 0, 0.0
    for warm in (True, False):
        count, started = 0, perf_counter()
        while count < 3 or perf_counter() - started < (0 if warm else seconds):
            for _ in range(10 if weight.is_cuda else 1):
                torch.nn.functional.linear(tokens, weight)
            _finish(weight)
            count += 10 if weight.is_cuda else 1
    return 2 * count * tokens.numel() * len(weight) / (perf_counter() - started)


@torch.inference_mode()
def pixels_per_second(scorer: ImageScorer, seconds: float) -> float:
    """Measure images per second from pixels on the device to embeddings."""
    pixels = torch.randint(0, 256, (scorer.batch_rows, scorer.encoder.side, scorer.encoder.side, 3), dtype=torch.uint8)
    held = pixels.to(scorer.encoder.device)
    count, started = 0, 0.0
    for warm in (True, False):
        count, started = 0, perf_counter()
        while count == 0 or perf_counter() - started < (0 if warm else seconds):
            scorer.encoder.tower(held)
            _finish(held)
            count += len(held)
    return count / (perf_counter() - started)


def jpegs_per_second(scorer: ImageScorer, seconds: float) -> tuple[float, dict[str, float]]:
    """Measure images per second of the whole engine, bytes to scores, after its first batch; and seconds by stage."""
    files = [noise_image(seed, width=640, height=480) for seed in range(32)]
    ending = perf_counter() + 2 * seconds

    def images() -> Iterator[bytes]:
        while perf_counter() < ending:
            yield from files

    count, started = 0, 0.0
    stages = dict.fromkeys(("decode", "transfer", "infer"), 0.0)
    for rows in scorer.score(images()):
        if not started:
            started = perf_counter()
            continue
        assert not any(rows.errors)
        count += len(rows.errors)
        for name in stages:
            stages[name] += getattr(rows.stages, name)
    return count / (perf_counter() - started), {name: round(value, 2) for name, value in stages.items()}


def _finish(tensor: torch.Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)


if __name__ == "__main__":
    main()
