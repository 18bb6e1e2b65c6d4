"""Progress where there is no terminal, and what is counted within a chunk."""

from __future__ import annotations

from collections import Counter
from io import StringIO

import pytest

from spark_aesthetic import progress
from spark_aesthetic.progress import ProgressListener


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def listener(file: StringIO) -> ProgressListener:
    return ProgressListener("scoring", rows_to_do=lambda: 10, bytes_a_row=1.0, failed=Counter(), file=file)


def test_without_a_terminal_there_is_a_log_line_and_no_live_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # As PySpark does wherever it is installed.
    import ipykernel  # noqa: F401

    monkeypatch.setattr(progress, "_LOG_EVERY_SECONDS", 0.05)
    file, terminal = StringIO(), Terminal()
    with caplog.at_level("INFO", logger="spark_aesthetic"):
        for shown in (listener(file), listener(terminal)):
            shown._closed.wait(0.3)
            shown.close()
    assert file.getvalue() == ""
    assert "scoring: 0 of 10 rows" in caplog.text
    assert "scoring: " in terminal.getvalue()
