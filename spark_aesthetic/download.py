"""One file from a URL into place: resumed, verified, and by one process of the node at a time."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import BinaryIO

import fsspec
from filelock import FileLock
from tqdm import tqdm

from spark_aesthetic.errors import ChecksumError, WeightsNotFoundError

# Larger than fsspec's own 5 MiB: a range request to a hub costs a redirect each time.
_BLOCK_BYTES = 64 * 2**20
_CHUNK_BYTES = 2**20


def download(url: str, target: Path, *, sha256: str | None) -> Path:
    """Fetch `url` (any scheme that fsspec knows) to `target`, unless another process has done so.

    The bytes go to `target` + ".part", which a later call continues; the checksum is taken on the way; only
    a file that passed is renamed to `target`. A file lock lets one process of the node download while the
    others wait for its result. Shows a progress bar on stderr where that is a terminal.

    Raises:
        WeightsNotFoundError: The address cannot be read to its end; the part is kept.
        ChecksumError: All was read and is not what was expected; the part is deleted.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if target.exists():
            return target
        part = target.with_name(target.name + ".part")
        found = _fetch(url, part)
        if sha256 is not None and found != sha256:
            part.unlink()
            raise ChecksumError(
                f"{url}: expected sha256 {sha256}, found {found}; the download is deleted and was not opened. "
                "Run again; if it repeats, the address serves another file"
            )
        part.replace(target)
    return target


def _fetch(url: str, part: Path) -> str:
    digest = hashlib.sha256()
    try:
        with fsspec.open(url, "rb", block_size=_BLOCK_BYTES).open() as remote, part.open("a+b") as local:
            total = remote.size
            local.seek(0)
            while chunk := local.read(_CHUNK_BYTES):
                digest.update(chunk)
            done = local.tell()
            if done and not _skip(remote, done):
                local.truncate(0)
                digest, done = hashlib.sha256(), 0
            # disable=None: no bar where stderr is a file.
            with tqdm(total=total, initial=done, unit="B", unit_scale=True, desc=part.stem, disable=None) as bar:
                while chunk := remote.read(_CHUNK_BYTES):
                    local.write(chunk)
                    digest.update(chunk)
                    bar.update(len(chunk))
                    done += len(chunk)
        if total is not None and done < total:
            raise EOFError(f"the connection ended after {done} of {total} bytes")
    # fsspec's file systems have no base error in common (OSError, aiohttp.ClientError, botocore's, ...).
    except Exception as error:
        kept = part.stat().st_size if part.exists() else 0
        raise WeightsNotFoundError(f"cannot download {url} ({kept} bytes kept to resume from): {error!r}") from error
    return digest.hexdigest()


def _skip(remote: BinaryIO, done: int) -> bool:
    """Move past what is already there; False where the server gives the whole file or nothing."""
    try:
        remote.seek(done)
    except ValueError:
        return False
    return True
