"""Labels: rows that someone marked keep or drop, with their scores, on the driver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from spark_aesthetic.curation.columns import check_columns
from spark_aesthetic.curation.evidence import Bools, Floats
from spark_aesthetic.curation.histogram import Group, as_group
from spark_aesthetic.curation.models import is_score
from spark_aesthetic.errors import TableError
from spark_aesthetic.preflight import column_type, quoted

# A million are years of one person's work.
MAX_LABELS = 1_000_000


@dataclass(frozen=True, kw_only=True, eq=False)
class Labels:
    """Those of a group: scores and whether to keep, both of shape (labels,)."""

    scores: Floats
    keep: Bools

    @property
    def enough(self) -> bool:
        """Whether an interval can be told."""
        return bool(min(self.keep.sum(), (~self.keep).sum()) > 1)

    def check(self, group: Group) -> None:
        """Raise TableError where an interval cannot be told."""
        if not self.enough:
            raise TableError(
                f"labels{of_group(group)}: expected 2 of keep and 2 of drop at least whose rows have scores, found "
                f"{self.keep.sum()} and {(~self.keep).sum()}; label more rows, or check the key"
            )


NO_LABELS = Labels(scores=np.empty(0), keep=np.empty(0, bool))


def of_group(group: Group) -> str:
    """As errors name a group."""
    return f" of group {', '.join(map(str, group))}" if group else ""


def collect_labels(
    scores_df: DataFrame, labels: DataFrame | str, score_col: str, by: Sequence[str], key: Sequence[str]
) -> tuple[dict[Group, Labels], int]:
    """Bring labels with their scores to the driver, by group; and count those without a score."""
    if isinstance(labels, str):
        labels = _read_csv(scores_df, labels)
    check_columns(labels, [*key, "label"], "labels")
    given = labels.where(F.col("label").isNotNull())
    kinds = {row.label: row["count"] for row in given.groupBy("label").count().limit(10).collect()}
    wrong = sorted(kinds.keys() - {"keep", "drop"})
    if wrong:
        raise TableError(f"labels: expected keep or drop in the column label, found {', '.join(map(repr, wrong))}")
    total = sum(kinds.values())
    if total > MAX_LABELS:
        raise TableError(f"labels: expected {MAX_LABELS} rows at most, found {total}; take a random sample of them")
    number = F.monotonically_increasing_id().alias("number")
    group_names = [f"group_{at}" for at in range(len(by))]
    groups = [F.col(quoted(name)).cast("string").alias(alias) for name, alias in zip(by, group_names, strict=True)]
    if key:
        check_columns(scores_df, key, "key")
        types = [column_type(scores_df, quoted(name), "key") for name in key]
        keys = [f"key_{at}" for at in range(len(key))]
        judged = given.select(
            *[
                F.col(quoted(name)).try_cast(kind).alias(alias)
                for name, kind, alias in zip(key, types, keys, strict=True)
            ],
            "label",
            number,
        )
        held = scores_df.select(
            *[F.col(quoted(name)).alias(alias) for name, alias in zip(key, keys, strict=True)],
            *groups,
            F.col(quoted(score_col)).cast("double").alias("score"),
        )
        rows = held.join(F.broadcast(judged), keys)
    else:
        if "score" not in labels.columns:
            raise TableError(
                "labels: expected a column score, or --key to take the scores from the table by, found neither"
            )
        check_columns(labels, by, "labels without key")
        rows = given.select(*groups, F.col("score").try_cast("double").alias("score"), "label", number)
    scored = rows.where(is_score(F.col("score"))).select(*group_names, "score", "label", "number")
    found = scored.limit(total + 1).toArrow().to_pandas()
    # Counted by label: of others the rows may be gone, so that there are no more than labels in all.
    if found["number"].duplicated().any():
        raise TableError(
            f"key {', '.join(key)}: expected one row of the scores for each label, found several; name more columns"
        )
    parts: list[tuple[Group, pd.DataFrame]] = [((), found)]
    if by:
        parts = [(as_group(values), part) for values, part in found.groupby(group_names, dropna=False)]
    return {
        group: Labels(scores=part["score"].to_numpy(np.float64), keep=(part["label"] == "keep").to_numpy(bool))
        for group, part in parts
    }, total - len(found)


def _read_csv(scores_df: DataFrame, path: str) -> DataFrame:
    # Quotes as RFC 4180 has them, which is not Spark's default. All columns are text.
    reader = scores_df.sparkSession.read.options(header=True, multiLine=True, escape='"')
    try:
        # Connect looks when the columns are asked for.
        frame = reader.csv(path)
        frame.columns  # noqa: B018
    except AnalysisException as error:
        raise TableError(f"labels {path!r}: expected a CSV file with a header, found none; check the path") from error
    return frame
