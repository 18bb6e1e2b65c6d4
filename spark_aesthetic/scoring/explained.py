"""Errors of Spark and Delta, said again with what to do about them."""

from __future__ import annotations

import re
from typing import NoReturn

from spark_aesthetic import errors
from spark_aesthetic.delta.commits import ATTEMPTS, is_conflict
from spark_aesthetic.errors import AestheticError, SourceChangedError, TableError


def raise_explained(error: Exception, *, source: str, scores: str, failure: Exception | None) -> NoReturn:
    """Raise an error of ours in place of one of Spark's, where it is known what to do about it; else that one again.

    Args:
        error: As Spark raised it.
        source: The source as SQL takes it.
        scores: The scores table as its user named it.
        failure: What a chunk raised, of which Spark makes text.
    """
    ours = failure if isinstance(failure, AestheticError) else _told(error) or _explained(error, source, scores)
    if ours is None:
        raise error
    raise ours from error


def _told(error: Exception) -> AestheticError | None:
    """An error of ours of which Spark Connect has but the text, from the process that a chunk ran in."""
    found = re.search(rf"{errors.__name__}\.(\w+): (.+)", str(error))
    kind = getattr(errors, found[1], None) if found is not None else None
    return kind(found[2]) if found is not None and kind is not None else None


_CHANGED = ("DELTA_SOURCE_TABLE_IGNORE_CHANGES", "DELTA_SOURCE_IGNORE_DELETE")
_GONE = (
    "FILE_NOT_EXIST", "DELTA_FILE_NOT_FOUND", "DELTA_LOG_FILE_NOT_FOUND", "DELTA_MISSING_CHANGE_DATA",
    "DELTA_CHANGE_TABLE_FEED_DISABLED", "DELTA_VERSIONS_NOT_CONTIGUOUS", "DELTA_VERSION_NOT_FOUND",
)  # fmt: skip
_OTHER_COLUMNS = (
    "DELTA_SCHEMA_CHANGED", "DELTA_STREAMING_INCOMPATIBLE_SCHEMA_CHANGE", "POST_SCHEMA_EVOLUTION",
    "DELTA_CHANGE_DATA_FEED_INCOMPATIBLE", "DELTA_STREAMING_CANNOT_CONTINUE_PROCESSING",
)  # fmt: skip


def _explained(error: Exception, source: str, scores: str) -> AestheticError | None:
    text = str(error)
    if any(name in text for name in _CHANGED):
        return SourceChangedError(
            f"source {source}: expected nothing but new rows, found rows that were updated, deleted or overwritten, "
            "and no change data feed that tells which; run once with --reconcile, which finds updated rows by "
            "--version-col alone, before it, so that the feed tells from then on, ALTER TABLE … SET TBLPROPERTIES "
            "(delta.enableChangeDataFeed = true)"
        )
    if any(name in text for name in _GONE):
        return SourceChangedError(
            f"source {source}: expected the files and the log since the last run, found some gone (VACUUM, or the "
            f"clean-up of the log); run once with --reconcile. Delta says: {text.splitlines()[0]}"
        )
    if any(name in text for name in _OTHER_COLUMNS):
        return SourceChangedError(
            f"source {source}: expected the columns of the last run, found some added, renamed or dropped; run "
            "again, and if this comes again, once with --reconcile"
        )
    if is_conflict(error):
        return TableError(
            f"scores {scores!r}: expected to commit between the commits of others, found one before each "
            f"of {ATTEMPTS} attempts; nothing is lost and nothing twice: run again"
        )
    if any(name in text for name in ("CONCURRENT_STREAM_LOG_UPDATE", "CONCURRENT_QUERY")):
        return TableError(
            f"scores {scores!r}: expected one run at a time, found another at work on the same rows; "
            "nothing is lost and nothing twice: run again when it has ended"
        )
    return None
