"""What others did to a scores table: decisions over its history, which has no part in Spark.

Spark's checkpoint tells which rows of the source were read, not whether their scores are still there. Somebody who
deletes scores, or restores the table, changes that behind the checkpoint's back. The history of the table tells it.
"""

from __future__ import annotations

from collections.abc import Sequence

from spark_aesthetic.delta.commits import Logged


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


def read_until(commits: Sequence[Logged], model: str, source_id: str, version: int | None = None) -> int | None:
    """The version of the source that the last chunk ended in, of those that the scores table had at a version.

    Returns:
        None where no such chunk is in the history.
    """
    chunks = [
        int(commit.told["source_version"])
        for commit in commits
        if _is_of(commit, model, source_id)
        and commit.told.get("chunk") is not None
        and (version is None or commit.version <= version)
    ]
    return max(chunks, default=None)


def _is_of(commit: Logged, model: str, source_id: str) -> bool:
    return commit.is_ours and (commit.told.get("model"), commit.told.get("source_id")) == (model, source_id)
