"""Choose a score threshold (a cut), count the rows that it keeps, and estimate its precision and recall from labels."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql.types import DataType

import spark_aesthetic
from spark_aesthetic import files
from spark_aesthetic.curation.columns import check_score, in_type
from spark_aesthetic.curation.distribution import Distribution, distribution_of
from spark_aesthetic.curation.evidence import (
    Evidence,
    Floats,
    Interval,
    Point,
    auc,
    curve,
    thinned,
    weighted_share,
    weights_of,
)
from spark_aesthetic.curation.histogram import BIN_WIDTH, Group, Histogram, histograms
from spark_aesthetic.curation.labels import NO_LABELS, Collected, Labels, collect_labels, of_group, open_labels
from spark_aesthetic.curation.models import is_untrained
from spark_aesthetic.delta.naming import names
from spark_aesthetic.errors import OptionError, TableError
from spark_aesthetic.options import number, share, whole
from spark_aesthetic.scoring.target import SCORE

_BY_LABELS = ("precision", "recall")
_TARGETS = ("keep", "top_k", "min_score", *_BY_LABELS)

# The repr shows at most this many groups.
_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class Cut:
    """The score threshold of a table, or of one group of its rows.

    Attributes:
        group: Values of the columns of `by`, as text; empty without `by`.
        value: Rows with this score or a higher one are kept. None without a target, or if the group has no score.
        kept: Exact number of rows that the threshold keeps.
        share: `kept` as a share of the scored rows.
        distribution: Distribution of the scores.
        evidence: Estimates from the labels; None without labels.
    """

    group: Group
    value: float | None
    kept: int | None
    share: float | None
    distribution: Distribution
    evidence: Evidence | None


@dataclass(frozen=True, kw_only=True, repr=False)
class Calibration:
    """A score threshold, or one for each group: how it was chosen, and how many rows it keeps.

    Attributes:
        model: Model of the scores, as in `aesthetic_model`; None if the table has no model.
        score_col: Column of the scores.
        by: Columns that divide the table into groups; each group has its own threshold.
        target: The option that was given: keep, top_k, min_score, precision, recall, or None.
        wanted: The value of that option.
        cuts: One `Cut` for each group, in sorted order; a single one if `by` is empty.
        labels_without_score: Labels left out because no row has their key, or the row has no score. None without
            labels.
        labels_repeated: Labels left out because they repeat another label of the same row. None without labels.
    """

    model: str | None
    score_col: str
    by: tuple[str, ...]
    target: str | None
    wanted: float | None
    cuts: tuple[Cut, ...]
    labels_without_score: int | None = None
    labels_repeated: int | None = None

    @property
    def cut(self) -> Cut:
        """The only `Cut`, for a calibration without groups.

        Raises:
            OptionError: The calibration has groups.
        """
        if self.by:
            raise OptionError(f"cut: expected one cut, found one for each {', '.join(self.by)}. Read cuts instead.")
        return self.cuts[0]

    def to_dict(self) -> dict[str, Any]:
        """Return a dict that JSON can store, in the format that `load` reads."""
        return {"spark_aesthetic": spark_aesthetic.__version__, **asdict(self)}

    def without_curves(self) -> Calibration:
        """Return a copy without the curves of the labels, short enough for one line."""
        short = [
            cut if cut.evidence is None else replace(cut, evidence=replace(cut.evidence, curve=())) for cut in self.cuts
        ]
        return replace(self, cuts=tuple(short))

    def save(self, path: str) -> None:
        """Write the calibration as a JSON file to a local path, to dbfs:/ or to a URL that fsspec supports."""
        files.write(path, json.dumps(self.to_dict(), indent=1).encode())

    @classmethod
    def load(cls, path: str) -> Calibration:
        """Read a JSON file that `save` wrote.

        Raises:
            OptionError: The file cannot be read or is not a calibration.
        """
        try:
            known = json.loads(files.read(path))
            del known["spark_aesthetic"]
            cuts = tuple(_loaded(cut) for cut in known.pop("cuts"))
            if not cuts:
                raise ValueError("no cuts")
            return cls(**known | {"by": tuple(known["by"]), "cuts": cuts})
        # The file systems of fsspec share no base exception, and JSON may be nested too deeply for Python.
        except Exception as error:
            raise OptionError(
                f"calibration {path!r}: expected a file that Calibration.save wrote, found: {error!r}. Calibrate again."
            ) from error

    def __repr__(self) -> str:
        return "\n".join(_lines(self))


def calibrate(
    scores_df: DataFrame,
    labels: DataFrame | str | None = None,
    *,
    keep: float | None = None,
    top_k: int | None = None,
    min_score: float | None = None,
    precision: float | None = None,
    recall: float | None = None,
    by: str | Sequence[str] | None = None,
    score_col: str = SCORE,
    key: str | Sequence[str] | None = None,
    bin_width: float = BIN_WIDTH,
) -> Calibration:
    """Choose a score threshold (a cut) by at most one target, and count the rows that it keeps.

    One pass over the score columns counts the scores in bins of about 0.001 points. With `key`, a second pass looks up
    the scores of the labels. Both passes run during the call; if the frame computes the scores, write it to a table
    first. A threshold from a target is the edge of a bin, so the rows that it keeps are counted exactly, and it is at
    most one bin width below the exact threshold. Shares are of scored rows: rows without a score are counted by reason
    and never kept.

    Labels are judgements of single rows, as the review page writes them. Each label is weighted by the number of table
    rows with similar scores. A sample that is denser around the threshold therefore estimates the precision and recall
    of the whole table, if the labelled rows were chosen only by their score. `Evidence.covered` gives the share of rows
    that the labels cover.

    Args:
        scores_df: Scores of one model, with the columns of a scores table.
        labels: A DataFrame, or a CSV file with a header on storage that Spark reads. Columns: `label` (string; "keep",
            "drop" or null; null is ignored), and those of `key`, or `score` without `key`. At most a million rows.
        keep: Choose the highest threshold that keeps at least this share of the scored rows, above 0 and up to 1.
        top_k: Choose the highest threshold that keeps at least this many rows; `curate` with `top_k` keeps exactly this
            many.
        min_score: Use this score as the threshold.
        precision: Choose the lowest threshold at which, by the labels, at least this share of the kept rows is worth
            keeping.
        recall: Choose the highest threshold that, by the labels, keeps at least this share of the rows worth keeping.
        by: Columns that divide the table into groups; each group gets its own threshold, from its own labels. Each
            group needs a few thousand counts on the driver, so choose columns with few values.
        score_col: Numeric column of the scores.
        key: Columns that labels and scores share. With `key`, the scores of the labels come from `scores_df`, and
            labels that agree on one row count once.
        bin_width: Width of a bin in points, a power of two. Change it if the scores are not on a scale of 1 to 10, or
            for very many groups.

    Returns:
        The thresholds and the numbers of rows that they keep; see `Calibration`.

    Raises:
        OptionError: Several targets were given, one is outside its range, or one needs labels and has none.
        TableError: A column is missing or has the wrong type; the scores are of several models; a label is neither
            keep nor drop; one row has both; there are too many labels, or fewer than two keep or two drop (also in a
            group); no threshold reaches the precision.
    """
    given = {"keep": keep, "top_k": top_k, "min_score": min_score, "precision": precision, "recall": recall}
    target, wanted = _target(given, has_labels=labels is not None)
    groups, keys, kind = names(by), names(key), check_score(scores_df, score_col)
    judged = None if labels is None else open_labels(scores_df, labels, keys)
    model, counted = histograms(scores_df, score_col=score_col, by=groups, bin_width=bin_width, min_score=min_score)
    labelled = None if judged is None else collect_labels(scores_df, judged, score_col, groups, keys)
    return Calibration(
        model=model, score_col=score_col, by=groups, target=target, wanted=wanted,
        cuts=_cuts(counted, labelled, target, wanted, kind),
        labels_without_score=None if labelled is None else labelled.without_score,
        labels_repeated=None if labelled is None else labelled.repeated,
    )  # fmt: skip


def _target(given: dict[str, float | None], *, has_labels: bool) -> tuple[str | None, float | None]:
    """Return the name and the checked value of the target; None and None without a target."""
    chosen = {name: value for name, value in given.items() if value is not None}
    if len(chosen) > 1:
        raise OptionError(f"expected one target at most, found {', '.join(chosen)}. Give one of {', '.join(_TARGETS)}.")
    if not chosen:
        return None, None
    ((name, value),) = chosen.items()
    wanted = check_target(name, value)
    if name in _BY_LABELS and not has_labels:
        raise OptionError(f"{name}: expected labels with it, found none. Label rows on the review page.")
    return name, wanted


def check_target(name: str, value: Any) -> float:
    """Return a target as a number; raise OptionError if it is not a number or outside its range."""
    if name == "top_k":
        return whole(name, value, least=1, of="rows")
    return number(name, value) if name == "min_score" else share(name, value)


def rows_of(target: str, wanted: float, scored: int) -> int:
    """Convert a keep or top_k target to a number of rows."""
    # In floating point, 0.07 * 100 is slightly more than 7, and ceil alone would give 8.
    return int(wanted) if target == "top_k" else math.ceil(round(wanted * scored, 6))


def check_agreement(*options: tuple[str, object, object]) -> None:
    """Check that options given together with a calibration agree with it.

    Args:
        options: For each option its name, the value given or None, and the calibration's value.

    Raises:
        OptionError: A given value differs from the calibration's.
    """
    for name, given, known in options:
        if given is not None and given != known:
            raise OptionError(f"{name}: expected the calibration's value, {known}, found {given}. Leave it out.")


def _cuts(
    counted: Mapping[Group, Histogram],
    labelled: Collected | None,
    target: str | None,
    wanted: float | None,
    kind: DataType,
) -> tuple[Cut, ...]:
    """Choose a threshold for each group of the scores, from the labels of that group."""
    if labelled is not None:
        strangers = sorted(map(str, labelled.groups.keys() - counted.keys()))
        if strangers:
            raise TableError(f"labels: expected groups of the scores, found {', '.join(strangers)}. Drop those labels.")
    cuts = []
    for group, histogram in counted.items():
        at_labels = None if labelled is None else labelled.groups.get(group, NO_LABELS)
        cuts.append(_cut(group, histogram, at_labels, target, wanted, kind))
    return tuple(cuts)


def _cut(
    group: Group,
    histogram: Histogram,
    labels: Labels | None,
    target: str | None,
    wanted: float | None,
    kind: DataType,
) -> Cut:
    scored, by_labels = histogram.scored, target in _BY_LABELS
    value: float | None = None
    kept: int | None = None
    if target in ("keep", "top_k") and wanted is not None and scored:
        value = histogram.cut(rows_of(target, wanted, scored))
    elif target == "min_score":
        value, kept = wanted, histogram.reaching
    evidence = None
    # In a group, too few labels are an error only if the cut depends on them.
    if labels is not None and (labels.enough or by_labels or not group):
        labels.check(group)
        weights = weights_of(labels.scores, histogram)
        points = curve(labels.scores, labels.keep, weights, histogram.width)
        if by_labels and target is not None and wanted is not None:
            value = _cut_reaching(points, target, wanted, group)
        evidence = _evidence(labels, weights, points, histogram, value, kind)
    if value is not None and kept is None:
        kept = int(histogram.above(value))
    return Cut(
        group=group,
        value=value,
        kept=kept,
        share=kept / scored if kept is not None and scored else None,
        distribution=distribution_of(histogram),
        evidence=evidence,
    )


def _cut_reaching(points: Sequence[Point], target: str, wanted: float, group: Group) -> float:
    # Rounding in the sums of weights can put nine of ten rows slightly below 0.9.
    reached = [point.cut for point in points if getattr(point, target) >= wanted - 1e-9]
    if not reached:
        best = max(points, key=lambda point: point.precision)
        raise TableError(
            f"{target}={wanted}{of_group(group)}: expected a threshold that reaches it by the labels, found "
            f"{best.precision:.3f} at best, at the threshold {best.cut:.3f}. Ask for less, or label more rows."
        )
    # The highest thresholds keep few labels and may reach the precision by chance. The lowest rests on the most labels.
    return min(reached) if target == "precision" else max(reached)


def _evidence(
    labels: Labels,
    weights: Floats,
    points: Sequence[Point],
    histogram: Histogram,
    cut: float | None,
    kind: DataType,
) -> Evidence:
    precision = recall = None
    if cut is not None:
        # `curate` compares scores in this type too.
        kept = labels.scores >= float(in_type(kind, [cut])[1][0])
        recall = weighted_share(kept[labels.keep], weights[labels.keep])
        if kept.any():
            precision = weighted_share(labels.keep[kept], weights[kept])
    return Evidence(
        keep=int(labels.keep.sum()),
        drop=int((~labels.keep).sum()),
        covered=float(histogram.above(points[-1].cut) / histogram.scored),
        auc=auc(labels.scores, labels.keep, weights),
        precision=precision,
        recall=recall,
        curve=thinned(points),
    )


def _loaded(known: dict[str, Any]) -> Cut:
    """Rebuild a cut from JSON, where every key of an object is a string."""
    distribution, evidence = known["distribution"], known["evidence"]
    if known["value"] is not None:
        number("value", known["value"])
    for name in ("quantiles", "shares"):
        distribution[name] = {float(at): value for at, value in distribution[name].items()}
    if evidence is not None:
        for name in ("auc", "precision", "recall"):
            evidence[name] = None if evidence[name] is None else Interval(*evidence[name])
        evidence = Evidence(**evidence | {"curve": tuple(Point(*point) for point in evidence["curve"])})
    return Cut(**known | {
        "group": tuple(known["group"]), "distribution": Distribution(**distribution), "evidence": evidence,
    })  # fmt: skip


def _lines(calibration: Calibration) -> Iterator[str]:
    asked = "" if calibration.target is None else f", {calibration.target}={calibration.wanted:g}"
    yield f"Calibration of {calibration.score_col} by {calibration.model or 'an unnamed model'}{asked}"
    if is_untrained(calibration.model):
        yield "  untrained weights: these scores mean nothing"
    for cut in calibration.cuts[:_SHOWN]:
        if cut.group:
            yield "  " + ", ".join(f"{name}={value}" for name, value in zip(calibration.by, cut.group, strict=True))
        yield from ("  " + line for line in _lines_of(cut))
    if len(calibration.cuts) > _SHOWN:
        yield f"  and {len(calibration.cuts) - _SHOWN} more groups"
    if calibration.labels_without_score:
        yield f"  labels left out because their row has no score: {calibration.labels_without_score:,}"
    if calibration.labels_repeated:
        yield f"  labels left out because they repeat another label: {calibration.labels_repeated:,}"


def _lines_of(cut: Cut) -> Iterator[str]:
    of = cut.distribution
    reasons = "".join(f"; {reason}: {rows:,}" for reason, rows in of.unscored.items())
    yield f"{of.rows:,} rows, {of.scored:,} with a score{reasons}"
    if of.scored:
        yield "quantiles " + ", ".join(f"{share:g}: {score:.3f}" for share, score in of.quantiles.items())
    if cut.value is not None and cut.share is not None:
        yield f"cut {cut.value:.4f} keeps {cut.kept:,} of {of.scored:,}, {cut.share:.2%}"
    elif of.scored:
        yield "kept at or above " + ", ".join(f"{at:g}: {share:.2%}" for at, share in of.shares.items())
    if cut.evidence is not None:
        yield f"labels: {cut.evidence.keep} keep, {cut.evidence.drop} drop; AUC {cut.evidence.auc}"
        if cut.evidence.recall is not None:
            yield f"precision {cut.evidence.precision or 'unknown: no label above it'}, recall {cut.evidence.recall}"
        if cut.evidence.covered < 0.99:
            yield f"recall and AUC cover the {cut.evidence.covered:.1%} of rows at or above the lowest label"
