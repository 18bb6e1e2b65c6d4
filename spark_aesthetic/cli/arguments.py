"""The arguments of the jobs: their parser, and what the text of one means."""

from __future__ import annotations

import argparse
from typing import NoReturn

from spark_aesthetic.errors import OptionError


class Parser(argparse.ArgumentParser):
    """Takes a wrong argument for what it is here: something to put right first, said in one line."""

    def error(self, message: str) -> NoReturn:  # noqa: D102
        raise OptionError(f"{message}; see --help")


def key_columns(text: str) -> list[str]:
    """Names that are separated by commas."""
    return [column.strip() for column in text.split(",")]


def _numbers(text: str) -> list[float]:
    return [float(number) for number in text.split(",")]
