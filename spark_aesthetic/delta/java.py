"""Errors of the JVM: py4j's class for them, the line that tells the user something, and a disk that is full."""

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
except ImportError:  # a client of Spark Connect alone, where nothing raises them

    class Py4JJavaError(Exception):  # type: ignore[no-redef]
        """Never raised."""

    class Py4JNetworkError(Exception):  # type: ignore[no-redef]
        """Never raised."""


# Java puts the class of an exception before its message, Spark Connect in parentheses.
_CLASS = re.compile(r"^(?:\((?:[a-z_]\w*\.)+\w+\)|(?:[a-z_]\w*\.)+\w+:)\s+")

# The words of Linux for a full disk, a quota and a limit of the process, and the exception of HDFS.
_FULL = re.compile(r"[^\n]*(No space left on device|Disk quota exceeded|File too large|QuotaExceededException)[^\n]*")


@contextmanager
def full_disk_explained() -> Iterator[None]:
    """Raise one line in place of the stack of any error that comes from a full disk.

    Raises:
        ResourceError: Something that ran inside found no room on a disk, here or on an executor.
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
            "expected room on disk for what this writes and for what Spark keeps meanwhile in spark.local.dir, found: "
            f"{_without_class(found[0].strip())}; make room and run again: each commit was made whole or not at all"
        ) from error


def first_line(error: Exception) -> str:
    """Give the first line of an error that tells the user something.

    Errors with a condition of Spark's or Delta's speak for themselves. Of any other error of the JVM the deepest cause
    is taken, because the errors around it only repeat that a call has failed.
    """
    condition = error.getCondition() if isinstance(error, PySparkException) else None
    java = getattr(error, "java_exception", None) or getattr(error, "_origin", None)
    text = str(error) if condition or java is None else _deepest(java)
    # Spark's parser begins with an empty line.
    line = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    return _without_class(line)


def _without_class(line: str) -> str:
    while shorter := _CLASS.match(line):
        line = line[shorter.end() :]
    return line


def _deepest(java: Any) -> str:
    """The message of the deepest cause of a Java exception that has one."""
    text = str(java.toString())
    while (java := java.getCause()) is not None:
        text = str(java.getMessage() or text)
    return text
