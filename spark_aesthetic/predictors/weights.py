"""Weights files: where they are, whether they are the right ones, and what their content is called.

A file is looked for in `model_path`; in the folder `$SPARK_AESTHETIC_WEIGHTS`; at its own path; in the
cache; and on the network. The first one found is the one: if its checksum differs it is refused, not passed over.
Nothing is deserialised before its checksum was compared, and nothing is unpickled that had none to compare.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import replace
from importlib import resources
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from spark_aesthetic import files
from spark_aesthetic.errors import (
    ChecksumError,
    MissingDependencyError,
    PredictorError,
    WeightsError,
    WeightsNotFoundError,
    nearest,
)
from spark_aesthetic.predictors import cache
from spark_aesthetic.predictors import head as heads
from spark_aesthetic.predictors.digests import sha256_of
from spark_aesthetic.predictors.download import download, is_fetched
from spark_aesthetic.predictors.head import Head
from spark_aesthetic.predictors.recipe import PACKAGED, PACKAGED_HEADS, UNTRAINED, PackagedHead, Predictor

# For the message of a node without a network; sizes as published (OpenAI's in MiB, as its client shows them).
_KNOWN_SIZES = {
    "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb": "1,710,540,580 bytes",
    "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af": "about 338 MiB",
    "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f": "about 335 MiB",
    "0af3254c651d55b7ea851429c20f26ec880bb0169805a4df85b814bd7966f3e4": "3,714,887 bytes",
}

# Changes when the layout of prepared files does, so that a cache of an older version is not read.
_LAYOUT = "v4"

# File systems take names of 255 bytes, and the cache appends endings.
_NAME_BYTES = 200

# Larger than any that is used, and small enough for the memory of a driver.
_MAX_DIMENSION = 65_536


def prepared_path(predictor: Predictor, dtype: str) -> Path:
    """Where `images.prepare` puts, once a node, what workers memory-map of a pinned predictor's backbone."""
    assert predictor.backbone_sha256 is not None, "callers pin the predictor"
    name = f"{predictor.backbone}-{predictor.backbone_sha256[:12]}-{dtype}-{_LAYOUT}.safetensors"
    return cache.cache_path() / "prepared" / name.replace("/", "-")


def pin(predictor: Predictor, model_path: str | None = None) -> Predictor:
    """Fill in the checksums that a predictor leaves open, so that `model_id` names its content.

    Runs on the driver. Reads (and if need be downloads) only files whose checksum is not given; the
    published predictors touch no file here.

    Raises:
        WeightsError: A file is missing, or is an archive or pickle whose checksum was not given.
    """
    return pin_head(pin_backbone(predictor, model_path), model_path)


def pin_backbone(predictor: Predictor, model_path: str | None = None) -> Predictor:
    """The same for the backbone alone, for what makes embeddings."""
    if predictor.backbone_sha256 is not None:
        return predictor
    sha256 = _content_sha256(predictor.backbone_weights, predictor.backbone, "backbone", model_path)
    return replace(predictor, backbone_sha256=sha256)


def pin_head(predictor: Predictor, model_path: str | None = None) -> Predictor:
    """The same for the head alone, for what scores embeddings."""
    if predictor.head_sha256 is not None:
        return predictor
    return replace(predictor, head_sha256=_content_sha256(predictor.head_weights, "", "head", model_path))


def backbone_file(predictor: Predictor, model_path: str | None = None) -> Path:
    """Find, fetch and verify the backbone's weights file of a predictor that is not untrained.

    Raises:
        WeightsNotFoundError: It is nowhere; the message says what to put where.
        ChecksumError: The file found is another one.
    """
    return _find(predictor.backbone_weights, predictor.backbone_sha256, model_path)


def load_head(predictor: Predictor, model_path: str | None = None) -> Head:
    """Load the head of a pinned predictor. Needs torch only for a .pth file.

    Raises:
        WeightsError: Missing, not the right file, or no head.
    """
    source = predictor.head_weights
    if source.startswith(UNTRAINED):
        return heads.untrained(*_untrained_numbers(source, 2))
    if source.startswith(PACKAGED):
        head = _packaged(source)
        if predictor.head_sha256 not in (None, head.published_sha256):
            raise ChecksumError(
                f"predictor {predictor.name!r}: expected a head folded from the file with sha256 "
                f"{predictor.head_sha256}, found {source!r}, folded from {head.published_sha256}; correct head_sha256"
            )
        name = source.removeprefix(PACKAGED)
        with resources.as_file(resources.files("spark_aesthetic.predictors.heads") / f"{name}.safetensors") as path:
            return read_head(path, sha256=head.sha256)
    return _read_head(_find(source, predictor.head_sha256, _folder_only(model_path)), predictor.head_sha256)


def check_dimension(predictor: Predictor, head: Head, dimension: int) -> None:
    """Check that a predictor's head takes embeddings of the length that its backbone gives.

    Raises:
        WeightsError: It takes embeddings of another length.
    """
    if head.dimension != dimension:
        raise WeightsError(
            f"predictor {predictor.name!r}: expected a head for the {dimension} numbers of {predictor.backbone}, found "
            f"{predictor.head_weights!r}, which takes {head.dimension}; name the head's own backbone or another head"
        )


def backbone_seed(predictor: Predictor) -> int:
    """The seed of an untrained backbone."""
    return _untrained_numbers(predictor.backbone_weights, 1)[0]


def is_safetensors(path: Path) -> bool:
    """Whether a file has the safetensors layout: eight bytes of length, then a JSON object."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def load_torch(path: Path) -> dict[str, npt.NDArray[np.float64]]:
    """Load a verified .pth file of tensors by name, running none of the code a pickle can hold.

    Raises:
        MissingDependencyError: torch is not installed.
        WeightsError: It holds something else than tensors by name.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError(
            f"{path} is no safetensors file and takes torch to read: pip install 'spark-aesthetic[image]'"
        ) from error
    # The published V2 heads were saved from a GPU.
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    # Whatever a file that is no .pth, or one of more than tensors, meets on the way through the unpickler.
    except Exception as error:
        raise WeightsError(
            f"{path}: expected a .pth file of tensors by name, as torch.save(model.state_dict(), path) writes it, "
            f"found one that torch does not load without running code from it: {error}"
        ) from error
    if not isinstance(loaded, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in loaded.values()):
        raise WeightsError(
            f"{path}: expected a dictionary of tensors by name, found {_kinds(loaded)}; save model.state_dict() alone"
        )
    # By way of float64, which holds every float type that torch has and NumPy has not.
    return {name: tensor.detach().double().numpy() for name, tensor in loaded.items()}


def _kinds(loaded: object) -> str:
    if not isinstance(loaded, dict):
        return type(loaded).__name__
    return "{" + ", ".join(f"{name!r}: {type(value).__name__}" for name, value in list(loaded.items())[:5]) + "}"


def read_head(path: Path, *, sha256: str | None) -> Head:
    """Read a head from a file of one's own choosing, once its checksum was compared.

    Raises:
        ChecksumError: It is another file.
        WeightsError: It holds no head.
    """
    _verify(path, sha256)
    return _read_head(path, sha256)


def _read_head(path: Path, sha256: str | None) -> Head:
    if not is_safetensors(path):
        if sha256 is None:
            raise _unverified(path, "head")
        return heads.from_tensors(load_torch(path), source=str(path))
    try:
        with safe_open(path, framework="np") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            activation = (file.metadata() or {}).get("activation")
    # The last two are how it says that NumPy has no such type.
    except (SafetensorError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{path}: expected a safetensors file of float16, float32 or float64, found one that NumPy cannot read: "
            f"{error}; save the head again in float32"
        ) from error
    return heads.from_tensors(tensors, source=str(path), activation=activation)


def _unverified(path: Path, part: str) -> WeightsError:
    return WeightsError(
        f"{path}: expected safetensors, or {part}_sha256 in the predictor, found an archive without one. "
        f'Reading it can run code: if you trust it, add {part}_sha256="{sha256_of(path)}"'
    )


def _find(source: str, sha256: str | None, model_path: str | None) -> Path:
    remote = "://" in source
    name = _file_name(source)
    unpinned = cache.cache_path() / "downloads" / hashlib.sha256(source.encode()).hexdigest()[:12] / name
    cached = unpinned if sha256 is None else cache.cache_path() / "downloads" / sha256[:12] / name
    places = [*_named_places(name, model_path), *([] if remote else [Path(source)])]
    for path in places:
        if files.is_file(path):
            _verify(path, sha256)
            return path
    # `pin` fetches an address whose checksum is not known yet to another place.
    for path in (cached, unpinned):
        if is_fetched(path, sha256):
            return path
    looked = " or ".join(str(path) for path in (*places, cached))
    if not remote:
        raise WeightsNotFoundError(f"weights file {name}: expected at {looked}; found nothing. Put it there")
    cache.cache_dir()
    try:
        return download(source, cached, sha256=sha256)
    except WeightsNotFoundError as error:
        size = _KNOWN_SIZES.get(sha256 or "", "size not known")
        raise WeightsNotFoundError(
            f"weights file {name} ({size}, sha256 {sha256 or 'not given'}): expected at {looked}; found "
            f"nothing, and {error}. Fetch it from {source} on a machine with a network and put it into a folder that "
            "SPARK_AESTHETIC_WEIGHTS or model_path names, on the driver and on every executor"
        ) from error


def _file_name(source: str) -> str:
    """The name of a weights file, under which it is looked for and cached."""
    try:
        source.encode()
        name = Path(unquote(urlsplit(source).path) if "://" in source else source).name
        fits = 0 < len(name.encode()) <= _NAME_BYTES
    # An address with half an IPv6 host, and text that is no Unicode.
    except ValueError:
        name, fits = source[-_NAME_BYTES:], False
    if not fits or name == ".." or "\0" in name:
        raise PredictorError(
            f"weights {source[:_NAME_BYTES]!r}: expected the path or address of a file, found one that ends in "
            f"{name[:_NAME_BYTES]!r}; name the file itself"
        )
    return name


def _named_places(name: str, model_path: str | None) -> list[Path]:
    places = []
    if model_path is not None:
        given = Path(model_path)
        if not os.path.exists(given):  # noqa: PTH110 (Path.exists raises on a name that is too long)
            raise WeightsNotFoundError(f"model_path: expected a folder or a file, found nothing at {model_path!r}")
        places.append(given if given.is_file() else given / name)
    folder = os.environ.get("SPARK_AESTHETIC_WEIGHTS")
    if folder:
        places.append(Path(folder) / name)
    return places


def _folder_only(model_path: str | None) -> str | None:
    """A model_path that is a file is the backbone's; the head is then looked for beside it."""
    if model_path is not None and files.is_file(model_path):
        return str(Path(model_path).parent)
    return model_path


def _verify(path: Path, sha256: str | None) -> None:
    if sha256 is None:
        return
    found = sha256_of(path)
    if found != sha256:
        raise ChecksumError(
            f"{path}: expected sha256 {sha256}, found {found}; the file was not opened. "
            "Replace it, or name it in a Predictor of your own"
        )


def _content_sha256(source: str, architecture: str, part: str, model_path: str | None) -> str:
    if source.startswith(UNTRAINED):
        return hashlib.sha256(f"{source} {architecture}".encode()).hexdigest()
    if source.startswith(PACKAGED):
        return _packaged(source).published_sha256
    path = _find(source, None, model_path if part == "backbone" else _folder_only(model_path))
    if not is_safetensors(path):
        raise _unverified(path, part)
    return sha256_of(path)


def _packaged(source: str) -> PackagedHead:
    name = source.removeprefix(PACKAGED)
    if name not in PACKAGED_HEADS:
        raise PredictorError(f"head {source!r} is not in the package: {nearest(name, PACKAGED_HEADS)}")
    return PACKAGED_HEADS[name]


def _untrained_numbers(source: str, count: int) -> list[int]:
    """Seed, and dimension if two numbers are expected."""
    form = ":".join(("SEED", "DIMENSION")[:count])
    written = source.removeprefix(UNTRAINED)
    # Far fewer digits than int() takes.
    if re.fullmatch(r"\d{1,19}" + r":\d{1,19}" * (count - 1), written, re.ASCII):
        numbers = [int(number) for number in written.split(":")]
        if numbers[0] < 2**63 and all(0 < number <= _MAX_DIMENSION for number in numbers[1:]):
            return numbers
    raise PredictorError(
        f"untrained weights: expected {UNTRAINED + form!r}, a seed below 2^63"
        f"{f' and a dimension of 1 to {_MAX_DIMENSION}' if count > 1 else ''}, found {source[:80]!r}"
    )
