"""The architectures of predictors' backbones, as open_clip describes them.

This module is imported where weights are checked and prepared. Other workers import it only for towers that
`spark_aesthetic.images.tower` does not support, because importing open_clip takes longer than importing torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import open_clip
import torch

from spark_aesthetic.errors import PredictorError, nearest
from spark_aesthetic.images.tower import MEAN, STD, Shape

# The text tower is not used. These are the smallest values that open_clip's constructor accepts.
_NO_TEXT = {"context_length": 1, "vocab_size": 1, "width": 1, "heads": 1, "layers": 1}

# Settings of a vision transformer that `spark_aesthetic.images.tower` supports. patch_dropout only affects training.
_REWRITTEN = {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio", "patch_dropout"}


def image_side(architecture: str) -> int:
    """Return the height and width in pixels of the images that a backbone takes.

    Raises:
        PredictorError: open_clip has no such architecture, or its images are not square.
    """
    side = _config(architecture)["vision_cfg"]["image_size"]
    if not isinstance(side, int):
        raise PredictorError(f"backbone {architecture!r}: expected square images, found {side}")
    return side


def embedding_dimension(architecture: str) -> int:
    """Return the length of the embeddings that a backbone computes.

    Raises:
        PredictorError: The architecture is unknown or not supported.
    """
    return cast("int", _config(architecture)["embed_dim"])


def rewritten_shape(architecture: str) -> Shape | None:
    """Return the shape of a tower, or None if `spark_aesthetic.images.tower` does not support it, as for a ResNet.

    Raises:
        PredictorError: The architecture is unknown or not supported.
    """
    config = _config(architecture)
    vision = config["vision_cfg"]
    side, patch = image_side(architecture), vision.get("patch_size")
    if not vision.keys() <= _REWRITTEN or not isinstance(patch, int) or side % patch:
        return None
    return Shape(
        side=side,
        patch=patch,
        heads=vision["width"] // vision.get("head_width", 64),
        layers=vision["layers"],
        quick_gelu=config.get("quick_gelu", False),
    )


def empty_tower(architecture: str, dtype: str = "float32") -> torch.nn.Module:
    """Build open_clip's image tower on torch's meta device, with shapes and types but without memory.

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


def _config(architecture: str) -> dict[str, Any]:
    # Names with a scheme ("hf-hub:…") are refused: open_clip would download them, and does not list their
    # preprocessing.
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
    # An architecture is accepted if some of its published weights were trained with OpenAI's preprocessing.
    elif published and not any(_preprocessed_alike(preprocessing) for preprocessing in published):
        unfit.append("the preprocessing of its published weights")
    if unfit:
        raise PredictorError(
            f"backbone {architecture!r}: expected one of open_clip's own image towers with OpenAI's preprocessing "
            f"(bicubic, shorter side to the target, mean {MEAN}, std {STD}), found {', '.join(unfit)}. Use a ViT-… or "
            "RN… such as ViT-L-14-quickgelu."
        )
    return config


def _preprocessed_alike(preprocessing: Mapping[str, Any]) -> bool:
    ours = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    given = {name: preprocessing[name] for name in ours if preprocessing.get(name) is not None}
    return all((tuple(value) if isinstance(value, list) else value) == ours[name] for name, value in given.items())
