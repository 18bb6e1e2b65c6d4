"""Make the options of a job from the parameters, annotations and docstrings of the functions that it calls."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Callable, Sequence
from types import UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from spark_aesthetic.errors import OptionError

# Settings of an option that several jobs share.
TABLE = {"metavar": "TABLE_OR_PATH"}
SIZE = {"metavar": "SIZE"}
# The called function checks the value, because its message suggests the nearest choice.
UNCHECKED: dict[str, Any] = {"choices": None}


class Parser(argparse.ArgumentParser):
    """Parse options that functions declare; a wrong argument raises a one-line OptionError."""

    def error(self, message: str) -> NoReturn:  # noqa: D102
        raise OptionError(f"{message}; see --help")

    def take(
        self,
        called: Callable[..., Any],
        /,
        *,
        without: Sequence[str] = (),
        one_of: Sequence[str] = (),
        needs_one: bool = False,
        **differs: dict[str, Any],
    ) -> None:
        """Add an option for each parameter of a function that can be given as text.

        Args:
            called: The function, or a class for the parameters of its constructor.
            without: Parameters that are not options of the job.
            one_of: Options that exclude each other.
            needs_one: Whether one of the options in `one_of` is required.
            **differs: By parameter, arguments of `add_argument` that replace those derived from the function; `flags`
                replaces --its-name. A name that is not a parameter adds an option.
        """
        declared = _declared(called)
        options = {name: option for name, option in declared.items() if name not in without}
        options |= {name: declared.get(name, {}) | own for name, own in differs.items()}
        group = self.add_mutually_exclusive_group(required=needs_one) if one_of else self
        # The usage line shows a group's options together only if they are adjacent.
        order = dict.fromkeys(near for name in options for near in (one_of if name in one_of else [name]))
        for name in order:
            option = options[name]
            if option.get("required"):
                option.pop("default", None)
            default = option.get("default")
            words = re.sub(r"`(\w+)`", lambda word: _flag(word[1]) if word[1] in declared else word[0], option["help"])
            if default not in (None, (), []) and default is not False:
                words += f" Default: {','.join(map(str, default)) if isinstance(default, tuple) else default}."
            option["help"] = words.replace("%", "%%")
            (group if name in one_of else self).add_argument(*option.pop("flags", [_flag(name)]), **option)


def taken_by(called: Callable[..., Any], args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of a command line that a function takes, by name."""
    return {name: value for name, value in vars(args).items() if name in inspect.signature(called).parameters}


def columns(text: str) -> list[str]:
    """Split names at commas."""
    return [column.strip() for column in text.split(",")]


def _numbers(text: str) -> list[float]:
    return [float(number) for number in text.split(",")]


# If a parameter takes several types, the first of them in this order decides how the text is parsed.
_OF_TYPE: dict[Any, dict[str, Any]] = {
    Sequence[str]: {"type": columns, "metavar": "COL[,COL]"},
    Sequence[float]: {"type": _numbers, "metavar": "X[,X]"},
    bool: {"action": "store_true"},
    str: {},
    int: {"type": int, "metavar": "N"},
    float: {"type": float, "metavar": "X"},
}


def _declared(called: Callable[..., Any]) -> dict[str, dict[str, Any]]:
    """Return the arguments of `add_argument` for each parameter that can be given as text."""
    # Modules import Unpack only for type checkers, because Python 3.10 does not have it.
    hints = get_type_hints(vars(called).get("__init__", called), localns={"Unpack": list})
    found, told = {}, _told(called)
    for name, parameter in inspect.signature(called).parameters.items():
        kinds = get_args(hints[name]) if get_origin(hints[name]) in (Union, UnionType) else (hints[name],)
        options = [{"choices": get_args(kind)} for kind in kinds if get_origin(kind) is Literal]
        options += [option for kind, option in _OF_TYPE.items() if kind in kinds]
        if options:
            required = parameter.default is parameter.empty
            given = {"required": True} if required else {"default": parameter.default}
            column = {"metavar": "COL"} if name.lower().endswith("col") else {}
            found[name] = options[0] | given | column | {"help": told.get(name, "")}
    return found


def _told(called: Callable[..., Any]) -> dict[str, str]:
    """Return the text for each argument, or each field of a dataclass, in a Google-style docstring."""
    section = re.search(r"^(?:Args|Attributes):\n((?:    .*\n)+)", f"{inspect.getdoc(called)}\n", re.MULTILINE)
    _, *entries = re.split(r"^    \**(\w+): ", section[1] if section else "", flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in zip(entries[::2], entries[1::2], strict=True)}


def _flag(name: str) -> str:
    return "--" + re.sub("_|(?=[A-Z])", "-", name).lower()
