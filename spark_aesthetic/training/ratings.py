"""Aggregate a table of embeddings and ratings: sums for a ridge regression, and how well heads predict the ratings.

Each row is used, or left out and counted by reason. Its fold is a hash of its embedding, so it does not depend on the
partitioning, and the ratings of one image are all in one fold.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from math import isnan
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyspark import TaskContext
from pyspark.ml.functions import array_to_vector
from pyspark.ml.stat import Correlation
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from spark_aesthetic.errors import TableError
from spark_aesthetic.predictors import embeddings
from spark_aesthetic.predictors.head import Head
from spark_aesthetic.training.ridge import Doubles, squares

_log = logging.getLogger(__name__)

NO_EMBEDDING = "embedding: null"
NO_RATING = "rating: null"
RATING_NOT_FINITE = "rating: not finite"

# Number of embeddings to read to check their length.
_SAMPLE_ROWS = 1000

# One line of a fold's matrix of sums or, if `reason` is set, the number of rows left out for that reason.
_SUMS = "reason string, fold int, line int, task int, sums array<double>"
_DECILES = 10

# With two folds, fewer rows per fold would leave some tenths of the calibration with a single row.
_ROWS_PER_FOLD = 10


@dataclass(frozen=True)
class Decile:
    """A tenth of the rows, by their score.

    Attributes:
        rows: Number of rows.
        mean_score: Mean of their scores.
        mean_rating: Mean of their ratings; equal to `mean_score` if the head is calibrated.
    """

    rows: int
    mean_score: float
    mean_rating: float


@dataclass(frozen=True)
class HeadFigures:
    """How well a head predicts the ratings of rows that were not in its training data.

    Attributes:
        r2: The share of the ratings' variance that the scores explain; negative if the mean rating predicts better.
        rmse: Root of the mean squared difference between score and rating.
        pearson: Correlation of score and rating; None if all scores are equal.
        spearman: Correlation of their ranks; tied values get the mean of their ranks. None if all scores are equal.
        calibration: The tenths of the rows, lowest scores first; fewer than ten if scores are tied.
    """

    r2: float
    rmse: float
    pearson: float | None
    spearman: float | None
    calibration: tuple[Decile, ...]


@dataclass(frozen=True)
class HeadReport:
    """The report of an `AestheticEstimator`.

    Attributes:
        model: Name and checksum of the head's predictor, as in `aesthetic_model`.
        predictor: Path of its JSON file.
        rows: Number of rows in the fit.
        left_out: Number of rows left out, by reason.
        reg_param: The penalty that cross-validation chose.
        num_folds: Number of folds of the cross-validation.
        own: Figures of the new head; each row is scored by a head fitted only to the other folds.
        published_model: The published predictor of the same backbone; None if there is none.
        published: Figures of that predictor on the same rows; None if there is none.
    """

    model: str
    predictor: str
    rows: int
    left_out: dict[str, int]
    reg_param: float
    num_folds: int
    own: HeadFigures
    published_model: str | None
    published: HeadFigures | None

    def to_dict(self) -> dict[str, Any]:
        """Return a dict that JSON can store."""
        return asdict(self)


def rated(rows: DataFrame, embedding: Column, rating: Column, num_folds: int) -> DataFrame:
    """Select the columns embedding array<float>, rating double and fold int."""
    named = rows.select(embedding.alias("embedding"), rating.cast("double").alias("rating"))
    return named.withColumn("fold", F.pmod(F.xxhash64("embedding"), F.lit(num_folds)).cast("int"))


def width_of(rows: DataFrame, expected: int | None, backbone: str) -> int:
    """Return the length of the embeddings; rows with a different length are left out later.

    If a length is expected and the first rows have it, only those are read, otherwise all rows.

    Args:
        rows: Rows from `rated`.
        expected: The embedding length of the backbone; None if it is not known.
        backbone: The backbone's name, for errors.

    Raises:
        TableError: There are no embeddings, none has the expected length, or their lengths differ and none is expected.
    """
    lengths = rows.where(F.col("embedding").isNotNull()).select(F.size("embedding").alias("width"))
    # Without an expected length, all rows must be read, because any of them can have a different length.
    looked_at = lengths if expected is None else lengths.limit(_SAMPLE_ROWS)
    widths = {row.width: row["count"] for row in looked_at.groupBy("width").count().collect()}
    if not widths:
        raise TableError(
            "inputCol (--embedding-col): expected embeddings, found only nulls. Name the column with the embeddings."
        )
    if expected is not None and expected not in widths:
        found = f"expected {expected} numbers of {backbone}, found {max(widths, key=widths.__getitem__)}"
        # isEmpty stops at the first row with the expected length.
        if lengths.where(F.col("width") == expected).isEmpty():
            raise TableError(
                f"inputCol (--embedding-col): {found}. Set backbone (--backbone) to the one that made the embeddings."
            )
        _log.warning(
            "inputCol (--embedding-col): %s in the first %d rows; rows of a different length are left out and counted",
            found, sum(widths.values()),
        )  # fmt: skip
    if expected is None and len(widths) > 1:
        raise TableError(
            f"inputCol (--embedding-col): expected embeddings of one length, found "
            f"{', '.join(map(str, sorted(widths)))}. Keep only the rows of {backbone}."
        )
    return next(iter(widths)) if expected is None else expected


def add_up(rows: DataFrame, width: int, num_folds: int) -> tuple[Doubles, dict[str, int]]:
    """Compute the sums of each fold (see `ridge.squares`) and count the rows left out, in one pass.

    The executors add up each partition, and then the partitions' sums line by line, so the driver collects only one
    matrix per fold. Partitions are added in order, so the same partitions give the same sums to the last bit.

    Args:
        rows: Rows from `rated`.
        width: Length of the embeddings.
        num_folds: Number of folds.

    Returns:
        float64 of shape (num_folds, width + 2, width + 2), zeros for a fold without rows; and the numbers of rows left
        out, by reason.
    """
    key = ["reason", "fold", "line"]
    # The workers import these functions by name, so they must be at the top level of a module.
    parts = rows.mapInArrow(partial(_partition_sums, width=width, num_folds=num_folds), _SUMS)
    ordered = parts.repartition(*key).sortWithinPartitions(*key, "task")
    found = ordered.mapInArrow(_added_up, _SUMS).toArrow()
    folds = np.zeros((num_folds, width + 2, width + 2))
    left_out = Counter[str]()
    for row in zip(*(found[name] for name in (*key, "sums")), strict=True):
        reason, fold, line = (value.as_py() for value in row[:3])
        sums = row[3].values.to_numpy()
        if reason is None:
            # A line starts at the diagonal, because the matrix is symmetric.
            folds[fold, line, line:] += sums
            folds[fold, line + 1 :, line] += sums[1:]
        else:
            left_out[reason] += int(sums[0])
    return folds, dict(sorted(left_out.items()))


def check_sums(folds: Doubles, left_out: dict[str, int]) -> int:
    """Check that the sums suffice for a fit, and return their number of rows.

    Raises:
        TableError: There are too few rows for the folds, a fold has no row, or all ratings are equal.
    """
    counts = folds[:, -2, -2]
    rows, needed = int(counts.sum()), _ROWS_PER_FOLD * len(folds)
    if rows < needed:
        reasons = ", ".join(f"{count} ({reason})" for reason, count in left_out.items()) or "none"
        raise TableError(
            f"expected at least {needed} rows with embedding and rating for {len(folds)} folds, found {rows}, and left "
            f"out: {reasons}. Rate more images, or lower numFolds (--num-folds)."
        )
    if not counts.all():
        raise TableError(
            f"expected embeddings in each of {len(folds)} folds, found them in {np.count_nonzero(counts)}; equal "
            "embeddings share a fold. Rate more images with different embeddings."
        )
    mean, mean_square = folds[:, -1, -2].sum() / rows, folds[:, -1, -1].sum() / rows
    # Rounding can turn a variance of zero into a tiny positive number.
    if mean_square - mean**2 <= 1e-12 * mean_square:
        raise TableError(
            f"labelCol (--label-col): expected ratings that differ, found {mean:g} in all {rows} rows. Rate more "
            "images."
        )
    return rows


def _partition_sums(batches: Iterator[pa.RecordBatch], width: int, num_folds: int) -> Iterator[pa.RecordBatch]:
    folds = np.zeros((num_folds, width + 2, width + 2))
    left_out = Counter[str]()
    for batch in batches:
        used = _Used.of(batch, width)
        left_out.update(used.left_out)
        for fold in np.unique(used.folds):
            of_fold = used.folds == fold
            folds[fold] += squares(used.embeddings[of_fold], used.ratings[of_fold])
    task = _task()
    for fold, sums in enumerate(folds):
        if sums[width, width] > 0:
            lines = [sums[line, line:] for line in range(width + 2)]
            yield _sums_batch([(None, fold, line, task) for line in range(width + 2)], lines)
    if left_out:
        yield _sums_batch(
            [(reason, 0, 0, task) for reason in left_out], [np.array([float(rows)]) for rows in left_out.values()]
        )


def _task() -> int:
    context = TaskContext.get()
    assert context is not None, "runs in a task"
    return context.partitionId()


def _added_up(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    totals: dict[tuple[str | None, int, int], Doubles] = {}
    for batch in batches:
        keys = zip(*(batch[name].to_pylist() for name in ("reason", "fold", "line")), strict=True)
        for key, line in zip(keys, batch["sums"], strict=True):
            sums = line.values.to_numpy()
            # Copy, because the array from Arrow is read-only and is freed with its batch.
            totals[key] = totals[key] + sums if key in totals else sums.copy()
    if totals:
        yield _sums_batch([(*key, 0) for key in totals], list(totals.values()))


def _sums_batch(keys: list[tuple[str | None, int, int, int]], sums: list[Doubles]) -> pa.RecordBatch:
    reason, fold, line, task = zip(*keys, strict=True)
    return pa.RecordBatch.from_arrays(
        [
            pa.array(reason, pa.string()),
            *(pa.array(numbers, pa.int32()) for numbers in (fold, line, task)),
            pa.array(sums, pa.list_(pa.float64())),
        ],
        names=["reason", "fold", "line", "task", "sums"],
    )


@dataclass(frozen=True)
class _Used:
    """The used rows of a batch: unit embeddings (n, width), ratings (n,), folds (n,); and counts of rows left out."""

    embeddings: Doubles
    ratings: Doubles
    folds: npt.NDArray[np.int32]
    left_out: dict[str, int]

    @classmethod
    def of(cls, batch: pa.RecordBatch, width: int) -> _Used:
        column = batch["embedding"]
        lengths = pc.fill_null(pc.list_value_length(column), -1).to_numpy()
        right = lengths == width
        vectors = np.zeros((len(column), width))
        # A null element becomes NaN here.
        values = (column if right.all() else column.filter(pa.array(right))).flatten().to_numpy(zero_copy_only=False)
        vectors[right] = values.reshape(-1, width)
        norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
        ratings = batch["rating"].to_numpy(zero_copy_only=False)
        reasons = np.select(
            [
                lengths == -1,
                ~right,
                # Scoring computes norms in float32, so the limit is the same here.
                ~(norms <= np.finfo(np.float32).max),
                norms == 0,
                batch["rating"].is_null().to_numpy(zero_copy_only=False),
                ~np.isfinite(ratings),
            ],
            [
                NO_EMBEDDING,
                embeddings.WRONG_LENGTH,
                embeddings.NOT_FINITE,
                embeddings.ZERO_NORM,
                NO_RATING,
                RATING_NOT_FINITE,
            ],
            default="",
        )
        good = reasons == ""
        names, counts = np.unique(reasons[~good], return_counts=True)
        return cls(
            embeddings=vectors[good] / norms[good, None],
            ratings=ratings[good],
            folds=batch["fold"].to_numpy()[good],
            left_out=dict(zip(names.tolist(), counts.tolist(), strict=True)),
        )


def score_out_of_fold(rows: DataFrame, width: int, by_fold: Doubles, published: Head | None) -> DataFrame:
    """Score each used row with the solution that was fitted to the other folds.

    Args:
        rows: Rows from `rated`.
        width: Length of the embeddings.
        by_fold: Weights and bias for each fold, float64 of shape (folds, width + 1).
        published: A second head to score the rows, or None.

    Returns:
        Columns rating double, own double and, with `published`, published double.
    """
    schema = "rating double, own double" + (", published double" if published is not None else "")
    return rows.mapInArrow(partial(_scores, width=width, by_fold=by_fold, published=published), schema)


def _scores(
    batches: Iterator[pa.RecordBatch], width: int, by_fold: Doubles, published: Head | None
) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        used = _Used.of(batch, width)
        by_all = used.embeddings @ by_fold[:, :width].T + by_fold[:, width]
        columns = {"rating": used.ratings, "own": by_all[np.arange(len(used.folds)), used.folds]}
        if published is not None:
            columns["published"] = published(used.embeddings.astype(np.float32)).astype(np.float64)
        yield pa.RecordBatch.from_pydict(columns)


def figures(scored: DataFrame) -> dict[str, HeadFigures]:
    """Compare each column of scores with the ratings.

    Ranks are exact (`pyspark.ml.stat.Correlation`). The borders of the tenths are approximate: their ranks are within a
    ten-thousandth of the rows (`percentile_approx`).

    Args:
        scored: Rows from `score_out_of_fold`. They are read several times, so cache them.
    """
    names = scored.columns[1:]
    rating = F.col("rating")
    shares = F.array(*[F.lit(tenth / _DECILES) for tenth in range(1, _DECILES)])
    of_all = scored.agg(
        F.var_pop(rating).alias("variance"),
        *[F.avg((rating - F.col(name)) ** 2).alias(f"{name}_error") for name in names],
        *[F.corr(rating, F.col(name)).alias(f"{name}_pearson") for name in names],
        *[F.percentile_approx(F.col(name), shares, F.lit(10_000)).alias(f"{name}_borders") for name in names],
    ).collect()[0]
    vectors = scored.select(array_to_vector(F.array("rating", *names)).alias("columns"))
    ranks = Correlation.corr(vectors, "columns", "spearman").collect()[0][0].toArray()[0]
    return {
        name: HeadFigures(
            r2=1 - of_all[f"{name}_error"] / of_all.variance,
            rmse=of_all[f"{name}_error"] ** 0.5,
            pearson=_or_none(of_all[f"{name}_pearson"]),
            spearman=_or_none(float(ranks[at])),
            calibration=_calibration(scored, name, of_all[f"{name}_borders"]),
        )
        for at, name in enumerate(names, start=1)
    }


def _or_none(correlation: float | None) -> float | None:
    return None if correlation is None or isnan(correlation) else correlation


def _calibration(scored: DataFrame, name: str, borders: list[float]) -> tuple[Decile, ...]:
    tenth = sum((F.when(F.col(name) > border, 1).otherwise(0) for border in borders), start=F.lit(0))
    means = scored.groupBy(tenth.alias("tenth")).agg(F.count("*").alias("rows"), F.avg(name), F.avg("rating"))
    return tuple(Decile(*row[1:]) for row in sorted(means.collect()))
