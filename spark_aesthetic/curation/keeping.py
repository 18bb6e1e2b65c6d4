"""From a scores table to a Delta table of the rows that are kept."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import AtomicType, BinaryType

import spark_aesthetic
from spark_aesthetic.curation.calibration import Calibration, check_agreement
from spark_aesthetic.curation.columns import check_columns
from spark_aesthetic.curation.keys import check_keys
from spark_aesthetic.curation.models import of_model
from spark_aesthetic.curation.selection import curate
from spark_aesthetic.delta import fitting, naming, tables
from spark_aesthetic.delta.frames import broadcast_if_few, on_disk
from spark_aesthetic.delta.naming import folded, has_column, identifier, lacking, quoted
from spark_aesthetic.delta.rows import rows_of_chosen
from spark_aesthetic.delta.sessions import in_own_session
from spark_aesthetic.delta.tables import Source
from spark_aesthetic.errors import OptionError, TableError
from spark_aesthetic.options import check_mode
from spark_aesthetic.scoring.target import EMBEDDING, MODEL, SCORE, TYPES

# What makes sense where a table is written that its rows' keys identify.
KeptMode = Literal["errorifexists", "overwrite"]
KEPT_MODES: tuple[KeptMode, ...] = get_args(KeptMode)

_log = logging.getLogger("spark_aesthetic")


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What was written.

    Attributes:
        kept: Rows written.
        without_row: With `table`: scores at or above the cut whose row is no longer there.
        model: Model of the scores; None where the table names none, or nobody asked.
        out: The table written, as it was named.
        seconds: Wall-clock time.
    """

    kept: int
    without_row: int | None
    model: str | None
    out: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it, without what was not asked for."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def read_scores(
    spark: SparkSession,
    scores: str,
    *,
    model: str | None = None,
    by: Sequence[str] = (),
    table: str | None = None,
    key: Sequence[str] = (),
) -> DataFrame:
    """The scores of a table, of one model if it is named, with the columns that part them.

    Args:
        spark: A session with Delta Lake.
        scores: Delta table with the scores, by catalog name, or by path (anything with a slash).
        model: The `aesthetic_model` of the scores to take, where the table has several.
        by: Columns that part the table: each group gets a cut of its own.
        table: Delta table to take `by` from where the scores do not have it, joined by `key`.
        key: Columns that together identify a row.

    Raises:
        TableError: No such table, column or model.
    """
    rows = tables.open_source(spark, scores, called="scores").rows
    if model is not None:
        rows = of_model(rows, model)
    elsewhere = lacking(rows.columns, by)
    if elsewhere and table is not None:
        others = tables.open_source(spark, table, called="table").rows
        _check_joined_by(key)
        check_columns(rows, key, "--key")
        check_columns(others, [*key, *elsewhere], "--table")
        # Twice there, a score would count twice.
        check_keys(others, key, "--table", "add a column to the key, or drop those rows")
        left_out = rows.join(others.select(*map(quoted, key)), list(key), "left_anti").count()
        if left_out:
            _log.warning("%d rows of --scores are left out: no row of --table has their key", left_out)
        rows = rows.join(others.select(*map(quoted, [*key, *elsewhere])), list(key))
    return rows


@in_own_session
def write_kept(
    spark: SparkSession,
    *,
    scores: str,
    out: str,
    calibration: Calibration | None = None,
    wanted: Mapping[str, float | None],
    model: str | None = None,
    by: Sequence[str] = (),
    key: Sequence[str] = (),
    table: str | None = None,
    score_col: str = SCORE,
    mode: KeptMode = "errorifexists",
) -> Kept:
    """Write the rows at or above a cut to a Delta table, in one commit.

    Without `table` these are rows of the scores, with it the rows of that table with the columns of the scores beside
    them: in place of scores that it has, and without arrays and bytes, such as embeddings. Which rows are kept is found
    out by narrow columns. Then images of up to half a million rows are read from the files alone that hold them, and of
    up to five million without a shuffle of their bytes.

    Args:
        spark: A session with Delta Lake.
        scores: Delta table with the scores, by catalog name, or by path (anything with a slash).
        out: Delta table to write, by name or by path.
        calibration: As `curate` takes it. Of several models in the scores its own is taken.
        wanted: Otherwise min_score, keep or top_k, as `curate` takes it.
        model: The `aesthetic_model` of the scores to take, where the table has several.
        by: Columns that part the table: each group gets a cut of its own.
        key: Columns that together identify a row.
        table: Delta table whose rows to write, such as that of the images; joined by `key`.
        score_col: Column of the scores.
        mode: "errorifexists" refuses a table that is there; "overwrite" replaces it in one commit, so a run that is
            repeated gives the same. There is no "append": the rows that two runs keep would be there twice.

    Returns:
        Counts; see `Kept`.

    Raises:
        TableError: A table is there and `mode` is "errorifexists", or it is one of those that are read; with `table`, a
            key that is there twice, in the scores or in it; or as `read_scores` and `curate` raise.
        OptionError: As `curate` raises; `table` without `key`; another model or `by` than the calibration's.
    """
    started = time.monotonic()
    mode = check_mode("mode", mode, KEPT_MODES)
    _check_out(spark, out, [name for name in (scores, table) if name is not None], mode)
    if table is not None:
        _check_joined_by(key)
    if calibration is not None:
        check_agreement(("--model", model, calibration.model), ("--by", tuple(by) or None, calibration.by))
        model, by = calibration.model, calibration.by
    rows = read_scores(spark, scores, model=model, by=by, table=table, key=key)
    asked: dict[str, Any] = {name: value for name, value in wanted.items() if value is not None}
    if calibration is None:
        kept = curate(rows, **asked, by=by, key=key, score_col=score_col)
    else:
        kept = curate(rows, calibration, score_col=score_col)
        asked, score_col = {"target": calibration.target, "wanted": calibration.wanted}, calibration.score_col
    told = {"spark_aesthetic": spark_aesthetic.__version__, "kept_of": identifier(scores), "model": model, **asked}
    without_row = None
    if table is None:
        written = _write(spark, kept, out, told, mode)
    else:
        images = tables.open_source(spark, table, called="table")
        with _beside_images(images, kept, key, score_col) as (both, count):
            written = _write(spark, both, out, told, mode)
        without_row = count - written
    seconds = round(time.monotonic() - started, 3)
    return Kept(kept=written, without_row=without_row, model=model, out=out, seconds=seconds)


def _check_joined_by(key: Sequence[str]) -> None:
    if not key:
        raise OptionError("--table: expected --key with it, by which its rows are joined, found none")


def _check_out(spark: SparkSession, out: str, read: Sequence[str], mode: str) -> None:
    there = tables.detail(spark, out)
    if there is None:
        fitting.check_schema(spark, out, f"--out {out!r}")
        return
    # By Delta's ids, for one table has many names: a path, a link to it, a name of the catalog.
    if there.id in [known.id for known in (tables.detail(spark, name) for name in read) if known is not None]:
        raise TableError(f"--out {out!r}: expected another table than those that are read; name a new one")
    if mode != "overwrite":
        raise TableError(f"--out {out!r}: expected no table there, found one; --overwrite replaces it")


@contextmanager
def _beside_images(
    images: Source, kept: DataFrame, key: Sequence[str], score_col: str
) -> Iterator[tuple[DataFrame, int]]:
    """The rows of images that have a kept score, with the scores beside them, and how many scores are kept.

    Raises:
        TableError: A key column is missing, or a key is of several rows, of the scores or of the images.
    """
    check_columns(kept, key, "--key")
    check_columns(images.rows, key, "--key")
    own = _own_columns(images.rows, score_col)
    added = _added_columns(kept, own)
    with on_disk(kept.select(*map(quoted, [*key, *added]))) as narrow:
        count = narrow.count()
        check_keys(narrow, key, "the scores", "choose a model (--model), or add a column to the key")
        keys = narrow.select(*map(quoted, key))
        there = images.rows.select(*map(quoted, key)).join(broadcast_if_few(keys, count), list(key), "left_semi")
        check_keys(there, key, "--table", "add a column to the key, or drop those rows")
        with rows_of_chosen(images, images.rows, narrow, count, key=key, own=own) as rows:
            yield rows.select(*map(quoted, [*own, *added])), count


def _own_columns(images: DataFrame, score_col: str) -> list[str]:
    """Those of the images that are written: all but scores, which may be of another model than those that are kept."""
    of_scores = {*TYPES, folded(score_col)}
    if not has_column(images.columns, MODEL):
        # It was there before any score.
        of_scores.discard(EMBEDDING)
    return lacking(of_scores, images.columns)


def _added_columns(kept: DataFrame, own: Sequence[str]) -> list[str]:
    """Those of the scores that go beside them: no arrays or bytes, of which millions of rows are no broadcast."""
    simple = [
        field.name
        for field in kept.schema
        if isinstance(field.dataType, AtomicType) and not isinstance(field.dataType, BinaryType)
    ]
    return lacking(own, simple)


def _write(spark: SparkSession, rows: DataFrame, out: str, told: Mapping[str, object], mode: str) -> int:
    writer = rows.write.format("delta").mode(mode).option("userMetadata", json.dumps(told))
    if mode == "overwrite":
        writer = writer.option("overwriteSchema", "true")
    if naming.unusual(rows.columns):
        there = tables.detail(spark, out)
        if there is None:
            writer = writer.option("delta.columnMapping.mode", "name")
        else:
            fitting.check_names(there, rows.columns, f"--out {out!r}")
    try:
        tables.write_table(writer, out)
    except AnalysisException as error:
        if mode == "errorifexists" and tables.is_delta(spark, out):
            raise TableError(
                f"--out {out!r}: expected no table there, found one that was made since this run began; --overwrite "
                "replaces it"
            ) from error
        raise
    return tables.read_table(spark, out).count()
