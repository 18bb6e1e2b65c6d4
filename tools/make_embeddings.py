"""Make the embeddings in spark_aesthetic/data from the published files.

    python tools/make_embeddings.py FOLDER_OF_PUBLISHED_EMBEDDINGS

The folder contains `vit_l_14_embeddings/rating{0..9}.npy` and `vit_b_32_embeddings/rating{0..9}.npy`. Each set of ten
becomes one tensor (10, dimension) in float32, as published. The metadata `source_sha256` is a JSON object with the
sha256 of every file by name. NOTICE states origin and licence.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from spark_aesthetic.predictors.digests import sha256_of

BACKBONES = ("vit_l_14", "vit_b_32")
LEVELS = 10


def make(published: Path, out: Path) -> None:
    """Join the published files into `rating_embeddings.safetensors`."""
    names = {
        backbone: [f"{backbone}_embeddings/rating{level}.npy" for level in range(LEVELS)] for backbone in BACKBONES
    }
    digests = {name: sha256_of(published / name) for group in names.values() for name in group}
    save_file(
        {
            backbone: np.concatenate([np.load(published / name, allow_pickle=False) for name in group])
            for backbone, group in names.items()
        },
        out / "rating_embeddings.safetensors",
        metadata={"source_sha256": json.dumps(digests)},
    )


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(__file__).parents[1] / "spark_aesthetic/data")
