"""Backbone files of every accepted form become the one file that the workers memory-map."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from spark_aesthetic.errors import PredictorError, WeightsError
from spark_aesthetic.images import architectures
from spark_aesthetic.images.encoder import MEAN, STD, ImageEncoder, normalize
from spark_aesthetic.images.pipeline import load_encoder, load_model
from spark_aesthetic.images.prepare import check, in_open_clip_names, prepare, seeded_tower
from spark_aesthetic.images.tower import VisionTower, rewrite
from spark_aesthetic.predictors import weights
from spark_aesthetic.predictors.recipe import Predictor
from spark_aesthetic.testing import small_predictor

ARCHITECTURE = "ViT-S-32"

Tensors = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "cache"
    monkeypatch.setenv("SPARK_AESTHETIC_CACHE", str(folder))
    yield folder
    # Each prepared file takes 88 MB, and pytest would keep the files of three runs.
    shutil.rmtree(folder, ignore_errors=True)


def encoded(encoder: ImageEncoder, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    return encoder(encoder.to_device(list(pixels)))


@pytest.fixture(scope="module")
def tower() -> Tensors:
    """Return seeded tensors of an image tower under open_clip's names.

    They are float32 values that float16 holds exactly, as OpenAI's are. They have the scale of a trained tower. With
    weights around 1, attention would have logits of thousands and would multiply the rounding of float32 (in
    open_clip's tower to 3e-5 of an embedding, measured against float64).
    """
    generator = torch.Generator().manual_seed(7)
    empty = architectures.empty_tower(ARCHITECTURE).state_dict()
    return {
        name: torch.randn(tensor.shape, generator=generator).div(16).half().float() for name, tensor in empty.items()
    }


# Each of these functions returns the tensors of one form of file, written out by hand.


def both_towers(tower: Tensors) -> Tensors:
    """Return both towers under open_clip's names.

    The text tower has the names of the image tower without the prefix.
    """
    text = {
        "positional_embedding": torch.zeros(77, 8),
        "token_embedding.weight": torch.zeros(10, 8),
        "transformer.resblocks.0.attn.in_proj_weight": torch.zeros(24, 8),
        "transformer.resblocks.0.attn.in_proj_bias": torch.zeros(24),
        "ln_final.weight": torch.ones(8),
        "text_projection": torch.zeros(8, 384),
        "logit_scale": torch.tensor(4.6),
    }
    return {**prefixed(tower), **text}


def prefixed(tower: Tensors) -> Tensors:
    return {f"visual.{name}": tensor for name, tensor in tower.items()}


def bare(tower: Tensors) -> Tensors:
    return dict(tower)


def transformers_image_tower(tower: Tensors) -> Tensors:
    """Return the tensors of a CLIPVisionModelWithProjection of transformers.

    Its q, k and v are separate, and its projection is transposed.
    """
    named = {
        "vision_model.embeddings.class_embedding": tower["class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": tower["conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": tower["positional_embedding"],
        "vision_model.embeddings.position_ids": torch.arange(50)[None],
        "visual_projection.weight": tower["proj"].T.contiguous(),
    }
    for kind in ("weight", "bias"):
        named[f"vision_model.pre_layrnorm.{kind}"] = tower[f"ln_pre.{kind}"]
        named[f"vision_model.post_layernorm.{kind}"] = tower[f"ln_post.{kind}"]
        for number in range(12):
            ours, theirs = f"transformer.resblocks.{number}", f"vision_model.encoder.layers.{number}"
            joined = tower[f"{ours}.attn.in_proj_{kind}"]
            for part, rows in zip("qkv", joined.split(384), strict=True):
                named[f"{theirs}.self_attn.{part}_proj.{kind}"] = rows.clone()
            named[f"{theirs}.self_attn.out_proj.{kind}"] = tower[f"{ours}.attn.out_proj.{kind}"]
            named[f"{theirs}.layer_norm1.{kind}"] = tower[f"{ours}.ln_1.{kind}"]
            named[f"{theirs}.layer_norm2.{kind}"] = tower[f"{ours}.ln_2.{kind}"]
            named[f"{theirs}.mlp.fc1.{kind}"] = tower[f"{ours}.mlp.c_fc.{kind}"]
            named[f"{theirs}.mlp.fc2.{kind}"] = tower[f"{ours}.mlp.c_proj.{kind}"]
    return named


def transformers_both_towers(tower: Tensors) -> Tensors:
    text = {
        "logit_scale": torch.tensor(4.6),
        "text_model.embeddings.token_embedding.weight": torch.zeros(10, 8),
        "text_model.encoder.layers.0.self_attn.q_proj.weight": torch.zeros(8, 8),
        "text_projection.weight": torch.zeros(384, 8),
    }
    return {**transformers_image_tower(tower), **text}


class Archived(torch.nn.Module):
    """The part of OpenAI's archives that has the image tower: a module `visual` in float16."""

    def __init__(self, tower: Tensors) -> None:
        super().__init__()
        self.visual = architectures.empty_tower(ARCHITECTURE)
        self.visual.load_state_dict({name: tensor.half() for name, tensor in tower.items()}, assign=True)

    def forward(self, number: torch.Tensor) -> torch.Tensor:
        return number + 1


FORMS = [both_towers, prefixed, bare, transformers_image_tower, transformers_both_towers, Archived]


def write(form: object, tower: Tensors, folder: Path) -> Path:
    if form is Archived:
        with warnings.catch_warnings():
            # torch 2.15 deprecates all of TorchScript, but nothing else can make archives such as OpenAI's.
            warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", FutureWarning)
            torch.jit.save(torch.jit.trace(Archived(tower), torch.zeros(1)), folder / "backbone.pt")
        return folder / "backbone.pt"
    save_file(form(tower), folder / "backbone.safetensors")  # type: ignore[operator]  # one of FORMS
    return folder / "backbone.safetensors"


def head_file(folder: Path, dimension: int = 384) -> str:
    save_file({"weight": torch.ones(1, dimension), "bias": torch.zeros(1)}, folder / "head.safetensors")
    return str(folder / "head.safetensors")


def predictor(file: Path, backbone: str = ARCHITECTURE) -> Predictor:
    return Predictor(
        name="mine",
        backbone=backbone,
        backbone_weights=str(file),
        backbone_sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        head_weights=head_file(file.parent),
    )


def small(folder: Path) -> Predictor:
    """Return a predictor with a small backbone file, which has too few tensors for any architecture."""
    save_file({"class_embedding": torch.zeros(384)}, folder / "few.safetensors")
    return predictor(folder / "few.safetensors")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_tensors_bit_for_bit(form: object, tower: Tensors, tmp_path: Path) -> None:
    file = write(form, tower, tmp_path)
    prepared = load_file(prepare(predictor(file), dtype="float32"))
    file.unlink()
    shape = architectures.rewritten_shape(ARCHITECTURE)
    assert shape is not None
    expected = rewrite(tower, shape, torch.float32)
    assert set(prepared) == set(expected)
    for name, tensor in prepared.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, expected[name]), name


def test_a_tower_is_prepared_in_the_dtype_that_it_will_run_in(tower: Tensors, tmp_path: Path) -> None:
    mine = predictor(write(prefixed, tower, tmp_path))
    single, half = (prepare(mine, dtype=dtype) for dtype in ("float32", "float16"))
    assert single != half
    assert single.stat().st_size > 1.9 * half.stat().st_size
    for name, tensor in load_file(half).items():
        once = name in ("position", "pre_weight", "pre_bias", "projection_weight", "projection_bias")
        assert tensor.dtype == (torch.float32 if once else torch.float16), name


def test_a_tower_that_is_not_rewritten_keeps_open_clips_tensors_and_its_norms_single() -> None:
    """A ResNet is not rewritten and keeps the dtypes of open_clip."""
    resnet = weights.pin(replace(small_predictor(), backbone="RN50", head_weights="untrained:0:1024"))
    expected = architectures.empty_tower("RN50", "float16").state_dict()
    prepared = load_file(prepare(resnet, dtype="float16"))
    assert {name: tensor.dtype for name, tensor in prepared.items()} == {
        name: tensor.dtype for name, tensor in expected.items()
    }


@pytest.mark.parametrize("architecture", ["ViT-S-32", pytest.param("ViT-B-32-quickgelu", marks=pytest.mark.long)])
def test_the_rewritten_tower_is_open_clips_in_exact_arithmetic(architecture: str) -> None:
    """In float64 the rounding is too small to hide a wrong step of the algebra."""
    torch.manual_seed(0)
    reference = open_clip.create_model(architecture).visual.double().eval()
    for parameter in reference.parameters():
        # A fresh network has norms of 1 and biases of 0, which would hide half of the rewrites.
        parameter.data += 0.02 * torch.randn(parameter.shape, dtype=torch.float64)
    shape = architectures.rewritten_shape(architecture)
    assert shape is not None
    pixels = torch.randint(0, 256, (2, 224, 224, 3), dtype=torch.uint8)
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (MEAN, STD))
    with torch.inference_mode():
        expected = reference((pixels.double().div(255) - mean).div(std).permute(0, 3, 1, 2))
        rewritten = VisionTower(shape, rewrite(reference.state_dict(), shape, torch.float64))(pixels)
    assert (rewritten - expected).abs().max() < 1e-12 * expected.abs().max()


@pytest.mark.parametrize(
    ("dtype", "precision"), [pytest.param("float16", "fp16", marks=pytest.mark.long), ("bfloat16", "bf16")]
)
def test_half_precision_is_as_near_to_float32_as_open_clips(dtype: str, precision: str) -> None:
    untrained = weights.pin(small_predictor())
    pixels = np.random.default_rng(0).integers(0, 256, (4, 224, 224, 3), dtype=np.uint8)
    half = encoded(ImageEncoder(prepare(untrained, dtype=dtype), device="cpu"), pixels)
    assert (half.dtype, np.isfinite(half).all()) == (np.float32, True)

    def reference(precision: str) -> npt.NDArray[np.float32]:
        tower = open_clip.create_model(ARCHITECTURE, precision=precision).eval().visual
        tower.load_state_dict(seeded_tower(untrained))
        with torch.inference_mode():
            planes = normalize(torch.from_numpy(pixels)).to(tower.conv1.weight.dtype)
            unit: npt.NDArray[np.float32] = torch.nn.functional.normalize(tower(planes).float(), dim=-1).numpy()
        return unit

    exact = reference("fp32")
    distance, open_clips_distance = (
        np.linalg.norm(rows - exact, axis=1).max() for rows in (half, reference(precision))
    )
    # Rounding errors are random, so neither tower is nearer for every image.
    assert distance < 1.1 * open_clips_distance


def test_what_is_prepared_is_what_encodes(tower: Tensors, tmp_path: Path) -> None:
    file = write(transformers_both_towers, tower, tmp_path)
    encoder = ImageEncoder(prepare(predictor(file), dtype="float32"), device="cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    reference = architectures.empty_tower(ARCHITECTURE).eval()
    reference.load_state_dict(tower, assign=True)
    with torch.inference_mode():
        expected = torch.nn.functional.normalize(reference(normalize(torch.from_numpy(pixels))), dim=-1)
    np.testing.assert_allclose(encoded(encoder, pixels), expected.numpy(), rtol=0, atol=1e-6)


# Each node prepares a tower once.


def test_a_tower_is_prepared_once_and_its_source_not_read_again(tower: Tensors, tmp_path: Path) -> None:
    file = write(bare, tower, tmp_path)
    mine = predictor(file)
    first = prepare(mine, dtype="float32")
    before = first.stat()
    file.unlink()
    assert prepare(mine, dtype="float32") == first
    after = first.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_what_an_interrupted_run_left_is_overwritten(own_cache: Path) -> None:
    untrained = weights.pin(small_predictor())
    target = prepare(untrained, dtype="float16")
    content = target.read_bytes()
    target.unlink()
    part = target.with_name(f"{target.name}.part")
    part.write_bytes(b"cut short")
    assert prepare(untrained, dtype="float16").read_bytes() == content
    assert not part.exists()


@pytest.mark.parametrize("damage", ["cut off", "altered", "without a digest"])
def test_a_prepared_file_that_is_damaged_is_made_again_and_never_scored_with(
    damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    untrained = weights.pin(small_predictor())
    target = prepare(untrained, dtype="float32")
    content = target.read_bytes()
    if damage == "cut off":
        target.write_bytes(content[: len(content) // 2])
    elif damage == "altered":
        target.write_bytes(content[:-4] + b"\0\0\x80\x3f")
    else:
        target.with_name(f"{target.name}.b3").unlink()
    encoder = load_encoder(untrained, device="cpu", dtype="float32", model_path=None)
    assert f"{target} does not match its digest; preparing it again" in caplog.text
    assert target.read_bytes() == content
    pixels = np.zeros((1, 224, 224, 3), dtype=np.uint8)
    expected = encoded(ImageEncoder(target, device="cpu"), pixels)
    np.testing.assert_array_equal(encoded(encoder, pixels), expected)


def test_a_cache_that_others_can_write_to_is_not_scored_with(own_cache: Path) -> None:
    untrained = weights.pin(small_predictor())
    prepare(untrained, dtype="float32")
    own_cache.chmod(0o777)
    with pytest.raises(WeightsError, match=r"expected .* writable only by the user .*, found mode 0777"):
        load_encoder(untrained, device="cpu", dtype="float32", model_path=None)


def test_a_disk_that_fills_while_weights_are_prepared_is_one_line_and_leaves_nothing(own_cache: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL], check=True, capture_output=True, text=True, timeout=120)
    (message,) = done.stdout.splitlines()
    assert "Make space in the cache of weights" in message
    assert [file.name for file in (own_cache / "prepared").iterdir() if file.suffix != ".lock"] == []


FULL = """
import resource, signal
from spark_aesthetic.predictors import weights
from spark_aesthetic.errors import WeightsError
from spark_aesthetic.images.prepare import prepare
from spark_aesthetic.testing import small_predictor
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))
try:
    prepare(weights.pin(small_predictor()), dtype="float32")
except WeightsError as error:
    print(error)
"""


# Two processes are forked from one that has imported torch, as Spark forks workers from their daemon.
PREPARE = """
import os
from spark_aesthetic.predictors import weights
from spark_aesthetic.images.prepare import prepare
from spark_aesthetic.testing import small_predictor
predictor = weights.pin(small_predictor())
children = []
for _ in range(2):
    child = os.fork()
    if child == 0:
        try:
            path = prepare(predictor, dtype="float32")
            print(path, path.stat().st_ino, path.stat().st_mtime_ns, flush=True)
        finally:
            os._exit(0)
    children.append(child)
for child in children:
    os.waitpid(child, 0)
"""


def test_of_two_processes_at_once_one_prepares_and_both_get_the_file(own_cache: Path) -> None:
    """A second write would give the file a different inode from the one that the first process saw."""
    run = subprocess.run([sys.executable, "-c", PREPARE], capture_output=True, text=True, check=True, timeout=120)
    file = prepare(weights.pin(small_predictor()), dtype="float32")
    seen = f"{file} {file.stat().st_ino} {file.stat().st_mtime_ns}"
    assert run.stdout.splitlines() == [seen, seen]
    assert list(own_cache.rglob("*.safetensors")) == [file]


def test_untrained_towers_are_the_same_for_a_seed_and_differ_between_seeds(own_cache: Path) -> None:
    contents = []
    for seed in (0, 0, 1):
        shutil.rmtree(own_cache, ignore_errors=True)
        contents.append(prepare(weights.pin(small_predictor(seed)), dtype="float16").read_bytes())
    assert contents[0] == contents[1] != contents[2]


# The workers of a node share the prepared file.


def mapped(file: Path) -> list[range]:
    """Return the address ranges of this process that map a file (Linux)."""
    ranges = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(str(file)):
            start, end = line.split(" ")[0].split("-")
            ranges.append(range(int(start, 16), int(end, 16)))
    return ranges


def test_on_a_cpu_the_tensors_of_an_encoder_stay_memory_mapped() -> None:
    file = prepare(weights.pin(small_predictor()), dtype="float32")
    assert mapped(file) == []
    encoder = ImageEncoder(file, device="cpu")
    ranges = mapped(file)
    assert ranges != []
    assert isinstance(encoder.tower, VisionTower)
    for name, tensor in encoder.tower.tensors.items():
        assert any(tensor.data_ptr() in addresses for addresses in ranges), name


def test_a_prepared_cache_may_be_there_to_read_only(tower: Tensors, tmp_path: Path) -> None:
    """The lock is a folder here, which no user can lock."""
    mine = predictor(write(bare, tower, tmp_path))
    file = prepare(mine, dtype="float16")
    lock = Path(f"{file}.lock")
    lock.unlink(missing_ok=True)
    lock.mkdir()
    assert prepare(mine, dtype="float16") == file
    file.unlink()
    with pytest.raises(WeightsError, match="SPARK_AESTHETIC_CACHE"):
        prepare(mine, dtype="float16")


# The check comes before any work.


@pytest.mark.parametrize("form", FORMS)
def test_every_form_that_fits_passes_the_check(form: object, tower: Tensors, tmp_path: Path, own_cache: Path) -> None:
    check(predictor(write(form, tower, tmp_path)))
    assert not own_cache.exists()


@pytest.mark.parametrize("backbone", ["ViT-S-16", "ViT-B-32"])
def test_a_head_of_another_length_fails_the_check_and_the_load(backbone: str, tower: Tensors, tmp_path: Path) -> None:
    mine = predictor(write(bare, tower, tmp_path))
    wrong = replace(mine, head_weights=head_file(tmp_path, 768))
    for attempt in (lambda: check(wrong), lambda: load_model(wrong, device="cpu", dtype="float32", model_path=None)):
        with pytest.raises(WeightsError, match=r"a head for the 384 numbers of ViT-S-32.*takes 768"):
            attempt()
    with pytest.raises(WeightsError, match="expected"):
        check(replace(mine, backbone=backbone))


def test_the_check_of_untrained_parts_needs_no_file() -> None:
    check(weights.pin(small_predictor()))
    with pytest.raises(WeightsError, match="takes 512"):
        check(weights.pin(replace(small_predictor(), head_weights="untrained:0:512")))


@pytest.mark.parametrize(
    ("backbone", "reason"),
    [
        ("ViT-S-23", "did you mean"),
        ("hf-hub:timm/ViT-B-16-SigLIP", "no architecture"),
        ("ViT-B-16-SigLIP", "custom_text, timm_model_name"),
        ("convnext_base", "timm_model_name"),
        ("coca_ViT-B-32", "multimodal_cfg"),
        ("ViT-L-14-CLIPA", "preprocessing of its published weights"),
    ],
)
def test_architectures_that_do_not_fit_are_refused(backbone: str, reason: str) -> None:
    with pytest.raises(PredictorError, match=reason):
        check(weights.pin(replace(small_predictor(), backbone=backbone)))


# Unusable backbone files are refused.


def refused(mine: Predictor, cache: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        prepare(mine, dtype="float32")
    with pytest.raises(WeightsError) as checked:
        check(mine)
    assert str(checked.value) == str(caught.value)
    assert list((cache / "prepared").glob("*.safetensors")) == []
    assert mine.backbone_weights in str(caught.value)
    return str(caught.value)


def test_another_architecture_names_a_tensor_and_the_remedy(tower: Tensors, tmp_path: Path, own_cache: Path) -> None:
    mine = predictor(write(prefixed, tower, tmp_path), backbone="ViT-S-16")
    message = refused(mine, own_cache)
    for part in ("ViT-S-16", "2 of 152", "positional_embedding (197, 384), found (50, 384)", "as backbone"):
        assert part in message


def test_a_file_without_an_image_tower_says_what_is_missing(tmp_path: Path, own_cache: Path) -> None:
    message = refused(small(tmp_path), own_cache)
    for part in ("151 of 152", "positional_embedding (50, 384), found nothing", "as backbone"):
        assert part in message


def test_a_part_of_an_attention_that_is_missing_is_named(tower: Tensors, tmp_path: Path, own_cache: Path) -> None:
    tensors = transformers_image_tower(tower)
    del tensors["vision_model.encoder.layers.3.self_attn.v_proj.bias"]
    save_file(tensors, tmp_path / "backbone.safetensors")
    message = refused(predictor(tmp_path / "backbone.safetensors"), own_cache)
    assert "1 of 152" in message
    assert "transformer.resblocks.3.attn.in_proj_bias (1152,), found (768,)" in message


@pytest.mark.parametrize(
    "content", [b"", b"no archive", b"PK\x03\x04 cut short", b"\x10\0\0\0\0\0\0\0{not json}", b"\xff" * 8 + b"{"]
)
def test_a_file_that_is_no_archive_is_refused(content: bytes, tmp_path: Path, own_cache: Path) -> None:
    (tmp_path / "backbone.bin").write_bytes(content)
    assert "reads as neither" in refused(predictor(tmp_path / "backbone.bin"), own_cache)


def test_a_pickled_state_dict_is_refused_with_the_remedy(tmp_path: Path, own_cache: Path) -> None:
    torch.save({"visual.class_embedding": torch.zeros(384)}, tmp_path / "open_clip_pytorch_model.bin")
    message = refused(predictor(tmp_path / "open_clip_pytorch_model.bin"), own_cache)
    assert message.endswith("Save a .pth or .bin of tensors again as safetensors.")


def test_names_of_nothing_known_stay_as_they_are() -> None:
    assert list(in_open_clip_names({"proj": torch.zeros(1), "more": torch.zeros(1)})) == ["proj", "more"]
