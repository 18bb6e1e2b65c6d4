"""Serve Daft: a class, as documented for models, created once in each process, with one process per core."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import daft
import numpy as np
import peer_model
from daft import DataType, Series
from serve import serve


def main(model: str, batch_rows: int, cores: int) -> None:
    """Serve images and embeddings."""

    @daft.udf(return_dtype=DataType.float32(), batch_size=batch_rows, concurrency=cores)
    class Scorer:
        def __init__(self) -> None:
            peer_model.load(model)

        def __call__(self, images: Series) -> np.ndarray:
            peer_model.begin(model, cores)
            return peer_model.score(model, images.to_pylist())

    head = np.load(f"{model}/default_head.npz")
    weight, bias = head["weight"], float(head["bias"])

    @daft.udf(return_dtype=DataType.float32())
    def score_embeddings(embeddings: Series) -> np.ndarray:
        column = embeddings.to_arrow()
        rows = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
        return rows @ weight / np.linalg.norm(rows, axis=1) + bias

    def images(data: str, out: str) -> float:
        frame = daft.read_parquet(f"{data}/*.parquet")
        scored = frame.select("name", Scorer(frame["image"]).alias("score"))
        return peer_model.seconds_since_begin(lambda: scored.write_parquet(out), model)

    def embeddings(data: str, out: str) -> None:
        frame = daft.read_parquet(f"{data}/*.parquet")
        total = frame.select(score_embeddings(frame["embedding"]).alias("score"))
        total = total.agg(daft.col("score").sum(), (daft.col("score") * daft.col("score")).sum().alias("square"))
        found = total.to_pydict()
        Path(out).write_text(json.dumps([found["score"][0], found["square"][0]]))

    serve({"Daft": images, "Daft, embeddings": embeddings})


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
