"""Locate, verify and identify weights files.

A file is searched for in `model_path`, in the folder `$SPARK_AESTHETIC_WEIGHTS`, at its own path, in the cache and on
the network, in this order. The first match counts: if its checksum differs, it is refused, or downloaded again if it
is in the cache. A known checksum is compared before a file is deserialised, and a file that can run code is refused
without one.
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

# Published sizes for the message on a node without a network (OpenAI's in MiB, as its client shows them).
_KNOWN_SIZES = {
    "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb": "1,710,540,580 bytes",
    "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af": "about 338 MiB",
    "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f": "about 335 MiB",
    "0af3254c651d55b7ea851429c20f26ec880bb0169805a4df85b814bd7966f3e4": "3,714,887 bytes",
}

# Change this with the layout of prepared files, so that a file of an older version is not read.
_LAYOUT = "v4"

# File systems allow names of 255 bytes, and the cache appends suffixes.
_NAME_BYTES = 200

# Longer than any embedding in use, and small enough for the memory of a driver.
_MAX_DIMENSION = 65_536


def prepared_path(predictor: Predictor, dtype: str) -> Path:
    """Return the path at which `images.prepare` writes a pinned predictor's backbone for workers to memory-map."""
    assert predictor.backbone_sha256 is not None, "callers pin the predictor"
    name = f"{predictor.backbone}-{predictor.backbone_sha256[:12]}-{dtype}-{_LAYOUT}.safetensors"
    return cache.cache_path() / "prepared" / name.replace("/", "-")


def pin(predictor: Predictor, model_path: str | None = None) -> Predictor:
    """Fill in the checksums that a predictor leaves open, so that `model_id` identifies its weights.

    Runs on the driver. Reads, and downloads if necessary, only files without a given checksum. For built-in
    predictors no file is read.

    Raises:
        WeightsError: A file is missing, or is an archive or pickle without a given checksum.
    """
    return pin_head(pin_backbone(predictor, model_path), model_path)


def pin_backbone(predictor: Predictor, model_path: str | None = None) -> Predictor:
    """Fill in the backbone's checksum only, for functions that compute embeddings."""
    if predictor.backbone_sha256 is not None:
        return predictor
    sha256 = _content_sha256(predictor.backbone_weights, predictor.backbone, "backbone", model_path)
    return replace(predictor, backbone_sha256=sha256)


def pin_head(predictor: Predictor, model_path: str | None = None) -> Predictor:
    """Fill in the head's checksum only, for functions that score embeddings."""
    if predictor.head_sha256 is not None:
        return predictor
    return replace(predictor, head_sha256=_content_sha256(predictor.head_weights, "", "head", model_path))


def backbone_file(predictor: Predictor, model_path: str | None = None) -> Path:
    """Return the verified weights file of a predictor's trained backbone, after a download if necessary.

    Raises:
        WeightsNotFoundError: The file is missing and cannot be downloaded; the message lists where to put it.
        ChecksumError: The file does not match its checksum.
    """
    return _find(predictor.backbone_weights, predictor.backbone_sha256, model_path)


def local_backbone(predictor: Predictor, model_path: str | None = None) -> Path | None:
    """Return the weights file of a trained backbone if it is on this machine; nothing is downloaded.

    Raises:
        ChecksumError: The file does not match its checksum.
    """
    return _local(predictor.backbone_weights, predictor.backbone_sha256, model_path)


def load_head(predictor: Predictor, model_path: str | None = None) -> Head:
    """Load the head of a pinned predictor. Needs torch only for a .pth file.

    Raises:
        WeightsError: The file is missing, does not match its checksum, or holds no head.
    """
    source = predictor.head_weights
    if source.startswith(UNTRAINED):
        return heads.untrained(*_untrained_numbers(source, 2))
    if source.startswith(PACKAGED):
        head = _packaged(source)
        if predictor.head_sha256 not in (None, head.published_sha256):
            raise ChecksumError(
                f"predictor {predictor.name!r}: expected a head folded from the file with sha256 "
                f"{predictor.head_sha256}, found {source!r}, folded from {head.published_sha256}. Correct head_sha256."
            )
        name = source.removeprefix(PACKAGED)
        with resources.as_file(resources.files("spark_aesthetic.predictors.heads") / f"{name}.safetensors") as path:
            return read_head(path, sha256=head.sha256)
    return _read_head(_find(source, predictor.head_sha256, _folder_only(model_path)), predictor.head_sha256)


def check_dimension(predictor: Predictor, head: Head, dimension: int) -> None:
    """Check that a predictor's head takes embeddings of the length that its backbone computes.

    Raises:
        WeightsError: The lengths differ.
    """
    if head.dimension != dimension:
        raise WeightsError(
            f"predictor {predictor.name!r}: expected a head for the {dimension} numbers of {predictor.backbone}, found "
            f"{predictor.head_weights!r}, which takes {head.dimension}. Name the head's own backbone or another head."
        )


def backbone_seed(predictor: Predictor) -> int:
    """The seed of an untrained backbone."""
    return _untrained_numbers(predictor.backbone_weights, 1)[0]


def is_safetensors(path: Path) -> bool:
    """Whether a file has the safetensors layout: eight bytes of length, then a JSON object."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def load_torch(path: Path) -> dict[str, npt.NDArray[np.float64]]:
    """Load a verified .pth file of tensors by name, without running any code that a pickle can hold.

    Raises:
        MissingDependencyError: torch is not installed.
        WeightsError: The file does not hold tensors by name.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError(
            f"{path}: expected safetensors, or torch for other files, found neither. "
            "Run pip install 'spark-aesthetic[image]'."
        ) from error
    # The published V2 heads were saved from a GPU, so their tensors are mapped to the CPU.
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    # The unpickler raises many kinds of errors for a file that is not .pth, or that holds more than tensors.
    except Exception as error:
        raise WeightsError(
            f"{path}: expected a .pth file of tensors by name, as torch.save(model.state_dict(), path) writes it, "
            f"found one that torch.load refuses with weights_only=True: {error}. Save model.state_dict() alone."
        ) from error
    if not isinstance(loaded, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in loaded.values()):
        raise WeightsError(
            f"{path}: expected a dictionary of tensors by name, found {_kinds(loaded)}. Save model.state_dict() alone."
        )
    # Converted to float64, because NumPy lacks some of torch's float types, such as bfloat16.
    return {name: tensor.detach().double().numpy() for name, tensor in loaded.items()}


def _kinds(loaded: object) -> str:
    if not isinstance(loaded, dict):
        return type(loaded).__name__
    return "{" + ", ".join(f"{name!r}: {type(value).__name__}" for name, value in list(loaded.items())[:5]) + "}"


def read_head(path: Path, *, sha256: str | None) -> Head:
    """Check a file against its checksum, and read a head from it.

    Raises:
        ChecksumError: The file does not match its checksum.
        WeightsError: The file holds no head.
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
    # safetensors raises TypeError or AttributeError for a type that NumPy lacks.
    except (SafetensorError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{path}: expected a safetensors file of float16, float32 or float64, found one that NumPy cannot read: "
            f"{error}. Save the head again in float32."
        ) from error
    return heads.from_tensors(tensors, source=str(path), activation=activation)


def _unverified(path: Path, part: str) -> WeightsError:
    return WeightsError(
        f"{path}: expected safetensors, or {part}_sha256 in the predictor, found an archive without a checksum. "
        f'Reading it can run code; if you trust it, add {part}_sha256="{sha256_of(path)}"'
    )


def _find(source: str, sha256: str | None, model_path: str | None) -> Path:
    if (path := _local(source, sha256, model_path)) is not None:
        return path
    name, cached, places = _file_name(source), _cached(source, sha256)[0], _places(source, model_path)
    looked = " or ".join(str(path) for path in (*places, cached))
    if "://" not in source:
        raise WeightsNotFoundError(f"weights file {name}: expected at {looked}, found nothing. Put it there.")
    cache.cache_dir()
    try:
        return download(source, cached, sha256=sha256)
    except WeightsNotFoundError as error:
        size = _KNOWN_SIZES.get(sha256 or "", "size not known")
        raise WeightsNotFoundError(
            f"weights file {name} ({size}, sha256 {sha256 or 'not given'}): expected at {looked}, found "
            f"nothing; {error}. Download it from {source} on a machine with a network, and put it into a folder that "
            "SPARK_AESTHETIC_WEIGHTS or model_path names, on the driver and on every executor."
        ) from error


def _local(source: str, sha256: str | None, model_path: str | None) -> Path | None:
    """Return a weights file if it is on this machine; raise ChecksumError if it does not match its checksum."""
    for path in _places(source, model_path):
        if files.is_file(path):
            _verify(path, sha256)
            return path
    return next((path for path in _cached(source, sha256) if is_fetched(path, sha256)), None)


def _places(source: str, model_path: str | None) -> list[Path]:
    return [*_named_places(_file_name(source), model_path), *([] if "://" in source else [Path(source)])]


def _cached(source: str, sha256: str | None) -> list[Path]:
    """Return the paths at which the cache may have a file, first the one to which a download goes."""
    # `pin` downloads an address without a known checksum to a folder named after the address.
    digests = [hashlib.sha256(source.encode()).hexdigest()]
    if sha256 is not None:
        digests.insert(0, sha256)
    return [cache.cache_path() / "downloads" / digest[:12] / _file_name(source) for digest in digests]


def _file_name(source: str) -> str:
    """Return the file name under which a weights file is searched for and cached."""
    try:
        source.encode()
        name = Path(unquote(urlsplit(source).path) if "://" in source else source).name
        fits = 0 < len(name.encode()) <= _NAME_BYTES
    # urlsplit raises for half an IPv6 host, and encode for a lone surrogate.
    except ValueError:
        name, fits = source[-_NAME_BYTES:], False
    if not fits or name == ".." or "\0" in name:
        raise PredictorError(
            f"weights {source[:_NAME_BYTES]!r}: expected the path or URL of a file, found one that ends in "
            f"{name[:_NAME_BYTES]!r}. Name the file itself."
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
    """Return `model_path`, or its folder if it is the backbone's file. The head may be in the same folder."""
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
            "Replace it, or describe it in your own Predictor."
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
    """Parse the seed and, if two numbers are expected, the dimension."""
    form = ":".join(("SEED", "DIMENSION")[:count])
    written = source.removeprefix(UNTRAINED)
    # At most 19 digits, because int() raises for more than 4,300.
    if re.fullmatch(r"\d{1,19}" + r":\d{1,19}" * (count - 1), written, re.ASCII):
        numbers = [int(number) for number in written.split(":")]
        if numbers[0] < 2**63 and all(0 < number <= _MAX_DIMENSION for number in numbers[1:]):
            return numbers
    raise PredictorError(
        f"untrained weights: expected {UNTRAINED + form!r} with a seed below 2^63"
        f"{f' and a dimension of 1 to {_MAX_DIMENSION}' if count > 1 else ''}, found {source[:80]!r}"
    )
