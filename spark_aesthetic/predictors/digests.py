"""Digests of files, each computed once a process for as long as the file does not change."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from spark_aesthetic.errors import MissingDependencyError


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal: what publishers state of weights."""
    return _sha256(path, *_state(path))


def blake3_of(path: Path) -> str:
    """The BLAKE3 of a file in hexadecimal: the fastest sound digest measured, for files of the package's own making.

    One core, file in the page cache: 2.2 GiB/s, SHA-256 with the CPU's own instructions for it 1.3 GiB/s.

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
    # Here, because a driver that scores embeddings does not need it.
    try:
        from blake3 import blake3
    except ImportError as missing:
        raise MissingDependencyError(
            f"prepared weights need blake3 on every executor (found: {missing}): pip install 'spark-aesthetic[image]'"
        ) from missing
    return str(blake3().update_mmap(path).hexdigest())
