"""Inside a Python worker: what the headers of image files say, and the bytes at addresses."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from urllib.parse import unquote

import fsspec
import pandas as pd
import pyarrow as pa

from spark_aesthetic.datasources.places import locate
from spark_aesthetic.download import http_client
from spark_aesthetic.errors import MissingDependencyError

HEADER = "struct<width: int, height: int, format: string, error: string>"
FETCHED = "path string, image binary, error string"

TOO_LARGE = "fetch: more bytes than max_file_bytes"

# Files that a task fetches at once. Beside one batch it holds no more than these.
_AHEAD = 8

# Of one Arrow batch; a batch of more than 2 GiB of bytes cannot be.
_BATCH_BYTES = 16 << 20

_PIECE_BYTES = 1 << 20


def read_headers(images: pd.Series) -> pd.DataFrame:
    """Columns as in `HEADER` of a column of file bytes; `error` says why the others are null."""
    # Here, because a driver without Pillow imports this module too.
    try:
        from spark_aesthetic.decode import Header, read_header
    except ImportError as missing:
        raise MissingDependencyError(
            f"headers of images need Pillow and simplejpeg on every executor (found: {missing}): "
            "pip install 'spark-aesthetic[image]'"
        ) from missing

    rows = []
    for data in images:
        header = read_header(data)
        rows.append((*header, None) if isinstance(header, Header) else (None, None, None, str(header)))
    frame = pd.DataFrame(rows, columns=["width", "height", "format", "error"], dtype=object)
    return frame.astype({"width": "Int32", "height": "Int32"})


def fetch_all(batches: Iterator[pa.RecordBatch], max_file_bytes: int) -> Iterator[pa.RecordBatch]:
    """Columns as in `FETCHED` of batches with the column `path`, in their order but in batches bounded in bytes."""
    addresses = (address for batch in batches for address in batch.column("path").to_pylist())
    rows: list[tuple[str, bytes | None, str | None]] = []
    size = 0
    for address, found in _fetched_ahead(addresses, max_file_bytes):
        rows.append((address, None, found) if isinstance(found, str) else (address, found, None))
        size += 0 if isinstance(found, str) else len(found)
        if size >= _BATCH_BYTES:
            yield _batch(rows)
            rows, size = [], 0
    if rows:
        yield _batch(rows)


def _batch(rows: list[tuple[str, bytes | None, str | None]]) -> pa.RecordBatch:
    kinds = (pa.string(), pa.binary(), pa.string())
    columns = [pa.array(column, kind) for column, kind in zip(zip(*rows, strict=True), kinds, strict=True)]
    return pa.RecordBatch.from_arrays(columns, ["path", "image", "error"])


def _fetched_ahead(addresses: Iterator[str], max_file_bytes: int) -> Iterator[tuple[str, bytes | str]]:
    waiting: deque[tuple[str, Future[bytes | str]]] = deque()
    with ThreadPoolExecutor(_AHEAD) as pool:
        for address in addresses:
            waiting.append((address, pool.submit(fetch, address, max_file_bytes)))
            if len(waiting) == _AHEAD:
                first, found = waiting.popleft()
                yield first, found.result()
        while waiting:
            first, found = waiting.popleft()
            yield first, found.result()


def fetch(address: str, max_file_bytes: int) -> bytes | str:
    """The bytes at a path or an address that fsspec knows, or the reason why not, such as `fetch: HTTP 404`.

    No more than `max_file_bytes` are held: what is larger is left where it is.

    Raises:
        MissingDependencyError: fsspec needs a package for such addresses that is not installed.
    """
    pieces, size = [], 0
    try:
        if address.startswith(("http://", "https://")):
            system, place = fsspec.core.url_to_fs(address, client_kwargs=http_client())
            # A stream, by one request: with a size at hand fsspec asks for none.
            opened = system.open(place, "rb", block_size=0, size=1)
        else:
            system, place = locate(address)
            # Spark writes them escaped, and a name may look so by itself.
            if address.startswith(("file:", "dbfs:")) and not system.exists(place):
                place = unquote(place)
            opened = system.open(place, "rb")
        with opened as file:
            # A stream gives what has come so far, not what was asked for.
            while piece := file.read(_PIECE_BYTES):
                pieces.append(piece)
                size += len(piece)
                if size > max_file_bytes:
                    return TOO_LARGE
    except MissingDependencyError:
        raise
    # Of every address of its kind, so no fault of this one.
    except ImportError as missing:
        raise MissingDependencyError(
            f"{address.partition(':')[0]} addresses need another package on every executor: {missing}"
        ) from missing
    # fsspec's file systems have no base error in common, and whatever it is, it costs this row only.
    except Exception as error:
        return _reason(error)
    return b"".join(pieces)


def _reason(error: Exception) -> str:
    # fsspec says "file not found" of a dead server too; its cause knows better.
    cause = error.__cause__ or error
    status = getattr(cause, "status", None)
    return f"fetch: HTTP {status}" if isinstance(status, int) else f"fetch: {type(cause).__name__}"
