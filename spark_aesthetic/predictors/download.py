"""Download a file from a URL: with resume and verification, and by one process of a node at a time."""

from __future__ import annotations

import errno
import hashlib
import logging
from pathlib import Path

import fsspec
from tqdm import tqdm

from spark_aesthetic.errors import ChecksumError, WeightsError, WeightsNotFoundError
from spark_aesthetic.predictors.cache import check_private, locked, rename
from spark_aesthetic.predictors.digests import sha256_of

# Larger than fsspec's default of 5 MiB, because each range request to a model hub costs a redirect.
_BLOCK_BYTES = 64 * 2**20
_CHUNK_BYTES = 2**20
# Bytes between two log lines if the server does not state the size.
_REPORT_BYTES = 256 * 2**20

_log = logging.getLogger(__name__)


def download(url: str, target: Path, *, sha256: str | None) -> Path:
    """Download `url` (any scheme that fsspec supports) to `target`, unless another process has done so.

    The bytes are written to `target` + ".part", and the checksum is computed meanwhile. Only a file that passes is
    renamed to `target`. If `sha256` is given, a later call resumes the part; if the server does not support ranges, the
    download starts again. A file lock lets one process of the node download while its other processes wait. A target
    that has the checksum already is neither locked nor written. If stderr is a terminal, it shows a progress bar;
    otherwise the log gets a line after each tenth of the file.

    Raises:
        WeightsError: The folder cannot be written to, or its disk is full.
        WeightsNotFoundError: The URL cannot be read to its end; the part is kept.
        ChecksumError: The complete file does not match its checksum; the part is deleted.
    """
    if is_fetched(target, sha256):
        return target
    with locked(target):
        # The process that held the lock before may have downloaded it.
        if is_fetched(target, sha256):
            return target
        if target.exists():
            _log.warning("%s does not have the sha256 %s; downloading it again", target, sha256)
        part = target.with_name(target.name + ".part")
        if sha256 is None:
            # Without a checksum nothing would detect that the URL now serves a different file.
            part.unlink(missing_ok=True)
        found = _fetch(url, part)
        if sha256 is not None and found != sha256:
            part.unlink()
            raise ChecksumError(
                f"{url}: expected sha256 {sha256}, found {found}; the download is deleted and was not opened. "
                "Run again; if this repeats, the URL serves another file."
            )
        rename(part, target)
    return target


def is_fetched(target: Path, sha256: str | None) -> bool:
    """Whether a file is in the cache, with the right checksum if one is known.

    Raises:
        WeightsError: Other users can write to the file or to the cache.
    """
    if not target.is_file():
        return False
    check_private(target)
    return sha256 is None or sha256_of(target) == sha256


def http_client() -> dict[str, object]:
    """Return `client_kwargs` for fsspec's file system for http(s)."""
    # Imported here, because most processes download nothing.
    from aiohttp import ClientTimeout

    # aiohttp limits a whole response to 300 s by default. Here a response times out only after 60 s without data.
    timeout = ClientTimeout(total=None, sock_connect=30, sock_read=60)
    # Without trust_env aiohttp ignores the proxy in HTTPS_PROXY.
    return {"timeout": timeout, "trust_env": True}


def _fetch(url: str, part: Path) -> str:
    try:
        if not url.startswith(("http://", "https://")):
            return _continue(url, part)
        client = http_client()
        try:
            # fsspec's default cache for http, "bytes", drops blocks before they are read and requests them again.
            return _continue(url, part, client_kwargs=client, cache_type="readahead")
        except ValueError:
            # fsspec raises ValueError if a server answers a range request with the whole file or reports that it has no
            # support for ranges. It also does so for an invalid URL; then this second attempt fails before it changes
            # the part.
            return _continue(url, part, anew=True, client_kwargs=client, block_size=0)
    # fsspec's file systems share no base exception (OSError, aiohttp.ClientError, botocore's, ...).
    except Exception as error:
        kept = part.stat().st_size if part.exists() else 0
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise WeightsError(
                f"cannot store {url} ({kept:,} bytes so far): {error}. Make space in {str(part.parent)!r}, or set "
                "SPARK_AESTHETIC_CACHE to a folder on a larger disk."
            ) from error
        # fsspec raises FileNotFoundError for an unreachable server too. Its cause is more precise.
        reason = error.__cause__ or error
        so_far = f" ({kept:,} bytes so far)" if kept else ""
        raise WeightsNotFoundError(f"cannot download {url}{so_far}: {type(reason).__name__}: {reason}") from error


def _continue(url: str, part: Path, *, anew: bool = False, block_size: int | None = None, **storage: object) -> str:
    """Append the missing bytes to `part`, or write it `anew`, and return the sha256 of the complete file."""
    digest = hashlib.sha256()
    mode = "w+b" if anew else "a+b"
    block_size = _BLOCK_BYTES if block_size is None else block_size
    # The URL is opened first, so that a failure leaves the part unchanged.
    with fsspec.open(url, "rb", block_size=block_size, **storage).open() as remote, part.open(mode) as local:
        total = remote.size
        local.seek(0)
        while chunk := local.read(_CHUNK_BYTES):
            digest.update(chunk)
        done = local.tell()
        remote.seek(done)
        report_bytes = _REPORT_BYTES if not total else -(-total // 10)
        report_at = done + report_bytes
        # disable=None hides the bar unless stderr is a terminal.
        with tqdm(total=total, initial=done, unit="B", unit_scale=True, desc=part.stem, disable=None) as bar:
            while chunk := remote.read(_CHUNK_BYTES):
                local.write(chunk)
                digest.update(chunk)
                bar.update(len(chunk))
                done += len(chunk)
                if bar.disable and done >= report_at:
                    _report(part.stem, done, total)
                    report_at = done + report_bytes
    if total is not None and done < total:
        raise EOFError(f"the connection ended after {done} of {total} bytes")
    return digest.hexdigest()


def _report(name: str, done: int, total: int | None) -> None:
    # If logging is not configured, as in Spark's workers, Python shows only warnings.
    level = logging.INFO if _log.hasHandlers() else logging.WARNING
    of_total = f" of {total:,}" if total else ""
    _log.log(level, "downloading %s: %s%s bytes", name, f"{done:,}", of_total)
