"""Errors of the JVM: what py4j raises of those that PySpark has no class for, and what they say."""

from __future__ import annotations

import re
from typing import Any

from pyspark.errors import PySparkException

__all__ = ["Py4JJavaError", "first_line"]

try:
    from py4j.protocol import Py4JJavaError
except ImportError:  # a client of Spark Connect alone, where nothing raises it

    class Py4JJavaError(Exception):  # type: ignore[no-redef]
        """Never raised."""


# Java puts the class of an exception before its message, Spark Connect in parentheses.
_CLASS = re.compile(r"^(?:\((?:[a-z_]\w*\.)+\w+\)|(?:[a-z_]\w*\.)+\w+:)\s+")


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
    while shorter := _CLASS.match(line):
        line = line[shorter.end() :]
    return line


def _deepest(java: Any) -> str:
    """The message of the deepest cause of a Java exception that has one."""
    text = str(java.toString())
    while (java := java.getCause()) is not None:
        text = str(java.getMessage() or text)
    return text
