"""The published heads: folding them again, comparing their scores with the published ones, and rows without a score."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from conftest import SHARED
from make_embeddings import make as make_embeddings
from make_heads import PUBLISHED_FILES, make

from spark_aesthetic.predictors import weights
from spark_aesthetic.predictors.embeddings import NOT_FINITE, NULL, WRONG_LENGTH, ZERO_NORM, score_embeddings
from spark_aesthetic.predictors.head import Head, Layer, fold, untrained
from spark_aesthetic.predictors.recipe import BUILT_IN
from spark_aesthetic.testing import PUBLISHED_SCORES, published_embeddings

Floats = npt.NDArray[np.floating]

# These are the scores that the authors' weights give the ten published embeddings, to three decimals.
PUBLISHED = {
    "laion-aesthetics-v2": [1.655, 2.359, 3.070, 3.672, 4.238, 4.701, 5.073, 5.365, 5.577, 5.747],
    "laion-aesthetics-v2-ava": [4.513, 4.476, 4.492, 4.596, 4.705, 4.843, 5.004, 5.148, 5.231, 5.266],
    "laion-aesthetics-v2-ava-relu": [4.372, 4.192, 4.048, 4.013, 3.989, 4.018, 4.103, 4.208, 4.270, 4.308],
    "laion-aesthetics-v1": [-2.458, -0.138, 1.895, 3.585, 5.100, 6.470, 7.787, 9.048, 10.226, 11.304],
}
# Sums of 768 products in float32 differed from float64 by at most 1.3e-6 here. A different BLAS may sum in a different
# order.
FLOAT32_ATOL = 3e-6
FILES = {**PUBLISHED_FILES, "laion-aesthetics-v2-ava-relu": "ava+logos-l14-reluMSE.pth"}


def layers(file: Path) -> list[Layer]:
    """Return the Linear layers of a published file in their order, read without the package."""
    tensors = torch.load(file, map_location="cpu", weights_only=True)
    names = sorted(
        (name for name in tensors if name.endswith("weight")),
        key=lambda name: int(name.split(".")[1]) if "." in name else 0,
    )
    return [Layer(tensors[name].numpy(), tensors[name.replace("weight", "bias")].numpy()) for name in names]


def layered(file: Path, embeddings: Floats, *, relu: bool = False) -> Floats:
    """Return scores that are computed layer by layer in float64."""
    hidden: Floats = embeddings.astype(np.float64)
    for number, layer in enumerate(layers(file)):
        if relu and number:
            hidden = np.maximum(hidden, 0)
        hidden = hidden @ layer.weight.astype(np.float64).T + layer.bias.astype(np.float64)
    return hidden[:, 0]


def unit_embeddings(dimension: int) -> npt.NDArray[np.float32]:
    """Return a thousand random unit vectors and the published embeddings of the same length."""
    random = np.random.default_rng(0).standard_normal((1000, dimension))
    random /= np.linalg.norm(random, axis=1, keepdims=True)
    published = [published_embeddings(name) for name in ("vit_l_14", "vit_b_32")]
    return np.concatenate([random, *(part for part in published if part.shape[1] == dimension)]).astype(np.float32)


# The published files


def header_and_payload(file: bytes) -> tuple[object, bytes]:
    """Return the two parts of a safetensors file.

    Files of the same content differ only in the order of their metadata.
    """
    length = int.from_bytes(file[:8], "little")
    return json.loads(file[8 : 8 + length]), file[8 + length :]


def test_folding_the_published_files_again_gives_the_packaged_ones(published_heads: Path, tmp_path: Path) -> None:
    make(published_heads, tmp_path)
    packaged = resources.files("spark_aesthetic.predictors.heads")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == sorted(item.name for item in packaged.iterdir() if item.name.endswith(".safetensors"))
    for name in names:
        made, kept = (tmp_path / name).read_bytes(), (packaged / name).read_bytes()
        assert header_and_payload(made) == header_and_payload(kept), name


def test_joining_the_published_embeddings_again_gives_the_packaged_file(tmp_path: Path) -> None:
    published = SHARED / "data"
    if not published.is_dir():
        pytest.skip("the published embeddings are not beside the project (../shared/data)")
    make_embeddings(published, tmp_path)
    packaged = resources.files("spark_aesthetic.data") / "rating_embeddings.safetensors"
    made = (tmp_path / "rating_embeddings.safetensors").read_bytes()
    assert header_and_payload(made) == header_and_payload(packaged.read_bytes())


@pytest.mark.parametrize("name", PUBLISHED_FILES)
def test_folded_and_layered_agree(name: str, published_heads: Path) -> None:
    head = weights.load_head(BUILT_IN[name])
    embeddings = unit_embeddings(head.dimension)
    expected = layered(published_heads / PUBLISHED_FILES[name], embeddings)
    exact = fold(layers(published_heads / PUBLISHED_FILES[name]))
    # In float64 throughout, only the order of the sums differs.
    np.testing.assert_allclose(embeddings @ exact.weight[0] + exact.bias[0], expected, rtol=0, atol=1e-12)
    # The package keeps float32, with a relative error of 6e-8 per weight. Scores are around 5.
    kept = embeddings.astype(np.float64) @ head.weight.astype(np.float64) + head.bias
    np.testing.assert_allclose(kept, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(head(embeddings), expected, rtol=0, atol=FLOAT32_ATOL)


def test_the_relu_head_keeps_its_layers(published_heads: Path) -> None:
    name = "laion-aesthetics-v2-ava-relu"
    head = weights.load_head(BUILT_IN[name], str(published_heads))
    assert not head.affine
    embeddings = unit_embeddings(768)
    expected = layered(published_heads / FILES[name], embeddings, relu=True)
    np.testing.assert_allclose(head(embeddings), expected, rtol=0, atol=FLOAT32_ATOL)
    # Without its activation, the head would give different scores.
    assert np.abs(layered(published_heads / FILES[name], embeddings) - expected).max() > 0.1


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_give_the_published_scores(name: str, published_heads: Path) -> None:
    head = weights.read_head(published_heads / FILES[name], sha256=BUILT_IN[name].head_sha256)
    np.testing.assert_allclose(head(published_embeddings()), PUBLISHED[name], rtol=0, atol=0.0005)


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name in PUBLISHED_FILES])
def test_packaged_heads_give_the_published_scores(name: str) -> None:
    head = weights.load_head(BUILT_IN[name])
    np.testing.assert_allclose(head(published_embeddings()), PUBLISHED[name], rtol=0, atol=0.0005)


def test_the_scores_for_users_tests_are_the_published_ones() -> None:
    assert list(PUBLISHED_SCORES) == PUBLISHED["laion-aesthetics-v2"]


def test_the_default_head_is_the_vector_of_the_design() -> None:
    head = weights.load_head(BUILT_IN["laion-aesthetics-v2"])
    assert head.bias == pytest.approx(5.23665, abs=1e-5)
    assert np.linalg.norm(head.weight) == pytest.approx(17.9956, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "dimension"),
    [
        ("laion-aesthetics-v2", 768),
        ("laion-aesthetics-v2-ava", 768),
        ("laion-aesthetics-v1", 768),
        ("laion-aesthetics-v1-b32", 512),
        ("laion-aesthetics-v1-b16", 512),
    ],
)
def test_packaged_heads_take_the_embeddings_of_their_backbone(name: str, dimension: int) -> None:
    head = weights.load_head(BUILT_IN[name])
    assert (head.affine, head.dimension, head.weight.dtype) == (True, dimension, np.float32)


def test_v1_on_vit_b_32_ranks_the_published_levels() -> None:
    """No scores are published for this head, but the order of its ten levels of appeal is known."""
    scores = weights.load_head(BUILT_IN["laion-aesthetics-v1-b32"])(published_embeddings("vit_b_32"))
    assert np.all(np.diff(scores) > 0)


# Rows with and without a score

# HEAD computes 2 * x + 3 * y + 1.
HEAD = Head((Layer(np.array([[2, 3]], np.float32), np.array([1], np.float32)),))
RELU_HEAD = Head(
    (
        Layer(np.array([[1, 0], [0, 1]], np.float32), np.array([0, 0], np.float32)),
        Layer(np.array([[2, 3]], np.float32), np.array([1], np.float32)),
    )
)
NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("vector", "error"),
    [
        (None, NULL),
        ([], WRONG_LENGTH),
        ([1.0], WRONG_LENGTH),
        ([1.0, 2.0, 3.0], WRONG_LENGTH),
        ([[1.0, 2.0]], WRONG_LENGTH),
        ([None], WRONG_LENGTH),
        ([NAN, 1.0], NOT_FINITE),
        ([1.0, INFINITY], NOT_FINITE),
        ([-INFINITY, 0.0], NOT_FINITE),
        ([INFINITY, -INFINITY], NOT_FINITE),
        ([None, 1.0], NOT_FINITE),
        ([None, None], NOT_FINITE),
        # float32 cannot hold these doubles.
        ([1e300, 0.0], NOT_FINITE),
        (np.array([0.0, -1e39]), NOT_FINITE),
    ],
)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("head", [HEAD, RELU_HEAD], ids=["affine", "relu"])
def test_a_bad_row_has_its_reason_and_its_neighbours_their_scores(
    head: Head, vector: npt.ArrayLike | None, error: str, normalize: bool
) -> None:
    scores, errors = score_embeddings(head, [vector, [0.6, 0.8], vector], normalize=normalize)
    assert errors == [error, None, error]
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, [NAN, 4.6, NAN], rtol=1e-6)


@pytest.mark.parametrize("zero", [[0.0, 0.0], [-0.0, 0.0], [0, 0]])
def test_a_zero_vector_has_no_direction_but_scores_as_the_bias(zero: list[float]) -> None:
    scores, errors = score_embeddings(HEAD, [zero], normalize=True)
    assert (np.isnan(scores).tolist(), errors) == ([True], [ZERO_NORM])
    scores, errors = score_embeddings(HEAD, [zero], normalize=False)
    assert (scores.tolist(), errors) == ([1.0], [None])


@pytest.mark.parametrize("factor", [1e-12, 1.0, 7.0, 1e15])
@pytest.mark.parametrize("kind", [list, tuple, np.float32, np.float64])
def test_normalising_takes_away_the_length_alone(factor: float, kind: type) -> None:
    vector = np.array([0.6, 0.8]) * factor
    row = vector.astype(kind) if kind in (np.float32, np.float64) else kind(vector.tolist())
    scores, errors = score_embeddings(HEAD, [row], normalize=True)
    assert errors == [None]
    np.testing.assert_allclose(scores, [4.6], rtol=1e-6)


def test_without_normalising_the_length_counts() -> None:
    scores, errors = score_embeddings(HEAD, [[6.0, 8.0], [1e25, 0.0]], normalize=False)
    assert errors == [None, None]
    np.testing.assert_allclose(scores, [37.0, 2e25], rtol=1e-6)


def test_a_score_of_zero_is_a_score() -> None:
    scores, errors = score_embeddings(HEAD, [[-0.5, 0.0]], normalize=False)
    assert (scores.tolist(), errors) == ([0.0], [None])


@pytest.mark.parametrize("vectors", [[], [None], [None, None]])
def test_nothing_to_score_is_no_error(vectors: list[None]) -> None:
    scores, errors = score_embeddings(HEAD, vectors, normalize=True)
    assert (scores.shape, errors) == ((len(vectors),), [NULL] * len(vectors))
    assert np.isnan(scores).all()


def test_a_row_scores_the_same_alone_and_among_others() -> None:
    """Sums over different shapes may run in a different order and differ by a few float32 steps."""
    head = weights.load_head(BUILT_IN["laion-aesthetics-v2"])
    rows = list(unit_embeddings(768)[:40])
    together, _ = score_embeddings(head, [None, *rows], normalize=True)
    alone = [score_embeddings(head, [row], normalize=True)[0][0] for row in rows]
    np.testing.assert_allclose(together[1:], alone, rtol=0, atol=FLOAT32_ATOL)


def test_untrained_heads_repeat_by_seed() -> None:
    assert untrained(1, 8).weight.tolist() == untrained(1, 8).weight.tolist()
    assert untrained(1, 8).weight.tolist() != untrained(2, 8).weight.tolist()
    assert untrained(1, 8).dimension == 8
