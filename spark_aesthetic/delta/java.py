"""Errors of the JVM: their classes in py4j, the one line that helps the user, and full disks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pyspark.errors import PySparkException

from spark_aesthetic.errors import AestheticError, ResourceError

__all__ = ["Py4JJavaError", "Py4JNetworkError", "first_line", "full_disk_explained"]

try:
    from py4j.protocol import Py4JJavaError, Py4JNetworkError
except ImportError:  # a client with only Spark Connect, where nothing raises them

    class Py4JJavaError(Exception):  # type: ignore[no-redef]
        """Never raised."""

    class Py4JNetworkError(Exception):  # type: ignore[no-redef]
        """Never raised."""


# The class of an exception precedes its message. Spark Connect puts the class in parentheses.
_CLASS = re.compile(r"^(?:\((?:[a-z_]\w*\.)+\w+\)|(?:[a-z_]\w*\.)+\w+:)\s+")

# Linux's messages for a full disk, a full quota and the process's file size limit, and HDFS's exception for a quota.
_FULL = re.compile(r"[^\n]*(No space left on device|Disk quota exceeded|File too large|QuotaExceededException)[^\n]*")


@contextmanager
def full_disk_explained() -> Iterator[None]:
    """Replace any error that a full disk causes with one line.

    Raises:
        ResourceError: A disk was full, here or on an executor.
    """
    try:
        yield
    except AestheticError:
        raise
    except Exception as error:
        found = _FULL.search(f"{first_line(error)}\n{error}")
        if found is None:
            raise
        raise ResourceError(
            "expected room on disk for the output and for Spark's temporary files (spark.local.dir), found: "
            f"{_without_class(found[0].strip())}. Make room and run again; no commit is left half-written."
        ) from error


def first_line(error: Exception) -> str:
    """Return the line of an error that helps the user, without class names.

    An error with a condition of Spark or Delta is used as it is. For any other JVM error the deepest cause is used,
    because the errors around it only repeat that a call has failed.
    """
    condition = error.getCondition() if isinstance(error, PySparkException) else None
    java = getattr(error, "java_exception", None) or getattr(error, "_origin", None)
    text = str(error) if condition or java is None else _deepest(java)
    # An error of Spark's parser begins with an empty line.
    line = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    return _without_class(line)


def _without_class(line: str) -> str:
    while shorter := _CLASS.match(line):
        line = line[shorter.end() :]
    return line


def _deepest(java: Any) -> str:
    """Return the message of the deepest cause that has a message, or else the exception as text."""
    text = str(java.toString())
    while (java := java.getCause()) is not None:
        text = str(java.getMessage() or text)
    return text
