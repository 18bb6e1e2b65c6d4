"""Encoders of timm and open_clip give the embeddings of those libraries, and those of this package's own tower."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
import open_clip
import pytest
import timm
import torch
from PIL import Image
from pyspark.sql import SparkSession
from safetensors.torch import save_file
from timm.data import create_transform, resolve_model_data_config

import spark_aesthetic as sa
from spark_aesthetic.errors import OptionError, WeightsError
from spark_aesthetic.images.prepare import seeded_tower
from spark_aesthetic.predictors import weights
from spark_aesthetic.testing import noise_image, photographs

PHOTOGRAPHS = list(photographs().values())


def embedded(spark: SparkSession, rows: list[bytes | None], **options: object) -> npt.NDArray[np.float32]:
    frame = spark.createDataFrame([(at, None if row is None else bytearray(row)) for at, row in enumerate(rows)])
    made = frame.toDF("id", "image").select("id", sa.image_embedding("image", **options).alias("e"))  # type: ignore[arg-type]
    return np.array([row.e for row in sorted(made.collect())], dtype=np.float32)


def of_timm(name: str) -> npt.NDArray[np.float32]:
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    model.reset_classifier(0)
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    rows = [Image.open(BytesIO(photo)).convert("RGB") for photo in PHOTOGRAPHS]
    with torch.inference_mode():
        return np.asarray(model(torch.stack([transform(row) for row in rows])).numpy())


@pytest.mark.parametrize("name", [pytest.param("vit_tiny_patch16_224", marks=pytest.mark.long), "resnet18.a1_in1k"])
def test_a_model_of_timm_embeds_as_timm_does(spark: SparkSession, name: str) -> None:
    expected = of_timm(name)
    found = embedded(spark, PHOTOGRAPHS, model_name=name, pretrained=False, normalize=False)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    unit = embedded(spark, PHOTOGRAPHS, model_name=name, pretrained=False)
    np.testing.assert_allclose(unit, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5)


def test_a_model_of_open_clip_embeds_as_open_clip_does(spark: SparkSession, tmp_path: Path) -> None:
    model, _, transform = open_clip.create_model_and_transforms("ViT-S-32-alt")
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, tmp_path / "mine.safetensors")
    rows = [Image.open(BytesIO(photo)) for photo in PHOTOGRAPHS]
    with torch.inference_mode():
        expected = model.eval().encode_image(torch.stack([transform(row) for row in rows]), normalize=True).numpy()
    found = embedded(spark, PHOTOGRAPHS, model_name="ViT-S-32-alt", model_path=str(tmp_path / "mine.safetensors"))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_clip_in_timm_is_the_embedding_that_scores_are_made_of(spark: SparkSession, tmp_path: Path) -> None:
    name = "vit_base_patch32_clip_quickgelu_224.openai"
    mine = sa.Predictor(
        name="untrained-mine",
        backbone="ViT-B-32-quickgelu",
        backbone_weights="untrained:3",
        head_weights="untrained:0:512",
    )
    tower = seeded_tower(weights.pin(mine))
    save_file({f"visual.{key}": tensor for key, tensor in tower.items()}, tmp_path / f"{name}.safetensors")
    # The images are square and of the target's size. This model of timm crops to 0.9, so it only enlarges and cuts
    # them.
    rows = [noise_image(seed, width=224, height=224, file_format="PNG") for seed in range(3)]
    found = embedded(spark, rows, model_name=name, model_path=str(tmp_path))
    assert found.shape == (3, 512)
    again = spark.createDataFrame([(row.tolist(),) for row in found], "e array<float>")
    scored = again.select(sa.score_image("e", predictor=mine, input_kind="embedding").alias("s")).select("s.*")
    assert [row.error for row in scored.collect()] == [None] * 3
    assert {row.model for row in scored.collect()} == {weights.pin(mine).model_id}


def test_bad_rows_are_null_and_cost_no_other_row(spark: SparkSession) -> None:
    rows: list[bytes | None] = [None, b"no image", noise_image(1), noise_image(1)[:-300]]
    frame = spark.createDataFrame([(at, None if row is None else bytearray(row)) for at, row in enumerate(rows)])
    made = frame.toDF("id", "image").select(
        "id", sa.image_embedding("image", model_name="vit_tiny_patch16_224", pretrained=False).alias("e")
    )
    assert [row.e is None for row in sorted(made.collect())] == [True, True, False, True]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"model_name": "vit_large_patch14_clip_quickgelu_224.openia"}, "did you mean 'openai'"),
        ({"model_name": "ViT-B-23"}, "did you mean 'ViT-B-32'"),
        ({"model_name": "ViT-B-32", "pretrained": "open_ai"}, "did you mean 'openai'"),
        ({"model_name": "resnet18", "pretrained": "a1_in1k"}, "resnet18.a1_in1k"),
        ({"model_name": "resnet18", "bach_size": 3}, "did you mean 'batch_size'"),
        ({"model_name": "clip"}, "no such model .*did you mean .*clip"),
        ({"model_name": None}, "expected the name of a model"),
        ({"model_name": "resnet18", "normalise": True}, "did you mean 'normalize'"),
        ({"model_name": "resnet18", "pretrained": None}, "expected True, False or a tag"),
        ({"model_name": "resnet18", "device": "gpu"}, "did you mean"),
        ({"model_name": "vit_base_patch16_plus_240"}, "timm has no weights of it"),
        ({"model_name": "vit_base_patch32_clip_224.openai"}, "Use 'vit_base_patch32_clip_quickgelu_224.openai'"),
        ({"model_name": "roberta-ViT-B-32"}, "expected the tag of the weights"),
    ],
)
def test_wrong_arguments_are_errors_at_the_call(options: dict[str, object], match: str) -> None:
    with pytest.raises(OptionError, match=match) as raised:
        sa.image_embedding("image", **options)  # type: ignore[arg-type]
    # The message names a few of a thousand models and where to find the rest, but all thirty weights of an
    # architecture.
    assert len(str(raised.value)) < 1000


def test_weights_that_are_no_safetensors_are_refused(spark: SparkSession, tmp_path: Path) -> None:
    from spark_aesthetic.images.other_encoders import load_encoder
    from spark_aesthetic.options import EncoderName

    file = tmp_path / "resnet18.safetensors"
    torch.save({}, file)
    name = EncoderName(model_name="resnet18", pretrained=True, model_path=str(tmp_path))
    with pytest.raises(WeightsError, match="expected a safetensors file"):
        load_encoder(name, unit=True, device="cpu", dtype="float32")
    for other in ({"conv1.weight": torch.zeros(1)}, {"backbone.conv1.weight": torch.zeros(64, 3, 7, 7)}):
        save_file(other, file)
        with pytest.raises(WeightsError, match="weights of resnet18"):
            load_encoder(name, unit=True, device="cpu", dtype="float32")


def test_weights_of_open_clip_get_the_activation_and_the_preprocessing_of_their_tag(tmp_path: Path) -> None:
    from spark_aesthetic.images.other_encoders import load_encoder
    from spark_aesthetic.options import EncoderName

    def expected(architecture: str, pretrained: str, quick: bool) -> npt.NDArray[np.float32]:
        torch.manual_seed(1)
        model = open_clip.create_model(architecture, force_quick_gelu=quick)
        save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, tmp_path / "w.safetensors")
        cfg = open_clip.get_pretrained_cfg(architecture, pretrained)
        transform = open_clip.transform.image_transform_v2(
            open_clip.transform.PreprocessCfg(
                size=model.visual.image_size, mode="RGB", mean=cfg["mean"], std=cfg["std"],
                interpolation=cfg["interpolation"], resize_mode=cfg["resize_mode"],
            ),
            is_train=False,
        )  # fmt: skip
        with torch.inference_mode():
            photo = transform(Image.open(BytesIO(PHOTOGRAPHS[0])))[None]
            return np.asarray(model.eval().encode_image(photo, normalize=True)[0].numpy())

    def found(architecture: str, pretrained: bool | str) -> npt.NDArray[np.float32]:
        name = EncoderName(model_name=architecture, pretrained=pretrained, model_path=str(tmp_path / "w.safetensors"))
        encoder = load_encoder(name, unit=True, device="cpu", dtype="float32")
        assert encoder.preprocess is not None
        pixels = encoder.preprocess(Image.open(BytesIO(PHOTOGRAPHS[0])))
        return encoder(encoder.to_device([pixels]))[0]

    np.testing.assert_allclose(
        found_after := expected("ViT-B-32", "openai", quick=True), found("ViT-B-32", True), atol=1e-5
    )
    assert found_after.shape == (512,)
    squashed = expected("ViT-B-16-SigLIP", "webli", quick=False)
    np.testing.assert_allclose(squashed, found("ViT-B-16-SigLIP", True), atol=1e-5)
