"""Serve clip-retrieval: clip_inference over a folder of images, as documented, in a separate environment.

    python on_clip_retrieval.py MODEL_FOLDER BATCH_ROWS CORES

clip-retrieval reads files, not tables, so the images are written to a folder before the clock starts. It returns
embeddings in float16, so scores differ in the fourth decimal; NumPy applies the head. One process runs the model with a
thread per core, and a decoding process per core feeds it. Its two processes for statistics are disabled: they import
everything again in each run. That takes half a minute on two cores: most of a contest, but little in a job of hours.
"""

from __future__ import annotations

import json
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from time import perf_counter
from unittest.mock import patch

import numpy as np
import peer_model
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from all_clip import load_clip
from clip_retrieval.clip_inference import clip_inference, main, worker
from serve import serve


def serve_images(folder: str, batch_rows: int, cores: int) -> None:
    """Serve images."""
    # clip-retrieval takes a model as architecture and checkpoint. The text tower is arbitrary, because nothing uses it.
    model, _, head = peer_model.load(folder)
    checkpoint = Path(folder).absolute() / "clip_retrieval.pt"
    torch.save(model.state_dict(), checkpoint)
    architecture = json.loads((Path(folder) / "model.json").read_text())["architecture"]
    name = f"open_clip:{architecture}/{checkpoint}"
    torch.set_num_threads(cores)
    with redirect_stdout(sys.stderr):
        # With the arguments of clip_inference's own call, this fills its cache, so no timed run loads the model.
        load_clip(clip_model=name, use_jit=False, warmup_batch_size=batch_rows, clip_cache_path=None)
    weight, bias = head["weight"].numpy(), head["bias"].numpy()

    def images(data: str, out: str) -> float:
        files = Path(f"{data}-files")
        if not files.exists():
            files.mkdir()
            for row in pq.read_table(data, columns=["name", "image"]).to_pylist():
                (files / f"{row['name']}.jpg").write_bytes(row["image"])
        with tempfile.TemporaryDirectory() as results:
            started = perf_counter()
            with patch.object(main, "LoggerReader"), patch.object(worker, "LoggerWriter"):
                clip_inference(
                    str(files), results, input_format="files", batch_size=batch_rows, num_prepro_workers=cores,
                    enable_text=False, enable_metadata=False, clip_model=name,
                )  # fmt: skip
            scores = np.load(f"{results}/img_emb/img_emb_0.npy").astype(np.float32) @ weight + bias
            paths = pq.read_table(f"{results}/metadata/metadata_0.parquet")["image_path"].to_pylist()
            Path(out).mkdir(parents=True)
            pq.write_table(pa.table({"name": [Path(path).stem for path in paths], "score": scores}), f"{out}/0.parquet")
            return perf_counter() - started

    serve({"clip-retrieval": images})


if __name__ == "__main__":
    serve_images(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
