"""What others did to a scores table: decisions over its history, which has no part in Spark.

Spark's checkpoint tells which rows of the source were read, not whether their scores are still there. Somebody who
deletes scores, or restores the table, changes that behind the checkpoint's back. The history of the table tells it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
    return min((_restored(commit) for commit in taken if commit.operation == "RESTORE"), default=None)


def _restored(commit: Logged) -> int:
    """The version that a RESTORE went back to; -1 if it went back to a time, and does not tell the version."""
    text = commit.parameters.get("version") or ""
    return int(text) if text.isdecimal() else -1


def read_until(commits: Sequence[Logged], model: str, source_id: str) -> int | None:
    """The version of the source that the last chunk ended in; None where no chunk is in the history."""
    return max(_chunks(commits, model, source_id), default=None)


def has_read_all(commits: Sequence[Logged], model: str, source_id: str, *, checkpoint: str, version: int) -> bool:
    """Whether the newest chunk among some commits, the newest first, read a version of the source to its end.

    Args:
        commits: The newest commits of the scores table.
        model: The model's id.
        source_id: Delta's id of the source.
        checkpoint: The name of the checkpoint. A chunk of another one says nothing of what this one has read.
        version: Of the source.
    """
    chunks = (commit.told for commit in commits if _is_of(commit, model, source_id) and "chunk" in commit.told)
    last = next(chunks, {})
    return (last.get("checkpoint"), last.get("source_version"), last.get("whole")) == (checkpoint, version, True)


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
    while version >= 0:
        before = [commit for commit in commits if commit.version <= version]
        restored = max((commit for commit in before if commit.operation == "RESTORE"), key=_version, default=None)
        if restored is None:
            return read_until(before, model, source_id)
        # What came after that RESTORE may have been read by a run that did not know of it.
        version = _restored(restored)
    # Every score is of the first chunk or of a later one, if the history has the first.
    return min(_chunks(commits, model, source_id), default=None) if commits[-1].version == 0 else None


def _chunks(commits: Sequence[Logged], model: str, source_id: str) -> list[int]:
    """The versions of the source that chunks ended in."""
    own = [commit for commit in commits if _is_of(commit, model, source_id)]
    return [int(commit.told["source_version"]) for commit in own if commit.told.get("chunk") is not None]


def of_other_runs(commits: Sequence[Logged], told: Mapping[str, object]) -> list[Logged]:
    """The commits of other runs of the model over the source that a run tells of itself."""
    own = [commit for commit in commits if _is_of(commit, str(told["model"]), str(told["source_id"]))]
    return [commit for commit in own if commit.told.get("run") != told["run"]]


def _version(commit: Logged) -> int:
    return commit.version


def _is_of(commit: Logged, model: str, source_id: str) -> bool:
    return commit.is_ours and (commit.told.get("model"), commit.told.get("source_id")) == (model, source_id)
