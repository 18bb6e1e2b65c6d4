"""Image encoders of timm and open_clip, each with its own preprocessing. The only module that imports timm.

Unlike the backbones of predictors, they are loaded by these libraries, with their model classes, downloads and caches.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import open_clip
import timm
import torch
from PIL import Image
from timm.data.config import resolve_model_data_config
from timm.data.imagenet_info import infer_imagenet_subset
from timm.data.transforms_factory import create_transform

from spark_aesthetic.errors import OptionError, WeightsError, WeightsNotFoundError, nearest
from spark_aesthetic.images.decode import Pixels
from spark_aesthetic.images.encoder import Encoder, convolutional_row_bytes, normalize
from spark_aesthetic.options import EncoderName
from spark_aesthetic.predictors.weights import is_safetensors

# The seed of weights that are not pretrained, so that every worker has the same weights.
_SEED = 0

# The longest projections, those of SigLIP, have 1,152 numbers or a few more. A head with more outputs classifies.
_LONGEST_PROJECTION = 2048

_ALL = "timm.list_models() and open_clip.list_models() list all names."


def check(name: EncoderName) -> None:
    """Check that a model and its weights exist, without loading them.

    Raises:
        OptionError: They do not exist; the message suggests similar names.
    """
    if not isinstance(name.model_name, str):
        raise OptionError(f"model_name={name.model_name!r}: expected the name of a model of timm or open_clip. {_ALL}")
    if not isinstance(name.pretrained, bool | str):
        raise OptionError(f"pretrained={name.pretrained!r}: expected True, False or a tag of open_clip")
    if _is_of_timm(name):
        _check_timm(name)
    else:
        _check_open_clip(name)


def _is_of_timm(name: EncoderName) -> bool:
    # Some names exist in both libraries. A tag in `pretrained` means open_clip.
    tags = open_clip.list_pretrained_tags_by_model(name.model_name)
    return name.pretrained not in tags and timm.is_model(name.model_name.split(".")[0])


def _check_timm(name: EncoderName) -> None:
    architecture, _, tag = name.model_name.partition(".")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise OptionError(f"model_name: no weights {tag!r} of {architecture}: {nearest(tag, tags)}")
    if isinstance(name.pretrained, str):
        raise OptionError(
            f"pretrained={name.pretrained!r}: expected True or False for a model of timm. Put the tag into the name: "
            f"model_name='{architecture}.{name.pretrained}'"
        )
    if name.pretrained and name.model_path is None and not tags:
        raise OptionError(
            f"model_name={name.model_name!r}: timm has no weights of it. Pass model_path, or another name."
        )
    published = timm.get_pretrained_cfg(name.model_name)
    if published is not None and any("QuickGELU" in note for note in published.notes or ()):
        quick = name.model_name.replace("_clip_", "_clip_quickgelu_")
        if quick != name.model_name and "quickgelu" not in architecture:
            raise OptionError(
                f"model_name={name.model_name!r}: its weights were trained with QuickGELU, which this model does not "
                f"have. Use {quick!r}."
            )


def _check_open_clip(name: EncoderName) -> None:
    known = open_clip.list_models()
    if name.model_name not in known:
        close = _close(name.model_name, [*timm.list_models(), *known])
        hint = f": did you mean {' or '.join(map(repr, close))}?" if close else "."
        raise OptionError(f"model_name={name.model_name!r}: no such model of timm or open_clip{hint} {_ALL}")
    if name.pretrained is False:
        return
    tags = open_clip.list_pretrained_tags_by_model(name.model_name)
    tag = _tag(name, tags)
    if tag is None:
        if tags:
            raise OptionError(
                f"pretrained: expected the tag of the weights, which decides the preprocessing, found "
                f"{name.pretrained}. Use one of {', '.join(tags)}."
            )
        if name.model_path is None:
            raise OptionError(f"model_name={name.model_name!r}: open_clip has no weights of it. Pass model_path.")
    elif tag not in tags:
        raise OptionError(f"pretrained: no weights {tag!r} of {name.model_name}: {nearest(tag, tags)}")
    elif open_clip.get_model_config(name.model_name).get("quick_gelu") and not _published(name, tag)["quick_gelu"]:
        raise OptionError(
            f"model_name={name.model_name!r}: expected weights that were trained with QuickGELU, which this model has, "
            f"found {tag!r}, trained without it. Use the model without QuickGELU, or another tag."
        )


def _close(wrong: str, known: list[str]) -> list[str]:
    """Return up to five names: first those with a similar spelling, then those that contain `wrong`."""
    by_spelling = get_close_matches(wrong, known, n=5, cutoff=0.6)
    holding = [model for model in known if wrong and wrong.lower() in model.lower()]
    return list(dict.fromkeys([*by_spelling, *holding]))[:5]


def _tag(name: EncoderName, tags: list[str]) -> str | None:
    """Return the tag of the weights, which decides preprocessing and activation; None if it is ambiguous."""
    if isinstance(name.pretrained, str):
        return name.pretrained
    if "openai" in tags:
        return "openai"
    alike = {json.dumps(_published(name, tag), sort_keys=True) for tag in tags}
    return tags[0] if name.model_path is not None and len(alike) == 1 else None


def _published(name: EncoderName, tag: str) -> dict[str, Any]:
    """Return the activation and the preprocessing that open_clip states for the weights of a tag."""
    given = open_clip.get_pretrained_cfg(name.model_name, tag)
    kept = ("mean", "std", "interpolation", "resize_mode")
    return {"quick_gelu": bool(given.get("quick_gelu"))} | {key: given.get(key) for key in kept}


def load_encoder(name: EncoderName, *, unit: bool, device: str, dtype: str) -> Encoder:
    """Load an encoder. Its model is loaded once per process.

    Args:
        name: The encoder.
        unit: Whether to scale its embeddings to unit length.
        device: A torch device.
        dtype: The dtype of weights and arithmetic.

    Raises:
        OptionError: The model does not exist.
        WeightsError: The weights cannot be loaded, or do not fit the model.
    """
    encoder = copy(_load(name, device, dtype))
    encoder.unit = unit
    return encoder


@lru_cache(maxsize=2)
def _load(name: EncoderName, device: str, dtype: str) -> Encoder:
    check(name)
    module, transform, dimension = _from_timm(name) if _is_of_timm(name) else _from_open_clip(name)
    module.eval().requires_grad_(False).to(device, getattr(torch, dtype))
    on_image, mean, std = _split(transform)

    def tower(pixels: torch.Tensor) -> torch.Tensor:
        encoded = module(normalize(pixels, mean, std).to(getattr(torch, dtype)))
        # CoCa's tower returns its tokens with the embedding.
        return cast("torch.Tensor", encoded[0] if isinstance(encoded, tuple) else encoded).float()

    height, width, _ = on_image(Image.new("RGB", (64, 64))).shape
    return Encoder(
        tower,
        side=min(height, width),
        dimension=dimension,
        row_bytes=convolutional_row_bytes(max(height, width)),
        device=device,
        preprocess=on_image,
    )


def _from_timm(name: EncoderName) -> tuple[torch.nn.Module, Any, int]:
    file = _file(name)
    overlay: dict[str, Any] = {} if file is None else {"pretrained_cfg_overlay": {"file": str(file)}}
    with _loading(name):
        # Keep the number of classes of the weights. With another number, timm accepts any file.
        model: Any = timm.create_model(name.model_name, pretrained=bool(name.pretrained) or file is not None, **overlay)
    # A classification head is removed. The head of a CLIP model is its projection and stays.
    if infer_imagenet_subset({"num_classes": model.num_classes}) or model.num_classes > _LONGEST_PROJECTION:
        model.reset_classifier(0)
    described = resolve_model_data_config(model)  # type: ignore[no-untyped-call]  # no types there
    transform = create_transform(**described, is_training=False)
    return model, transform, model.num_classes or model.head_hidden_size


def _from_open_clip(name: EncoderName) -> tuple[torch.nn.Module, Any, int]:
    options: dict[str, Any] = {}
    file = _file(name)
    tag = None if name.pretrained is False else _tag(name, open_clip.list_pretrained_tags_by_model(name.model_name))
    if tag is not None:
        published = _published(name, tag)
        options = {
            "force_quick_gelu": published["quick_gelu"],
            "image_mean": published["mean"],
            "image_std": published["std"],
            "image_interpolation": published["interpolation"],
            "image_resize_mode": published["resize_mode"],
        }
    with _loading(name):
        model, _, transform = open_clip.create_model_and_transforms(
            name.model_name, pretrained=tag if file is None else str(file), **options
        )
    # The text tower, which is half of some models, is left out.
    return model.visual, transform, open_clip.get_model_config(name.model_name)["embed_dim"]


def _file(name: EncoderName) -> Path | None:
    if name.model_path is None:
        return None
    given = Path(name.model_path)
    file = given / f"{name.model_name}.safetensors" if given.is_dir() else given
    if not file.is_file():
        raise WeightsNotFoundError(
            f"model_path: expected the weights of {name.model_name} at {file}, found nothing. Put a safetensors file "
            "there."
        )
    # timm and open_clip also read formats that can run code.
    if not is_safetensors(file):
        raise WeightsError(f"model_path: expected a safetensors file, found {file}. Save the tensors as safetensors.")
    return file


@contextmanager
def _loading(name: EncoderName) -> Iterator[None]:
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            yield
    # The libraries share no base exception for failures such as an unreachable hub or tensors of the wrong shape.
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(
            f"weights of {name.model_name}: expected a download or a file that fits, found: {first}. Without a "
            "network, pass model_path, a safetensors file, on the driver and on every executor."
        ) from error


def _split(transform: Any) -> tuple[Callable[[Image.Image], Pixels], list[float], list[float]]:
    """Split a transform into its steps on the image and the mean and standard deviation that it normalises with."""
    steps = transform.transforms
    tensor_at = next(at for at, step in enumerate(steps) if "ToTensor" in type(step).__name__)
    of_tensor = [step for step in steps[tensor_at + 1 :] if hasattr(step, "mean") and hasattr(step, "std")]
    mean, std = ([float(number) for number in getattr(of_tensor[-1], what)] for what in ("mean", "std"))
    on_image = steps[:tensor_at]
    # open_clip's transform has a step that converts to RGB after resizing. timm expects an RGB image from the caller.
    converts = any("convert" in getattr(step, "__name__", type(step).__name__).lower() for step in on_image)

    def pixels(image: Image.Image) -> Pixels:
        image = image if converts else image.convert("RGB")
        for step in on_image:
            image = step(image)
        return cast("Pixels", np.array(image.convert("RGB"), dtype=np.uint8))

    return pixels, mean, std
