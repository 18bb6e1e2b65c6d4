"""One file from a URL into place: resumed, verified, and by one process of the node at a time."""

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

# Larger than fsspec's own 5 MiB: a range request to a hub costs a redirect each time.
_BLOCK_BYTES = 64 * 2**20
_CHUNK_BYTES = 2**20
# Between two lines of the log, where the server does not say how much there is.
_REPORT_BYTES = 256 * 2**20

_log = logging.getLogger(__name__)


def download(url: str, target: Path, *, sha256: str | None) -> Path:
    """Fetch `url` (any scheme that fsspec knows) to `target`, unless another process has done so.

    The bytes go to `target` + ".part"; the checksum is taken on the way; only a file that passed is renamed to
    `target`. A later call goes on from the part, where a checksum will tell that the halves belong together;
    a server that knows no ranges gives it from the beginning. A file lock lets one process of the node
    download while the others wait for its result; a file with its checksum is neither locked nor written.
    Shows a progress bar on stderr where that is a terminal, and else logs about every tenth of the way.

    Raises:
        WeightsError: The folder cannot be written to, or its disk is full.
        WeightsNotFoundError: The address cannot be read to its end; the part is kept.
        ChecksumError: All was read and is not what was expected; the part is deleted.
    """
    if is_fetched(target, sha256):
        return target
    with locked(target):
        # By the process that held the lock before.
        if is_fetched(target, sha256):
            return target
        if target.exists():
            _log.warning("%s has another checksum than %s and is fetched again", target, sha256)
        part = target.with_name(target.name + ".part")
        if sha256 is None:
            # Nothing would tell that the address serves another file by now than the one the part is of.
            part.unlink(missing_ok=True)
        found = _fetch(url, part)
        if sha256 is not None and found != sha256:
            part.unlink()
            raise ChecksumError(
                f"{url}: expected sha256 {sha256}, found {found}; the download is deleted and was not opened. "
                "Run again; if it repeats, the address serves another file"
            )
        rename(part, target)
    return target


def is_fetched(target: Path, sha256: str | None) -> bool:
    """Whether a file of the cache is there, with its checksum if one is known.

    Raises:
        WeightsError: Others can write to the file or to the cache.
    """
    if not target.is_file():
        return False
    check_private(target)
    return sha256 is None or sha256_of(target) == sha256


def http_client() -> dict[str, object]:
    """As fsspec's file system for http(s) takes it in `client_kwargs`."""
    from aiohttp import ClientTimeout  # here, because most processes download nothing

    # aiohttp's own limit is 300 s for a whole answer, however well it flows; here only silence ends it.
    timeout = ClientTimeout(total=None, sock_connect=30, sock_read=60)
    # trust_env: the proxy that HTTPS_PROXY names, which aiohttp ignores otherwise.
    return {"timeout": timeout, "trust_env": True}


def _fetch(url: str, part: Path) -> str:
    try:
        if not url.startswith(("http://", "https://")):
            return _continue(url, part)
        client = http_client()
        try:
            # fsspec's own choice for http, "bytes", drops blocks that are not read yet and fetches them again.
            return _continue(url, part, client_kwargs=client, cache_type="readahead")
        except ValueError:
            # What fsspec raises once a server answers a range with the whole file, or says that it knows none.
            # Also of an address that is none: the second attempt fails on it before it touches the part.
            return _continue(url, part, anew=True, client_kwargs=client, block_size=0)
    # fsspec's file systems have no base error in common (OSError, aiohttp.ClientError, botocore's, ...).
    except Exception as error:
        kept = part.stat().st_size if part.exists() else 0
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise WeightsError(
                f"cannot keep {url} ({kept:,} bytes so far): {error}; make space in {str(part.parent)!r}, or set "
                "SPARK_AESTHETIC_CACHE to a folder on a larger disk"
            ) from error
        # fsspec says "file not found" of a dead server too; its cause knows better.
        reason = error.__cause__ or error
        so_far = f" ({kept:,} bytes so far)" if kept else ""
        raise WeightsNotFoundError(f"cannot download {url}{so_far}: {type(reason).__name__}: {reason}") from error


def _continue(url: str, part: Path, *, anew: bool = False, block_size: int | None = None, **storage: object) -> str:
    """Append to `part` what it lacks, or all of it `anew`, and give the sha256 of the whole."""
    digest = hashlib.sha256()
    mode = "w+b" if anew else "a+b"
    block_size = _BLOCK_BYTES if block_size is None else block_size
    # In this order: an address that cannot be opened leaves the part as it is.
    with fsspec.open(url, "rb", block_size=block_size, **storage).open() as remote, part.open(mode) as local:
        total = remote.size
        local.seek(0)
        while chunk := local.read(_CHUNK_BYTES):
            digest.update(chunk)
        done = local.tell()
        remote.seek(done)
        report_bytes = _REPORT_BYTES if not total else -(-total // 10)
        report_at = done + report_bytes
        # disable=None: no bar where stderr is a file.
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
    # Where nobody has set up logging, as in Spark's workers, Python shows warnings alone.
    level = logging.INFO if _log.hasHandlers() else logging.WARNING
    of_total = f" of {total:,}" if total else ""
    _log.log(level, "downloading %s: %s%s bytes", name, f"{done:,}", of_total)
