"""Encode pixels to embeddings, with weights that `spark_aesthetic.images.prepare` has prepared."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from spark_aesthetic.images.decode import Pixels
from spark_aesthetic.images.tower import MEAN, STD, Shape, VisionTower


def normalize(pixels: torch.Tensor, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> torch.Tensor:
    """Normalise uint8 (n, height, width, 3) to float32 (n, 3, height, width), bit for bit like the reference."""
    planes = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    taken_off, divided_by = (torch.tensor(values, device=pixels.device).view(3, 1, 1) for values in (mean, std))
    return planes.div_(255).sub_(taken_off).div_(divided_by)


@dataclass
class Limits:
    """Limits that were set when the device ran out of memory. They stay with the model across tasks.

    Attributes:
        rows: Most images in one forward pass.
        alone: Whether a pass needs the device to itself.
    """

    rows: int = sys.maxsize
    alone: bool = False


class Encoder:
    """An image tower on a device.

    Attributes:
        side: Height and width in pixels of the images that it takes; with `preprocess`, the shorter of the two.
        dimension: Length of the embeddings.
        row_bytes: Approximate memory of the activations of one image in a forward pass.
        limits: Limits of the device's memory, as far as they are known.
        preprocess: Converts a decoded image to uint8 pixels of a fixed shape; None is OpenAI's preprocessing for CLIP.
    """

    # Whether embeddings are scaled to unit length.
    unit = True

    def __init__(
        self,
        tower: Callable[[torch.Tensor], torch.Tensor],
        *,
        side: int,
        dimension: int,
        row_bytes: int,
        device: str,
        preprocess: Callable[[Image.Image], Pixels] | None = None,
    ) -> None:
        self.tower, self.preprocess = tower, preprocess
        self.side, self.dimension, self.row_bytes = side, dimension, row_bytes
        self.device = torch.device(device)
        self.limits = Limits()

    def to_device(self, pixels: Sequence[Pixels]) -> torch.Tensor:
        """Stack images, each uint8 of shape (height, width, 3), into one tensor on the device.

        The copy to a GPU is asynchronous, from pinned memory.
        """
        on_gpu = self.device.type == "cuda"
        batch = torch.empty((len(pixels), *pixels[0].shape), dtype=torch.uint8, pin_memory=on_gpu)
        np.stack(pixels, out=batch.numpy())
        return batch.to(self.device, non_blocking=on_gpu)

    @torch.inference_mode()
    def __call__(self, pixels: torch.Tensor) -> npt.NDArray[np.float32]:
        """Encode images.

        Args:
            pixels: uint8 of shape (n, height, width, 3), RGB, on the device.

        Returns:
            float32 of shape (n, dimension).
        """
        embeddings = self.tower(pixels)
        if self.unit:
            embeddings = torch.nn.functional.normalize(embeddings, dim=-1)
        return cast("npt.NDArray[np.float32]", embeddings.cpu().numpy())


class ImageEncoder(Encoder):
    """A CLIP image tower with prepared weights.

    On a CPU the tensors stay memory-mapped, so that the workers of one node share the pages.
    """

    def __init__(self, prepared: Path, *, device: str) -> None:
        """Load a prepared weights file (see `spark_aesthetic.images.prepare`) onto a device."""
        with safe_open(prepared, framework="pt") as file:
            about = json.loads(file.metadata()["tower"])
        side: int = about["side"]
        tensors = load_file(prepared, device=device)
        tower: Callable[[torch.Tensor], torch.Tensor]
        if about["shape"] is not None:
            tower = rewritten = VisionTower(Shape(**about["shape"]), tensors)
            row_bytes = rewritten.row_bytes
        else:
            tower = _as_open_clip_has_it(about, tensors)
            row_bytes = convolutional_row_bytes(side)
        super().__init__(tower, side=side, dimension=about["dimension"], row_bytes=row_bytes, device=device)


def convolutional_row_bytes(side: int) -> int:
    """Estimate the memory of a ResNet's activations for one image in float32."""
    # The first stage holds a few planes with a quarter of the pixels and 64 or more channels.
    return 4 * 64 * side**2


def _as_open_clip_has_it(
    about: dict[str, Any], tensors: dict[str, torch.Tensor]
) -> Callable[[torch.Tensor], torch.Tensor]:
    # Imported here, because most towers do not need open_clip, and its import takes many seconds.
    from spark_aesthetic.images import architectures

    module = architectures.empty_tower(about["architecture"], about["dtype"]).eval().requires_grad_(False)
    module.load_state_dict(tensors, assign=True)
    dtype = getattr(torch, about["dtype"])
    return lambda pixels: cast("torch.Tensor", module(normalize(pixels).to(dtype))).float()
