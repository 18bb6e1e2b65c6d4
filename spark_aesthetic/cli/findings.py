"""The result of a check, and how a check reports that it failed or does not apply."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, ParamSpec

from spark_aesthetic import testing
from spark_aesthetic.errors import AestheticError, in_a_line

Arguments = ParamSpec("Arguments")

Status = Literal["ok", "skipped", "failed"]


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        name: What was checked.
        status: "skipped" if the check does not apply here, and nothing needs to be done.
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
    """Run a check and return its finding; whatever it raises is the finding of a failed check."""
    try:
        return Finding(name, "ok", check(*args, **named))
    except Skipped as why:
        return Finding(name, "skipped", str(why))
    except Fault as fault:
        return Finding(name, "failed", fault.found, fault.remedy)
    except AestheticError as error:
        return Finding(name, "failed", " ".join(str(error).split()))
    except Exception as error:
        return Finding(name, "failed", in_a_line(error), "Report it with this output if the cause is not clear.")


def check_published(scores: Iterable[float]) -> str:
    """Check the scores of the ten published embeddings.

    Raises:
        Fault: A score differs from the published one.
    """
    found = [round(float(score), 3) for score in scores]
    if found != list(testing.PUBLISHED_SCORES):
        raise Fault(f"{found}, expected {list(testing.PUBLISHED_SCORES)}", "Install the package again.")
    return f"all {len(found)} published embeddings have their published scores"
