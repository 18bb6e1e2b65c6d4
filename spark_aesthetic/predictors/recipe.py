"""Predictors: which backbone, which head, and where their weights come from.

A predictor is a recipe, not a model: it is small, frozen and picklable. The driver creates it, and the workers
build the model from it. Nothing here reads a weights file.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from spark_aesthetic import files
from spark_aesthetic.errors import PredictorError, nearest

DEFAULT = "laion-aesthetics-v2"

# Weights generated from a seed instead of read from a file. Their scores mean nothing.
UNTRAINED = "untrained:"
# Folded affine heads in the package (spark_aesthetic/predictors/heads).
PACKAGED = "package:"


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """A CLIP image tower and a small head that computes a score from its embedding of unit length.

    Attributes:
        name: Part of the `model` of every scored row; ASCII letters, digits and ._+- only. It begins with
            "untrained-" if some weights are untrained, and only then.
        backbone: Architecture name in open_clip. OpenAI's weights need a name that ends in "-quickgelu".
        backbone_weights: Path or URL of a safetensors file (open_clip's or transformers' tensor names; both
            towers or the image tower alone) or of OpenAI's TorchScript archive; or "untrained:SEED".
        backbone_sha256: Checksum of that file, 64 hexadecimal digits. Required for an archive that is not
            safetensors.
        head_weights: Path or URL of a safetensors or .pth file (`layers.N.weight` and `.bias`, or a single
            `weight` and `bias`); "package:NAME"; or "untrained:SEED:DIMENSION".
        head_sha256: Checksum of that file; for "package:" heads, of the published file that was folded.
            Required for .pth.

    Raises:
        PredictorError: A field is empty or malformed, or "untrained-" in the name does not fit the weights.

    Examples:
        >>> mine = Predictor(name="mine", backbone="ViT-B-32-quickgelu", backbone_weights="/models/ViT-B-32.pt",
        ...                  backbone_sha256="40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
        ...                  head_weights="package:laion-aesthetics-v1-b32")
        >>> Predictor.from_json(mine.to_json()) == mine
        True
    """

    name: str
    backbone: str
    backbone_weights: str
    backbone_sha256: str | None = None
    head_weights: str
    head_sha256: str | None = None

    def __post_init__(self) -> None:
        for field in ("name", "backbone", "backbone_weights", "head_weights"):
            value = getattr(self, field)
            if not isinstance(value, str) or not value:
                raise PredictorError(f"predictor field {field}: expected text that is not empty, found {value!r}")
            # JSON can hold lone surrogates, which cannot be encoded for a file's name or a digest.
            if not value.isascii() and value.encode(errors="ignore").decode() != value:
                raise PredictorError(f"predictor field {field}: expected valid Unicode, found {value!r}. Repair it.")
        for field in ("backbone_sha256", "head_sha256"):
            digest = getattr(self, field)
            if digest is not None and not _is_sha256(digest):
                raise PredictorError(
                    f"predictor {self.name!r}, {field}: expected 64 lower-case hexadecimal digits, found {digest!r}"
                )
        # The name is written to column values, SQL and file names.
        if re.fullmatch(r"[A-Za-z0-9._+-]+", self.name) is None:
            raise PredictorError(
                f"predictor field name: expected ASCII letters, digits and ._+- only, found {self.name!r}. Rename it."
            )
        if self.untrained != self.name.startswith("untrained-"):
            raise PredictorError(
                f"predictor {self.name!r}: expected a name that begins with 'untrained-' if and only if weights are "
                "'untrained:…', so that nobody mistakes such scores for real ones. Rename it."
            )

    @property
    def untrained(self) -> bool:
        """Whether the backbone or the head has seeded random weights, so that scores mean nothing."""
        return any(weights.startswith(UNTRAINED) for weights in (self.backbone_weights, self.head_weights))

    @property
    def model_id(self) -> str:
        """The `model` of a scored row: the name, "@", and 12 digits that identify the weights.

        They are the first digits of sha256(head_sha256 + backbone_sha256), with both checksums as hexadecimal text.

        Raises:
            PredictorError: A checksum is not known yet; `spark_aesthetic.predictors.weights.pin` fills it in.
        """
        if self.head_sha256 is None or self.backbone_sha256 is None:
            raise PredictorError(
                f"predictor {self.name!r}: expected both checksums, found head_sha256={self.head_sha256!r} and "
                f"backbone_sha256={self.backbone_sha256!r}. Fill them in with spark_aesthetic.predictors.weights.pin."
            )
        content = hashlib.sha256((self.head_sha256 + self.backbone_sha256).encode()).hexdigest()
        return f"{self.name}@{content[:12]}"

    @property
    def embedding_id(self) -> str:
        """Identifies the embeddings: the backbone's architecture and the checksum of its weights."""
        return f"{self.backbone}@{self.backbone_sha256}"

    def to_json(self) -> str:
        """Return this predictor as JSON text, with one field per line."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Predictor:
        """Make a predictor from the text that `to_json` returns.

        Raises:
            PredictorError: The text is not a JSON object, or a field is missing, unknown or malformed.
        """
        try:
            values = json.loads(text)
        # json.loads also raises ValueError for a number of more than 4,300 digits, and RecursionError for deep nesting.
        except (ValueError, RecursionError) as error:
            raise PredictorError(f"expected a predictor as JSON, found {text[:40]!r}: {error}") from error
        if not isinstance(values, dict):
            raise PredictorError(f"expected a predictor as a JSON object, found {type(values).__name__}")
        valid = [field.name for field in fields(cls)]
        for field in values:
            if field not in valid:
                raise PredictorError(f"no predictor field {field!r}: {nearest(field, valid)}")
        missing = [field for field in ("name", "backbone", "backbone_weights", "head_weights") if field not in values]
        if missing:
            raise PredictorError(
                f"predictor as JSON: expected all required fields, found no {', '.join(missing)}. Add what is missing."
            )
        return cls(**values)

    def save(self, path: str | Path) -> None:
        """Write this predictor to a JSON file. Its path or URL is accepted wherever a predictor's name is."""
        files.write(str(path), (self.to_json() + "\n").encode())

    @classmethod
    def load(cls, path: str | Path) -> Predictor:
        """Read a JSON file that `save` wrote, from a path or URL.

        Relative paths of weights are relative to the file's folder, and absolute in the result.

        Raises:
            PredictorError: The file cannot be read or is not a predictor.
        """
        try:
            text = files.read(str(path)).decode()
        # fsspec's file systems share no base exception.
        except Exception as error:
            raise PredictorError(
                f"predictor file {str(path)!r}: expected a readable JSON file, found: {error}. Check the path."
            ) from error
        predictor = cls.from_json(text)
        folder = files.absolute(str(path)).rpartition("/")[0]
        return replace(
            predictor,
            backbone_weights=_beside(predictor.backbone_weights, folder),
            head_weights=_beside(predictor.head_weights, folder),
        )


def _beside(source: str, folder: str) -> str:
    return source if source.startswith((UNTRAINED, PACKAGED)) else files.beside(source, folder)


def resolve(predictor: str | Predictor) -> Predictor:
    """Return the predictor for a predictor, its name, or the path of its JSON file.

    Raises:
        PredictorError: The name or file does not exist, or the argument has the wrong type.

    Examples:
        >>> resolve("laion-aesthetics-v2").backbone
        'ViT-L-14-quickgelu'
        >>> resolve("laion-aesthetic-v2")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
          ...
        spark_aesthetic.errors.PredictorError: no predictor 'laion-aesthetic-v2' and no such file: did you mean ...
    """
    if isinstance(predictor, Predictor):
        return predictor
    if not isinstance(predictor, str):
        raise PredictorError(
            f"predictor={predictor!r}: expected a Predictor, the name of one, or the path of its JSON file as text. "
            f"The default is {DEFAULT!r}."
        )
    known = BUILT_IN.get(predictor)
    if known is not None:
        return known
    if predictor.endswith(".json") or files.is_file(predictor):
        return Predictor.load(predictor)
    raise PredictorError(f"no predictor {predictor[:80]!r} and no such file: {nearest(predictor, BUILT_IN)}")


def _is_sha256(digest: object) -> bool:
    return isinstance(digest, str) and len(digest) == 64 and set(digest) <= set("0123456789abcdef")


# The model hub's conversion of OpenAI's ViT-L/14 (float32, both towers), at a pinned revision: 1,710,540,580 bytes.
_VIT_L_14 = {
    "backbone": "ViT-L-14-quickgelu",
    "backbone_weights": "https://huggingface.co/openai/clip-vit-large-patch14/resolve/"
    "32bd64288804d66eefd0ccbe215aa642df71cc41/model.safetensors",
    "backbone_sha256": "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb",
}
# OpenAI's own archives. Their URLs contain the checksum, as in open_clip's table of pretrained weights.
_OPENAI = "https://openaipublic.azureedge.net/clip/models"
_VIT_B_32_SHA256 = "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"
_VIT_B_16_SHA256 = "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"
_VIT_B_32 = {
    "backbone": "ViT-B-32-quickgelu",
    "backbone_weights": f"{_OPENAI}/{_VIT_B_32_SHA256}/ViT-B-32.pt",
    "backbone_sha256": _VIT_B_32_SHA256,
}
_VIT_B_16 = {
    "backbone": "ViT-B-16-quickgelu",
    "backbone_weights": f"{_OPENAI}/{_VIT_B_16_SHA256}/ViT-B-16.pt",
    "backbone_sha256": _VIT_B_16_SHA256,
}


@dataclass(frozen=True, kw_only=True)
class PackagedHead:
    """A folded head in the package. NOTICE has its origin and the text of its licence.

    Attributes:
        licence: Licence of the published file.
        published_sha256: Checksum of the published file that was folded.
        sha256: Checksum of the folded file.
    """

    licence: str
    published_sha256: str
    sha256: str


PACKAGED_HEADS = {
    "laion-aesthetics-v2": PackagedHead(
        licence="Apache-2.0",
        published_sha256="21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
        sha256="68e1871734a5abc9b1fc8880f9e7faeee94c1c43076744f9a577fcd2e539367e",
    ),
    "laion-aesthetics-v2-ava": PackagedHead(
        licence="Apache-2.0",
        published_sha256="390a3aafaf3b37d57148f9b22f30556de38343064b7d915acfa80d3812b4c9ff",
        sha256="3182899c5669d524935e07fee3451d78f8718d8ee2647b76d31e8fbbeb0d22b2",
    ),
    "laion-aesthetics-v1": PackagedHead(
        licence="MIT",
        published_sha256="2cd4e60f4f24ae3bcd57b847b13c1f3ba27edc28cc1a7f9ce74ee9f421243cba",
        sha256="a5d7eade515b741e037b862f784c79c86d25b7b077e8c8d07eac4cb0aa5bc8e4",
    ),
    "laion-aesthetics-v1-b32": PackagedHead(
        licence="MIT",
        published_sha256="c7b14cead230694acc7b9447974d3cad78003c72da032e402a303b6c2429e85f",
        sha256="699f70aa0cfcd2cfdbb99249204eb373752297d1271224664d6ab1abe850f6a2",
    ),
    "laion-aesthetics-v1-b16": PackagedHead(
        licence="MIT",
        published_sha256="8ad3923d7ecf019df20ecd2ab5542a3075fbba0278d239c0371345f3d7fcbde0",
        sha256="95782e91f81dfd9e134f0aaaf44b5f6c9e089f81ccbb064c6798afc982e2f630",
    ),
}


def _folded(name: str, backbone: dict[str, str]) -> Predictor:
    published = PACKAGED_HEADS[name].published_sha256
    return Predictor(name=name, head_weights=PACKAGED + name, head_sha256=published, **backbone)


# The heads are those of improved-aesthetic-predictor (V2) and aesthetic-predictor (V1), with the checksums of the
# published files.
BUILT_IN: dict[str, Predictor] = {
    predictor.name: predictor
    for predictor in (
        _folded("laion-aesthetics-v2", _VIT_L_14),
        _folded("laion-aesthetics-v2-ava", _VIT_L_14),
        # This head has ReLUs between its layers and cannot be folded, so its 3,714,887 bytes are downloaded.
        Predictor(
            name="laion-aesthetics-v2-ava-relu",
            head_weights="https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/"
            "fe88a163f4661b4ddabba0751ff645e2e620746e/ava%2Blogos-l14-reluMSE.pth",
            head_sha256="0af3254c651d55b7ea851429c20f26ec880bb0169805a4df85b814bd7966f3e4",
            **_VIT_L_14,
        ),
        _folded("laion-aesthetics-v1", _VIT_L_14),
        _folded("laion-aesthetics-v1-b32", _VIT_B_32),
        _folded("laion-aesthetics-v1-b16", _VIT_B_16),
        Predictor(
            name="untrained-vit-b-32",
            backbone="ViT-B-32-quickgelu",
            backbone_weights=UNTRAINED + "0",
            head_weights=UNTRAINED + "0:512",
        ),
        Predictor(
            name="untrained-vit-l-14",
            backbone="ViT-L-14-quickgelu",
            backbone_weights=UNTRAINED + "0",
            head_weights=UNTRAINED + "0:768",
        ),
    )
}
