"""Replace errors of Spark and Delta with errors that name a remedy."""

from __future__ import annotations

import re
from typing import NoReturn

from spark_aesthetic import errors
from spark_aesthetic.delta.commits import ATTEMPTS, is_conflict
from spark_aesthetic.errors import AestheticError, SourceChangedError, TableError


def raise_explained(error: Exception, *, source: str, scores: str, failure: Exception | None) -> NoReturn:
    """Raise an error with a remedy in place of one of Spark's; if no remedy is known, raise Spark's error again.

    Args:
        error: The error that Spark raised.
        source: The source as an SQL identifier.
        scores: The scores table as the user named it.
        failure: The error that a chunk raised, of which Spark keeps only the text; None if there is none.
    """
    ours = failure if isinstance(failure, AestheticError) else _told(error) or _explained(error, source, scores)
    if ours is None:
        raise error
    raise ours from error


def _told(error: Exception) -> AestheticError | None:
    """Rebuild an error of this package from its text, which is all that Spark Connect returns if a chunk fails."""
    found = re.search(rf"{errors.__name__}\.(\w+): (.+)", str(error))
    kind = getattr(errors, found[1], None) if found is not None else None
    return kind(found[2]) if found is not None and kind is not None else None


_CHANGED = ("DELTA_SOURCE_TABLE_IGNORE_CHANGES", "DELTA_SOURCE_IGNORE_DELETE")
_GONE = (
    "FILE_NOT_EXIST", "DELTA_FILE_NOT_FOUND", "DELTA_LOG_FILE_NOT_FOUND", "DELTA_MISSING_CHANGE_DATA",
    "DELTA_CHANGE_TABLE_FEED_DISABLED", "DELTA_VERSIONS_NOT_CONTIGUOUS", "DELTA_VERSION_NOT_FOUND",
    "DELTA_UNSUPPORTED_TIME_TRAVEL_BEYOND_DELETED_FILE_RETENTION_DURATION", "DELTA_NO_RECREATABLE_HISTORY_FOUND",
    "DELTA_TRUNCATED_TRANSACTION_LOG", "DELTA_MISSING_FILES_UNEXPECTED_VERSION",
)  # fmt: skip
_OTHER_COLUMNS = (
    "DELTA_SCHEMA_CHANGED", "DELTA_STREAMING_INCOMPATIBLE_SCHEMA_CHANGE", "POST_SCHEMA_EVOLUTION",
    "DELTA_CHANGE_DATA_FEED_INCOMPATIBLE", "DELTA_STREAMING_CANNOT_CONTINUE_PROCESSING",
)  # fmt: skip


def _explained(error: Exception, source: str, scores: str) -> AestheticError | None:
    text = str(error)
    if any(name in text for name in _CHANGED):
        return SourceChangedError(
            f"source {source}: expected only new rows, found rows that were updated, deleted or overwritten, and no "
            "change data feed. Run once with --reconcile (add --version-col to detect updated rows); to use a feed "
            "from then on, first run ALTER TABLE … SET TBLPROPERTIES (delta.enableChangeDataFeed = true)"
        )
    if any(name in text for name in _GONE):
        return SourceChangedError(
            f"source {source}: expected all files and log entries since the last run, found some removed (by VACUUM "
            f"or by the clean-up of the log). Run once with --reconcile. Delta's message: {text.splitlines()[0]}"
        )
    if any(name in text for name in _OTHER_COLUMNS):
        return SourceChangedError(
            f"source {source}: expected the columns of the last run, found some added, renamed or dropped. Run "
            "again; if the error returns, run once with --reconcile."
        )
    if is_conflict(error):
        return TableError(
            f"scores {scores!r}: expected to commit, found that other writers committed first in each of {ATTEMPTS} "
            "attempts; no row was lost or written twice. Run again."
        )
    if any(name in text for name in ("CONCURRENT_STREAM_LOG_UPDATE", "CONCURRENT_QUERY")):
        return TableError(
            f"scores {scores!r}: expected one run at a time, found another run on the same rows; no row was lost or "
            "written twice. Run again when that run has finished."
        )
    return None
