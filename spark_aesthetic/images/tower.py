"""CLIP's vision transformer, rewritten to compute the same function in fewer steps.

The rewrites are equal in exact arithmetic; in float32 they change an embedding by less than 1e-6
(see tests/unit/images/test_prepare.py):

- `(pixel / 255 - mean) / std` is folded into the patch projection and the position embedding, so the input is uint8
  pixels.
- The weight and bias of a layer norm are folded into the matrix that follows it.
- QuickGELU `x * sigmoid(1.702 x)` is `silu(1.702 x) / 1.702`, and both factors are folded into the matrices around it:
  one pass over the widest activations instead of three.
- Only the class token of the last block is used, so that block's query, projection and MLP are computed for one token.

This module needs only torch: a worker with prepared weights never imports open_clip, which takes longer than torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn import functional

# Channel mean and standard deviation of CLIP's training images, on a scale of 0 to 1 (OpenAI).
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

# This is subtracted from all pixels. The result is exact in every dtype. Without it, a large offset that all pixels
# share would cost accuracy in half precision.
_GREY = 128

# The factor in the sigmoid of QuickGELU, OpenAI's approximation of GELU.
_QUICK = 1.702


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The parts of a tower's architecture that are not stored in its tensors.

    Attributes:
        side: Height and width of the images in pixels.
        patch: Height and width of a patch in pixels.
        heads: Attention heads per block.
        layers: Number of blocks.
        quick_gelu: Whether the MLPs use QuickGELU instead of GELU.
    """

    side: int
    patch: int
    heads: int
    layers: int
    quick_gelu: bool


class _Block(NamedTuple):
    qkv_weight: torch.Tensor
    qkv_bias: torch.Tensor
    out_weight: torch.Tensor
    out_bias: torch.Tensor
    wide_weight: torch.Tensor
    wide_bias: torch.Tensor
    narrow_weight: torch.Tensor
    narrow_bias: torch.Tensor


def rewrite(tensors: Mapping[str, torch.Tensor], shape: Shape, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Convert a tower's tensors, with open_clip's names, to the tensors of `VisionTower`.

    The arithmetic is done in float64, so that each result is rounded once. Tensors that are used once per image
    instead of once per layer (position embedding, first norm, projection) are at least float32.
    """

    def source(name: str) -> torch.Tensor:
        return tensors[name].double()

    # (width, 3, patch, patch) to (patch, patch, 3, width), which is the order of pixels in memory.
    patch = source("conv1.weight").permute(2, 3, 1, 0)
    std, mean = (torch.tensor(values, dtype=torch.float64).view(3, 1) for values in (STD, MEAN))
    position = source("positional_embedding").clone()
    position[0] += source("class_embedding")
    position[1:] += (patch * ((_GREY / 255 - mean) / std)).sum(dim=(0, 1, 2))
    once = {
        "position": position,
        "pre_weight": source("ln_pre.weight"),
        "pre_bias": source("ln_pre.bias"),
        "projection_weight": source("proj").T * source("ln_post.weight"),
        "projection_bias": source("ln_post.bias") @ source("proj"),
    }
    wider = torch.promote_types(dtype, torch.float32)
    rewritten = {name: tensor.to(wider).contiguous() for name, tensor in once.items()}
    rewritten["patch_weight"] = (patch / (255 * std)).flatten(0, 2).to(dtype).contiguous()
    factor = _QUICK if shape.quick_gelu else 1.0
    for number in range(shape.layers):
        layer = f"transformer.resblocks.{number}."
        qkv, wide = source(layer + "attn.in_proj_weight"), source(layer + "mlp.c_fc.weight")
        block = _Block(
            qkv_weight=qkv * source(layer + "ln_1.weight"),
            qkv_bias=qkv @ source(layer + "ln_1.bias") + source(layer + "attn.in_proj_bias"),
            out_weight=source(layer + "attn.out_proj.weight"),
            out_bias=source(layer + "attn.out_proj.bias"),
            wide_weight=wide * source(layer + "ln_2.weight") * factor,
            wide_bias=(wide @ source(layer + "ln_2.bias") + source(layer + "mlp.c_fc.bias")) * factor,
            narrow_weight=source(layer + "mlp.c_proj.weight") / factor,
            narrow_bias=source(layer + "mlp.c_proj.bias"),
        )
        for name, tensor in block._asdict().items():
            rewritten[f"{number}.{name}"] = tensor.to(dtype).contiguous()
    return rewritten


class VisionTower:
    """A tower that computes with the given tensors and copies none, so memory-mapped files stay mapped.

    Args:
        shape: The shape of the architecture.
        tensors: The result of `rewrite`, on one device.
    """

    def __init__(self, shape: Shape, tensors: Mapping[str, torch.Tensor]) -> None:
        self.shape = shape
        self.tensors = tensors
        self.blocks = [
            _Block(*(tensors[f"{number}.{name}"] for name in _Block._fields)) for number in range(shape.layers)
        ]

    @property
    def row_bytes(self) -> int:
        """Peak memory of the activations of one image: the tokens, and the MLP before and after its activation."""
        length, width = self.tensors["position"].shape
        wide = self.blocks[0].wide_weight
        return length * (3 * width + 2 * len(wide)) * wide.element_size()

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode uint8 RGB pixels (n, side, side, 3) to float32 embeddings (n, dimension), not normalised."""
        tokens = self._embed(pixels)
        for block in self.blocks[:-1]:
            tokens = self._block(block, tokens, tokens.shape[1])
        class_token = self._block(self.blocks[-1], tokens, 1)[:, 0]
        weight, bias = self.tensors["projection_weight"], self.tensors["projection_bias"]
        normed = functional.layer_norm(class_token.to(weight.dtype), class_token.shape[-1:])
        return functional.linear(normed, weight, bias)

    def _embed(self, pixels: torch.Tensor) -> torch.Tensor:
        weight, position = self.tensors["patch_weight"], self.tensors["position"]
        count, across, patch = len(pixels), self.shape.side // self.shape.patch, self.shape.patch
        patches = pixels.view(count, across, patch, across, patch, 3).transpose(2, 3).reshape(count, across**2, -1)
        tokens = position.new_empty(count, *position.shape)
        tokens[:, 0] = position[0]
        torch.add((patches.to(weight.dtype) - _GREY) @ weight, position[1:], out=tokens[:, 1:])
        normed = functional.layer_norm(tokens, tokens.shape[-1:], self.tensors["pre_weight"], self.tensors["pre_bias"])
        return normed.to(weight.dtype)

    def _block(self, block: _Block, tokens: torch.Tensor, leaving: int) -> torch.Tensor:
        """Compute one block for the first `leaving` tokens of each image, which attend to all tokens."""
        count, length, width = tokens.shape
        normed = functional.layer_norm(tokens, (width,))
        if leaving == length:
            query, key, value = functional.linear(normed, block.qkv_weight, block.qkv_bias).chunk(3, dim=-1)
        else:
            query = functional.linear(normed[:, :leaving], block.qkv_weight[:width], block.qkv_bias[:width])
            key, value = functional.linear(normed, block.qkv_weight[width:], block.qkv_bias[width:]).chunk(2, dim=-1)
        query, key, value = (
            part.view(count, -1, self.shape.heads, width // self.shape.heads).transpose(1, 2)
            for part in (query, key, value)
        )
        attended = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(count, -1, width)
        tokens = functional.linear(attended, block.out_weight, block.out_bias).add_(tokens[:, :leaving])
        wide = functional.linear(functional.layer_norm(tokens, (width,)), block.wide_weight, block.wide_bias)
        wide = functional.silu(wide, inplace=True) if self.shape.quick_gelu else functional.gelu(wide)
        return tokens.add_(functional.linear(wide, block.narrow_weight, block.narrow_bias))
