"""Open the table of images that an export reads, and join the scores of one model to it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from spark_aesthetic.curation.columns import image_column
from spark_aesthetic.delta import access, tables
from spark_aesthetic.delta.connect import analysed
from spark_aesthetic.delta.naming import has_column, names, quoted
from spark_aesthetic.delta.schemas import spelled
from spark_aesthetic.delta.tables import Source
from spark_aesthetic.errors import OptionError, TableError, nearest
from spark_aesthetic.scoring.target import MODEL, TYPES, models_in


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The rows that an export can choose: those of the table and, if given, the scores of one model.

    Attributes:
        source: The table at one version, so that only the files with chosen rows are read; None without scores, or if
            `table` is not a Delta table.
        rows: The rows of the table, without the columns that the scores replace.
        image: The column with the bytes of images, as `F.col` takes it.
        holder: The top-level column that contains `image`.
        scored: The key and the columns of the scores; None without scores.
        key: Columns that identify a row in both, as the table spells them.
    """

    source: Source | None
    rows: DataFrame
    image: str
    holder: str
    scored: DataFrame | None
    key: list[str]

    def joined(self) -> DataFrame:
        """Join the rows of the table with their scores; return all rows if there is no scores table."""
        return self.rows if self.scored is None else self.rows.join(self.scored, self.key)

    def count_without_score(self) -> int | None:
        """Count the rows of the table that `joined` leaves out; None without scores."""
        return None if self.scored is None else self.rows.join(self.scored, self.key, "left_anti").count()


def open_pool(
    spark: SparkSession, table: str, image_col: str, scores: str | None, key: str | Sequence[str], model: str | None
) -> Pool:
    """Open the tables and check the options against them.

    Raises:
        AestheticError: A table, a column or a model is missing, or options do not fit together.
    """
    source = None
    if scores is not None:
        # A view, or a table in another format, is read in full.
        with suppress(TableError):
            source = tables.open_source(spark, table, called="table")
    rows = _open(spark, table, "--table") if source is None else source.rows
    image, holder = image_column(rows, image_col, "--image-col")
    key = [spelled(rows, name) for name in names(key)]
    scored = None
    if scores is not None:
        scored = _scored(spark, rows, scores, key, model)
        rows = rows.drop(*(name for name in scored.columns if name not in key))
    elif key or model is not None:
        raise OptionError("--key, --model: expected --scores with them, found none. Add --scores, or leave them out.")
    return Pool(source=source, rows=rows, image=image, holder=holder, scored=scored, key=key)


def _open(spark: SparkSession, table: str, option: str) -> DataFrame:
    remedy = "check the name or the path"
    with access.reaching(f"{option} {table}", remedy, missing=f"expected a table, found none; {remedy}"):
        return analysed(tables.read_table(spark, table))


def _scored(spark: SparkSession, rows: DataFrame, scores: str, key: Sequence[str], model: str | None) -> DataFrame:
    """Return the key and the columns of the scores of one model."""
    found = _open(spark, scores, "--scores")
    for side, known in (("--table", rows), ("--scores", found)):
        for name in key:
            if not has_column(known.columns, name):
                raise TableError(f"--key: no column {name!r} in {side}: {nearest(name, known.columns)}")
    if not key:
        raise OptionError("--scores: expected --key with it, found none. Name the columns that identify a row in both.")
    if MODEL not in found.columns:
        raise TableError(f"--scores {scores}: expected a scores table, found no column {MODEL}. Score --table first.")
    models = models_in(found)
    if model is None and len(models) > 1:
        raise OptionError(f"--model: expected one model of --scores, found several. Choose from {', '.join(models)}.")
    if model is not None and model not in models:
        raise OptionError(f"--model: no model {model!r} in --scores: {nearest(model, models)}")
    made = [name for name in found.columns if name in TYPES and name not in key]
    of_model = found.where(F.col(MODEL) == (model or (models[0] if models else "")))
    return of_model.select(*(F.col(quoted(name)).alias(name) for name in key), *made)
