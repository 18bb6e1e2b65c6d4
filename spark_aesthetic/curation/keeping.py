"""Write the rows at or above a score threshold (a cut) to a Delta table."""

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

# Without append: a second run would write the same rows again.
KeptMode = Literal["errorifexists", "overwrite"]
KEPT_MODES: tuple[KeptMode, ...] = get_args(KeptMode)

_log = logging.getLogger("spark_aesthetic")


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The counts of a run of `write_kept`.

    Attributes:
        kept: Rows written.
        without_row: With `table`, kept scores that have no row in it.
        model: Model of the scores; None if neither `model` nor the calibration names one.
        out: The table written, as the caller named it.
        seconds: Wall-clock time.
    """

    kept: int
    without_row: int | None
    model: str | None
    out: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return a dict that JSON can store, without the fields that are None."""
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
    """Open a scores table, filter it by `model` if given, and add missing columns of `by` from `table`.

    Args:
        spark: A session with Delta Lake.
        scores: Delta table with the scores, by catalog name, or by path (anything with a slash).
        model: The `aesthetic_model` of the scores to use, if the table has several models.
        by: Columns that divide the table into groups; each group gets its own threshold.
        table: Delta table with the columns of `by` that the scores do not have, joined by `key`.
        key: Columns that together identify a row.

    Raises:
        TableError: A table, column or model is missing, or a key in `table` is null or repeated.
        OptionError: `table` is needed and `key` is not given.
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
        # A key that is repeated in the table would count its score twice.
        check_keys(others, key, "--table", "Add a column to the key, or drop those rows.")
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
    """Write the rows at or above a score threshold (a cut) to a Delta table, in one commit.

    Without `table`, the output has the rows of the scores. With it, the output has the rows of that table and the
    columns of the scores, which replace scores that it already has; arrays and bytes of the scores, such as embeddings,
    are not copied. The rows to keep are chosen by the score columns alone. Then, for up to half a million rows, only
    the files that contain them are read; for up to five million rows, no image is shuffled.

    Args:
        spark: A session with Delta Lake.
        scores: Delta table with the scores, by catalog name, or by path (anything with a slash).
        out: Delta table to write, by name or by path.
        calibration: The calibration to apply, as for `curate`. It also chooses the model if the scores have several.
        wanted: Without `calibration`, a value for min_score, keep or top_k, as for `curate`.
        model: The `aesthetic_model` of the scores to use, if the table has several models.
        by: Columns that divide the table into groups; each group gets its own threshold.
        key: Columns that together identify a row.
        table: Delta table to copy rows from, such as the table of the images; joined to the scores by `key`.
        score_col: Column of the scores.
        mode: "errorifexists" refuses an existing table. "overwrite" replaces it in one commit, so a repeated run gives
            the same table. There is no "append", which would write rows that two runs keep twice.

    Returns:
        The counts of the run; see `Kept`.

    Raises:
        TableError: `out` exists and `mode` is "errorifexists", or `out` is one of the tables that are read; with
            `table`, a key is repeated in it or in the scores; or as in `read_scores` and `curate`.
        OptionError: As in `curate`; or `table` is given without `key`, or `model` or `by` differs from the calibration.
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
        raise OptionError("--table: expected --key with it, found none. Name the columns that identify a row.")


def _check_out(spark: SparkSession, out: str, read: Sequence[str], mode: str) -> None:
    there = tables.detail(spark, out)
    if there is None:
        fitting.check_schema(spark, out, f"--out {out!r}")
        return
    # Compare table ids, because one table can have many names: a path, a link to it, a name in the catalog.
    if there.id in [known.id for known in (tables.detail(spark, name) for name in read) if known is not None]:
        raise TableError(f"--out {out!r}: expected a new table, found one that this run reads. Choose another name.")
    if mode != "overwrite":
        raise TableError(f"--out {out!r}: expected no table there, found one. Replace it with --overwrite.")


@contextmanager
def _beside_images(
    images: Source, kept: DataFrame, key: Sequence[str], score_col: str
) -> Iterator[tuple[DataFrame, int]]:
    """Yield the rows of images that have a kept score, with their scores, and the number of kept scores.

    Raises:
        TableError: A key column is missing, or a key is null or repeated in the kept scores or in their images.
    """
    check_columns(kept, key, "--key")
    check_columns(images.rows, key, "--key")
    own = _own_columns(images.rows, score_col)
    added = _added_columns(kept, own)
    with on_disk(kept.select(*map(quoted, [*key, *added]))) as narrow:
        count = narrow.count()
        check_keys(narrow, key, "the scores", "Choose a model (--model), or add a column to the key.")
        keys = narrow.select(*map(quoted, key))
        there = images.rows.select(*map(quoted, key)).join(broadcast_if_few(keys, count), list(key), "left_semi")
        check_keys(there, key, "--table", "Add a column to the key, or drop those rows.")
        with rows_of_chosen(images, images.rows, narrow, count, key=key, own=own) as rows:
            yield rows.select(*map(quoted, [*own, *added])), count


def _own_columns(images: DataFrame, score_col: str) -> list[str]:
    """Return the columns of the images to write: all except scores, which may be of a different model."""
    of_scores = {*TYPES, folded(score_col)}
    if not has_column(images.columns, MODEL):
        # Without a model column this table was never scored, so the embedding is the user's own.
        of_scores.discard(EMBEDDING)
    return lacking(of_scores, images.columns)


def _added_columns(kept: DataFrame, own: Sequence[str]) -> list[str]:
    """Return the columns of the scores to add: no arrays or bytes, which are too large to broadcast."""
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
                f"--out {out!r}: expected no table there, found one that was created since this run began. Replace it "
                "with --overwrite."
            ) from error
        raise
    return tables.read_table(spark, out).count()
