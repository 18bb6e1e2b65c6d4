"""The result of a check, and how a check reports that it failed or does not apply."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal, ParamSpec
from urllib.parse import unquote

from spark_aesthetic import testing
from spark_aesthetic.errors import AestheticError, in_a_line

Arguments = ParamSpec("Arguments")

Status = Literal["ok", "skipped", "failed"]

_ADDRESS = re.compile(r"\w[\w+.-]*://[^\s'\"]+")

# Settings in an address or a message with a name that marks a secret, such as token=… of Spark Connect.
_NAMED = re.compile(r"(?i)\b([\w-]*(?:token|secret|password|signature|credential|sig))=[^\s&;'\"]+")

# The part before @ is a container in Azure's addresses, and no secret.
_AZURE = ("abfs", "abfss", "wasb", "wasbs")

# host:port/ with an @ in the path.
_PORT = re.compile(r"[^/@:]+:\d+/")


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        name: What was checked.
        status: "ok", "failed" or "skipped". A skipped check does not apply here and needs no action.
        found: What was found.
        remedy: What the user should do; empty unless the check failed.
    """

    name: str
    status: Status
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        """Format the finding as one line."""
        text = f"{self.status:<8} {self.name:<22} {self.found}"
        return f"{text}. {self.remedy}" if self.remedy else text


class Fault(Exception):  # noqa: N818 (it is caught here, and nobody sees it)
    """Raised by a check that has failed."""

    def __init__(self, found: str, remedy: str) -> None:
        super().__init__(found)
        self.found, self.remedy = found, remedy


class Skipped(Exception):  # noqa: N818 (it is not an error)
    """Raised by a check that does not apply here."""


def checked(name: str, check: Callable[Arguments, str], *args: Arguments.args, **named: Arguments.kwargs) -> Finding:
    """Run a check and return its finding; whatever it raises is the finding of a failed check.

    Secrets are replaced in the finding: those of addresses in `args`, and those of any other address in its text.
    """
    status: Status = "failed"
    remedy = ""
    try:
        status, found = "ok", check(*args, **named)
    except Skipped as why:
        status, found = "skipped", str(why)
    except Fault as fault:
        found, remedy = fault.found, fault.remedy
    except AestheticError as error:
        found = " ".join(str(error).split())
    except Exception as error:
        found, remedy = in_a_line(error), "Report it with this output if the cause is not clear."
    addresses = [arg for arg in args if isinstance(arg, str)]
    name, found, remedy = (without_secrets(text, *addresses) for text in (name, found, remedy))
    return Finding(name, status, found, remedy)


def without_secrets(text: str, *addresses: str) -> str:
    """Replace keys, tokens and signatures in the addresses of a text, because users publish the output in reports.

    Args:
        text: The text.
        addresses: Known addresses. Their secrets are replaced even where the text has only a part of an address.

    Examples:
        >>> without_secrets("no s3a://key:a/secret@bucket/images, no https://host/a.tar?signature=5f")
        'no s3a://…@bucket/images, no https://host/a.tar?…'
        >>> without_secrets("abfss://container@account.dfs.core.windows.net/images")
        'abfss://container@account.dfs.core.windows.net/images'
        >>> without_secrets("no bucket/a.tar?signature=5f", "gs://bucket/a.tar?signature=5f")
        'no bucket/a.tar?…'
    """
    for address in [*addresses, *_ADDRESS.findall(text)]:
        for secret in _secrets(address):
            text = text.replace(secret, "…")
    return _NAMED.sub(r"\1=…", text)


def _secrets(address: str) -> list[str]:
    """Return the parts of an address that may be secrets, the longest first, as they stand and decoded."""
    scheme, found, rest = address.partition("://")
    if not found:
        return []
    place, _, query = re.sub("[?#]", "?", rest, count=1).partition("?")
    user, at, _ = place.rpartition("@")
    # A secret with a slash follows a colon, as in key:a/secret@bucket. A slash before the first colon begins a path.
    is_path = not at or ("/" in user.partition(":")[0]) or bool(_PORT.match(place))
    is_container = scheme.lower() in _AZURE and ":" not in user
    given = [query, *([] if is_path or is_container else [user])]
    return sorted({form for part in given if part for form in (part, unquote(part))}, key=len, reverse=True)


def version_of(package: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def check_published(scores: Iterable[float]) -> str:
    """Check the scores of the ten published embeddings.

    Raises:
        Fault: A score differs from the published one.
    """
    found = [round(float(score), 3) for score in scores]
    if found != list(testing.PUBLISHED_SCORES):
        raise Fault(f"{found}, expected {list(testing.PUBLISHED_SCORES)}", "Install the package again.")
    return f"all {len(found)} published embeddings have their published scores"
