"""What others did to a scores table: decisions over its history, which has no part in Spark.

Spark's checkpoint tells which rows of the source were read, not whether their scores are still there. Somebody who
deletes scores, or restores the table, changes that behind the checkpoint's back. The history of the table tells it.
"""

from __future__ import annotations

from collections.abc import Sequence

from spark_aesthetic.commits import Logged


def checked_until(commits: Sequence[Logged], model: str, source_id: str, noted: int | None) -> int | None:
    """The version of the scores table up to which a run of this model and source has looked at its history.

    Args:
        commits: The newest commits of the scores table.
        model: The model's id.
        source_id: Delta's id of the source.
        noted: What the ledger says.

    Returns:
        The version; None where none of the commits tells it.
    """
    own = [commit for commit in commits if _is_of(commit, model, source_id)]
    told = [commit.told["checked"] for commit in own if isinstance(commit.told.get("checked"), int)]
    if noted is not None:
        told.append(noted)
    # An earlier release did not say what it had looked at. Its last commit is where this one begins to look.
    return max(told, default=max((commit.version for commit in own), default=None))


def taken_away(commits: Sequence[Logged], since: int) -> list[Logged]:
    """The commits of others after a version that may have taken scores away."""
    return [commit for commit in commits if commit.version > since and not commit.is_ours and not commit.adds_only]


def restored_to(taken: Sequence[Logged]) -> int | None:
    """The oldest version that the table was restored to, -1 if that is not known; None if it was not restored."""
    restored = [commit.parameters.get("version") for commit in taken if commit.operation == "RESTORE"]
    # A restore by time does not tell the version.
    return min((int(text) if text and text.isdecimal() else -1 for text in restored), default=None)


def read_until(commits: Sequence[Logged], model: str, source_id: str) -> int | None:
    """The version of the source that the last chunk ended in; None where no chunk is in the history."""
    return max(_chunks(commits, model, source_id), default=None)


def restored_until(commits: Sequence[Logged], model: str, source_id: str, version: int) -> int | None:
    """A version of the source that is in all of the scores which a table had at one of its versions.

    Args:
        commits: All of the history.
        model: The model's id.
        source_id: Delta's id of the source.
        version: Of the scores table; -1 if that is not known.

    Returns:
        The version; None where the history does not tell.
    """
    if version >= 0:
        return read_until([commit for commit in commits if commit.version <= version], model, source_id)
    # Every score is of the first chunk or of a later one, if the history has the first.
    return min(_chunks(commits, model, source_id), default=None) if commits[-1].version == 0 else None


def _chunks(commits: Sequence[Logged], model: str, source_id: str) -> list[int]:
    """The versions of the source that chunks ended in."""
    own = [commit for commit in commits if _is_of(commit, model, source_id)]
    return [int(commit.told["source_version"]) for commit in own if commit.told.get("chunk") is not None]


def _is_of(commit: Logged, model: str, source_id: str) -> bool:
    return commit.is_ours and (commit.told.get("model"), commit.told.get("source_id")) == (model, source_id)
