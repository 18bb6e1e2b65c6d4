"""Image encoders of timm and open_clip, each with its own preprocessing. The only module that imports timm.

Unlike the backbones of predictors they load as those libraries load them: with their classes, downloads and caches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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

from spark_aesthetic.clip import Encoder, convolutional_row_bytes, normalize
from spark_aesthetic.decode import Pixels
from spark_aesthetic.errors import OptionError, WeightsError, WeightsNotFoundError, nearest
from spark_aesthetic.options import EncoderName
from spark_aesthetic.weights import is_safetensors

# Of weights that are not pretrained, so that every worker has the same ones.
_SEED = 0


def check(name: EncoderName) -> None:
    """Check that there is such a model, and such weights of it, without loading any.

    Raises:
        OptionError: There is none; the nearest is named.
    """
    if timm.is_model(name.model_name.split(".")[0]):
        architecture, _, tag = name.model_name.partition(".")
        tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
        if tag and tag not in tags:
            raise OptionError(
                f"model_name={name.model_name!r}: no such weights of {architecture}: {nearest(tag, tags)}"
            )
        if isinstance(name.pretrained, str):
            raise OptionError(
                f"pretrained={name.pretrained!r}: expected True or False for a model of timm, whose name holds the "
                f"tag; use model_name='{architecture}.{name.pretrained}'"
            )
        return
    known = open_clip.list_models()
    if name.model_name not in known:
        raise OptionError(f"model_name={name.model_name!r}: {nearest(name.model_name, [*timm.list_models(), *known])}")
    if name.pretrained is not False and name.model_path is None:
        tags = open_clip.list_pretrained_tags_by_model(name.model_name)
        tag = _tag(name)
        if tag not in tags:
            raise OptionError(f"pretrained: no weights {tag!r} of {name.model_name}: {nearest(tag, tags)}")


@lru_cache(maxsize=2)
def load_encoder(name: EncoderName, *, unit: bool, device: str, dtype: str) -> Encoder:
    """Load an encoder, once a process.

    Args:
        name: Which one.
        unit: Bring its embeddings to unit length.
        device: A torch device.
        dtype: Of weights and arithmetic.

    Raises:
        WeightsError: The weights cannot be had, or are those of another model.
    """
    check(name)
    load = _from_timm if timm.is_model(name.model_name.split(".")[0]) else _from_open_clip
    module, encode, transform, dimension = load(name)
    module.eval().requires_grad_(False).to(device, getattr(torch, dtype))
    on_image, mean, std = _split(transform)

    def tower(pixels: torch.Tensor) -> torch.Tensor:
        return encode(normalize(pixels, mean, std).to(getattr(torch, dtype))).float()

    height, width, _ = on_image(Image.new("RGB", (64, 64))).shape
    encoder = Encoder(
        tower, side=min(height, width), dimension=dimension, row_bytes=convolutional_row_bytes(max(height, width)),
        device=device,
    )  # fmt: skip
    encoder.preprocess = on_image
    encoder.unit = unit
    return encoder


_Loaded = tuple[torch.nn.Module, Callable[[torch.Tensor], torch.Tensor], Any, int]


def _from_timm(name: EncoderName) -> _Loaded:
    options: dict[str, Any] = {}
    # A head of ImageNet's classes is none of an embedding; any other, as CLIP's, is the model's own projection.
    published = timm.get_pretrained_cfg(name.model_name)
    if published is not None and infer_imagenet_subset({"num_classes": published.num_classes}) is not None:
        options["num_classes"] = 0
    file = _file(name)
    if file is not None:
        options["pretrained_cfg_overlay"] = {"file": str(file)}
    with _loading(name):
        model: Any = timm.create_model(name.model_name, pretrained=bool(name.pretrained) or file is not None, **options)
    described = resolve_model_data_config(model)  # type: ignore[no-untyped-call]  # no types there
    transform = create_transform(**described, is_training=False)
    return model, model, transform, model.num_classes or model.head_hidden_size


def _from_open_clip(name: EncoderName) -> _Loaded:
    file = _file(name)
    weights = str(file) if file is not None else (_tag(name) if name.pretrained is not False else None)
    with _loading(name):
        model, _, transform = open_clip.create_model_and_transforms(name.model_name, pretrained=weights)
    dimension = open_clip.get_model_config(name.model_name)["embed_dim"]
    return model, model.encode_image, transform, dimension


def _tag(name: EncoderName) -> str:
    return "openai" if name.pretrained is True else str(name.pretrained)


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
