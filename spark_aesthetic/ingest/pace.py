"""How long an address may take, and which one is fetched next: pure functions of what is running."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from spark_aesthetic.ingest import reasons


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one address, and all that are fetched at a time, may take.

    Attributes:
        file_bytes: A larger file is not read.
        patience_s: Seconds that are given to an address, and to each silence within its bytes.
        least_rate: Bytes a second that it must give beyond these, on average.
        total_s: Seconds after which an address is given up, however well it flows; at most as many again are added for
            waiting for memory.
        unseen_bytes: What file systems of stores read at once, before anyone sees that bytes come.
        held_bytes: Of all files of a task that are being fetched; above it the one with the most alone goes on.
        at_once: Addresses that a task fetches at a time, besides slow ones.
        slow_s: Seconds after which an address is a slow one, and another one begins beside it.
        most: Addresses that a task fetches at a time, slow ones included.
        most_of_host: The same, of one host.
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
    """What an address has given so far.

    Attributes:
        began: When it was begun, as all times here in seconds of one clock.
        received: Bytes so far.
        last: When the last of them came, or it was begun.
        paused: Seconds for which it was not read, because others held the memory.
    """

    began: float
    received: int
    last: float
    paused: float


def ends_at(flow: Flow, limits: Limits, *, unseen: bool = False) -> tuple[float, str]:
    """When to give an address up if nothing more comes, and why.

    Args:
        flow: What it has given so far.
        limits: What it may take.
        unseen: Whether bytes show in blocks of `unseen_bytes`.
    """
    block = limits.unseen_bytes / limits.least_rate if unseen else 0
    rate = flow.began + flow.paused + limits.patience_s + flow.received / limits.least_rate + block
    silence = flow.last + limits.patience_s + block
    # Pauses without a bound would let slow servers that wait for each other's memory take `total_s` one after another.
    total = flow.began + min(flow.paused, limits.total_s) + limits.total_s
    # Without a byte nobody knows a rate.
    return min(
        (silence, reasons.TIMED_OUT),
        (rate, reasons.TOO_SLOW if flow.received else reasons.TIMED_OUT),
        (total, reasons.TOO_SLOW),
    )


class Running(NamedTuple):
    """An address that is being fetched: its host, and when it was begun."""

    host: str
    began: float


def next_of(waiting: Sequence[str], running: Sequence[Running], now: float, limits: Limits) -> int | None:
    """Which of the waiting addresses, given by their hosts, to begin with; None for none as yet.

    A slow address keeps no other one waiting, unless it is of the same host as fifteen more.
    """
    fast = sum(now - one.began < limits.slow_s for one in running)
    if fast >= limits.at_once or len(running) >= limits.most:
        return None
    of_host = Counter(one.host for one in running)
    return next((at for at, host in enumerate(waiting) if of_host[host] < limits.most_of_host), None)


def looks_again_in(running: Sequence[Running], now: float, limits: Limits) -> float | None:
    """Seconds until an address becomes a slow one, so that another one may begin; None if none of them will."""
    left = [one.began + limits.slow_s - now for one in running]
    return min((seconds for seconds in left if seconds > 0), default=None)
