"""Heads, which compute a score from an embedding of unit length. They need NumPy only, not torch.

A head without activations between its layers is an affine map. It is folded into one layer in float64:
the published V2 head then costs 768 multiplications instead of 926,736.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from spark_aesthetic.errors import WeightsError

Floats = npt.NDArray[np.float32]
Tensors = Mapping[str, npt.NDArray[np.floating]]

# Positions of the Linear layers in the two published V2 architectures. The first has dropout after each of its
# first three layers. The second also has a ReLU after each of its first four.
_DROPOUT_BETWEEN = (0, 2, 4, 6, 7)
_RELU_BETWEEN = (0, 3, 6, 9, 11)


@dataclass(frozen=True)
class Layer:
    """A Linear layer: float weight (out, in) and bias (out)."""

    weight: npt.NDArray[np.floating]
    bias: npt.NDArray[np.floating]


@dataclass(frozen=True)
class Head:
    """Linear layers in float32, with a ReLU between each two. The last layer has one output.

    A head with a single layer is affine.
    """

    layers: tuple[Layer, ...]

    @property
    def dimension(self) -> int:
        """Length of the embeddings that the head takes."""
        return int(self.layers[0].weight.shape[1])

    @property
    def affine(self) -> bool:
        """Whether the score is `weight . embedding + bias`."""
        return len(self.layers) == 1

    @property
    def weight(self) -> Floats:
        """Weights of an affine head, float32 of shape (dimension,)."""
        return np.asarray(self.layers[0].weight[0], dtype=np.float32)

    @property
    def weight_text(self) -> str:
        """Weights of an affine head as JSON, each in the shortest text of its float32; query plans show this text."""
        return f"[{','.join(map(str, self.weight))}]"

    @property
    def norm(self) -> float:
        """L2 norm of the weights of an affine head."""
        return float(np.linalg.norm(self.layers[0].weight[0].astype(np.float64)))

    @property
    def bias(self) -> float:
        """Bias of an affine head."""
        return float(self.layers[0].bias[0])

    def __call__(self, embeddings: Floats) -> Floats:
        """Score embeddings.

        Args:
            embeddings: float32 of shape (n, dimension); the published heads expect unit length.

        Returns:
            float32 of shape (n,), about 1 to 10 for the published heads, never clamped.
        """
        hidden = embeddings
        for layer in self.layers[:-1]:
            hidden = np.maximum(hidden @ layer.weight.T + layer.bias, 0)
        last = self.layers[-1]
        return np.asarray(hidden @ last.weight[0] + last.bias[0], dtype=np.float32)


def from_tensors(tensors: Tensors, *, source: str, activation: str | None = None) -> Head:
    """Build a head from its tensors, and fold it if it is affine.

    Args:
        tensors: `layers.N.weight` (out, in) and `layers.N.bias` (out), or one `weight` and `bias`.
        source: The name of the file for error messages.
        activation: "relu" or "none", the activation between the layers. None infers it from the positions N of a
            published architecture.

    Raises:
        WeightsError: The tensors do not form a head, or neither `activation` nor the positions give the activation.

    Examples:
        >>> one = from_tensors({"weight": np.ones((1, 4)), "bias": np.zeros(1)}, source="example")
        >>> one(np.full((2, 4), 0.5, dtype=np.float32)).tolist()
        [2.0, 2.0]
    """
    numbered = {int(match[1]) for name in tensors if (match := re.fullmatch(r"layers\.(\d+)\.weight", name))}
    positions = tuple(sorted(numbered))
    prefixes = [f"layers.{position}." for position in positions] or [""]
    try:
        layers = [Layer(np.atleast_2d(tensors[f"{at}weight"]), np.atleast_1d(tensors[f"{at}bias"])) for at in prefixes]
    except KeyError as error:
        raise WeightsError(
            f"{source}: expected tensors layers.N.weight and layers.N.bias, or weight and bias, "
            f"found {sorted(tensors)}; {error} is missing"
        ) from error
    _check_shapes(layers, source)
    if len(layers) == 1 or activation == "none" or (activation is None and positions == _DROPOUT_BETWEEN):
        return Head((_as_float32(fold(layers)),))
    if activation == "relu" or (activation is None and positions == _RELU_BETWEEN):
        return Head(tuple(_as_float32(layer) for layer in layers))
    raise WeightsError(
        f"{source}: expected layers at {_DROPOUT_BETWEEN} (no activation) or {_RELU_BETWEEN} (ReLU), found "
        f'{positions}. Save it as safetensors with the metadata {{"activation": "relu"}} or {{"activation": "none"}}.'
    )


def fold(layers: Sequence[Layer]) -> Layer:
    """Multiply affine layers into one layer in float64: weight (1, in), bias (1).

    Scores of the published V2 head differ by at most 7e-7 between the layers in float32 and the folded layer.
    """
    weight, bias = layers[0].weight.astype(np.float64), layers[0].bias.astype(np.float64)
    for layer in layers[1:]:
        outer = layer.weight.astype(np.float64)
        weight, bias = outer @ weight, outer @ bias + layer.bias
    return Layer(weight, bias)


def untrained(seed: int, dimension: int) -> Head:
    """Make an affine head with seeded random weights. Its scores mean nothing."""
    weight = np.random.default_rng(seed).standard_normal((1, dimension)).astype(np.float32)
    return Head((Layer(weight, np.full(1, 5.0, dtype=np.float32)),))


def _check_shapes(layers: Sequence[Layer], source: str) -> None:
    shapes = [layer.weight.shape for layer in layers]
    joined = all(len(shape) == 2 for shape in shapes) and all(outer[1] == inner[0] for inner, outer in pairwise(shapes))
    if not joined or shapes[-1][0] != 1 or any(layer.bias.shape != layer.weight.shape[:1] for layer in layers):
        raise WeightsError(f"{source}: expected layers of matching shapes that end in one output, found {shapes}")


def _as_float32(layer: Layer) -> Layer:
    return Layer(np.ascontiguousarray(layer.weight, dtype=np.float32), layer.bias.astype(np.float32))
