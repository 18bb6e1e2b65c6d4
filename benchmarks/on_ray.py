"""Serve Ray Data: map_batches with a class, as documented, with one actor per core."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import peer_model
import ray
from serve import serve


class Scorer:
    """An actor that scores batches of images."""

    def __init__(self, model: str, processes: int) -> None:
        self.model = model
        peer_model.load(model)
        # Daft's processes call `begin` with their first batch. In Ray one actor may get all batches, so each actor
        # calls it when it starts.
        peer_model.begin(model, processes)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Score one batch of map_batches."""
        return {"name": batch["name"], "score": peer_model.score(self.model, list(batch["image"]))}


def main(model: str, batch_rows: int, cores: int) -> None:
    """Serve images and embeddings."""
    # Ray counts a core per actor. Twice the cores leaves room to schedule reading and writing.
    ray.init(num_cpus=2 * cores, object_store_memory=2 << 30, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    head = np.load(f"{model}/default_head.npz")
    weight, bias = head["weight"], float(head["bias"])

    def score_embeddings(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        rows = np.stack(batch["embedding"])
        scores = rows @ weight / np.linalg.norm(rows, axis=1) + bias
        return {"score": scores, "square": scores.astype(np.float64) ** 2}

    def images(data: str, out: str) -> float:
        rows = ray.data.read_parquet(data, file_extensions=["parquet"], columns=["name", "image"])
        scored = rows.map_batches(
            Scorer,
            fn_constructor_args=(model, cores),
            batch_size=batch_rows,
            compute=ray.data.ActorPoolStrategy(size=cores),
        )
        return peer_model.seconds_since_begin(lambda: scored.write_parquet(out), model)

    def embeddings(data: str, out: str) -> None:
        rows = ray.data.read_parquet(data, file_extensions=["parquet"])
        found = rows.map_batches(score_embeddings, batch_size=4096).sum(["score", "square"])
        Path(out).write_text(json.dumps([found["sum(score)"], found["sum(square)"]]))

    serve({"Ray Data": images, "Ray Data, embeddings": embeddings})


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
