"""The exceptions that this package raises.

    AestheticError
    ├── PredictorError (ValueError)            unknown predictor, or invalid recipe
    ├── OptionError (ValueError)               unknown option, or value outside its range
    ├── WeightsError                           weights file that cannot be used
    │   ├── WeightsNotFoundError               missing, and not downloadable
    │   └── ChecksumError                      sha256 differs from the expected one
    ├── TableError (ValueError)                unusable source, column, type, key or scores table
    │   └── SourceChangedError                 rows changed, and nothing records which
    ├── ResourceError (RuntimeError)           missing GPU, or not enough disk space
    └── MissingDependencyError (ImportError)   package that is not installed

All of them mean that the call cannot work. Each message says what was expected, what was found and what to do.
A fault in one row, such as a truncated image, raises nothing: the row gets a null score and a reason.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class AestheticError(Exception):
    """Base class of every error that this package raises on purpose."""


class PredictorError(AestheticError, ValueError):
    """A predictor that is unknown, malformed or does not fit its weights."""


class OptionError(AestheticError, ValueError):
    """An option with an unknown name or a value outside its range."""


class WeightsError(AestheticError):
    """A weights file that cannot be used."""


class WeightsNotFoundError(WeightsError):
    """A weights file that is missing and cannot be downloaded."""


class ChecksumError(WeightsError):
    """A weights file with an unexpected sha256; it is never deserialised."""


class TableError(AestheticError, ValueError):
    """A table, column, type or key that cannot be used."""


class SourceChangedError(TableError):
    """A source with updated or deleted rows, but without a change data feed that identifies them."""


class ResourceError(AestheticError, RuntimeError):
    """A requested device, or disk space, that is not available."""


class MissingDependencyError(AestheticError, ImportError):
    """A Python package that this call needs and that is not installed."""


def in_a_line(error: BaseException) -> str:
    """Format an error as its class name and the first line of its message.

    Examples:
        >>> in_a_line(OSError(28, "No space left")), in_a_line(ValueError())
        ('OSError: [Errno 28] No space left', 'ValueError: no message')
    """
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def nearest(wrong: str, valid: Iterable[str]) -> str:
    """Suggest the valid choice that is nearest to a wrong one, and list all valid choices.

    Examples:
        >>> nearest("exat", ["exact", "fast"])
        "did you mean 'exact'? Valid: exact, fast"
    """
    choices = list(valid)
    close = get_close_matches(wrong, choices, n=1, cutoff=0.6)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}Valid: {', '.join(choices)}"
