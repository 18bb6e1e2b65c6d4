"""The reasons why an address could not be read: a closed list, so that rows can be counted and filtered by reason."""

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
    """The target of an address is not allowed."""


def of_status(status: int) -> str:
    """Return the reason for an unsuccessful HTTP status."""
    return f"fetch: HTTP {status}"


def missing_package(scheme: str) -> str:
    """Return the reason for an address with a file system that is not installed on the executor."""
    return f"fetch: missing package for {scheme}"


# The first match counts, so subclasses come before their base classes.
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
    """Return the reason for any exception of a file system or a connection; they have no common base class.

    Examples:
        >>> of_error(FileNotFoundError()), of_error(RuntimeError("what?"))
        ('fetch: not found', 'fetch: unreadable')
    """
    # aiohttp wraps the refusal of a resolved address into an error of name resolution.
    if isinstance(error.__cause__, RefusedError):
        return REFUSED
    # A store's error has the HTTP status. aiohttp's errors have one even for responses that it could not parse.
    status = getattr(error, "status", None)
    if isinstance(status, int) and 400 < status < 600 and not isinstance(error, aiohttp.ClientError):
        return of_status(status)
    found = next((reason for kind, reason in _KINDS if isinstance(error, kind)), None)
    if found is not None:
        return found
    return UNREADABLE if error.__cause__ is None else of_error(error.__cause__)
