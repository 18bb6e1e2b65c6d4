"""Read labels, rows that someone marked keep or drop, and collect them with their scores on the driver."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import StringType, StructField, StructType

from spark_aesthetic.curation.columns import check_columns
from spark_aesthetic.curation.evidence import Bools, Floats
from spark_aesthetic.curation.histogram import Group, as_group
from spark_aesthetic.curation.models import is_score
from spark_aesthetic.delta import access, naming
from spark_aesthetic.delta.connect import analysed
from spark_aesthetic.delta.identity import key_text
from spark_aesthetic.delta.naming import quoted
from spark_aesthetic.delta.schemas import column_type
from spark_aesthetic.errors import TableError

# One person needs years for a million labels.
MAX_LABELS = 1_000_000

# An error shows at most this many rows.
_SHOWN = 3

# The header of a CSV file may take several lines, because a column's name may contain line feeds.
_HEADER_LINES = 100

# The review page writes an apostrophe before a cell that a spreadsheet would take for a formula, and before a cell that
# begins with an apostrophe (templates/review.js).
_SHOWN_AS_TEXT = "^'(?=['=+\\-@\t\r\uff1d\uff0b\uff0d\uff20])"


@dataclass(frozen=True, kw_only=True, eq=False)
class Labels:
    """The labels of a group: scores, and whether to keep the row, both of shape (labels,)."""

    scores: Floats
    keep: Bools

    @property
    def enough(self) -> bool:
        """Whether there are enough labels of both kinds for a confidence interval."""
        return bool(min(self.keep.sum(), (~self.keep).sum()) > 1)

    def check(self, group: Group) -> None:
        """Raise TableError if there are too few labels for a confidence interval."""
        if not self.enough:
            raise TableError(
                f"labels{of_group(group)}: expected at least 2 of keep and 2 of drop on rows with scores, found "
                f"{self.keep.sum()} and {(~self.keep).sum()}. Label more rows, or check the key."
            )


NO_LABELS = Labels(scores=np.empty(0), keep=np.empty(0, bool))


def of_group(group: Group) -> str:
    """Return the words that name a group in an error."""
    return f" of group {', '.join(map(str, group))}" if group else ""


@dataclass(frozen=True, kw_only=True)
class Collected:
    """Labels with their scores.

    Attributes:
        groups: Labels by the values of the columns of `by`.
        without_score: Labels left out because no row has their key, or the row has no score.
        repeated: Labels left out because they repeat another label of the same row.
    """

    groups: dict[Group, Labels]
    without_score: int
    repeated: int


def open_labels(scores_df: DataFrame, labels: DataFrame | str, key: Sequence[str]) -> DataFrame:
    """Open labels and check their columns.

    Raises:
        TableError: The file or a column is missing.
    """
    opened = _read_csv(scores_df, labels) if isinstance(labels, str) else labels
    check_columns(opened, [*key, "label"], "labels")
    if not key and "score" not in opened.columns:
        raise TableError(
            "labels: expected a column score or --key, found neither. Give --key to use the scores of the table."
        )
    return opened


def collect_labels(
    scores_df: DataFrame, labels: DataFrame, score_col: str, by: Sequence[str], key: Sequence[str]
) -> Collected:
    """Collect labels with their scores on the driver, by group; with a key, one label per row.

    Raises:
        TableError: A label is neither keep nor drop, a row has both, a key has several rows in the scores, or there are
            more than `MAX_LABELS` labels.
    """
    given = labels.where(F.col("label").isNotNull())
    kinds = {row.label: row["count"] for row in given.groupBy("label").count().limit(10).collect()}
    wrong = sorted(kinds.keys() - {"keep", "drop"})
    if wrong:
        raise TableError(f"labels: expected keep or drop in the column label, found {', '.join(map(repr, wrong))}")
    total = sum(kinds.values())
    if total > MAX_LABELS:
        raise TableError(f"labels: expected {MAX_LABELS} rows at most, found {total}. Use a random sample.")
    group_names = [f"group_{at}" for at in range(len(by))]
    groups = [F.col(quoted(name)).cast("string").alias(alias) for name, alias in zip(by, group_names, strict=True)]
    if key:
        rows = _by_key(scores_df, given, score_col, groups, key)
    else:
        check_columns(labels, by, "labels without key")
        # Without a key, two labels of one row cannot be recognised.
        rows = given.select(
            *groups, F.col("score").try_cast("double").alias("score"), "label", F.lit(1).alias("times"),
            F.monotonically_increasing_id().alias("number"), F.lit(None).cast("string").alias("judged_twice"),
        )  # fmt: skip
    scored = rows.where(is_score(F.col("score")))
    found = scored.limit(total + 1).toArrow().to_pandas()
    # Check each label's number, not only the total: labels without a row can hide labels with several rows.
    if found["number"].duplicated().any():
        raise TableError(
            f"key {', '.join(key)}: expected one row of the scores for each label, found several. Name more columns."
        )
    torn = sorted(found["judged_twice"].dropna())
    if torn:
        more = f" and {len(torn) - _SHOWN} more" if len(torn) > _SHOWN else ""
        raise TableError(
            f"labels: expected one label for each row, found keep and drop for {', '.join(torn[:_SHOWN])}{more}. Keep "
            "only one of the two labels for such a row."
        )
    # Sort, so that the same labels give the same figures to the last bit.
    found = found.sort_values(["score", "label"])
    parts: list[tuple[Group, pd.DataFrame]] = [((), found)]
    if by:
        parts = [(as_group(values), part) for values, part in found.groupby(group_names, dropna=False)]
    return Collected(
        groups={
            group: Labels(scores=part["score"].to_numpy(np.float64), keep=(part["label"] == "keep").to_numpy(bool))
            for group, part in parts
        },
        without_score=total - int(found["times"].sum()),
        repeated=int(found["times"].sum()) - len(found),
    )


def _by_key(
    scores_df: DataFrame, given: DataFrame, score_col: str, groups: Sequence[Column], key: Sequence[str]
) -> DataFrame:
    """Return one row per labelled key with its score, label, number of labels, and its key if labels differ."""
    check_columns(scores_df, key, "key")
    types = [column_type(scores_df, quoted(name), "key") for name in key]
    keys = [f"key_{at}" for at in range(len(key))]
    own = [F.col(quoted(name)).try_cast(kind).alias(alias) for name, kind, alias in zip(key, types, keys, strict=True)]
    text = key_text(keys)
    judged = (
        given.select(*own, "label")
        .groupBy(*keys)
        .agg(F.min("label").alias("label"), F.max("label").alias("other"), F.count(F.lit(1)).alias("times"))
        .select(
            *keys, "label", "times", F.monotonically_increasing_id().alias("number"),
            F.when(F.col("label") != F.col("other"), text).alias("judged_twice"),
        )
    )  # fmt: skip
    held = scores_df.select(
        *[F.col(quoted(name)).alias(alias) for name, alias in zip(key, keys, strict=True)],
        *groups,
        F.col(quoted(score_col)).cast("double").alias("score"),
    )
    return held.join(F.broadcast(judged), keys).drop(*keys)


def _read_csv(scores_df: DataFrame, path: str) -> DataFrame:
    spark, place = scores_df.sparkSession, naming.whole(path)
    missing = "expected a CSV file with a header, found none. Check the path."
    with access.reaching(f"labels {path!r}", missing=missing):
        # Read the header here: Spark would treat the path as a glob pattern when it infers the header itself.
        first = [row.value for row in access.files_reader(spark).text(place).limit(_HEADER_LINES).collect()]
        header = next(csv.reader(f"{line}\n" for line in first), [])
        if not header:
            raise TableError(f"labels {path!r}: {missing}")
        header[0] = header[0].removeprefix("\ufeff")
        schema = StructType([StructField(name, StringType()) for name in header])
        # RFC 4180 escapes a quote by doubling it, which is not Spark's default.
        reader = access.files_reader(spark).options(header=True, multiLine=True, escape='"')
        frame = analysed(reader.schema(schema).csv(place))
    cells = [F.regexp_replace(quoted(name), _SHOWN_AS_TEXT, "").alias(_as_written(name)) for name in frame.columns]
    return frame.select(*cells)


def _as_written(header: str) -> str:
    return re.sub(_SHOWN_AS_TEXT, "", header)
