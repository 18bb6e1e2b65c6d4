"""Helpers that write small shards."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def make_shard(path: Path, samples: int, start: int = 0, mode: str = "w") -> None:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for at in range(start, start + samples):
            add(tar, f"some/{at:05d}.jpg", bytes([at % 256]) * (700 + at))
            add(tar, f"some/{at:05d}.txt", f"caption {at} ü".encode())
            add(tar, f"some/{at:05d}.json", json.dumps({"number": at}).encode())
