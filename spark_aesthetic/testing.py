"""Small inputs for tests and demos: real photographs, published embeddings, and a predictor that needs no file."""

from __future__ import annotations

from importlib import resources
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load

from spark_aesthetic.errors import MissingDependencyError
from spark_aesthetic.predictors.recipe import UNTRAINED, Predictor

# Photographs that the packages scikit-image and scikit-learn contain.
_PHOTOGRAPHS = {
    "skimage": (
        "data/astronaut.png",
        "data/chelsea.png",
        "data/coffee.png",
        "data/hubble_deep_field.jpg",
        "data/motorcycle_left.png",
        "data/retina.jpg",
        "data/rocket.jpg",
    ),
    "sklearn": ("datasets/images/china.jpg", "datasets/images/flower.jpg"),
}

# Scores of the default predictor for `published_embeddings("vit_l_14")`, computed with its authors' weights.
PUBLISHED_SCORES = (1.655, 2.359, 3.070, 3.672, 4.238, 4.701, 5.073, 5.365, 5.577, 5.747)


def photographs() -> dict[str, bytes]:
    """Return nine real photographs as a dict of file name to bytes: PNG and JPEG, 427 to 1411 pixels wide.

    Raises:
        MissingDependencyError: scikit-image or scikit-learn is not installed.
    """
    found = {}
    for package, files in _PHOTOGRAPHS.items():
        # find_spec does not import the package, because importing scikit-learn takes seconds.
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise MissingDependencyError(
                f"photographs: expected the package {package}, found none. Run pip install 'spark-aesthetic[demo]'."
            )
        for file in files:
            path = Path(spec.origin).parent / file
            found[path.name] = path.read_bytes()
    return dict(sorted(found.items()))


def published_embeddings(backbone: str = "vit_l_14") -> npt.NDArray[np.float32]:
    """Return published CLIP embeddings of unit length for ten levels of appeal, rating0 to rating9.

    Args:
        backbone: "vit_l_14" or "vit_b_32".

    Returns:
        float32 of shape (10, 768) or (10, 512).

    Examples:
        >>> published_embeddings("vit_b_32").shape
        (10, 512)
    """
    file = resources.files("spark_aesthetic.data") / "rating_embeddings.safetensors"
    embeddings: npt.NDArray[np.float32] = load(file.read_bytes())[backbone]
    return embeddings


def small_predictor(seed: int = 0) -> Predictor:
    """Return a predictor on open_clip's smallest ViT (22 million seeded random weights); its scores mean nothing."""
    return Predictor(
        name=f"untrained-vit-s-32-seed-{seed}",
        backbone="ViT-S-32",
        backbone_weights=f"{UNTRAINED}{seed}",
        head_weights=f"{UNTRAINED}{seed}:384",
    )


def noise_image(seed: int, *, width: int = 64, height: int = 48, file_format: str = "JPEG", mode: str = "RGB") -> bytes:
    """Return the bytes of an image file of seeded noise."""
    from PIL import Image

    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(noise).convert(mode).save(file, file_format)
    return file.getvalue()
