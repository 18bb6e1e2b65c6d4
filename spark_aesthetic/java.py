"""What py4j raises of Java's exceptions that PySpark has no class for."""

from __future__ import annotations

__all__ = ["Py4JJavaError"]

try:
    from py4j.protocol import Py4JJavaError
except ImportError:  # a client of Spark Connect alone, where nothing raises it

    class Py4JJavaError(Exception):  # type: ignore[no-redef]
        """Never raised."""
