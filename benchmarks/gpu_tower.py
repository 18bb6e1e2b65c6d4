"""CLIP's towers with seeded random weights, and variants of their steps, for gpu.py. Needs only torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from spark_aesthetic.images import tower as module
from spark_aesthetic.images.tower import Shape, VisionTower, rewrite

# Shape, width of the tokens and length of the embeddings, as OpenAI published them.
ARCHITECTURES = {
    "ViT-L/14": (Shape(side=224, patch=14, heads=16, layers=24, quick_gelu=True), 1024, 768),
    "ViT-B/32": (Shape(side=224, patch=32, heads=12, layers=12, quick_gelu=True), 768, 512),
    # Nobody's: for the check on a CPU.
    "tiny": (Shape(side=224, patch=32, heads=2, layers=2, quick_gelu=True), 128, 768),
}

Step = Callable[[torch.Tensor], torch.Tensor]


def seeded(name: str, dtype: torch.dtype, device: str) -> VisionTower:
    """Return a tower with random weights, drawn like CLIP's before its training; its scores mean nothing."""
    shape, width, dimension = ARCHITECTURES[name]
    draw = torch.Generator().manual_seed(0)

    def normal(*size: int, scale: float) -> torch.Tensor:
        return torch.randn(size, generator=draw) * scale

    tensors = {
        "conv1.weight": normal(width, 3, shape.patch, shape.patch, scale=width**-0.5),
        "class_embedding": normal(width, scale=width**-0.5),
        "positional_embedding": normal((shape.side // shape.patch) ** 2 + 1, width, scale=width**-0.5),
        "proj": normal(width, dimension, scale=width**-0.5),
    }
    layers = [f"transformer.resblocks.{number}." for number in range(shape.layers)]
    for norm in ["ln_pre", "ln_post", *(f"{layer}ln_{at}" for layer in layers for at in (1, 2))]:
        tensors |= {f"{norm}.weight": torch.ones(width), f"{norm}.bias": torch.zeros(width)}
    inner = width**-0.5 * (2 * shape.layers) ** -0.5
    for layer in layers:
        tensors |= {
            f"{layer}attn.in_proj_weight": normal(3 * width, width, scale=width**-0.5),
            f"{layer}attn.in_proj_bias": torch.zeros(3 * width),
            f"{layer}attn.out_proj.weight": normal(width, width, scale=inner),
            f"{layer}attn.out_proj.bias": torch.zeros(width),
            f"{layer}mlp.c_fc.weight": normal(4 * width, width, scale=(2 * width) ** -0.5),
            f"{layer}mlp.c_fc.bias": torch.zeros(4 * width),
            f"{layer}mlp.c_proj.weight": normal(width, 4 * width, scale=inner),
            f"{layer}mlp.c_proj.bias": torch.zeros(width),
        }
    rewritten = rewrite(tensors, shape, dtype)
    return VisionTower(shape, {name: tensor.to(device) for name, tensor in rewritten.items()})


def operations(tower: VisionTower) -> float:
    """Return the floating-point operations of an image's matrix products, without those that this package avoids."""
    length, width = tower.tensors["position"].shape
    layers = len(tower.blocks) - 1
    block = 2 * length * sum(matrix.numel() for matrix in tower.blocks[0] if matrix.dim() == 2)
    attention = 4 * length**2 * width
    last = 2 * length * 2 * width**2 + 2 * (block / 2 / length - 2 * width**2)
    return layers * (block + attention) + last + 2 * (length - 1) * tower.tensors["patch_weight"].numel()


def captured(tower: Step, pixels: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Record a pass as a CUDA graph, and return what replays it on the same pixels."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            tower(pixels)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        embeddings = tower(pixels)

    def replay() -> torch.Tensor:
        graph.replay()
        return embeddings

    return replay


@contextmanager
def replaced(**steps: object) -> Iterator[None]:
    """Replace functions of torch.nn.functional in the tower for the duration of the context."""
    before = module.functional
    module.functional = SimpleNamespace(**(vars(functional) | steps))  # type: ignore[assignment]
    try:
        yield
    finally:
        module.functional = before


def _three_passes(wide: torch.Tensor, *, inplace: bool) -> torch.Tensor:
    """Compute QuickGELU as its formula has it, without the fused silu."""
    return wide * torch.sigmoid(wide)


def _float8_linear(tokens: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Multiply in float8 (e4m3), with one scale for each tensor; the projection of a GPU stays in float32."""
    if weight.is_cuda and weight.dtype == torch.float32:
        return functional.linear(tokens, weight, bias)
    flat = tokens.reshape(-1, tokens.shape[-1])
    (left, by), (right, also_by) = _as_float8(flat), _as_float8(weight)
    done = torch._scaled_mm(left, right.t(), scale_a=by, scale_b=also_by, bias=bias, out_dtype=tokens.dtype)
    return done.view(*tokens.shape[:-1], -1)


def _as_float8(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scale = values.abs().amax().float() / torch.finfo(torch.float8_e4m3fn).max
    return (values / scale).to(torch.float8_e4m3fn), scale


def _int8_linear(tokens: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Multiply in int8, with a scale for each row of both. The kernel needs 17 rows, so fewer rows stay as they are."""
    flat = tokens.reshape(-1, tokens.shape[-1])
    if len(flat) <= 16:
        return functional.linear(tokens, weight, bias)
    (left, by), (right, also_by) = _as_int8(flat), _as_int8(weight)
    done = torch._int_mm(left, right.t()).float() * by * also_by.t() + bias
    return done.to(tokens.dtype).view(*tokens.shape[:-1], -1)


def _as_int8(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scale = values.abs().amax(dim=-1, keepdim=True).float().clamp(min=1e-12) / 127
    return (values / scale).round().to(torch.int8), scale


# Each changes one step of the tower for the duration of its context.
VARIANTS = {
    "QuickGELU in three passes": lambda: replaced(silu=_three_passes),
    "attention: flash": lambda: sdpa_kernel(SDPBackend.FLASH_ATTENTION),
    "attention: memory-efficient": lambda: sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION),
    "attention: cuDNN": lambda: sdpa_kernel(SDPBackend.CUDNN_ATTENTION),
    "attention: plain": lambda: sdpa_kernel(SDPBackend.MATH),
    "float8, scaled by tensor": lambda: replaced(linear=_float8_linear),
    "int8, scaled by row": lambda: replaced(linear=_int8_linear),
}
