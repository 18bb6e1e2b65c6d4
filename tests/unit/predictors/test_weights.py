"""Weights: the order of the places to search, the files that are refused unopened, and the ids of their content."""

from __future__ import annotations

import hashlib
import json
import pickle
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save as save_bytes
from safetensors.torch import save_file as save_torch_file

from spark_aesthetic.errors import ChecksumError, PredictorError, WeightsError, WeightsNotFoundError
from spark_aesthetic.predictors import cache, weights
from spark_aesthetic.predictors import head as heads
from spark_aesthetic.predictors.recipe import BUILT_IN, Predictor, resolve

SOME_SHA256 = "0123456789abcdef" * 4


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("SPARK_AESTHETIC_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SPARK_AESTHETIC_WEIGHTS", raising=False)
    return tmp_path / "cache"


def recipe(**fields: str | None) -> Predictor:
    """Return a complete predictor. None of its addresses is outside this machine."""
    values: dict[str, str | None] = {
        "name": "mine",
        "backbone": "ViT-S-32",
        "backbone_weights": "/nowhere/backbone.safetensors",
        "backbone_sha256": SOME_SHA256,
        "head_weights": "/nowhere/head.safetensors",
        "head_sha256": SOME_SHA256,
    }
    return Predictor(**{**values, **fields})


def head_bytes(bias: float) -> bytes:
    """Return an affine head on two numbers that scores a zero vector as `bias`."""
    return save_bytes({"weight": np.ones((1, 2), np.float32), "bias": np.array([bias], np.float32)})


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# Places of weights


@pytest.mark.parametrize("first", ["model_path", "environment", "own path", "cache"])
def test_files_are_looked_for_in_the_documented_order(
    first: str, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`first` is the first place that has the file, and all later places have it too."""
    order = ["model_path", "environment", "own path", "cache"]
    own_path = tmp_path / "own" / "weights.safetensors"
    source = str(own_path)
    paths = {
        "model_path": tmp_path / "model" / "weights.safetensors",
        "environment": tmp_path / "shelf" / "weights.safetensors",
        "own path": own_path,
        "cache": own_cache / "downloads" / sha256(b"same")[:12] / "weights.safetensors",
    }
    (tmp_path / "model").mkdir()
    monkeypatch.setenv("SPARK_AESTHETIC_WEIGHTS", str(tmp_path / "shelf"))
    for place in order[order.index(first) :]:
        put(paths[place], b"same")
    found = weights.backbone_file(
        recipe(backbone_weights=source, backbone_sha256=sha256(b"same")), str(tmp_path / "model")
    )
    assert found == paths[first]


def test_model_path_may_be_the_backbones_file_under_any_name(tmp_path: Path) -> None:
    file = put(tmp_path / "renamed.bin", b"content")
    predictor = recipe(backbone_sha256=sha256(b"content"))
    assert weights.backbone_file(predictor, str(file)) == file


def test_a_model_path_that_is_a_file_has_the_head_beside_it(tmp_path: Path) -> None:
    backbone = put(tmp_path / "renamed.bin", b"content")
    put(tmp_path / "head.safetensors", head_bytes(3.0))
    head = weights.load_head(recipe(head_sha256=sha256(head_bytes(3.0))), str(backbone))
    assert head.bias == 3.0


def test_a_model_path_without_the_file_falls_through_to_the_next_place(tmp_path: Path) -> None:
    own_path = put(tmp_path / "own" / "head.safetensors", head_bytes(4.0))
    (tmp_path / "empty").mkdir()
    predictor = recipe(head_weights=str(own_path), head_sha256=None)
    assert weights.load_head(predictor, str(tmp_path / "empty")).bias == 4.0


def test_a_model_path_that_is_nowhere_is_an_error_not_a_download() -> None:
    with pytest.raises(WeightsNotFoundError, match="/no/such/folder"):
        weights.backbone_file(recipe(), "/no/such/folder")


def test_a_file_that_is_nowhere_names_every_place(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARK_AESTHETIC_WEIGHTS", str(tmp_path / "shelf"))
    with pytest.raises(WeightsNotFoundError) as caught:
        weights.backbone_file(recipe(), str(tmp_path))
    for place in (tmp_path, tmp_path / "shelf", Path("/nowhere")):
        assert str(place / "backbone.safetensors") in str(caught.value)
    assert str(own_cache) in str(caught.value)


# The second place exists and takes no file, not even from root.
@pytest.mark.parametrize("place", ["{file}/cache", "/proc"])
def test_a_cache_that_cannot_be_written_to_says_what_to_set(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARK_AESTHETIC_CACHE", place.format(file=put(tmp_path / "file", b"")))
    with pytest.raises(WeightsError, match="SPARK_AESTHETIC_CACHE"):
        cache.cache_dir()
    with pytest.raises(WeightsError, match="SPARK_AESTHETIC_CACHE"):
        weights.backbone_file(recipe(backbone_weights="http://127.0.0.1:1/backbone.safetensors"))


@pytest.mark.parametrize(
    "source",
    [
        "https://127.0.0.1:1/%2e%2e", "https://127.0.0.1:1/a/..", "s3://bucket/", "https://127.0.0.1:1/a%2f%2e%2e",
        "https://[::1/weights.bin", "https://127.0.0.1:1/" + "x" * 5000, "https://127.0.0.1:1/a%00", "/models/..",
        "/" + "x" * 5000,
    ],
    ids=range(9),
)  # fmt: skip
def test_weights_whose_address_names_no_file_are_refused_before_anything_is_fetched(source: str) -> None:
    for attempt in (weights.pin, weights.backbone_file, weights.load_head):
        for sha256_or_none in (None, SOME_SHA256):
            predictor = recipe(
                backbone_weights=source, head_weights=source, backbone_sha256=sha256_or_none, head_sha256=sha256_or_none
            )
            if attempt is weights.pin and sha256_or_none is not None:
                continue
            with pytest.raises(PredictorError, match="expected the path or URL of a file"):
                attempt(predictor)


def test_a_model_path_that_no_path_can_be_is_not_there() -> None:
    for path in ("x" * 5000, "a\0b"):
        with pytest.raises(WeightsNotFoundError, match="model_path"):
            weights.backbone_file(recipe(), path)


def test_a_file_at_hand_needs_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Executors may have no home folder, so their cache cannot be made."""
    monkeypatch.setenv("SPARK_AESTHETIC_CACHE", str(put(tmp_path / "file", b"") / "cache"))
    put(tmp_path / "head.safetensors", head_bytes(3.0))
    assert weights.load_head(recipe(head_sha256=sha256(head_bytes(3.0))), str(tmp_path)).bias == 3.0


# Checksums, and code in files


class Bomb:
    """An object that makes a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.trace), "w")


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return tmp_path / "code-was-run"


@pytest.fixture(params=["pickle", "torch.save"])
def bomb(request: pytest.FixtureRequest, tmp_path: Path, trace: Path) -> Path:
    """Write a head file that carries code."""
    file = tmp_path / "head.pth"
    content = {"weight": torch.ones(1, 2), "bias": torch.zeros(1), "more": Bomb(trace)}
    if request.param == "pickle":
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file)
    return file


def test_the_bomb_works(bomb: Path, trace: Path) -> None:
    """If the bomb did not work, the tests below would prove nothing."""
    loaded = torch.load(bomb, weights_only=False) if bomb.read_bytes()[:2] == b"PK" else pickle.loads(bomb.read_bytes())
    loaded["more"].close()
    assert trace.exists()


def test_a_file_with_another_checksum_is_refused_and_never_deserialised(bomb: Path, trace: Path) -> None:
    with pytest.raises(ChecksumError) as caught:
        weights.load_head(recipe(head_weights=str(bomb), head_sha256=SOME_SHA256))
    for part in (str(bomb), SOME_SHA256, sha256(bomb.read_bytes())):
        assert part in str(caught.value)
    with pytest.raises(ChecksumError):
        weights.read_head(bomb, sha256=SOME_SHA256)
    with pytest.raises(ChecksumError):
        weights.backbone_file(recipe(backbone_weights=str(bomb), backbone_sha256=SOME_SHA256))
    assert not trace.exists()


def test_a_pickle_without_a_checksum_is_refused_with_the_one_found(bomb: Path, trace: Path) -> None:
    predictor = recipe(head_weights=str(bomb), head_sha256=None)
    for attempt in (
        lambda: weights.pin(predictor),
        lambda: weights.load_head(predictor),
        lambda: weights.read_head(bomb, sha256=None),
    ):
        with pytest.raises(WeightsError, match=f'head_sha256="{sha256(bomb.read_bytes())}"'):
            attempt()
    assert not trace.exists()


def test_even_behind_its_checksum_the_code_in_a_pickle_is_not_run(bomb: Path, trace: Path) -> None:
    with pytest.raises(WeightsError, match="refuses with weights_only=True"):
        weights.load_head(recipe(head_weights=str(bomb), head_sha256=sha256(bomb.read_bytes())))
    assert not trace.exists()


def test_a_backbone_archive_without_a_checksum_is_refused_with_the_one_found(bomb: Path, trace: Path) -> None:
    with pytest.raises(WeightsError, match=f'backbone_sha256="{sha256(bomb.read_bytes())}"'):
        weights.pin(recipe(backbone_weights=str(bomb), backbone_sha256=None))
    assert not trace.exists()


def test_the_first_file_found_is_refused_not_passed_over(tmp_path: Path) -> None:
    put(tmp_path / "model" / "head.safetensors", head_bytes(1.0))
    right = put(tmp_path / "own" / "head.safetensors", head_bytes(2.0))
    predictor = recipe(head_weights=str(right), head_sha256=sha256(head_bytes(2.0)))
    assert weights.load_head(predictor).bias == 2.0
    with pytest.raises(ChecksumError, match="model"):
        weights.load_head(predictor, str(tmp_path / "model"))


def test_a_file_that_changes_within_a_process_is_checked_again(tmp_path: Path) -> None:
    file = put(tmp_path / "head.safetensors", head_bytes(1.0))
    predictor = recipe(head_weights=str(file), head_sha256=sha256(head_bytes(1.0)))
    weights.load_head(predictor)
    file.write_bytes(head_bytes(2.0))
    with pytest.raises(ChecksumError):
        weights.load_head(predictor)


def test_a_packaged_head_is_held_to_the_checksum_of_the_file_it_was_folded_from() -> None:
    published = BUILT_IN["laion-aesthetics-v2"]
    assert weights.load_head(published).dimension == 768
    with pytest.raises(ChecksumError, match=SOME_SHA256):
        weights.load_head(replace(published, name="mine", head_sha256=SOME_SHA256))


@pytest.mark.parametrize("name", [name for name, built_in in BUILT_IN.items() if "package:" in built_in.head_weights])
def test_the_checksums_of_packaged_heads_are_those_of_the_table(name: str) -> None:
    assert weights.pin(replace(BUILT_IN[name], head_sha256=None)) == BUILT_IN[name]


def test_a_head_that_is_not_in_the_package_names_those_that_are() -> None:
    with pytest.raises(PredictorError, match=r"did you mean 'laion-aesthetics-v\d'\? Valid: laion-aesthetics-v2, "):
        weights.load_head(recipe(head_weights="package:laion-aesthetics-v3"))


# The third would lead to a file of the package if it were a path.
@pytest.mark.parametrize("way", ["../../{tmp}/own", "{tmp}/own", "./laion-aesthetics-v2", "laion-aesthetics-v2/", ""])
def test_a_packaged_head_is_one_of_the_packages_names_and_never_a_path(way: str, tmp_path: Path) -> None:
    put(tmp_path / "own.safetensors", head_bytes(9.0))
    source = "package:" + way.format(tmp=str(tmp_path))
    for attempt in (weights.load_head, weights.pin):
        with pytest.raises(PredictorError, match="is not in the package"):
            attempt(recipe(head_weights=source, head_sha256=None))


def test_a_packaged_head_that_was_exchanged_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The file is refused, whatever its metadata say of its origin."""
    with resources.as_file(resources.files("spark_aesthetic.predictors.heads")) as folder:
        original = (folder / "laion-aesthetics-v1.safetensors").read_bytes()
        put(tmp_path / "laion-aesthetics-v2.safetensors", original)
    monkeypatch.setattr(resources, "files", lambda _: tmp_path)
    with pytest.raises(ChecksumError, match="laion-aesthetics-v2"):
        weights.load_head(BUILT_IN["laion-aesthetics-v2"])


# Ids of the content


def test_safetensors_without_a_checksum_is_pinned_by_its_content(tmp_path: Path) -> None:
    backbone = put(tmp_path / "backbone.safetensors", head_bytes(0.0))
    head = put(tmp_path / "head.safetensors", head_bytes(1.0))
    open_recipe = recipe(backbone_weights=str(backbone), head_weights=str(head), backbone_sha256=None, head_sha256=None)
    pinned = weights.pin(open_recipe)
    assert (pinned.backbone_sha256, pinned.head_sha256) == (sha256(head_bytes(0.0)), sha256(head_bytes(1.0)))
    assert replace(pinned, backbone_sha256=None, head_sha256=None) == open_recipe
    assert weights.pin(pinned) == pinned


def test_pinning_the_published_predictors_opens_and_fetches_nothing(own_cache: Path) -> None:
    for predictor in BUILT_IN.values():
        if not predictor.untrained:
            assert weights.pin(predictor) == predictor
    assert not own_cache.exists()


def test_the_model_id_is_stable_across_releases() -> None:
    """The ids are literals, because rows that are already scored have them."""
    assert weights.pin(BUILT_IN["laion-aesthetics-v2"]).model_id == "laion-aesthetics-v2@875870216cca"
    assert weights.pin(BUILT_IN["untrained-vit-b-32"]).model_id == "untrained-vit-b-32@079c57a4f4a1"


def test_the_model_id_changes_with_the_content_of_head_or_backbone(tmp_path: Path) -> None:
    backbone = put(tmp_path / "backbone.safetensors", head_bytes(0.0))
    head = put(tmp_path / "head.safetensors", head_bytes(1.0))
    predictor = recipe(backbone_weights=str(backbone), head_weights=str(head), backbone_sha256=None, head_sha256=None)
    ids = [weights.pin(predictor).model_id]
    ids.append(weights.pin(predictor).model_id)
    assert ids[0] == ids[1]
    put(head, head_bytes(2.0))
    ids.append(weights.pin(predictor).model_id)
    put(backbone, head_bytes(3.0))
    ids.append(weights.pin(predictor).model_id)
    # If both files are exchanged, the content changes too.
    put(backbone, head_bytes(2.0))
    put(head, head_bytes(3.0))
    ids.append(weights.pin(predictor).model_id)
    assert len(set(ids)) == 4
    assert all(name.startswith("mine@") and len(name) == len("mine@") + 12 for name in ids)


def test_the_model_id_of_untrained_weights_tells_seeds_and_architectures_apart() -> None:
    first = BUILT_IN["untrained-vit-b-32"]
    others = [
        replace(first, backbone_weights="untrained:1"),
        replace(first, head_weights="untrained:1:512"),
        replace(first, backbone="ViT-B-32"),
    ]
    assert len({weights.pin(predictor).model_id for predictor in [first, *others]}) == 4


def test_an_open_recipe_has_no_model_id() -> None:
    with pytest.raises(PredictorError, match="pin"):
        _ = recipe(head_sha256=None).model_id


# Recipes


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "mine", "backbone_weights": "untrained:0"},
        {"name": "mine", "head_weights": "untrained:0:512"},
        {"name": "untrained-mine"},
    ],
)
def test_untrained_weights_and_their_name_go_together(fields: dict[str, str]) -> None:
    with pytest.raises(PredictorError, match="untrained-"):
        recipe(**fields)


@pytest.mark.parametrize(
    "source",
    [
        "untrained:", "untrained:x:4", "untrained:0", "untrained:0:4:4", "untrained:-1:4", "untrained:0:0",
        "untrained:0:10000000000000", f"untrained:{2**80}:4", f"untrained:{2**63}:4", f"untrained:{'9' * 5000}:4",
        "untrained: 0:4", "untrained:0:4\n", "untrained:1_0:4", "untrained:\u0663:4",
    ],
)  # fmt: skip
def test_untrained_heads_are_written_with_seed_and_dimension(source: str) -> None:
    with pytest.raises(PredictorError, match="untrained:SEED:DIMENSION"):
        weights.load_head(recipe(name="untrained-mine", head_weights=source))


@pytest.mark.parametrize("field", ["name", "backbone", "backbone_weights", "head_weights"])
@pytest.mark.parametrize("value", ["", None, 3, Path("/a/path")])
def test_a_field_without_text_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(PredictorError, match=field):
        recipe(**{field: value})  # type: ignore[arg-type]  # the point of the test


@pytest.mark.parametrize("digest", ["", "abc", SOME_SHA256.upper(), SOME_SHA256 + "0", 5])
@pytest.mark.parametrize("field", ["backbone_sha256", "head_sha256"])
def test_a_checksum_is_64_lower_case_hexadecimal_digits(field: str, digest: object) -> None:
    with pytest.raises(PredictorError, match=field):
        recipe(**{field: digest})  # type: ignore[arg-type]  # the point of the test


@pytest.mark.parametrize("predictor", [recipe(), recipe(head_sha256=None), BUILT_IN["untrained-vit-b-32"]])
def test_a_predictor_survives_its_json_file(predictor: Predictor, tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    predictor.save(file)
    assert Predictor.load(file) == predictor
    assert resolve(str(file)) == predictor
    assert list(json.loads(file.read_text())) == [
        "name",
        "backbone",
        "backbone_weights",
        "backbone_sha256",
        "head_weights",
        "head_sha256",
    ]


@pytest.mark.parametrize("name", ["für", "a b", "a'b", "a/b", "a@b", "a\n"])
def test_a_name_that_sql_or_a_file_name_would_trip_over_is_refused(name: str) -> None:
    with pytest.raises(PredictorError, match="ASCII letters"):
        recipe(name=name)


def test_relative_paths_in_a_json_file_are_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    recipe(backbone_weights="tower.safetensors", head_weights="heads/h.pth").save(tmp_path / "models" / "mine.json")
    monkeypatch.chdir(tmp_path)
    loaded = resolve("models/mine.json")
    assert loaded.backbone_weights == str(tmp_path / "models" / "tower.safetensors")
    assert loaded.head_weights == str(tmp_path / "models" / "heads" / "h.pth")


@pytest.mark.parametrize("source", ["https://host/w.safetensors", "package:laion-aesthetics-v2", "/models/w.pt"])
def test_other_sources_in_a_json_file_stay_as_they_are(source: str, tmp_path: Path) -> None:
    recipe(head_weights=source).save(tmp_path / "mine.json")
    assert Predictor.load(tmp_path / "mine.json").head_weights == source


def test_paths_beyond_ascii_survive_too(tmp_path: Path) -> None:
    predictor = recipe(head_weights="/gewichte/köpfe.safetensors")
    predictor.save(tmp_path / "mine.json")
    assert resolve(str(tmp_path / "mine.json")) == predictor


def test_a_json_file_may_leave_the_checksums_out() -> None:
    values = json.loads(recipe(backbone_sha256=None, head_sha256=None).to_json())
    short = {name: value for name, value in values.items() if value is not None}
    assert Predictor.from_json(json.dumps(short)) == recipe(backbone_sha256=None, head_sha256=None)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "as JSON"),
        ("{", "as JSON"),
        ("[" * 100_000, "as JSON"),
        ('{"name": ' * 100_000, "as JSON"),
        ('{"name": ' + "9" * 5000 + "}", "as JSON"),
        ("[]", "JSON object, found list"),
        ('"laion-aesthetics-v2"', "JSON object, found str"),
        ('{"name": "mine"}', "found no backbone, backbone_weights, head_weights"),
        ('{"nmae": "mine"}', "did you mean 'name'"),
        (json.dumps({**json.loads(recipe().to_json()), "head_sha256": "abc"}), "64 lower-case"),
        (json.dumps({**json.loads(recipe().to_json()), "name": None}), "name"),
    ],
)
def test_a_json_text_that_is_no_predictor_says_why(text: str, reason: str) -> None:
    with pytest.raises(PredictorError, match=reason):
        Predictor.from_json(text)


@pytest.mark.parametrize("name", ["missing.json", "folder.json", "binary.json"])
def test_a_json_file_that_cannot_be_read_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PredictorError, match=name):
        resolve(str(tmp_path / name))


def test_predictors_are_keys_and_travel_by_pickle() -> None:
    for predictor in BUILT_IN.values():
        assert pickle.loads(pickle.dumps(predictor)) == predictor
    assert len(set(BUILT_IN.values())) == len(BUILT_IN)


# Tensors that make a head


def linear(*shape: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Return a weight of shape (out, in) and a bias of shape (out)."""
    generator = np.random.default_rng(seed)
    return {"weight": generator.standard_normal(shape), "bias": generator.standard_normal(shape[0])}


def stacked(positions: tuple[int, ...], widths: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Return the tensors `layers.N.weight` and `.bias` of layers at the positions."""
    return {
        f"layers.{position}.{name}": tensor
        for number, position in enumerate(positions)
        for name, tensor in linear(widths[number + 1], widths[number], seed=number).items()
    }


def applied(
    tensors: dict[str, np.ndarray], positions: tuple[int, ...], embeddings: np.ndarray, *, relu: bool
) -> np.ndarray:
    """Return scores that are computed layer by layer in float64, by a second implementation."""
    hidden = embeddings.astype(np.float64)
    for number, position in enumerate(positions):
        if number and relu:
            hidden = np.clip(hidden, 0, None)
        hidden = np.einsum("ni,oi->no", hidden, tensors[f"layers.{position}.weight"])
        hidden = hidden + tensors[f"layers.{position}.bias"]
    return hidden[:, 0]


EMBEDDINGS = np.random.default_rng(9).standard_normal((20, 6)).astype(np.float32)
WIDTHS = (6, 5, 4, 3, 2, 1)


@pytest.mark.parametrize(
    ("positions", "widths", "activation", "relu"),
    [
        ((0, 2, 4, 6, 7), WIDTHS, None, False),
        ((0, 3, 6, 9, 11), WIDTHS, None, True),
        # An activation that the file names takes precedence over the positions.
        ((0, 2, 4, 6, 7), WIDTHS, "relu", True),
        ((0, 3, 6, 9, 11), WIDTHS, "none", False),
        # No published head has these positions.
        ((0, 1), (6, 4, 1), "none", False),
        ((0, 2), (6, 4, 1), "relu", True),
        ((3, 10, 200), (6, 4, 2, 1), "relu", True),
        # A single layer has no place for an activation.
        ((0,), (6, 1), None, False),
        ((7,), (6, 1), "relu", False),
    ],
)
def test_stacked_layers_are_recognised_by_position_or_by_their_activation(
    positions: tuple[int, ...], widths: tuple[int, ...], activation: str | None, relu: bool
) -> None:
    tensors = stacked(positions, widths)
    head = heads.from_tensors(tensors, source="here", activation=activation)
    assert head.affine is not relu
    assert head.dimension == 6
    scores = head(EMBEDDINGS)
    assert (scores.dtype, scores.shape) == (np.float32, (20,))
    # Random layers give scores up to about 50, so some float32 steps are tolerated.
    np.testing.assert_allclose(scores, applied(tensors, positions, EMBEDDINGS, relu=relu), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weight_shape", [(1, 6), (6,)])
@pytest.mark.parametrize("bias_shape", [(1,), ()])
def test_a_single_linear_is_a_weight_and_a_bias(weight_shape: tuple[int, ...], bias_shape: tuple[int, ...]) -> None:
    tensors = {"weight": np.arange(6.0).reshape(weight_shape), "bias": np.full(bias_shape, 0.5)}
    head = heads.from_tensors(tensors, source="here")
    assert head.affine
    assert (head.weight.dtype, head.weight.tolist(), head.bias) == (np.float32, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0], 0.5)


@pytest.mark.parametrize("activation", [None, "gelu", ""])
def test_unknown_positions_without_a_known_activation_are_refused(activation: str | None) -> None:
    with pytest.raises(WeightsError, match=r'(?s)here: .*\(0, 2\).*"activation": "relu"'):
        heads.from_tensors(stacked((0, 2), (6, 4, 1)), source="here", activation=activation)


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({}, "'weight' is missing"),
        ({"weight": np.ones((1, 6))}, "'bias' is missing"),
        ({"bias": np.ones(1)}, "'weight' is missing"),
        ({"layers.0.weight": np.ones((1, 6))}, r"'layers\.0\.bias' is missing"),
        ({"model.weight": np.ones((1, 6)), "model.bias": np.ones(1)}, r"found \['model.bias', 'model.weight'\]"),
        (linear(2, 6), "one output"),
        ({"weight": np.ones((1, 6)), "bias": np.ones(2)}, "one output"),
        ({"weight": np.ones((1, 6, 1)), "bias": np.ones(1)}, "one output"),
        ({"weight": np.ones((1, 6)), "bias": np.ones((1, 1))}, "one output"),
        ({**stacked((0,), (6, 4)), **stacked((2,), (5, 1))}, r"\(4, 6\), \(1, 5\)"),
        (stacked((0, 2, 4, 6, 7), (6, 5, 4, 3, 2, 2)), "one output"),
    ],
)
def test_tensors_that_make_no_head_are_refused_with_what_was_found(tensors: dict[str, np.ndarray], reason: str) -> None:
    with pytest.raises(WeightsError, match=f"here: .*{reason}"):
        heads.from_tensors(tensors, source="here")


# Head files


def as_torch(tensors: dict[str, np.ndarray], dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(tensor).to(dtype) for name, tensor in tensors.items()}


def load(file: Path) -> heads.Head:
    return weights.load_head(recipe(head_weights=str(file), head_sha256=sha256(file.read_bytes())))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("trained", [False, True], ids=["tensors", "parameters"])
def test_a_pth_file_is_read_in_every_float_type(dtype: torch.dtype, trained: bool, tmp_path: Path) -> None:
    tensors = as_torch(linear(1, 6), dtype)
    content = {name: torch.nn.Parameter(tensor) for name, tensor in tensors.items()} if trained else tensors
    torch.save(content, tmp_path / "head.pth")
    head = load(tmp_path / "head.pth")
    assert head.weight.tolist() == tensors["weight"][0].float().tolist()
    assert head.bias == float(tensors["bias"].float())


@pytest.mark.parametrize(("activation", "affine"), [("relu", False), ("none", True)])
def test_a_safetensors_file_says_its_activation_in_the_metadata(activation: str, affine: bool, tmp_path: Path) -> None:
    file = tmp_path / "head.safetensors"
    save_torch_file(as_torch(stacked((0, 2), (6, 4, 1))), file, metadata={"activation": activation})
    assert load(file).affine is affine


def test_a_safetensors_file_of_unknown_positions_without_metadata_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "head.safetensors"
    save_torch_file(as_torch(stacked((0, 2), (6, 4, 1))), file)
    with pytest.raises(WeightsError, match='"activation"'):
        load(file)


def test_a_safetensors_file_of_a_type_that_numpy_lacks_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "head.safetensors"
    save_torch_file(as_torch(linear(1, 6), torch.bfloat16), file)
    with pytest.raises(WeightsError, match="float32"):
        load(file)


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"PK\x03\x04 cut short", b"\x80\x02}q", b"\x10\0\0\0\0\0\0\0{not json}", b"\xff" * 8 + b"{"],
)
def test_a_file_that_is_no_head_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"head\.bin"):
        load(put(tmp_path / "head.bin", content))


@pytest.mark.parametrize(
    "content", [torch.ones(1, 6), [torch.ones(1, 6)], {"state_dict": as_torch(linear(1, 6)), "epoch": 3}]
)
def test_a_pth_file_of_something_else_than_tensors_by_name_is_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "head.pth")
    with pytest.raises(WeightsError, match=r"expected a dictionary of tensors by name.*state_dict\(\)"):
        load(tmp_path / "head.pth")
