"""Fetch images by http(s). Each address, its resolved IP addresses and its redirect targets are checked."""

from __future__ import annotations

import zlib
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING
from urllib.request import getproxies, proxy_bypass

import aiohttp
from aiohttp.resolver import ThreadedResolver
from yarl import URL

from spark_aesthetic.ingest import reasons
from spark_aesthetic.ingest.allowed import WEB, Address, Allowed, parse

if TYPE_CHECKING:
    # aiohttp releases before 3.10 do not have this type.
    from aiohttp.abc import ResolveResult

_REDIRECTS = frozenset((301, 302, 303, 307, 308))
_MOST_REDIRECTS = 10

# Maximum number of bytes that one decompression step returns.
_PIECE_BYTES = 1 << 20

# Seconds for which the checked addresses of a host name are cached.
_NAMES_S = 10

# Called with the size of each piece; waits until there is memory for it.
Taken = Callable[[int], Awaitable[None]]


class _CheckedResolver(ThreadedResolver):
    """A resolver that returns only the IP addresses that a connection may reach."""

    def __init__(self, allowed: Allowed) -> None:
        super().__init__()
        self._allowed = allowed

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[ResolveResult]:
        found = await super().resolve(host, port, family)  # type: ignore[arg-type]  # an int in older releases
        reached = [one for one in found if self._allowed.reaches(host, port, one["host"])]
        if not reached:
            raise reasons.RefusedError(f"{host} resolves to addresses that are not allowed")
        return reached


class Web:
    """An HTTP client for one event loop.

    It sends neither cookies nor passwords from ~/.netrc, because addresses in rows must not act as the local user. If
    the environment sets a proxy, the proxy resolves host names, so resolved addresses are not checked.
    """

    def __init__(self, allowed: Allowed, file_bytes: int) -> None:
        self._allowed, self._file_bytes = allowed, file_bytes
        self._direct = _session(
            aiohttp.TCPConnector(limit=0, resolver=_CheckedResolver(allowed), ttl_dns_cache=_NAMES_S)
        )
        self._proxied = _session(aiohttp.TCPConnector(limit=0))

    async def close(self) -> None:
        """Close all connections."""
        await self._direct.close()
        await self._proxied.close()

    async def fetch(self, address: Address, taken: Taken) -> bytes | str:
        """Fetch a permitted address and return its bytes or the reason for the failure; aiohttp's errors propagate."""
        for _ in range(_MOST_REDIRECTS + 1):
            assert address.url is not None, "it is http(s)"
            proxy = _proxy(address)
            session = self._direct if proxy is None else self._proxied
            async with session.get(address.url, allow_redirects=False, proxy=proxy) as answer:
                where = answer.headers.get("Location")
                if answer.status not in _REDIRECTS or where is None:
                    # Responses with other statuses have no body, or only part of the file.
                    whole = answer.status in (200, 203)
                    return await self._body(answer, taken) if whole else reasons.of_status(answer.status)
            try:
                target = parse(str(address.url.join(URL(where))))
            except ValueError:
                return reasons.MALFORMED
            if target is None or target.scheme not in WEB or not self._allowed.permits(target):
                return reasons.REFUSED
            address = target
        return reasons.REDIRECTS

    async def _body(self, answer: aiohttp.ClientResponse, taken: Taken) -> bytes | str:
        if (answer.content_length or 0) > self._file_bytes:
            return reasons.TOO_LARGE
        encoding = answer.headers.get("Content-Encoding", "identity").strip().lower()
        unpacked = _Unpacked() if encoding in ("gzip", "x-gzip", "deflate") else None
        if unpacked is None and encoding not in ("identity", ""):
            return reasons.MALFORMED
        pieces, size = [], 0
        async for piece in answer.content.iter_any():
            for part in (piece,) if unpacked is None else unpacked.parts(piece):
                size += len(part)
                if size > self._file_bytes:
                    return reasons.TOO_LARGE
                await taken(len(part))
                pieces.append(part)
        if unpacked is not None and not unpacked.is_whole:
            return reasons.CUT_OFF
        return b"".join(pieces)


class _Unpacked:
    """Decompresses a response in parts of bounded size: one kilobyte may expand to a megabyte."""

    def __init__(self) -> None:
        # This value of `wbits` accepts gzip and zlib headers.
        self._inflate = zlib.decompressobj(wbits=32 + zlib.MAX_WBITS)

    def parts(self, piece: bytes) -> Iterator[bytes]:
        while piece and not self._inflate.eof:
            yield self._inflate.decompress(piece, _PIECE_BYTES)
            piece = self._inflate.unconsumed_tail

    @property
    def is_whole(self) -> bool:
        return self._inflate.eof


def _session(connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"Accept-Encoding": "identity"},
        auto_decompress=False,
        # The caller enforces the time limit, excluding waits for memory, which aiohttp's limit would count.
        timeout=aiohttp.ClientTimeout(total=None),
    )


def _proxy(address: Address) -> str | None:
    """Return the proxy that the environment sets for an address."""
    proxy = getproxies().get(address.scheme)
    return None if proxy is None or proxy_bypass(f"{address.host}:{address.port}") else proxy
