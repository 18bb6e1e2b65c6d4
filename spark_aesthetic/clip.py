"""Pixels to unit embeddings, with weights that `spark_aesthetic.prepare` has prepared."""

from __future__ import annotations

import json
from collections.abc import Callable
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


class ImageEncoder:
    """An image tower with its weights.

    On a CPU the tensors stay memory-mapped, so that the workers of one node share the pages.

    Attributes:
        side: Height and width in pixels of the images it takes.
        dimension: Length of the embeddings it gives.
        row_bytes: Most memory that activations take for one image in a forward pass.
    """

    def __init__(self, prepared: Path, *, device: str) -> None:
        """Load a prepared weights file (see `spark_aesthetic.prepare`) onto a device."""
        self.device = torch.device(device)
        with safe_open(prepared, framework="pt") as file:
            about = json.loads(file.metadata()["tower"])
        self.side: int = about["side"]
        self.dimension: int = about["dimension"]
        tensors = load_file(prepared, device=device)
        self.tower: Callable[[torch.Tensor], torch.Tensor]
        if about["shape"] is not None:
            self.tower = VisionTower(Shape(**about["shape"]), tensors)
        else:
            self.tower = _as_open_clip_has_it(about, tensors)

    @torch.inference_mode()
    def __call__(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Encode images.

        Args:
            pixels: uint8 of shape (n, side, side, 3), RGB.

        Returns:
            float32 of shape (n, dimension), of unit length.
        """
        held = torch.from_numpy(pixels)
        if self.device.type == "cuda":
            # From pinned memory the copy runs while the device computes for another thread.
            held = held.pin_memory().to(self.device, non_blocking=True)
        unit = torch.nn.functional.normalize(self.tower(held), dim=-1)
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
