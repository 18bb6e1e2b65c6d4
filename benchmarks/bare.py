"""Measure the limits without an engine: decoding alone, the model alone, NumPy over pyarrow."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter

import numpy as np
import open_clip
import peer_model
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from inputs import read_embeddings, read_images
from serve import serve

from spark_aesthetic import resolve
from spark_aesthetic.images.decode import decode
from spark_aesthetic.images.encoder import ImageEncoder, normalize
from spark_aesthetic.images.prepare import prepare
from spark_aesthetic.options import PILLOW_WARNS_PIXELS
from spark_aesthetic.predictors import weights
from spark_aesthetic.predictors.recipe import Predictor


def main(model: str, batch_rows: int, cores: int) -> None:
    """Serve the contestants, each on all cores."""
    open_clip.add_model_config(Path(model) / "configs")
    pinned = weights.pin(Predictor.load(f"{model}/predictor.json"))
    peer_model.load(model)
    # `load` sets one thread, because it expects several processes; this process uses all cores.
    torch.set_num_threads(cores)

    def decoding(fast: bool) -> Callable[[str, str], float]:
        def run(data: str, out: str) -> float:
            images = read_images(data)
            started = perf_counter()
            with ThreadPoolExecutor(cores) as pool:
                list(pool.map(lambda d: decode(d, side=224, max_pixels=PILLOW_WARNS_PIXELS, fast=fast), images))
            return perf_counter() - started

        return run

    def inferring(encode: Callable[[torch.Tensor], object], loops: int) -> Callable[[str, str], float]:
        """Return a run of `loops` concurrent loops, each with matrix products on its share of the cores."""

        def run(data: str, out: str) -> float:
            count = pq.read_table(data, columns=["name"]).num_rows
            pixels = torch.randint(0, 256, (batch_rows, 224, 224, 3), dtype=torch.uint8)
            parts = [pixels[: min(batch_rows, count - at)] for at in range(0, count, batch_rows)]

            def one(part: torch.Tensor) -> None:
                with torch.inference_mode():
                    encode(part)

            started = perf_counter()
            with ThreadPoolExecutor(loops, initializer=torch.set_num_threads, initargs=(cores // loops,)) as pool:
                list(pool.map(one, parts))
            return perf_counter() - started

        return run

    def open_clips(pixels: torch.Tensor) -> object:
        return peer_model.load(model)[0].encode_image(normalize(pixels), normalize=True)

    def ours(dtype: str) -> Callable[[torch.Tensor], object]:
        return ImageEncoder(prepare(pinned, dtype=dtype), device="cpu")

    def one_by_one(data: str, out: str) -> None:
        names = sorted(pq.read_table(data, columns=["name"])["name"].to_pylist())
        images = read_images(data)
        parts = [images[at : at + batch_rows] for at in range(0, len(images), batch_rows)]
        scores = np.concatenate([peer_model.score(model, part) for part in parts])
        Path(out).mkdir()
        pq.write_table(pa.table({"name": names, "score": scores}), Path(out) / "scores.parquet")

    head = weights.load_head(weights.pin(resolve("laion-aesthetics-v2")))

    def numpy_over_pyarrow(data: str, out: str) -> None:
        total = square = 0.0
        for rows in read_embeddings(data):
            scores = (rows @ head.weight / np.linalg.norm(rows, axis=1) + head.bias).astype(np.float64)
            total, square = total + scores.sum(), square + scores @ scores
        Path(out).write_text(json.dumps([total, square]))

    serve(
        {
            "decode only": decoding(fast=False),
            "decode only, fast": decoding(fast=True),
            "model only, open_clip": inferring(open_clips, 1),
            "model only, ours": inferring(ours("float32"), 1),
            "model only, ours, a loop a core": inferring(ours("float32"), cores),
            "model only, ours, bfloat16": inferring(ours("bfloat16"), cores),
            "plain loop": one_by_one,
            "NumPy over pyarrow": numpy_over_pyarrow,
        }
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
