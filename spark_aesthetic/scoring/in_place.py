"""Score a source in place: directly in one commit, or chunk by chunk in a staging table and then in one commit."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from spark_aesthetic.delta import identity, naming, tables
from spark_aesthetic.delta.commits import committed, merge_into
from spark_aesthetic.delta.java import Py4JJavaError
from spark_aesthetic.delta.naming import quoted
from spark_aesthetic.delta.tables import Source
from spark_aesthetic.errors import SourceChangedError, TableError
from spark_aesthetic.scoring import ledger
from spark_aesthetic.scoring.beside import Steps
from spark_aesthetic.scoring.explained import raise_explained
from spark_aesthetic.scoring.plan import Asked, Phase
from spark_aesthetic.scoring.runs import FOLDER, Run
from spark_aesthetic.scoring.target import ERROR, MODEL, SCORED_AT, TYPES, add_columns, same_key
from spark_aesthetic.scoring.writer import SCORED, now

_log = logging.getLogger("spark_aesthetic")

# Attempts per run. A run starts again if the source was updated while it was scored.
_ATTEMPTS = 3


def score_in_place(run: Run) -> tuple[int, int]:
    """Score the source, and write the scores into its own columns.

    Returns:
        The size in bytes of the files that the commit rewrites, and the number of rows that were left alone.

    Raises:
        TableError: The source is updated faster than it is scored, or another run is writing it.
    """
    todo, name = _todo(run), run.source.identifier
    metadata = todo.metadataColumn("_metadata")
    files = todo.select(metadata["file_path"].alias("path"), metadata["file_size"].alias("size"))
    found = files.groupBy("path", "size").count().agg(F.sum("size").alias("size"), F.sum("count").alias("rows"))
    unscored = found.collect()[0]
    size, skipped = unscored.size or 0, run.rows_read - (unscored.rows or 0)
    if size == 0:
        return 0, skipped
    _log.info(
        "%s: the commit will rewrite %.1f MB of files in place; a scores table (--scores) rewrites none and is better "
        "for tables of images", name, size / 1e6,
    )  # fmt: skip
    # With one chunk, staging would save no work after a kill.
    directly = size <= run.max_bytes_per_chunk and run.max_files_per_chunk is None
    try:
        for _ in range(_ATTEMPTS):
            if _score_directly(run) if directly else _score_staged(run):
                return size, skipped
            _log.warning("%s: rows were updated or deleted meanwhile; scoring starts again", name)
            run.tally.forget_rows()
            run.reopen()
    except (PySparkException, Py4JJavaError) as error:
        raise_explained(error, source=name, scores=run.target.table, failure=run.tally.failure)
    raise TableError(
        f"source {name}: expected no updates while it is scored in place, found some in each of "
        f"{_ATTEMPTS} attempts. Pause the updates, or score into a separate table (--scores)."
    )


def _todo(run: Run) -> DataFrame:
    assert run.where is not None, "a run in place has a condition"
    return run.source.rows.where(run.where)


def _score_directly(run: Run) -> bool:
    """Score and commit at once; return False if the source has changed meanwhile."""
    writer, tally, todo = run.writer, run.tally, _todo(run)
    identity.check_key_values(run.source.rows, run.target.key)
    unchanged = partial(run.only_grown_since, run.source.version)
    with (
        run.shown("scoring in place", todo.count(), in_one=True) as listener,
        writer.kept(todo.select(*map(quoted, writer.inputs)), tally) as (kept, counts),
    ):
        if not _take_over(run, writer.made(kept, now()), unchanged):
            return False
        tally.rows, tally.commits = counts.rows, 1
        if counts.failed:
            tally.add_reasons(kept, f"{SCORED}.error")
        listener.add(tally.rows)
        return True


def _score_staged(run: Run) -> bool:
    """Score chunk by chunk in a staging table, then commit; return False if the source has changed meanwhile."""
    spark, source, target = run.spark, run.source, run.target
    folder = run.checkpoints(target.make(spark, ledger.described(source, target.key)).location)
    try:
        version = run.current_version()
        Steps(run=run, folder=folder).go(Asked(), run.ledger(), first=Phase.STREAM, last=Phase.STREAM)
        unchanged = run.only_grown_since(version)
    except SourceChangedError:
        unchanged = False
    if unchanged:
        # Rows may have been added since this or a killed run began, and two rows with one key would share a score.
        identity.check_key_values(tables.read_table(spark, source.table), target.key)
        unchanged = _take_over(run, target.rows(spark), partial(run.only_grown_since, version))
    # Otherwise a later run could use the staged score of an image that was replaced.
    _forget(run)
    return unchanged


def _take_over(run: Run, scored: DataFrame, unchanged: Callable[[], bool]) -> bool:
    """Write scores into the source's own columns, in one MERGE of narrow rows, which is safe to repeat.

    Args:
        run: The run.
        scored: The key and the columns to write.
        unchanged: Called before each attempt; returns whether the scores still match the source's rows. It misses an
            update that is committed after the call and before Delta begins its MERGE, which is less than a second.

    Returns:
        Whether the scores still matched and were written.
    """
    if not unchanged():
        return False
    spark, source, target, commit = run.spark, run.source, run.target, run.commit()
    names = [name for name in target.written if name != SCORED_AT]
    add_columns(spark, source.identifier, source.rows, {name: TYPES[name] for name in names})
    updates = ", ".join(f"{name} = scored.{name}" for name in map(quoted, names))
    clauses = f"ON {same_key(target.key, 'target')} WHEN MATCHED THEN UPDATE SET {updates}"

    def write() -> bool:
        if not unchanged():
            return False
        merge_into(spark, source.identifier, scored, clauses, commit)
        return True

    return committed(write)


def _forget(run: Run) -> None:
    """Empty the staging table of this model, so that the next run starts anew."""
    target = run.target
    ledger.forget_sources(run.spark, target, run.ledger().of_model(target.model))
    model = run.spark.createDataFrame([(target.model,)], f"{MODEL} string")
    clauses = f"ON target.{MODEL} = scored.{MODEL} WHEN MATCHED THEN DELETE"
    merge_into(run.spark, target.identifier, model, clauses, run.commit())


def staged(table: Source, checkpoint: str | None) -> str:
    """Return the path of the staging table, which is beside the source because Delta allows no table inside it."""
    if checkpoint is not None:
        return f"{naming.whole(checkpoint).rstrip('/')}/{table.id}/staged"
    _, _, folders = table.location.partition("://")
    if "__unitystorage" in table.location or (folders and "/" not in folders.strip("/")):
        raise TableError(
            f"source {table.table!r}: expected --checkpoint, because no table can be created beside this one, found "
            "none. Pass a folder such as /Volumes/… or s3://bucket/folder, or score into a separate table (--scores)."
        )
    return f"{table.location.rstrip('/')}{FOLDER}/staged"


def unscored(rows: DataFrame, model: str, *, retry_failed: bool) -> Column:
    """Return the condition for source rows that have no score of a model in the source's own columns."""
    if not naming.has_column(rows.columns, MODEL):
        return F.lit(True)
    other = ~F.col(MODEL).eqNullSafe(model)
    return other | F.col(ERROR).isNotNull() if retry_failed else other
