"""Measure seconds and private memory of loading a model, ours and open_clip's, each in a separate process.

    python benchmarks/load.py

Private memory (private dirty pages, Linux) is the memory that each further worker of a node needs: workers share the
pages of a mapped file. The files are read once before, so they come from the page cache.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

MEASURE = """
import json, sys, time
kind, file = sys.argv[1:]
import torch
if kind != "ours":
    import open_clip
else:
    from spark_aesthetic.images.encoder import ImageEncoder
started = time.perf_counter()
if kind == "ours":
    from pathlib import Path
    model = ImageEncoder(Path(file), device="cpu")
elif kind == "open_clip":
    model = open_clip.create_model_and_transforms("ViT-L-14-quickgelu", pretrained=file)
seconds = time.perf_counter() - started
# A mapped file is read where it is used, so the first image belongs to the comparison.
with torch.inference_mode():
    if kind == "ours":
        model(torch.zeros((1, 224, 224, 3), dtype=torch.uint8))
    elif kind == "open_clip":
        model[0].encode_image(torch.zeros((1, 3, 224, 224)))
first = time.perf_counter() - started
dirty = [int(line.split()[1]) for line in open("/proc/self/smaps_rollup") if line.startswith("Private_Dirty")]
print(json.dumps({"seconds": seconds, "first": first, "private_gb": dirty[0] / 1e6}))
"""


def main() -> None:
    """Print a line for this package, one for open_clip, and one for a process that only imports torch and open_clip."""
    import open_clip
    import torch

    from spark_aesthetic import resolve
    from spark_aesthetic.images.prepare import prepare
    from spark_aesthetic.predictors import weights

    with tempfile.TemporaryDirectory() as folder:
        os.environ["SPARK_AESTHETIC_CACHE"] = folder
        archive = Path(folder) / "both_towers.pt"
        torch.save(open_clip.create_model("ViT-L-14-quickgelu").state_dict(), archive)
        prepared = prepare(weights.pin(resolve("untrained-vit-l-14")), dtype="float32")
        found: dict[str, list[dict[str, float]]] = {"imports": [], "open_clip": [], "ours": []}
        for _ in range(4):
            for kind, runs in found.items():
                file = {"imports": "", "open_clip": archive, "ours": prepared}[kind]
                command = [sys.executable, "-c", MEASURE, kind, str(file)]
                runs.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    for kind, runs in found.items():
        # The first run of each fills the page cache.
        seconds, first, private = (median(run[of] for run in runs[1:]) for of in ("seconds", "first", "private_gb"))
        print(f"{kind:10} {seconds:6.2f} s to load, {first:6.2f} s to the first embedding, {private:.2f} GB private")


if __name__ == "__main__":
    main()
