"""The options that all image functions share, checked where they are given."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from decimal import Decimal
from inspect import Parameter, signature
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar, get_args

from spark_aesthetic.errors import OptionError, nearest

if TYPE_CHECKING:
    from typing_extensions import Unpack

# Pillow warns above this many pixels and refuses twice as many (its MAX_IMAGE_PIXELS, a quarter
# of a gibibyte of RGB). Past the refusal no option of ours can help, so none is accepted there.
PILLOW_WARNS_PIXELS = 89_478_485
PILLOW_REFUSES_PIXELS = 2 * PILLOW_WARNS_PIXELS

# Characters of a value that an error shows.
_SHOWN = 80

Decode = Literal["exact", "fast"]
Dtype = Literal["auto", "float32", "float16", "bfloat16"]
# How tables and folders are written, in the words of Spark.
Mode = Literal["errorifexists", "append", "overwrite"]

InputKind = Literal["image", "embedding"]
INPUT_KINDS: tuple[InputKind, ...] = get_args(InputKind)
DEVICES = ("auto", "cpu", "mps", "xpu", "cuda")
MODES: tuple[Mode, ...] = get_args(Mode)

_Of = TypeVar("_Of", bound=str)


class OptionArgs(TypedDict, total=False):
    """Keyword arguments of the image functions, see `Options`."""

    batch_size: int
    device: str
    dtype: Dtype
    decode: Decode
    num_threads: int
    max_pixels: int
    model_path: str | None


@dataclass(frozen=True, kw_only=True)
class Options:
    """How images are scored; none of it changes what the score means.

    Attributes:
        batch_size: Rows in one forward pass; -1 chooses for the device.
        device: "auto" is the GPU that Spark gave to the task, else the CPU. Otherwise a torch device
            such as "cpu" or "cuda:1", used as it is by every task.
        dtype: "auto" is float16 on a GPU, as in the reference, and float32 on a CPU. "bfloat16" only pays on a CPU
            that has instructions for it: on one without (AVX2 alone) it took ten times as long as float32.
            On nine photographs its scores were 0.0070 from those of float32 in the mean, 0.019 at most, where "fast"
            moved them by 0.00026 and 0.0023 (untrained ViT-B/32, standard deviation 0.54).
        decode: "exact" gives the pixels of the reference preprocessing, bit for bit. "fast" lets
            libjpeg shrink a JPEG while decoding it, never below twice the target side.
        num_threads: Threads for decoding and for inference on a CPU, in each Python worker;
            -1 takes the cores that Spark gave to the task (`spark.task.cpus`).
        max_pixels: An image of more pixels, by its header, gets a null score before it is decoded.
        model_path: A folder with the weights files, or the backbone's file itself, as the workers see it.

    Raises:
        OptionError: A value outside its range.

    Examples:
        >>> Options(decode="exat")
        Traceback (most recent call last):
          ...
        spark_aesthetic.errors.OptionError: decode='exat': did you mean 'exact'? Valid: exact, fast
    """

    batch_size: int = -1
    device: str = "auto"
    dtype: Dtype = "auto"
    decode: Decode = "exact"
    num_threads: int = -1
    max_pixels: int = PILLOW_WARNS_PIXELS
    model_path: str | None = None

    def __post_init__(self) -> None:
        for name, valid in (("decode", get_args(Decode)), ("dtype", get_args(Dtype))):
            value = getattr(self, name)
            if value not in valid:
                raise OptionError(f"{name}={value!r}: {nearest(str(value), valid)}")
        kind = str(self.device).partition(":")[0]
        if not re.fullmatch(r"(auto|cpu)|(cuda|mps|xpu)(:\S+)?", str(self.device)):
            raise OptionError(
                f"device={self.device!r}: {nearest(kind, DEVICES)}, the latter with a number as in cuda:1"
            )
        for name in ("batch_size", "num_threads"):
            value = getattr(self, name)
            if not is_whole(value) or (value < 1 and value != -1):
                raise OptionError(f"{name}={value!r}: expected a whole number of at least 1, or -1 to choose")
        if not is_whole(self.max_pixels) or not 1 <= self.max_pixels <= PILLOW_REFUSES_PIXELS:
            raise OptionError(
                f"max_pixels={self.max_pixels!r}: expected 1 to {PILLOW_REFUSES_PIXELS}; Pillow decodes no larger image"
            )
        if self.model_path is not None:
            if not isinstance(self.model_path, str | os.PathLike):
                raise OptionError(f"model_path={shortened(self.model_path)}: expected a path, or None")
            object.__setattr__(self, "model_path", os.fspath(self.model_path))
        for name in ("batch_size", "num_threads", "max_pixels"):
            # NumPy's integers print and travel otherwise than Python's.
            object.__setattr__(self, name, int(getattr(self, name)))

    @classmethod
    def of(cls, called: Callable[..., Any] | None = None, /, **given: Unpack[OptionArgs]) -> Options:
        """Make options of keyword arguments, naming the nearest valid one for a misspelt name.

        Args:
            called: The public function that got them, whose own keywords are valid names too.
            **given: The arguments that are none of its own.

        Examples:
            >>> Options.of(bach_size=8)
            Traceback (most recent call last):
              ...
            spark_aesthetic.errors.OptionError: no option 'bach_size': did you mean 'batch_size'? Valid: batch_size, \
device, dtype, decode, num_threads, max_pixels, model_path
        """
        own = {} if called is None else signature(called).parameters
        valid = [name for name, parameter in own.items() if parameter.kind is Parameter.KEYWORD_ONLY]
        valid += [field.name for field in fields(cls)]
        for name in given:
            if name not in valid:
                raise OptionError(f"no option {name!r}: {nearest(name, valid)}")
        return cls(**given)


@dataclass(frozen=True, kw_only=True)
class EncoderName:
    """An image encoder that is no predictor's, and its weights; see `spark_aesthetic.images.other_encoders`.

    Attributes:
        model_name: As timm has it, "name.tag" ("vit_large_patch14_clip_quickgelu_224.openai"), or an architecture of
            open_clip ("ViT-B-32").
        pretrained: Download the published weights; of open_clip True is the tag "openai", and another tag is given as
            such. False is seeded random weights, for tests.
        model_path: A safetensors file of the weights instead, or a folder with "<model_name>.safetensors" in it.
    """

    model_name: str
    pretrained: bool | str
    model_path: str | None


_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def in_bytes(name: str, size: str | int) -> int:
    """A size as Spark's settings have it, in bytes.

    Raises:
        OptionError: It is none, not above zero, or beyond what Spark can count.

    Examples:
        >>> in_bytes("max_bytes_per_chunk", "8g"), in_bytes("max_bytes_per_chunk", 1024)
        (8589934592, 1024)
    """
    # Python reads no number of thousands of digits.
    found = re.fullmatch(r"([0-9]{1,19})([kmgt]?)b?", str(size).strip().lower()) if type(size) is not bool else None
    total = 0 if found is None else int(found[1]) * _UNITS[found[2]]
    # Spark's settings are 64-bit numbers.
    if not 0 < total < 2**63:
        raise OptionError(
            f"{name}={size!r}: expected a number of bytes above zero and below 2^63, such as 8g, 512m or 1000000"
        )
    return total


def check_files(name: str, files: int) -> None:
    """Raise OptionError unless it is a number of files that Delta can count to."""
    whole(name, files, least=1, most=2**31 - 1, of="files")


def whole(name: str, value: Any, *, least: int, most: int | None = None, of: str = "") -> int:
    """Check a whole number that a caller gave.

    Python's and NumPy's integers are taken, and floats without a fraction, such as 1e6. Text and booleans are not.

    Args:
        name: The argument, as the caller wrote it.
        value: What was given.
        least: The lowest number allowed.
        most: The highest number allowed, if there is one.
        of: What is counted, for the message: "rows".

    Raises:
        OptionError: Anything else, or a number outside the range.

    Examples:
        >>> whole("top_k", 1e6, least=1)
        1000000
        >>> whole("top_k", "5", least=1, of="rows")
        Traceback (most recent call last):
          ...
        spark_aesthetic.errors.OptionError: top_k='5': expected a whole number of rows of at least 1
    """
    # An integer of any size is finite; Python raises where it is too large for a float.
    if is_whole(value) or (is_real(value) and math.isfinite(value) and value == int(value)):
        found = int(value)
        if least <= found and (most is None or found <= most):
            return found
    kind = f"a whole number of {of}" if of else "a whole number"
    limits = f"of at least {least}" if most is None else f"from {least} to {most}"
    raise OptionError(f"{name}={shortened(value)}: expected {kind} {limits}")


def shortened(value: Any) -> str:
    """A value as an error shows it, or its beginning.

    Examples:
        >>> shortened("5"), shortened(10**90)[-12:], shortened(10**9000)
        ("'5'", '0000000000 …', 'an integer of 29898 bits')
    """
    # Python writes no integer of more than 4,300 digits.
    if is_whole(value) and int(value).bit_length() > 4096:
        return f"an integer of {int(value).bit_length()} bits"
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} …"


def number(name: str, value: Any, *, remedy: str = "") -> float:
    """Check a finite number that a caller gave: Python's or NumPy's, and no text and no boolean.

    Raises:
        OptionError: Anything else.

    Examples:
        >>> number("cut", float("nan"))
        Traceback (most recent call last):
          ...
        spark_aesthetic.errors.OptionError: cut=nan: expected a finite number
    """
    try:
        if is_real(value) and math.isfinite(value):
            return float(value)
    # An integer that is too large for a float.
    except OverflowError:
        pass
    raise OptionError(f"{name}={shortened(value)}: expected a finite number{remedy}")


def share(name: str, value: Any) -> float:
    """Check a share of rows that a caller gave, above 0 and up to 1; raises OptionError as `number` does."""
    if not 0 < number(name, value, remedy=" above 0 and up to 1; a tenth is 0.1") <= 1:
        raise OptionError(f"{name}={value!r}: expected a share above 0 and up to 1; a tenth is 0.1")
    return float(value)


def is_real(value: Any) -> bool:
    """Whether a value is a number of Python's or NumPy's, a Decimal among them, and no boolean."""
    # NumPy's booleans are no Real.
    return isinstance(value, Real | Decimal) and not isinstance(value, bool)


def is_whole(value: Any) -> bool:
    """Whether a value is an integer of Python's or NumPy's, and no boolean."""
    return isinstance(value, Integral) and not isinstance(value, bool)


# mypy takes no default for a type variable, which here stands for Mode if `valid` is left out.
def check_mode(name: str, mode: Any, valid: Sequence[_Of] = MODES) -> _Of:  # type: ignore[assignment]
    """Check what is to happen where something is written already.

    Args:
        name: The argument, as the caller wrote it.
        mode: "errorifexists" (Spark also calls it "error" and "default"), "append" or "overwrite", in any case.
        valid: Those that make sense for the call.

    Raises:
        OptionError: Another one.

    Examples:
        >>> check_mode("mode", "Error"), check_mode("mode", "overwrite")
        ('errorifexists', 'overwrite')
    """
    lower = str(mode).lower()
    meant = "errorifexists" if lower in ("error", "default") else lower
    for known in valid:
        if known == meant:
            return known
    raise OptionError(f"{name}={mode!r}: {nearest(lower, valid)}")
