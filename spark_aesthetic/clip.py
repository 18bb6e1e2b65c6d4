"""Pixels to unit embeddings. The only module that imports open_clip."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from spark_aesthetic.errors import MissingDependencyError, PredictorError, nearest

try:
    import open_clip
    import torch
    from safetensors.torch import load_file
except ImportError as missing:
    raise MissingDependencyError(
        f"image bytes need torch, torchvision and open_clip_torch (found: {missing}): "
        "pip install 'spark-aesthetic[image]'; scoring embeddings needs none of them"
    ) from missing

# Channel mean and standard deviation of CLIP's training images, on a scale of 0 to 1 (OpenAI).
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

# The text tower is not used; this is the least that open_clip's constructor takes.
_NO_TEXT = {"context_length": 1, "vocab_size": 1, "width": 1, "heads": 1, "layers": 1}


def image_side(architecture: str) -> int:
    """Height and width in pixels of the images that a backbone takes.

    Raises:
        PredictorError: open_clip has no such architecture, or its images are not square.
    """
    side = _config(architecture)["vision_cfg"]["image_size"]
    if not isinstance(side, int):
        raise PredictorError(f"backbone {architecture!r}: expected square images, found {side}")
    return side


def embedding_dimension(architecture: str) -> int:
    """Length of the embeddings that a backbone gives.

    Raises:
        PredictorError: The architecture is unknown or not supported.
    """
    return cast("int", _config(architecture)["embed_dim"])


def empty_tower(architecture: str, dtype: str = "float32") -> torch.nn.Module:
    """The image tower of an architecture on torch's meta device: shapes and types, and no memory.

    In float16 and bfloat16 the layer norms keep their weights and their arithmetic in float32, as in open_clip.

    Raises:
        PredictorError: The architecture is unknown or not supported.
    """
    config = _config(architecture)
    with torch.device("meta"):
        model = open_clip.CLIP(
            config["embed_dim"],
            config["vision_cfg"],
            _NO_TEXT,
            quick_gelu=config.get("quick_gelu", False),
            cast_dtype=None if dtype == "float32" else getattr(torch, dtype),
        )
    tower = cast("torch.nn.Module", model.visual).to(getattr(torch, dtype))
    for module in tower.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.float()
    return tower


def normalize(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 (n, side, side, 3) to float32 (n, 3, side, side), bit for bit as the reference does it."""
    planes = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    mean = torch.tensor(MEAN, device=pixels.device).view(3, 1, 1)
    std = torch.tensor(STD, device=pixels.device).view(3, 1, 1)
    return planes.div_(255).sub_(mean).div_(std)


class ImageEncoder:
    """An image tower with its weights.

    On a CPU in the dtype of the file the tensors stay memory-mapped, so that the workers of one node share
    the pages.
    """

    def __init__(self, architecture: str, prepared: Path, *, device: str, dtype: str) -> None:
        """Load a prepared weights file (see `spark_aesthetic.prepare`) onto a device."""
        self.device = torch.device(device)
        self.dtype = getattr(torch, dtype)
        self.side = image_side(architecture)
        self.tower = empty_tower(architecture, dtype).eval().requires_grad_(False)
        types = {name: tensor.dtype for name, tensor in self.tower.state_dict().items()}
        tensors = {
            name: tensor.to(self.device, types[name]) for name, tensor in load_file(prepared, device="cpu").items()
        }
        self.tower.load_state_dict(tensors, assign=True)

    @torch.inference_mode()
    def __call__(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Encode images.

        Args:
            pixels: uint8 of shape (n, side, side, 3), RGB.

        Returns:
            float32 of shape (n, dimension), of unit length.
        """
        planes = normalize(torch.from_numpy(pixels).to(self.device))
        embeddings = self.tower(planes.to(self.dtype)).float()
        unit = torch.nn.functional.normalize(embeddings, dim=-1)
        return cast("npt.NDArray[np.float32]", unit.cpu().numpy())


def _config(architecture: str) -> dict[str, Any]:
    # Not open_clip's names with a scheme ("hf-hub:…"), which would be fetched, and hide their preprocessing.
    known = open_clip.list_models()
    if architecture not in known:
        raise PredictorError(f"open_clip has no architecture {architecture!r}: {nearest(architecture, known)}")
    config = cast("dict[str, Any]", open_clip.get_model_config(architecture))
    unfit = [name for name in ("custom_text", "multimodal_cfg") if config.get(name)]
    unfit += [name for name in ("timm_model_name", "output_tokens") if config["vision_cfg"].get(name)]
    published = [
        open_clip.get_pretrained_cfg(architecture, tag) for tag in open_clip.list_pretrained_tags_by_model(architecture)
    ]
    if not _preprocessed_alike(config.get("preprocess_cfg", {})):
        unfit.append("preprocess_cfg")
    # Where some of an architecture's published weights were trained with OpenAI's preprocessing, it can be used.
    elif published and not any(_preprocessed_alike(preprocessing) for preprocessing in published):
        unfit.append("the preprocessing of its published weights")
    if unfit:
        raise PredictorError(
            f"backbone {architecture!r}: expected one of open_clip's own image towers with OpenAI's preprocessing "
            f"(bicubic, shorter side to the target, mean {MEAN}, std {STD}), found {', '.join(unfit)}; use a ViT-… or "
            "RN… such as ViT-L-14-quickgelu"
        )
    return config


def _preprocessed_alike(preprocessing: Mapping[str, Any]) -> bool:
    ours = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    given = {name: preprocessing[name] for name in ours if preprocessing.get(name) is not None}
    return all((tuple(value) if isinstance(value, list) else value) == ours[name] for name, value in given.items())
