"""Convert a backbone's weights file to the file that every worker of a node memory-maps.

The file is written once per node, as safetensors in the cache. It holds only the image tower, in the dtype in which it
runs, rewritten for `spark_aesthetic.images.tower` if that module supports the architecture. The published ViT-L/14
shrinks from 1.7 GB with both towers to 1.2 GB.
"""

from __future__ import annotations

import json
import logging
import re
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from spark_aesthetic.errors import WeightsError
from spark_aesthetic.images import architectures
from spark_aesthetic.images.tower import rewrite
from spark_aesthetic.predictors import cache, weights
from spark_aesthetic.predictors.recipe import UNTRAINED, Predictor

Tensors = Mapping[str, torch.Tensor]

_log = logging.getLogger(__name__)


def check(predictor: Predictor, model_path: str | None = None) -> None:
    """Check that the parts of a pinned predictor fit together, before any work. Runs on the driver.

    Both files are located, downloaded if necessary, and verified. Only the header of a safetensors backbone is read,
    but an archive is loaded.

    Raises:
        PredictorError: The backbone's architecture is unknown or not supported, or untrained weights are malformed.
        WeightsError: A file is missing, does not match its checksum, or does not fit the architecture; or the head does
            not fit the backbone.
    """
    head = weights.load_head(predictor, model_path)
    weights.check_dimension(predictor, head, architectures.embedding_dimension(predictor.backbone))
    if predictor.backbone_weights.startswith(UNTRAINED):
        weights.backbone_seed(predictor)
        return
    path = weights.backbone_file(predictor, model_path)
    _fitting(_read(path, header_only=True), predictor.backbone, path)


def prepare(predictor: Predictor, *, dtype: str, model_path: str | None = None) -> Path:
    """Return the path of a pinned predictor's prepared backbone, written under a file lock if missing or damaged.

    Raises:
        WeightsError: The weights file is missing, does not match its checksum, or does not fit the architecture; or
            this user cannot write to the cache, or other users can.
    """
    target = weights.prepared_path(predictor, dtype)
    # A filled cache may be read-only, so nothing is locked or written before this check.
    if cache.is_whole(target):
        return target
    cache.cache_dir()
    with cache.locked(target):
        if not cache.is_whole(target):
            if target.exists():
                _log.warning("%s does not match its digest; preparing it again", target)
            cache.publish(target, partial(_write, predictor, dtype, model_path))
    return target


def _write(predictor: Predictor, dtype: str, model_path: str | None, path: Path) -> None:
    architecture = predictor.backbone
    shape = architectures.rewritten_shape(architecture)
    tensors = _tower(predictor, model_path)
    if shape is not None:
        tensors = rewrite(tensors, shape, getattr(torch, dtype))
    else:
        types = {
            name: tensor.dtype for name, tensor in architectures.empty_tower(architecture, dtype).state_dict().items()
        }
        tensors = {name: tensor.to(types[name]) for name, tensor in tensors.items()}
    about = {
        "architecture": architecture,
        "dtype": dtype,
        "side": architectures.image_side(architecture),
        "dimension": architectures.embedding_dimension(architecture),
        "shape": asdict(shape) if shape is not None else None,
    }
    try:
        save_file(tensors, path, {"tower": json.dumps(about)})
    # safetensors wraps errors of the operating system, such as a full disk.
    except SafetensorError as error:
        raise OSError(str(error)) from error


def _tower(predictor: Predictor, model_path: str | None) -> dict[str, torch.Tensor]:
    if predictor.backbone_weights.startswith(UNTRAINED):
        return seeded_tower(predictor)
    path = weights.backbone_file(predictor, model_path)
    return _fitting(_read(path), predictor.backbone, path)


def _shapes(architecture: str) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in architectures.empty_tower(architecture).state_dict().items()}


def _fitting(tensors: Tensors, architecture: str, path: Path) -> dict[str, torch.Tensor]:
    """Return the image tower's tensors in open_clip's names; raise WeightsError if one is missing or does not fit."""
    shapes = _shapes(architecture)
    found = in_open_clip_names(tensors)
    wrong = [name for name, shape in shapes.items() if name not in found or found[name].shape != shape]
    if wrong:
        first = f"{wrong[0]} {tuple(shapes[wrong[0]])}"
        there = tuple(found[wrong[0]].shape) if wrong[0] in found else "nothing"
        raise WeightsError(
            f"{path}: expected the image tower of {architecture}, but {len(wrong)} of {len(shapes)} tensors are "
            f"missing or have the wrong shape, first {first}, found {there}. Name the file's architecture as backbone."
        )
    return {name: found[name].contiguous() for name in shapes}


def _read(path: Path, *, header_only: bool = False) -> Tensors:
    """Load a verified backbone file. `header_only` loads only the shapes of safetensors, on torch's meta device."""
    try:
        if weights.is_safetensors(path):
            if header_only:
                with safe_open(path, framework="pt") as file:
                    return {
                        name: torch.empty(file.get_slice(name).get_shape(), device="meta")
                        for name in file.keys()  # noqa: SIM118 (not a dict)
                    }
            return load_file(path)
        # The checksum of OpenAI's TorchScript archives was verified before. Their float16 is exact in float32.
        with warnings.catch_warnings():
            # torch 2.15 deprecates TorchScript, but nothing else reads OpenAI's archives.
            warnings.filterwarnings("ignore", r"`torch\.jit\.load` is deprecated", FutureWarning)
            archive = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]  # no types there
    except (SafetensorError, RuntimeError) as error:
        # Only the first line of the error, because torch writes a page about archives.
        raise WeightsError(
            f"{path}: expected safetensors or OpenAI's TorchScript archive, found a file that reads as neither: "
            f"{str(error).splitlines()[0]}. Save a .pth or .bin of tensors again as safetensors."
        ) from error
    return {name: tensor.detach() for name, tensor in archive.state_dict().items()}


def in_open_clip_names(tensors: Tensors) -> dict[str, torch.Tensor]:
    """Rename an image tower's tensors to open_clip's names, and drop all other tensors.

    Accepts the names of open_clip and OpenAI, for both towers (`visual.…`) or the image tower alone, and those of
    transformers (`vision_model.…`), which splits `in_proj` into three tensors.
    """
    if any(name.startswith("vision_model.") for name in tensors):
        return _from_transformers(tensors)
    if any(name.startswith("visual.") for name in tensors):
        return {name.removeprefix("visual."): tensor for name, tensor in tensors.items() if name.startswith("visual.")}
    return dict(tensors)


_TRANSFORMERS = {
    "vision_model.embeddings.class_embedding": "class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "positional_embedding",
    # The misspelling is transformers' own.
    "vision_model.pre_layrnorm.weight": "ln_pre.weight",
    "vision_model.pre_layrnorm.bias": "ln_pre.bias",
    "vision_model.post_layernorm.weight": "ln_post.weight",
    "vision_model.post_layernorm.bias": "ln_post.bias",
}
_TRANSFORMERS_BLOCK = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def _from_transformers(tensors: Tensors) -> dict[str, torch.Tensor]:
    named = {ours: tensors[theirs] for theirs, ours in _TRANSFORMERS.items() if theirs in tensors}
    if "visual_projection.weight" in tensors:
        named["proj"] = tensors["visual_projection.weight"].T
    for name, tensor in tensors.items():
        block = re.fullmatch(r"vision_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
        if block is None:
            continue
        number, layer, kind = block.groups()
        prefix = f"transformer.resblocks.{number}."
        if layer in _TRANSFORMERS_BLOCK:
            named[f"{prefix}{_TRANSFORMERS_BLOCK[layer]}.{kind}"] = tensor
        elif layer == "self_attn.q_proj":
            parts = [tensors.get(name.replace("q_proj", part)) for part in ("q_proj", "k_proj", "v_proj")]
            there = [part for part in parts if part is not None]
            # Parts that cannot be joined are left out, so the error names them as missing.
            if len({part.shape[1:] for part in there}) == 1:
                named[f"{prefix}attn.in_proj_{kind}"] = torch.cat(there)
    return named


def seeded_tower(predictor: Predictor) -> dict[str, torch.Tensor]:
    """Make the tower of an untrained predictor, in open_clip's names.

    The random weights have the scale of a newly initialised network: normal by fan-in, norms at one, biases at zero.
    """
    generator = torch.Generator().manual_seed(weights.backbone_seed(predictor))
    tower = {}
    for name, shape in _shapes(predictor.backbone).items():
        if name.endswith("bias"):
            tower[name] = torch.zeros(shape)
        elif re.search(r"(^|\.)ln_\w+\.weight$", name):
            tower[name] = torch.ones(shape)
        else:
            fan_in = shape[1:].numel() if len(shape) > 1 else shape.numel()
            tower[name] = torch.randn(shape, generator=generator) * fan_in**-0.5
    return tower
