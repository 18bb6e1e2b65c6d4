"""Pixels to unit embeddings, with weights that `spark_aesthetic.prepare` has prepared."""

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
from safetensors import safe_open
from safetensors.torch import load_file

from spark_aesthetic.tower import MEAN, STD, Shape, VisionTower


def normalize(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 (n, side, side, 3) to float32 (n, 3, side, side), bit for bit as the reference does it."""
    planes = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    mean = torch.tensor(MEAN, device=pixels.device).view(3, 1, 1)
    std = torch.tensor(STD, device=pixels.device).view(3, 1, 1)
    return planes.div_(255).sub_(mean).div_(std)


@dataclass
class Limits:
    """What the device's memory has turned out to hold; known as long as the model, so to every later task.

    Attributes:
        rows: Images in one forward pass, at most.
        alone: Whether a pass needs the device to itself.
    """

    rows: int = sys.maxsize
    alone: bool = False


class ImageEncoder:
    """An image tower with its weights.

    On a CPU the tensors stay memory-mapped, so that the workers of one node share the pages.

    Attributes:
        side: Height and width in pixels of the images it takes.
        dimension: Length of the embeddings it gives.
        row_bytes: Memory that activations take for one image in a forward pass, about.
        limits: Of the device's memory, as far as it has been met.
    """

    def __init__(self, prepared: Path, *, device: str) -> None:
        """Load a prepared weights file (see `spark_aesthetic.prepare`) onto a device."""
        self.device = torch.device(device)
        self.limits = Limits()
        with safe_open(prepared, framework="pt") as file:
            about = json.loads(file.metadata()["tower"])
        self.side: int = about["side"]
        self.dimension: int = about["dimension"]
        tensors = load_file(prepared, device=device)
        self.tower: Callable[[torch.Tensor], torch.Tensor]
        if about["shape"] is not None:
            self.tower = tower = VisionTower(Shape(**about["shape"]), tensors)
            self.row_bytes = tower.row_bytes
        else:
            self.tower = _as_open_clip_has_it(about, tensors)
            # That of a ResNet: the first stage holds a few planes of a quarter of the pixels and 64 channels or more.
            self.row_bytes = 4 * 64 * self.side**2

    def to_device(self, pixels: Sequence[npt.NDArray[np.uint8]]) -> torch.Tensor:
        """Images, each uint8 of shape (side, side, 3), as one tensor on the device.

        To a GPU the copy goes from pinned memory and is not waited for: this thread goes on.
        """
        on_gpu = self.device.type == "cuda"
        batch = torch.empty((len(pixels), self.side, self.side, 3), dtype=torch.uint8, pin_memory=on_gpu)
        np.stack(pixels, out=batch.numpy())
        return batch.to(self.device, non_blocking=on_gpu)

    @torch.inference_mode()
    def __call__(self, pixels: torch.Tensor) -> npt.NDArray[np.float32]:
        """Encode images.

        Args:
            pixels: uint8 of shape (n, side, side, 3), RGB, on the device.

        Returns:
            float32 of shape (n, dimension), of unit length.
        """
        unit = torch.nn.functional.normalize(self.tower(pixels), dim=-1)
        return cast("npt.NDArray[np.float32]", unit.cpu().numpy())


def _as_open_clip_has_it(
    about: dict[str, Any], tensors: dict[str, torch.Tensor]
) -> Callable[[torch.Tensor], torch.Tensor]:
    # Here, because most towers do without open_clip and its import of many seconds.
    from spark_aesthetic import architectures

    module = architectures.empty_tower(about["architecture"], about["dtype"]).eval().requires_grad_(False)
    module.load_state_dict(tensors, assign=True)
    dtype = getattr(torch, about["dtype"])
    return lambda pixels: cast("torch.Tensor", module(normalize(pixels).to(dtype))).float()
