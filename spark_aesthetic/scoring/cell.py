"""A line in a notebook's cell that is replaced, instead of one more line each second."""

from __future__ import annotations

import sys
from typing import Any


class CellLine:
    r"""A text stream that shows its last line in the notebook's running cell.

    A saved notebook has only the text that was written last. With `\r` on stderr it would have every text.
    """

    encoding = "utf-8"

    def __init__(self) -> None:
        self._shown: Any = None

    def write(self, text: str) -> int:
        r"""Replace the shown line by the text after the last `\r`; blank text changes nothing."""
        from IPython.display import display

        line = text.rpartition("\r")[2].strip()
        if line:
            data = {"text/plain": line}
            if self._shown is None:
                self._shown = display(data, raw=True, display_id=True)  # type: ignore[no-untyped-call]
            else:
                self._shown.update(data, raw=True)
        return len(text)

    def flush(self) -> None:
        """Do nothing, because `write` keeps nothing back."""

    def isatty(self) -> bool:
        """Return True, because the line can be replaced."""
        return True


def in_notebook() -> bool:
    """Whether this is a notebook kernel. An imported ipykernel is no proof, because PySpark imports it too."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")
