"""Why an address gave no image: a closed list, so that it can be counted and filtered by."""

from __future__ import annotations

import asyncio
import ssl

import aiohttp

REFUSED = "fetch: refused address"
TIMED_OUT = "fetch: timed out"
TOO_SLOW = "fetch: too slow"
TOO_LARGE = "fetch: more bytes than max_file_bytes"
NOT_FOUND = "fetch: not found"
NO_ACCESS = "fetch: no access"
NO_FILE = "fetch: not a file"
NO_CONNECTION = "fetch: connection failed"
NO_TRUST = "fetch: TLS failed"
CUT_OFF = "fetch: connection cut off"
MALFORMED = "fetch: malformed answer"
REDIRECTS = "fetch: too many redirects"
UNREADABLE = "fetch: unreadable"


class RefusedError(OSError):
    """What an address leads to may not be read."""


def of_status(status: int) -> str:
    """The reason of an answer that is none of success."""
    return f"fetch: HTTP {status}"


def missing_package(scheme: str) -> str:
    """The reason of an address whose file system is not installed on the executor."""
    return f"fetch: missing package for {scheme}"


# The first that fits; all of them are more special than those below them.
_KINDS: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], str], ...] = (
    (RefusedError, REFUSED),
    (FileNotFoundError, NOT_FOUND),
    (PermissionError, NO_ACCESS),
    ((IsADirectoryError, NotADirectoryError), NO_FILE),
    ((TimeoutError, asyncio.TimeoutError), TIMED_OUT),
    ((ssl.SSLError, aiohttp.ClientSSLError), NO_TRUST),
    ((aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError), CUT_OFF),
    ((aiohttp.ClientConnectorError, ConnectionRefusedError), NO_CONNECTION),
    ((ConnectionResetError, BrokenPipeError, EOFError), CUT_OFF),
    (aiohttp.ClientHttpProxyError, NO_CONNECTION),
    (aiohttp.ClientOSError, NO_CONNECTION),
    (aiohttp.ClientResponseError, MALFORMED),
    (aiohttp.InvalidURL, REFUSED),
    (ConnectionError, NO_CONNECTION),
)


def of_error(error: BaseException) -> str:
    """The reason of whatever a file system or a connection raised; they have no base error in common.

    Examples:
        >>> of_error(FileNotFoundError()), of_error(RuntimeError("what?"))
        ('fetch: not found', 'fetch: unreadable')
    """
    # The check of resolved addresses refuses within aiohttp, which takes that for a name that cannot be resolved.
    if isinstance(error.__cause__, RefusedError):
        return REFUSED
    # A store's error has the status of its answer. aiohttp's errors have one even for answers that it could not read.
    status = getattr(error, "status", None)
    if isinstance(status, int) and 400 < status < 600 and not isinstance(error, aiohttp.ClientError):
        return of_status(status)
    found = next((reason for kind, reason in _KINDS if isinstance(error, kind)), None)
    if found is not None:
        return found
    return UNREADABLE if error.__cause__ is None else of_error(error.__cause__)
