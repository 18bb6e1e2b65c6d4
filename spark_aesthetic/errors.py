"""What can go wrong with a call, as one tree.

    AestheticError
    ├── PredictorError (ValueError)            no such predictor, or a recipe that cannot be
    ├── OptionError (ValueError)               an option outside its values
    ├── WeightsError                           a weights file that cannot be used as it is
    │   ├── WeightsNotFoundError               nowhere, and the network did not help
    │   └── ChecksumError                      found, but not the file that was asked for
    ├── TableError (ValueError)                source, column, type, key or scores table
    │   └── SourceChangedError                 rows changed, and nothing tells which
    ├── ResourceError (RuntimeError)           a GPU or room on a disk that is not there
    └── MissingDependencyError (ImportError)   an extra that is not installed

These are faults of the call. Each message says what was expected, what was found and what to do.
A fault of one row, such as a truncated image, is never raised: the row gets a null score and a reason.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class AestheticError(Exception):
    """Base of every error that this package raises on purpose."""


class PredictorError(AestheticError, ValueError):
    """A predictor that is unknown, malformed or does not fit its weights."""


class OptionError(AestheticError, ValueError):
    """An option with an unknown name or a value outside its range."""


class WeightsError(AestheticError):
    """A weights file that cannot be used."""


class WeightsNotFoundError(WeightsError):
    """A weights file that is in none of the places looked at."""


class ChecksumError(WeightsError):
    """A weights file whose sha256 is not the expected one; it is never deserialised."""


class TableError(AestheticError, ValueError):
    """A table, column, type or key that the job cannot work on."""


class SourceChangedError(TableError):
    """A source whose rows were updated or deleted, without a change data feed that tells which."""


class ResourceError(AestheticError, RuntimeError):
    """A device that was asked for, or room on a disk, that is not there."""


class MissingDependencyError(AestheticError, ImportError):
    """A Python package that this call needs and that is not installed."""


def in_a_line(error: BaseException) -> str:
    """Name an error by its class and the first line of its message.

    Examples:
        >>> in_a_line(OSError(28, "No space left")), in_a_line(ValueError())
        ('OSError: [Errno 28] No space left', 'ValueError: no message')
    """
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def nearest(wrong: str, valid: Iterable[str]) -> str:
    """Name the valid choice nearest to a wrong one, and all of them.

    Examples:
        >>> nearest("exat", ["exact", "fast"])
        "did you mean 'exact'? Valid: exact, fast"
    """
    choices = list(valid)
    close = get_close_matches(wrong, choices, n=1, cutoff=0.6)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}Valid: {', '.join(choices)}"
