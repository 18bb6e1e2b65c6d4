"""Detect what other writers did to a scores table; pure functions of its history, without Spark.

Spark's checkpoint records which rows of the source were read, not whether their scores still exist. Other writers may
delete scores or restore the table. Only the history of the table shows this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from spark_aesthetic.delta.commits import Logged


def checked_until(commits: Sequence[Logged], model: str, source_id: str, noted: int | None) -> int | None:
    """Return the version of the scores table up to which runs of this model and source have checked its history.

    Args:
        commits: The newest commits of the scores table.
        model: The model's id.
        source_id: Delta's id of the source.
        noted: The version in the ledger, or None.

    Returns:
        The version; None if neither the ledger nor a commit has one.
    """
    own = [commit for commit in commits if _is_of(commit, model, source_id)]
    told = [commit.told["checked"] for commit in own if isinstance(commit.told.get("checked"), int)]
    if noted is not None:
        told.append(noted)
    # Earlier releases did not record this version. The check then starts at the last commit.
    return max(told, default=max((commit.version for commit in own), default=None))


def taken_away(commits: Sequence[Logged], since: int) -> list[Logged]:
    """Return the commits of other writers after version `since` that may have removed scores."""
    return [commit for commit in commits if commit.version > since and not commit.is_ours and not commit.adds_only]


def restored_to(taken: Sequence[Logged]) -> int | None:
    """Return the oldest version that the table was restored to; -1 if it is unknown, None without a RESTORE."""
    return min((_restored(commit) for commit in taken if commit.operation == "RESTORE"), default=None)


def _restored(commit: Logged) -> int:
    """Return the version of a RESTORE; -1 if it was by timestamp, which does not give the version."""
    text = commit.parameters.get("version") or ""
    return int(text) if text.isdecimal() else -1


def read_until(commits: Sequence[Logged], model: str, source_id: str) -> int | None:
    """Return the source version in which the last chunk ended; None if the history has no chunk."""
    return max(_chunks(commits, model, source_id), default=None)


def has_read_all(commits: Sequence[Logged], model: str, source_id: str, *, checkpoint: str, version: int) -> bool:
    """Whether the newest chunk in a list of commits read a version of the source to its end.

    Args:
        commits: The newest commits of the scores table, newest first.
        model: The model's id.
        source_id: Delta's id of the source.
        checkpoint: The name of the checkpoint. A chunk of a different one does not show what this one has read.
        version: The version of the source.
    """
    chunks = (commit.told for commit in commits if _is_of(commit, model, source_id) and "chunk" in commit.told)
    last = next(chunks, {})
    return (last.get("checkpoint"), last.get("source_version"), last.get("whole")) == (checkpoint, version, True)


def restored_until(commits: Sequence[Logged], model: str, source_id: str, version: int) -> int | None:
    """Return a source version up to which the scores in one version of the scores table include every change.

    Args:
        commits: The history of the scores table, newest first.
        model: The model's id.
        source_id: Delta's id of the source.
        version: The version of the scores table; -1 if it is unknown.

    Returns:
        The source version; None if the history does not show it.
    """
    while version >= 0:
        before = [commit for commit in commits if commit.version <= version]
        restored = max((commit for commit in before if commit.operation == "RESTORE"), key=_version, default=None)
        if restored is None:
            return read_until(before, model, source_id)
        # Chunks after that RESTORE do not count, because their run may not have detected it.
        version = _restored(restored)
    # If the history begins with version 0, every score is from its first chunk or a later one.
    return min(_chunks(commits, model, source_id), default=None) if commits[-1].version == 0 else None


def _chunks(commits: Sequence[Logged], model: str, source_id: str) -> list[int]:
    """Return the source versions in which chunks ended."""
    own = [commit for commit in commits if _is_of(commit, model, source_id)]
    return [int(commit.told["source_version"]) for commit in own if commit.told.get("chunk") is not None]


def of_other_runs(commits: Sequence[Logged], told: Mapping[str, object]) -> list[Logged]:
    """Return the commits of other runs of the same model and source; `told` is the metadata of this run."""
    own = [commit for commit in commits if _is_of(commit, str(told["model"]), str(told["source_id"]))]
    return [commit for commit in own if commit.told.get("run") != told["run"]]


def _version(commit: Logged) -> int:
    return commit.version


def _is_of(commit: Logged, model: str, source_id: str) -> bool:
    return commit.is_ours and (commit.told.get("model"), commit.told.get("source_id")) == (model, source_id)
