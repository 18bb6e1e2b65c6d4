"""Image encoders of timm and open_clip, each with its own preprocessing. The only module that imports timm.

Unlike the backbones of predictors they load as those libraries load them: with their classes, downloads and caches.
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

# Of weights that are not pretrained, so that every worker has the same ones.
_SEED = 0

# The longest projections are SigLIP's, of 1,152 numbers or some more; heads with more outputs are those of classes.
_LONGEST_PROJECTION = 2048

_ALL = "timm.list_models() and open_clip.list_models() list them all"


def check(name: EncoderName) -> None:
    """Check that there is such a model, and such weights of it, without loading any.

    Raises:
        OptionError: There is none; the nearest is named.
    """
    if not isinstance(name.model_name, str):
        raise OptionError(f"model_name={name.model_name!r}: expected the name of a model of timm or open_clip; {_ALL}")
    if not isinstance(name.pretrained, bool | str):
        raise OptionError(f"pretrained={name.pretrained!r}: expected True, False or a tag of open_clip")
    if _is_of_timm(name):
        _check_timm(name)
    else:
        _check_open_clip(name)


def _is_of_timm(name: EncoderName) -> bool:
    # Some names are in both; a tag that is given beside the name is open_clip's.
    tags = open_clip.list_pretrained_tags_by_model(name.model_name)
    return name.pretrained not in tags and timm.is_model(name.model_name.split(".")[0])


def _check_timm(name: EncoderName) -> None:
    architecture, _, tag = name.model_name.partition(".")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise OptionError(f"model_name: no weights {tag!r} of {architecture}: {nearest(tag, tags)}")
    if isinstance(name.pretrained, str):
        raise OptionError(
            f"pretrained={name.pretrained!r}: expected True or False for a model of timm, whose name holds the "
            f"tag; use model_name='{architecture}.{name.pretrained}'"
        )
    if name.pretrained and name.model_path is None and not tags:
        raise OptionError(
            f"model_name={name.model_name!r}: timm has no weights of it; give model_path, or another name"
        )
    published = timm.get_pretrained_cfg(name.model_name)
    if published is not None and any("QuickGELU" in note for note in published.notes or ()):
        quick = name.model_name.replace("_clip_", "_clip_quickgelu_")
        if quick != name.model_name and "quickgelu" not in architecture:
            raise OptionError(
                f"model_name={name.model_name!r}: its weights were trained with QuickGELU, which this name leaves "
                f"out; use {quick!r}"
            )


def _check_open_clip(name: EncoderName) -> None:
    known = open_clip.list_models()
    if name.model_name not in known:
        close = _close(name.model_name, [*timm.list_models(), *known])
        hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
        raise OptionError(f"model_name={name.model_name!r}: no such model of timm or open_clip; {hint}{_ALL}")
    if name.pretrained is False:
        return
    tags = open_clip.list_pretrained_tags_by_model(name.model_name)
    tag = _tag(name, tags)
    if tag is None:
        if tags:
            raise OptionError(
                f"pretrained: expected the tag of the weights, whose preprocessing differs, found {name.pretrained}; "
                f"one of {', '.join(tags)}"
            )
        if name.model_path is None:
            raise OptionError(f"model_name={name.model_name!r}: open_clip has no weights of it; give model_path")
    elif tag not in tags:
        raise OptionError(f"pretrained: no weights {tag!r} of {name.model_name}: {nearest(tag, tags)}")
    elif open_clip.get_model_config(name.model_name).get("quick_gelu") and not _published(name, tag)["quick_gelu"]:
        raise OptionError(
            f"model_name={name.model_name!r}: weights {tag!r} were trained without QuickGELU, which it has"
        )


def _close(wrong: str, known: list[str]) -> list[str]:
    """The five nearest of a thousand names: by spelling, then those that hold it."""
    by_spelling = get_close_matches(wrong, known, n=5, cutoff=0.6)
    holding = [model for model in known if wrong and wrong.lower() in model.lower()]
    return list(dict.fromkeys([*by_spelling, *holding]))[:5]


def _tag(name: EncoderName, tags: list[str]) -> str | None:
    """The tag that is meant, of which preprocessing and activation depend; None where that is open."""
    if isinstance(name.pretrained, str):
        return name.pretrained
    if "openai" in tags:
        return "openai"
    alike = {json.dumps(_published(name, tag), sort_keys=True) for tag in tags}
    return tags[0] if name.model_path is not None and len(alike) == 1 else None


def _published(name: EncoderName, tag: str) -> dict[str, Any]:
    """What open_clip knows of the weights of a tag, beside their address."""
    given = open_clip.get_pretrained_cfg(name.model_name, tag)
    kept = ("mean", "std", "interpolation", "resize_mode")
    return {"quick_gelu": bool(given.get("quick_gelu"))} | {key: given.get(key) for key in kept}


def load_encoder(name: EncoderName, *, unit: bool, device: str, dtype: str) -> Encoder:
    """Load an encoder, its model once a process.

    Args:
        name: Which one.
        unit: Bring its embeddings to unit length.
        device: A torch device.
        dtype: Of weights and arithmetic.

    Raises:
        OptionError: There is no such model.
        WeightsError: The weights cannot be had, or are those of another model.
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
        # CoCa's tower gives its tokens beside the embedding.
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
        # With all of its classes: timm takes any file for a model that has others than its weights.
        model: Any = timm.create_model(name.model_name, pretrained=bool(name.pretrained) or file is not None, **overlay)
    # A head of classes is none of an embedding; that of CLIP is the model's own projection.
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
    # Without the tower of texts, which is half of some models.
    return model.visual, transform, open_clip.get_model_config(name.model_name)["embed_dim"]


def _file(name: EncoderName) -> Path | None:
    if name.model_path is None:
        return None
    given = Path(name.model_path)
    file = given / f"{name.model_name}.safetensors" if given.is_dir() else given
    if not file.is_file():
        raise WeightsNotFoundError(f"model_path: expected the weights of {name.model_name} at {file}, found nothing")
    # Those libraries also read formats that can run code.
    if not is_safetensors(file):
        raise WeightsError(f"model_path: expected a safetensors file, found {file}; save the tensors again as one")
    return file


@contextmanager
def _loading(name: EncoderName) -> Iterator[None]:
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            yield
    # From a hub that cannot be reached to tensors of another shape: these libraries share no error.
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(
            f"weights of {name.model_name}: expected a download or a file that fits, found: {first}; without a network "
            "give model_path, a safetensors file, on the driver and on every executor"
        ) from error


def _split(transform: Any) -> tuple[Callable[[Image.Image], Pixels], list[float], list[float]]:
    """What a transform does before it makes a tensor of an image, and the mean and deviation that it takes off."""
    steps = transform.transforms
    tensor_at = next(at for at, step in enumerate(steps) if "ToTensor" in type(step).__name__)
    of_tensor = [step for step in steps[tensor_at + 1 :] if hasattr(step, "mean") and hasattr(step, "std")]
    mean, std = ([float(number) for number in getattr(of_tensor[-1], what)] for what in ("mean", "std"))
    on_image = steps[:tensor_at]
    # open_clip converts in a step of its own, after it has resized; of timm's models the caller does, before.
    converts = any("convert" in getattr(step, "__name__", type(step).__name__).lower() for step in on_image)

    def pixels(image: Image.Image) -> Pixels:
        image = image if converts else image.convert("RGB")
        for step in on_image:
            image = step(image)
        return cast("Pixels", np.array(image.convert("RGB"), dtype=np.uint8))

    return pixels, mean, std
