"""Decide how long an address may take and which one is fetched next: pure functions of the running requests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from spark_aesthetic.ingest import reasons


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits for one address, and for all addresses that a task fetches concurrently.

    Attributes:
        file_bytes: Larger files are not read.
        patience_s: Seconds allowed until the first byte, and for each later pause between bytes.
        least_rate: Minimum average rate in bytes per second, after `patience_s`.
        total_s: Seconds after which an address is given up, however fast it is. Waiting for memory may extend this by
            at most the same time.
        unseen_bytes: Block size of the stores' file systems; received bytes become visible one block at a time.
        held_bytes: Memory in bytes for all files being fetched by a task. Above it, only the file that holds the most
            continues.
        at_once: Addresses that a task fetches concurrently, not counting slow ones.
        slow_s: Seconds after which an address counts as slow and the next one may start.
        most: Addresses that a task fetches concurrently, including slow ones.
        most_of_host: The same limit per host.
    """

    file_bytes: int
    patience_s: float = 30
    least_rate: float = 32 << 10
    total_s: float = 600
    unseen_bytes: int = 5 << 20
    held_bytes: int = 256 << 20
    at_once: int = 8
    slow_s: float = 2
    most: int = 64
    most_of_host: int = 16


class Flow(NamedTuple):
    """The transfer state of an address. All times are seconds of the same clock.

    Attributes:
        began: The start time.
        received: Bytes received so far.
        last: The time of the last received byte, or the start time.
        paused: Seconds without reading, because other files held the memory.
    """

    began: float
    received: int
    last: float
    paused: float


def ends_at(flow: Flow, limits: Limits, *, unseen: bool = False) -> tuple[float, str]:
    """Return the time at which to give up an address if no more bytes arrive, and the reason.

    Args:
        flow: The transfer state.
        limits: The limits.
        unseen: Whether received bytes become visible only in blocks of `unseen_bytes`.
    """
    block = limits.unseen_bytes / limits.least_rate if unseen else 0
    rate = flow.began + flow.paused + limits.patience_s + flow.received / limits.least_rate + block
    silence = flow.last + limits.patience_s + block
    # Without a bound on pauses, slow servers waiting for memory could each take `total_s`, one after the other.
    total = flow.began + min(flow.paused, limits.total_s) + limits.total_s
    # Before the first byte there is no rate, so the reason is a timeout.
    return min(
        (silence, reasons.TIMED_OUT),
        (rate, reasons.TOO_SLOW if flow.received else reasons.TIMED_OUT),
        (total, reasons.TOO_SLOW),
    )


class Running(NamedTuple):
    """A running request: its host and start time."""

    host: str
    began: float


def next_of(waiting: Sequence[str], running: Sequence[Running], now: float, limits: Limits) -> int | None:
    """Return the index of the waiting host to start next, or None if none may start yet.

    A slow address does not delay other addresses, except those of its host once `most_of_host` of them are running.
    """
    fast = sum(now - one.began < limits.slow_s for one in running)
    if fast >= limits.at_once or len(running) >= limits.most:
        return None
    of_host = Counter(one.host for one in running)
    return next((at for at, host in enumerate(waiting) if of_host[host] < limits.most_of_host), None)


def looks_again_in(running: Sequence[Running], now: float, limits: Limits) -> float | None:
    """Return the seconds until the next running address counts as slow and frees a slot; None if all are slow."""
    left = [one.began + limits.slow_s - now for one in running]
    return min((seconds for seconds in left if seconds > 0), default=None)
