"""Compare the keys of a source, and optionally the versions of its rows, with its scores."""

from __future__ import annotations

import logging

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from spark_aesthetic.delta.commits import Commit, merge_into
from spark_aesthetic.delta.frames import on_disk
from spark_aesthetic.delta.naming import quoted
from spark_aesthetic.delta.sessions import text_literal
from spark_aesthetic.scoring import changes, ledger
from spark_aesthetic.scoring.runs import Run
from spark_aesthetic.scoring.target import MODEL, same_key

_log = logging.getLogger("spark_aesthetic")


def compare(run: Run, version_col: str | None) -> None:
    """Score the rows that have no score or have changed, and drop the scores of deleted rows.

    Args:
        run: The run, with the source opened for the comparison.
        version_col: A column of the source that changes with the image; None compares only keys.
    """
    spark, source, target = run.spark, run.source, run.target
    _forget_replaced(run, version_col)
    key = list(target.key)
    there, known = source.rows.select(*map(quoted, target.kept)), target.rows(spark)
    keys = there.select(*map(quoted, key))
    wanted = keys.join(target.keys(spark), key, "left_anti")
    if version_col is not None:
        wanted = wanted.union(_changed(run, there, known, version_col))
    commit = run.commit()
    with on_disk(_gone(run, keys)) as gone:
        if not gone.isEmpty():
            _drop(run, gone, commit)
    run.score_keys(wanted, commit)
    if version_col is not None:
        _fill_in(run, there, version_col)


def _forget_replaced(run: Run, version_col: str | None) -> None:
    """Remove earlier tables at the source's location from the ledger."""
    replaced = run.ledger().replaced_by(run.source, run.target.model)
    if not replaced:
        return
    ledger.forget_sources(run.spark, run.target, replaced)
    if version_col is None:
        _log.warning(
            "%s: the table was replaced since the last run; rows with a known key keep their scores, because "
            "changed rows cannot be detected without --version-col", run.source.identifier,
        )  # fmt: skip


def _gone(run: Run, keys: DataFrame) -> DataFrame:
    """Return the keys of scores without a source row, or no key if other sources may still have such rows."""
    source, target = run.source, run.target
    gone = target.keys(run.spark).join(keys, list(target.key), "left_anti")
    others = run.ledger().others(source)
    if not others:
        return gone
    _log.warning(
        "%s: scores of rows that were deleted from %s are kept, because the table also has scores of %s",
        target.identifier, source.identifier, " and ".join(other.table for other in others),
    )  # fmt: skip
    return gone.limit(0)


def _drop(run: Run, gone: DataFrame, commit: Commit) -> None:
    """Drop the scores of rows that are no longer in the source."""
    writer, target, rows = run.writer, run.target, run.source.rows
    column = F.lit(None).cast(rows.schema[writer.column].dataType).alias(writer.column)
    rest = [F.lit(None).cast(target.kept[name]).alias(name) for name in target.kept if name not in target.key]
    rows = changes.said(gone.select("*", *rest, column), "delete")
    writer.merge(run.spark, rows, commit, run.tally, alone=run.check_alone)


def _changed(run: Run, there: DataFrame, known: DataFrame, version_col: str) -> DataFrame:
    """Return the keys of rows with a version that differs from the one stored beside their score."""
    key, version = list(run.target.key), quoted(version_col)
    before = known.select(*map(quoted, key), F.col(version).alias("_aesthetic_before"))
    before = before.where(F.col("_aesthetic_before").isNotNull())
    both = there.select(*map(quoted, key), F.col(version).alias("_aesthetic_now")).join(before, key)
    changed = ~F.col("_aesthetic_now").eqNullSafe(F.col("_aesthetic_before"))
    return both.where(changed).select(*map(quoted, key))


def _fill_in(run: Run, there: DataFrame, version_col: str) -> None:
    """Record the version of rows that were scored without it, so that later runs can compare it."""
    target, name = run.target, quoted(version_col)
    if target.rows(run.spark).where(F.col(name).isNull()).isEmpty():
        return
    clauses = (
        f"ON {same_key(target.key, 'target')} AND target.{MODEL} = {text_literal(target.model)} "
        f"AND target.{name} IS NULL AND scored.{name} IS NOT NULL "
        f"WHEN MATCHED THEN UPDATE SET {name} = scored.{name}"
    )
    merge_into(run.spark, target.identifier, there, clauses, run.commit())
