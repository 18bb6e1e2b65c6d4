"""Fetch many addresses concurrently inside a Python worker, within limits of time and memory.

Results are returned in order of completion. HTTP requests share one event loop in a thread. Files and stores each use a
separate thread, because fsspec's file systems can be neither awaited nor interrupted.
"""

from __future__ import annotations

import asyncio
import os
import queue
import stat
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING

import fsspec
import pyarrow as pa

from spark_aesthetic.images.headers import header_of
from spark_aesthetic.ingest import reasons
from spark_aesthetic.ingest.allowed import WEB, Address, Allowed, spellings
from spark_aesthetic.ingest.pace import Flow, Limits, Running, ends_at, looks_again_in, next_of
from spark_aesthetic.ingest.web import Web

if TYPE_CHECKING:
    from types import TracebackType

FETCHED = "path string, image binary, error string"

# Bytes of images in one Arrow batch, which cannot hold more than 2 GiB.
_BATCH_BYTES = 16 << 20

_PIECE_BYTES = 1 << 20

# Number of waiting addresses that are searched for one with a host below its limit.
_LOOK_AHEAD = 256

# Seconds between two checks of an address that waits for memory.
_AGAIN_S = 0.02

Found = bytes | str


def fetch_all(
    batches: Iterator[pa.RecordBatch], allowed: Allowed, limits: Limits, *, images_only: bool
) -> Iterator[pa.RecordBatch]:
    """Fetch the addresses and yield the columns of `FETCHED`, in any order, in batches of bounded size.

    Args:
        batches: Batches with the column `path`.
        allowed: The rule for addresses that may be read.
        limits: Limits of time and memory.
        images_only: Drop the bytes of files that are not images and set the decoding error. Otherwise whoever wrote the
            addresses could read those bytes in the table.
    """
    addresses = (address for batch in batches for address in batch.column("path").to_pylist())
    rows: list[tuple[str, bytes | None, str | None]] = []
    size = 0
    with Fetcher(allowed, limits) as fetcher:
        for address, found in fetcher.results(addresses):
            reason = found if isinstance(found, str) else header_of(found)[-1] if images_only else None
            image = None if reason is not None or isinstance(found, str) else found
            rows.append((address, image, reason))
            size += 0 if image is None else len(image)
            if size >= _BATCH_BYTES:
                yield _batch(rows)
                rows, size = [], 0
    if rows:
        yield _batch(rows)


def _batch(rows: list[tuple[str, bytes | None, str | None]]) -> pa.RecordBatch:
    kinds = (pa.string(), pa.binary(), pa.string())
    columns = [pa.array(column, kind) for column, kind in zip(zip(*rows, strict=True), kinds, strict=True)]
    return pa.RecordBatch.from_arrays(columns, ["path", "image", "error"])


def fetch(address: str, allowed: Allowed, limits: Limits) -> Found:
    """Fetch one address and return its bytes or the reason for the failure."""
    with Fetcher(allowed, limits) as fetcher:
        ((_, found),) = fetcher.results(iter([address]))
    return found


class _Room:
    """Memory shared by the files being fetched. Above the limit, only the file that holds the most gets more.

    The held memory of a file only grows, so this file remains the largest until it is complete. A slow server therefore
    cannot block a nearly complete file.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._held: dict[int, int] = {}
        self._lock = threading.Lock()

    def enter(self, number: int) -> None:
        with self._lock:
            self._held[number] = 0

    def leave(self, number: int) -> None:
        with self._lock:
            del self._held[number]

    def take(self, number: int, size: int) -> bool:
        with self._lock:
            may = sum(self._held.values()) + size <= self._size or number == max(self._held, key=self._rank)
            if may:
                self._held[number] += size
            return may

    def _rank(self, number: int) -> tuple[int, int]:
        """Rank by bytes, then by age of the address."""
        return self._held[number], -number


@dataclass
class _Progress:
    """The progress of one address, updated by the thread or coroutine that reads it."""

    number: int
    room: _Room
    began: float = field(default_factory=time.monotonic)
    received: int = 0
    paused: float = 0
    # When the current wait for memory began; None while not waiting.
    waits_since: float | None = None
    last: float = 0
    is_given_up: bool = False

    def __post_init__(self) -> None:
        self.last = self.began

    def flow(self) -> Flow:
        now = time.monotonic()
        waits = self.waits_since
        return Flow(
            self.began, self.received, self.last if waits is None else now,
            self.paused + (0 if waits is None else now - waits),
        )  # fmt: skip

    def _took(self, size: int) -> bool:
        """Whether there was memory for the received bytes. If not, the caller tries again."""
        now = time.monotonic()
        if not self.room.take(self.number, size):
            self.waits_since = now if self.waits_since is None else self.waits_since
            return False
        if self.waits_since is not None:
            self.paused += now - self.waits_since
            self.waits_since = None
        self.received += size
        self.last = now
        return True

    async def taken(self, size: int) -> None:
        while not self._took(size):
            await asyncio.sleep(_AGAIN_S)

    def taken_by_thread(self, size: int) -> None:
        while not self._took(size):
            if self.is_given_up:
                raise TimeoutError
            time.sleep(_AGAIN_S)
        if self.is_given_up:
            raise TimeoutError


class _Threads:
    """Reusable daemon threads. They are reused because fsspec creates a file system instance per thread."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._count = 0

    def run(self, job: Callable[[], None]) -> None:
        if not self._idle.acquire(blocking=False):
            self._count += 1
            threading.Thread(target=self._work, daemon=True).start()
        self._jobs.put(job)

    def close(self) -> None:
        for _ in range(self._count):
            self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            self._idle.release()


class Fetcher:
    """Fetches addresses on a private event loop, for one thread that consumes the results."""

    def __init__(self, allowed: Allowed, limits: Limits) -> None:
        self._allowed, self._limits = allowed, limits
        # The operator listed the prefix, so it is trusted even if it is a link.
        self._real = Allowed(
            tuple(
                prefix._replace(path=os.path.realpath(prefix.path))
                for prefix in allowed.prefixes
                if prefix.scheme == "file"
            )
        )
        self._done: queue.SimpleQueue[tuple[int, Found]] = queue.SimpleQueue()
        self._room = _Room(limits.held_bytes)
        self._threads = _Threads()
        self._is_ready = threading.Event()
        self._web: Web | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self) -> Fetcher:
        self._thread.start()
        self._is_ready.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._is_closed.set)
        self._threads.close()
        self._thread.join(timeout=5)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        # This executor resolves host names. A name server that does not answer blocks its thread for half a minute.
        self._loop.set_default_executor(ThreadPoolExecutor(self._limits.most))
        self._is_closed = asyncio.Event()
        self._is_ready.set()
        await self._is_closed.wait()
        if self._web is not None:
            await self._web.close()

    def results(self, addresses: Iterator[str]) -> Iterator[tuple[str, Found]]:
        """Yield each address with its bytes or the reason for the failure, in order of completion."""
        waiting: list[tuple[str, str]] = []
        running: dict[int, tuple[str, Running]] = {}
        count = 0
        while True:
            while len(waiting) < _LOOK_AHEAD and (address := next(addresses, None)) is not None:
                waiting.append((address, _host_of(address)))
            if not waiting and not running:
                return
            now = time.monotonic()
            at_work = [one for _, one in running.values()]
            chosen = next_of([host for _, host in waiting], at_work, now, self._limits)
            if chosen is not None:
                address, host = waiting.pop(chosen)
                running[count] = (address, Running(host, now))
                self._room.enter(count)
                asyncio.run_coroutine_threadsafe(self._run(count, address), self._loop)
                count += 1
                continue
            try:
                number, found = self._done.get(timeout=looks_again_in(at_work, now, self._limits) if waiting else None)
            except queue.Empty:
                continue
            yield running.pop(number)[0], found
            self._room.leave(number)

    async def _run(self, number: int, address: str) -> None:
        try:
            found = await self._fetched(number, address)
        except Exception as error:
            found = reasons.of_error(error)
        self._done.put((number, found))

    async def _fetched(self, number: int, address: str) -> Found:
        spelled = spellings(address)
        places = [place for place in spelled if self._allowed.permits(place)]
        # Every reading of the path must be permitted, unless a file with the literal name exists.
        if not places or (len(places) < len(spelled) and not os.path.lexists(places[0].path)):
            return reasons.REFUSED
        progress = _Progress(number, self._room)
        is_web, is_local = places[0].scheme in WEB, places[0].scheme == "file"
        if is_web:
            task = asyncio.ensure_future(self._of_web(places[0], progress))
        else:
            task = asyncio.ensure_future(self._of_thread(places, progress))
        while not task.done():
            ends, reason = ends_at(progress.flow(), self._limits, unseen=not is_web and not is_local)
            left = ends - time.monotonic()
            if left <= 0:
                progress.is_given_up = True
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                return reason
            await asyncio.wait({task}, timeout=left)
        return task.result()

    def _of_web(self, place: Address, progress: _Progress) -> Awaitable[Found]:
        # The client is created here because it needs a running event loop.
        if self._web is None:
            self._web = Web(self._allowed, self._limits.file_bytes)
        return self._web.fetch(place, progress.taken)

    async def _of_thread(self, places: list[Address], progress: _Progress) -> Found:
        future: asyncio.Future[Found] = self._loop.create_future()

        def job() -> None:
            try:
                found = self._read(places, progress)
            # Any error of a file system fails only its own row.
            except Exception as error:
                found = reasons.of_error(error)
            # The loop may have been closed in the meantime.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(lambda: None if future.done() else future.set_result(found))

        self._threads.run(job)
        return await future

    def _read(self, places: list[Address], progress: _Progress) -> Found:
        pieces: list[bytes] = []
        opened = self._open(places)
        if isinstance(opened, str):
            return opened
        with opened as file:
            while piece := file.read(_PIECE_BYTES):
                if progress.received + len(piece) > self._limits.file_bytes:
                    return reasons.TOO_LARGE
                progress.taken_by_thread(len(piece))
                pieces.append(piece)
        return b"".join(pieces)

    def _open(self, places: list[Address]) -> IO[bytes] | str:
        if places[0].scheme == "file":
            place = next((place for place in places if os.path.lexists(place.path)), places[0])
            return _open_local(place.path, self._real)
        try:
            system, path = fsspec.core.url_to_fs(places[0].text)
        # fsspec raises ValueError for a scheme that is registered only on the driver.
        except (ImportError, ValueError):
            return reasons.missing_package(places[0].scheme)
        # fsspec caches instances, so this one may hold a listing from before the file was written.
        system.invalidate_cache()
        opened: IO[bytes] = system.open(path, "rb")
        return opened


def _host_of(address: str) -> str:
    """Return scheme and host, which addresses of one server share; it need not be exact."""
    return "/".join(address.split("/", 3)[:3]) if "://" in address else ""


def _open_local(path: str, real_prefixes: Allowed) -> IO[bytes]:
    """Resolve all links of a path and open the file if it lies below a prefix."""
    real = os.path.realpath(path)
    if not real_prefixes.permits(Address("file", "", 0, real)):
        raise reasons.RefusedError(path)
    # Without O_NONBLOCK, opening a named pipe would wait for its writer.
    opened = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(opened)
        # The file may have been replaced by a link since the check.
        if os.path.realpath(real) != real or not os.path.samestat(found, os.lstat(real)):
            raise reasons.RefusedError(path)
        if not stat.S_ISREG(found.st_mode):
            raise IsADirectoryError(path)
        return os.fdopen(opened, "rb")
    except BaseException:
        os.close(opened)
        raise
