"""Embeddings and scores of photographs equal those of plain open_clip with the layered head, in float32."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from spark_aesthetic.images.pipeline import ImageScorer
from spark_aesthetic.options import Options
from spark_aesthetic.predictors import weights
from spark_aesthetic.predictors.recipe import Predictor
from spark_aesthetic.testing import photographs

TOLERANCE = 1e-5


def layered_head(dimension: int) -> torch.nn.Sequential:
    """Return the published V2 architecture from its training script, with weights on the scale of a trained head."""
    torch.manual_seed(1)
    layers = [torch.nn.Linear(*shape) for shape in ((dimension, 1024), (1024, 128), (128, 64), (64, 16), (16, 1))]
    for layer in layers:
        layer.weight.data *= 3
    head = torch.nn.Sequential(
        layers[0],
        torch.nn.Dropout(0.2),
        layers[1],
        torch.nn.Dropout(0.2),
        layers[2],
        torch.nn.Dropout(0.1),
        *layers[3:],
    )
    return head.eval()


@pytest.mark.parametrize(
    ("architecture", "dimension"),
    [
        ("ViT-S-32", 384),
        ("RN50", 1024),
        ("ViT-B-32-quickgelu", 512),
        pytest.param("ViT-L-14-quickgelu", 768, marks=pytest.mark.long),
    ],
)
def test_scores_equal_plain_open_clip_with_the_layered_head(architecture: str, dimension: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, _, transform = open_clip.create_model_and_transforms(architecture, pretrained=None)
    model.eval()
    head = layered_head(dimension)
    save_file({f"visual.{name}": value for name, value in model.visual.state_dict().items()}, tmp_path / "tower.st")
    save_file({f"layers.{name}": value for name, value in head.state_dict().items()}, tmp_path / "head.st")

    images = [Image.open(BytesIO(data)) for data in photographs().values()]
    with torch.inference_mode():
        expected = model.encode_image(torch.stack([transform(image) for image in images]), normalize=True)
        expected_scores = head(expected)[:, 0]

    mine = Predictor(
        name="seeded",
        backbone=architecture,
        backbone_weights=str(tmp_path / "tower.st"),
        head_weights=str(tmp_path / "head.st"),
    )
    scorer = ImageScorer(weights.pin(mine), Options(device="cpu", num_threads=2, batch_size=4))
    rows = list(scorer.score(photographs().values()))
    embeddings = np.concatenate([row.embeddings for row in rows])
    scores = np.concatenate([row.scores for row in rows])

    assert [row.errors for row in rows] == [[None] * 4, [None] * 4, [None]]
    assert np.abs(embeddings - expected.numpy()).max() < TOLERANCE
    assert np.abs(scores - expected_scores.numpy()).max() < TOLERANCE
    # Without this check, the comparison would pass for a tower that ignores its input.
    assert np.ptp(scores) > 100 * TOLERANCE
