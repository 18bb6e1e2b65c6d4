"""Bring the columns of the source itself up to date: directly, or staged chunk by chunk and then committed at once."""

from __future__ import annotations

import logging
from functools import partial

from pyspark.errors import PySparkException
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from spark_aesthetic.delta import identity, tables
from spark_aesthetic.delta.commits import merge_into
from spark_aesthetic.delta.java import Py4JJavaError
from spark_aesthetic.errors import SourceChangedError, TableError
from spark_aesthetic.scoring import ledger
from spark_aesthetic.scoring.beside import Steps
from spark_aesthetic.scoring.chunks import raise_explained
from spark_aesthetic.scoring.plan import Asked, Phase
from spark_aesthetic.scoring.runs import Run
from spark_aesthetic.scoring.target import MODEL

_log = logging.getLogger("spark_aesthetic")

# So often a run begins again where the source was updated meanwhile.
_ATTEMPTS = 3


def score_in_place(run: Run) -> tuple[int, int]:
    """Bring the source's own columns up to date.

    Returns:
        Bytes of the files that hold rows to be scored, which the commit rewrites, and rows that were left alone.

    Raises:
        TableError: The source is updated faster than it is scored, or another run is at work.
    """
    chunks = run.chunks
    todo = _todo(run)
    metadata = todo.metadataColumn("_metadata")
    files = todo.select(metadata["file_path"].alias("path"), metadata["file_size"].alias("size"))
    found = files.groupBy("path", "size").count().agg(F.sum("size").alias("size"), F.sum("count").alias("rows"))
    unscored = found.collect()[0]
    size, skipped = unscored.size or 0, run.rows_read - (unscored.rows or 0)
    if size == 0:
        return 0, skipped
    _log.info(
        "%s: the commit will rewrite %.1f MB of files in place; a scores table (--scores) rewrites none, and suits "
        "tables of images", chunks.source.identifier, size / 1e6,
    )  # fmt: skip
    # One chunk: to stage it would save nothing from a kill.
    directly = size <= run.max_bytes_per_chunk and run.max_files_per_chunk is None
    try:
        for _ in range(_ATTEMPTS):
            if _score_directly(run) if directly else _score_staged(run):
                return size, skipped
            _log.warning("%s: rows were updated or deleted meanwhile; scoring begins again", chunks.source.identifier)
            chunks.forget_counts()
            run.reopen()
    except (PySparkException, Py4JJavaError) as error:
        raise_explained(error, chunks)
    raise TableError(
        f"source {chunks.source.identifier}: expected no updates while it is scored in place, found some in each of "
        f"{_ATTEMPTS} attempts; pause them, or score into a table of its own (--scores)"
    )


def _todo(run: Run) -> DataFrame:
    assert run.chunks.where is not None, "in place there is a condition"
    return run.chunks.source.rows.where(run.chunks.where)


def _score_directly(run: Run) -> bool:
    """Score and commit at once; whether the source allowed it."""
    chunks, source = run.chunks, run.chunks.source
    identity.check_key_values(source.rows, chunks.target.key)
    todo = _todo(run)
    with run.shown("scoring in place", todo.count(), in_one=True) as listener:
        done = chunks.merge_into_source(run.spark, todo, partial(run.only_grown_since, source.version))
        listener.add(chunks.rows)
        return done


def _score_staged(run: Run) -> bool:
    """Score chunk by chunk beside the source, then commit; whether the source allowed it."""
    spark, chunks = run.spark, run.chunks
    source, target = chunks.source, chunks.target
    folder = run.checkpoints(target.make(spark, ledger.described(source, target.key)))
    try:
        version = run.current_version()
        Steps(run=run, folder=folder).go(Asked(), first=Phase.STREAM, last=Phase.STREAM)
        unchanged = run.only_grown_since(version)
    except SourceChangedError:
        unchanged = False
    if unchanged:
        # Rows may have come meanwhile, or since a run that was killed: two of one key would get one score.
        identity.check_key_values(tables.read_table(spark, source.table), target.key)
        unchanged = chunks.take_over(spark, target.rows(spark), partial(run.only_grown_since, version))
    # A staged score may else be that of an image which is no longer there.
    _forget(run)
    return unchanged


def _forget(run: Run) -> None:
    """Empty the staged table of this model; the next run begins anew."""
    target = run.chunks.target
    ledger.forget_sources(run.spark, target, run.all_known())
    model = run.spark.createDataFrame([(target.model,)], f"{MODEL} string")
    clauses = f"ON target.{MODEL} = scored.{MODEL} WHEN MATCHED THEN DELETE"
    merge_into(run.spark, target.identifier, model, clauses, run.commit())
