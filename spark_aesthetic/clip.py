"""Pixels to unit embeddings. The only module that imports open_clip."""

from __future__ import annotations

from pathlib import Path
from typing import cast

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


def empty_tower(architecture: str) -> torch.nn.Module:
    """The image tower of an architecture on torch's meta device: shapes, and no memory."""
    config = _config(architecture)
    with torch.device("meta"):
        model = open_clip.CLIP(
            config["embed_dim"], config["vision_cfg"], _NO_TEXT, quick_gelu=config.get("quick_gelu", False)
        )
    return cast("torch.nn.Module", model.visual)


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
        self.tower = empty_tower(architecture).eval().requires_grad_(False)
        tensors = {
            name: tensor.to(self.device, self.dtype) for name, tensor in load_file(prepared, device="cpu").items()
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


def _config(architecture: str) -> dict[str, dict[str, object]]:
    config = open_clip.get_model_config(architecture)
    if config is None:
        raise PredictorError(
            f"open_clip has no architecture {architecture!r}: {nearest(architecture, open_clip.list_models())}"
        )
    return cast("dict[str, dict[str, object]]", config)
