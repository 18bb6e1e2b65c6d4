"""A budget of memory that several threads share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition


class Budget:
    """Bytes that threads may hold at once. A request for more than the whole budget waits until nothing else is held.

    Examples:
        >>> budget = Budget(100)
        >>> with budget.holding(60), budget.holding(40):
        ...     budget.free
        0
        >>> with budget.holding(1000):
        ...     budget.free
        0
    """

    def __init__(self, size: int) -> None:
        self.size = self.free = size
        self._changed = Condition()

    @contextmanager
    def holding(self, amount: int) -> Iterator[None]:
        """Wait until `amount` bytes are free, and hold them."""
        amount = min(amount, self.size)
        with self._changed:
            self._changed.wait_for(lambda: self.free >= amount)
            self.free -= amount
        try:
            yield
        finally:
            with self._changed:
                self.free += amount
                self._changed.notify_all()
