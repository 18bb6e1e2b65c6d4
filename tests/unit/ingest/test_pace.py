"""Tables of pure functions: how long an address may take, why it is given up, and which address is next."""

from __future__ import annotations

import asyncio
import ssl

import aiohttp
import pytest

from spark_aesthetic.ingest import reasons
from spark_aesthetic.ingest.pace import Flow, Limits, Running, ends_at, looks_again_in, next_of

LIMITS = Limits(file_bytes=1 << 20, patience_s=30, least_rate=1000, total_s=600, unseen_bytes=50_000)


@pytest.mark.parametrize(
    ("flow", "expected"),
    [
        (Flow(began=0, received=0, last=0, paused=0), (30, reasons.TIMED_OUT)),
        (Flow(began=100, received=0, last=100, paused=0), (130, reasons.TIMED_OUT)),
        # At one byte a second, the bytes earn almost no additional time.
        (Flow(began=0, received=29, last=29, paused=0), (30.029, reasons.TOO_SLOW)),
        # The address sends well and then falls silent.
        (Flow(began=0, received=100_000, last=5, paused=0), (35, reasons.TIMED_OUT)),
        # At the least rate, 100,000 bytes earn 100 s beyond the patience of 30 s.
        (Flow(began=0, received=100_000, last=120, paused=0), (130, reasons.TOO_SLOW)),
        # The total time ends even a fast address.
        (Flow(began=0, received=10_000_000, last=599, paused=0), (600, reasons.TOO_SLOW)),
        # Time in which other files held the memory does not count.
        (Flow(began=0, received=29, last=69, paused=40), (70.029, reasons.TOO_SLOW)),
        (Flow(began=0, received=0, last=40, paused=40), (70, reasons.TIMED_OUT)),
        (Flow(began=0, received=10_000_000, last=630, paused=40), (640, reasons.TOO_SLOW)),
        # Pauses count up to `total_s`, so slow addresses that wait for each other do not each get the whole time in
        # turn.
        (Flow(began=0, received=10_000_000, last=1190, paused=900), (1200, reasons.TOO_SLOW)),
    ],
)
def test_an_address_is_given_up_for_silence_or_for_its_rate(flow: Flow, expected: tuple[float, str]) -> None:
    assert ends_at(flow, LIMITS) == (pytest.approx(expected[0]), expected[1])


def test_a_store_gets_the_time_of_a_block_that_nobody_sees() -> None:
    assert ends_at(Flow(0, 0, 0, 0), LIMITS, unseen=True) == (80, reasons.TIMED_OUT)
    assert ends_at(Flow(0, 0, 0, 0), Limits(file_bytes=1), unseen=True) == (190, reasons.TIMED_OUT)


@pytest.mark.parametrize(
    ("waiting", "running", "expected"),
    [
        ([], [], None),
        (["a"], [], 0),
        (["a"], [Running("a", 9)] * 7, 0),
        (["a"], [Running("a", 9)] * 8, None),
        # Slow addresses do not keep other addresses waiting.
        (["b"], [Running("a", 0)] * 8, 0),
        (["b"], [Running("a", 0)] * 16 + [Running("b", 9)] * 8, None),
        # They do keep addresses of their own host waiting, once 16 of them are running.
        (["a", "a", "b", "a"], [Running("a", 0)] * 16, 2),
        (["a", "a"], [Running("a", 0)] * 16, None),
        (["b"], [Running(str(at), 0) for at in range(63)], 0),
        (["b"], [Running(str(at), 0) for at in range(64)], None),
    ],
)
def test_the_next_address_waits_for_no_slow_one(
    waiting: list[str], running: list[Running], expected: int | None
) -> None:
    assert next_of(waiting, running, 10, Limits(file_bytes=1)) == expected


def test_the_next_look_is_when_one_becomes_slow() -> None:
    limits = Limits(file_bytes=1)
    assert looks_again_in([], 10, limits) is None
    assert looks_again_in([Running("a", 0), Running("b", 9), Running("c", 9.5)], 10, limits) == 1
    assert looks_again_in([Running("a", 0)], 10, limits) is None


class AnsweredError(Exception):
    """An error with a status, as the libraries of stores raise it."""

    status = 503


def caused(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


KEY = aiohttp.client_reqrep.ConnectionKey("h", 80, False, True, None, None, None)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (FileNotFoundError(), "fetch: not found"), (PermissionError(), "fetch: no access"),
        (IsADirectoryError(), "fetch: not a file"), (TimeoutError(), "fetch: timed out"),
        (asyncio.TimeoutError(), "fetch: timed out"), (aiohttp.ServerTimeoutError(), "fetch: timed out"),
        (aiohttp.ServerDisconnectedError(), "fetch: connection cut off"),
        (aiohttp.ClientPayloadError(), "fetch: connection cut off"), (EOFError(), "fetch: connection cut off"),
        (ConnectionResetError(), "fetch: connection cut off"), (ConnectionRefusedError(), "fetch: connection failed"),
        (aiohttp.ClientConnectorError(KEY, OSError(1, "x")), "fetch: connection failed"),
        (aiohttp.ClientOSError(), "fetch: connection failed"), (ssl.SSLError(), "fetch: TLS failed"),
        (aiohttp.ClientConnectorCertificateError(KEY, ssl.CertificateError()), "fetch: TLS failed"),
        (caused(aiohttp.ClientConnectorError(KEY, OSError()), reasons.RefusedError()), "fetch: refused address"),
        (aiohttp.InvalidURL("x"), "fetch: refused address"),
        # aiohttp reports status 400 for an answer that it cannot read.
        (aiohttp.ClientResponseError(None, (), status=400), "fetch: malformed answer"),  # type: ignore[arg-type]
        (AnsweredError(), "fetch: HTTP 503"), (caused(ValueError(), AnsweredError()), "fetch: HTTP 503"),
        (caused(OSError("x"), PermissionError()), "fetch: no access"), (OSError("x"), "fetch: unreadable"),
        (ValueError("/etc/passwd"), "fetch: unreadable"), (KeyError(), "fetch: unreadable"),
    ],
)  # fmt: skip
def test_reasons_are_a_closed_list_that_names_no_class(error: Exception, expected: str) -> None:
    assert reasons.of_error(error) == expected


def test_the_others_name_what_they_are_of() -> None:
    assert (reasons.of_status(404), reasons.missing_package("sftp")) == (
        "fetch: HTTP 404", "fetch: missing package for sftp",
    )  # fmt: skip
