"""Make the folded heads in spark_aesthetic/predictors/heads from the published files.

    python tools/make_heads.py FOLDER_OF_PUBLISHED_PTH_FILES

Each head becomes `weight` (1, dimension) and `bias` (1) in float32, folded in float64. The metadata give the published
file's name and sha256. NOTICE states origin and licence.
"""

from __future__ import annotations

import sys
from pathlib import Path

from safetensors.numpy import save_file

from spark_aesthetic.predictors import weights
from spark_aesthetic.predictors.recipe import BUILT_IN, PACKAGED

PUBLISHED_FILES = {
    "laion-aesthetics-v2": "sac+logos+ava1-l14-linearMSE.pth",
    "laion-aesthetics-v2-ava": "ava+logos-l14-linearMSE.pth",
    "laion-aesthetics-v1": "sa_0_4_vit_l_14_linear.pth",
    "laion-aesthetics-v1-b32": "sa_0_4_vit_b_32_linear.pth",
    "laion-aesthetics-v1-b16": "sa_0_4_vit_b_16_linear.pth",
}


def make(published: Path, out: Path) -> None:
    """Fold every affine head, after checking the published files against the predictors' checksums.

    Raises:
        spark_aesthetic.errors.ChecksumError: A file is not the published one.
    """
    for name, file in PUBLISHED_FILES.items():
        predictor = BUILT_IN[name]
        assert predictor.head_weights == PACKAGED + name
        head = weights.read_head(published / file, sha256=predictor.head_sha256)
        save_file(
            {"weight": head.layers[0].weight, "bias": head.layers[0].bias},
            out / f"{name}.safetensors",
            metadata={"source_file": file, "source_sha256": str(predictor.head_sha256)},
        )


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(__file__).parents[1] / "spark_aesthetic/predictors/heads")
