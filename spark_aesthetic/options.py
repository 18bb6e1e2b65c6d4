"""The options that all image functions share, and checks of arguments."""

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

# Pillow warns above the first number (its MAX_IMAGE_PIXELS, 0.25 GiB of RGB) and refuses images
# above the second. A higher `max_pixels` would have no effect, so it is an error.
PILLOW_WARNS_PIXELS = 89_478_485
PILLOW_REFUSES_PIXELS = 2 * PILLOW_WARNS_PIXELS

# Error messages show at most this many characters of a value.
_SHOWN = 80

Decode = Literal["exact", "fast"]
Dtype = Literal["auto", "float32", "float16", "bfloat16"]
# Spark's save modes.
Mode = Literal["errorifexists", "append", "overwrite"]

InputKind = Literal["image", "embedding"]
INPUT_KINDS: tuple[InputKind, ...] = get_args(InputKind)
DEVICES = ("auto", "cpu", "mps", "xpu", "cuda")
MODES: tuple[Mode, ...] = get_args(Mode)

_Of = TypeVar("_Of", bound=str)


class OptionArgs(TypedDict, total=False):
    """Keyword arguments of the image functions; see `Options`."""

    batch_size: int
    device: str
    dtype: Dtype
    decode: Decode
    num_threads: int
    max_pixels: int
    model_path: str | None


@dataclass(frozen=True, kw_only=True)
class Options:
    """How images are decoded and run through the model. No option changes the meaning of the score.

    Attributes:
        batch_size: Rows in one forward pass. -1 chooses a size for the device.
        device: "auto" is the GPU that Spark gave to the task, or the CPU if Spark gave none. Any other value is a
            torch device such as "cpu" or "cuda:1", and every task uses it.
        dtype: "auto" is float16 on a GPU, as in the reference, and float32 on a CPU. "bfloat16" is faster only on a
            CPU with instructions for it; on a CPU with AVX2 alone it took ten times as long as float32.
            Compared with float32 it changed the scores of nine photographs by 0.0070 on average and 0.019 at most;
            decode="fast" changed them by 0.00026 and 0.0023 (untrained ViT-B/32, standard deviation 0.54).
        decode: "exact" gives the pixels of the reference preprocessing, bit for bit. "fast" lets
            libjpeg shrink a JPEG while decoding it, never below twice the side that the model takes.
        num_threads: Threads in each Python worker, for decoding and, on a CPU, for inference.
            -1 uses the cores that Spark gave to the task (`spark.task.cpus`).
        max_pixels: An image with more pixels, according to its header, is not decoded and gets a null score.
        model_path: A folder with the weights files, or the path of the backbone's file, as the workers see it.

    Raises:
        OptionError: A value is outside its range.

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
                f"device={self.device!r}: {nearest(kind, DEVICES)}. A GPU may have a number, as in cuda:1."
            )
        for name in ("batch_size", "num_threads"):
            value = getattr(self, name)
            if not is_whole(value) or (value < 1 and value != -1):
                raise OptionError(f"{name}={value!r}: expected a whole number of at least 1, or -1 for automatic")
        if not is_whole(self.max_pixels) or not 1 <= self.max_pixels <= PILLOW_REFUSES_PIXELS:
            raise OptionError(
                f"max_pixels={self.max_pixels!r}: expected 1 to {PILLOW_REFUSES_PIXELS}, which is Pillow's limit"
            )
        if self.model_path is not None:
            if not isinstance(self.model_path, str | os.PathLike):
                raise OptionError(f"model_path={shortened(self.model_path)}: expected a path, or None")
            object.__setattr__(self, "model_path", os.fspath(self.model_path))
        for name in ("batch_size", "num_threads", "max_pixels"):
            # NumPy's integers differ from Python's in repr and pickle, so convert them.
            object.__setattr__(self, name, int(getattr(self, name)))

    @classmethod
    def of(cls, called: Callable[..., Any] | None = None, /, **given: Unpack[OptionArgs]) -> Options:
        """Make options from keyword arguments. The error for a misspelt name suggests the nearest valid one.

        Args:
            called: The public function that received the arguments. Its own keywords are valid names too.
            **given: The arguments that are not parameters of `called`.

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
    """An image encoder of timm or open_clip, and its weights; see `spark_aesthetic.images.other_encoders`.

    Attributes:
        model_name: "name.tag" in timm ("vit_large_patch14_clip_quickgelu_224.openai"), or an architecture of
            open_clip ("ViT-B-32").
        pretrained: True downloads the published weights; in open_clip those have the tag "openai". A string is another
            tag of open_clip. False makes seeded random weights, for tests.
        model_path: A safetensors file to load instead, or a folder that contains "<model_name>.safetensors".
    """

    model_name: str
    pretrained: bool | str
    model_path: str | None


_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def in_bytes(name: str, size: str | int) -> int:
    """Convert a size in the notation of Spark's settings to bytes.

    Raises:
        OptionError: The size is malformed, zero, or at least 2^63.

    Examples:
        >>> in_bytes("max_bytes_per_chunk", "8g"), in_bytes("max_bytes_per_chunk", 1024)
        (8589934592, 1024)
    """
    # At most 19 digits, because int() raises for more than 4,300.
    found = re.fullmatch(r"([0-9]{1,19})([kmgt]?)b?", str(size).strip().lower()) if type(size) is not bool else None
    total = 0 if found is None else int(found[1]) * _UNITS[found[2]]
    # Spark stores sizes in signed 64-bit integers.
    if not 0 < total < 2**63:
        raise OptionError(
            f"{name}={size!r}: expected a number of bytes above zero and below 2^63, such as 8g, 512m or 1000000"
        )
    return total


def check_files(name: str, files: int) -> None:
    """Raise OptionError unless `files` is at least 1 and fits into the 32 bits that Delta counts files with."""
    whole(name, files, least=1, most=2**31 - 1, of="files")


def whole(name: str, value: Any, *, least: int, most: int | None = None, of: str = "") -> int:
    """Check that an argument is a whole number, and return it as int.

    Integers of Python and NumPy pass, and so do floats without a fraction, such as 1e6. Text and booleans do not.

    Args:
        name: The argument, as the caller wrote it.
        value: The argument's value.
        least: The lowest number allowed.
        most: The highest number allowed; None sets no limit.
        of: The unit for the message, such as "rows".

    Raises:
        OptionError: The value is not a whole number, or is outside the range.

    Examples:
        >>> whole("top_k", 1e6, least=1)
        1000000
        >>> whole("top_k", "5", least=1, of="rows")
        Traceback (most recent call last):
          ...
        spark_aesthetic.errors.OptionError: top_k='5': expected a whole number of rows of at least 1
    """
    # is_whole comes first, because math.isfinite raises for an integer that is too large for a float.
    if is_whole(value) or (is_real(value) and math.isfinite(value) and value == int(value)):
        found = int(value)
        if least <= found and (most is None or found <= most):
            return found
    kind = f"a whole number of {of}" if of else "a whole number"
    limits = f"of at least {least}" if most is None else f"from {least} to {most}"
    raise OptionError(f"{name}={shortened(value)}: expected {kind} {limits}")


def shortened(value: Any) -> str:
    """Format a value for an error message, shortened to 80 characters.

    Examples:
        >>> shortened("5"), shortened(10**90)[-12:], shortened(10**9000)
        ("'5'", '0000000000 …', 'an integer of 29898 bits')
    """
    # repr() raises for an integer of more than 4,300 digits.
    if is_whole(value) and int(value).bit_length() > 4096:
        return f"an integer of {int(value).bit_length()} bits"
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} …"


def number(name: str, value: Any, *, remedy: str = "") -> float:
    """Check that an argument is a finite number of Python or NumPy, not a boolean, and return it as float.

    Raises:
        OptionError: The value is anything else.

    Examples:
        >>> number("cut", float("nan"))
        Traceback (most recent call last):
          ...
        spark_aesthetic.errors.OptionError: cut=nan: expected a finite number
    """
    try:
        if is_real(value) and math.isfinite(value):
            return float(value)
    # math.isfinite raises for an integer that is too large for a float.
    except OverflowError:
        pass
    raise OptionError(f"{name}={shortened(value)}: expected a finite number{remedy}")


def share(name: str, value: Any) -> float:
    """Check that an argument is a share of rows, above 0 and at most 1; raises OptionError as `number` does."""
    if not 0 < number(name, value, remedy=" above 0 and at most 1, such as 0.1 for a tenth") <= 1:
        raise OptionError(f"{name}={value!r}: expected a share above 0 and at most 1, such as 0.1 for a tenth")
    return float(value)


def is_real(value: Any) -> bool:
    """Whether a value is a number of Python or NumPy, including Decimal but not booleans."""
    # NumPy's booleans are not Real, so only Python's need a check.
    return isinstance(value, Real | Decimal) and not isinstance(value, bool)


def is_whole(value: Any) -> bool:
    """Whether a value is an integer of Python or NumPy, but not a boolean."""
    return isinstance(value, Integral) and not isinstance(value, bool)


# mypy accepts no default for a parameter with a type variable. Without `valid` the type is Mode.
def check_mode(name: str, mode: Any, valid: Sequence[_Of] = MODES) -> _Of:  # type: ignore[assignment]
    """Check a save mode, and return its name in lower case.

    Args:
        name: The argument, as the caller wrote it.
        mode: "errorifexists" (Spark also calls it "error" and "default"), "append" or "overwrite", in upper or lower
            case.
        valid: The modes that the call supports.

    Raises:
        OptionError: The mode is not one of them.

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
