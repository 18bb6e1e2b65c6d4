"""Numbers, paths and modes from callers are accepted in every valid type, or refused with an error of one line."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spark_aesthetic import files
from spark_aesthetic.curation.calibration import Calibration
from spark_aesthetic.errors import OptionError, PredictorError
from spark_aesthetic.options import Options, number, share, whole
from spark_aesthetic.predictors.recipe import Predictor

NO_NUMBERS = ["5", None, True, np.bool_(True), [1], 1j, float("nan"), float("inf"), Decimal("NaN"), Decimal("Infinity")]
# Python refuses to write an integer of so many digits, so pytest needs an id for it.
HUGE = pytest.param(10**9000, id="huge")


@pytest.mark.parametrize("value", [*NO_NUMBERS, 1.5, Decimal("0.5"), Fraction(1, 2), 0, -(10**400), 10**400, HUGE])
def test_what_is_no_whole_number_of_the_range_is_one_line(value: Any) -> None:
    with pytest.raises(OptionError, match=r"^n=.+: expected a whole number of rows from 1 to 9$") as told:
        whole("n", value, least=1, most=9, of="rows")
    assert len(str(told.value)) < 200


@pytest.mark.parametrize("value", [5, 5.0, Decimal(5), np.int8(5), np.float32(5), Fraction(5)])
def test_whole_numbers_of_every_type_are_taken(value: Any) -> None:
    assert whole("n", value, least=1, most=9) == 5
    assert type(whole("n", value, least=1)) is int


@pytest.mark.parametrize("value", [*NO_NUMBERS, 10**400, HUGE, Fraction(10**400)])
def test_what_is_no_finite_number_is_one_line(value: Any) -> None:
    with pytest.raises(OptionError, match=r"^cut=.+: expected a finite number") as told:
        number("cut", value)
    assert len(str(told.value)) < 200
    with pytest.raises(OptionError, match="keep="):
        share("keep", value)


def test_a_whole_number_without_an_upper_limit_may_be_of_any_size() -> None:
    assert whole("top_k", 10**400, least=1) == 10**400


def test_a_path_of_pathlib_is_one() -> None:
    assert Options(model_path=Path("/models")).model_path == "/models"  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"model_path=\[1\]: expected a path, or None"):
        Options(model_path=[1])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("folder", "expected the name of a file, found a folder"),
        ("new/", "expected the name of a file, found a folder"),
        ("there.json", "expected no file there, found one. Pass --overwrite"),
        ("there.json/x.json", "expected a folder that can be written"),
        ("s3://bucket/x.json", "expected a folder that can be written"),
        ("nosuch://bucket/x.json", "expected a folder that can be written"),
    ],
)
def test_a_file_that_cannot_be_written_is_told_before_the_work(tmp_path: Path, place: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "there.json").write_text("old")
    with pytest.raises(OptionError, match=f"--out.*{message}"):
        files.check_file(place if "://" in place else f"{tmp_path}/{place}", "--out", overwrite=False)
    assert (tmp_path / "there.json").read_text() == "old"


def test_a_file_that_can_be_written_is_not_written_yet(tmp_path: Path) -> None:
    (tmp_path / "there.json").write_text("old")
    files.check_file(str(tmp_path / "there.json"), "--out", overwrite=True)
    files.check_file(str(tmp_path / "deep" / "new.json"), "--out", overwrite=False)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["there.json"]


CUTS = '{"spark_aesthetic": "1", "model": null, "score_col": "s", "by": [], "target": null, "wanted": null, "cuts": %s}'
CUT = """[{"group": [], "value": %s, "kept": 1, "share": 1, "evidence": null, "distribution": {"quantiles": {},
          "shares": {}}}]"""


@pytest.mark.parametrize(
    "content",
    ["[" * 100_000, "\udcff", "{}", CUTS % "[]", *(CUTS % (CUT % value) for value in ('"5"', "NaN", "[1]", "true"))],
)
def test_a_file_that_is_no_calibration_is_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "cut.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(OptionError, match=r"^calibration .*: expected a file that Calibration.save wrote"):
        Calibration.load(str(path))


def test_a_calibration_at_an_address_without_its_package_is_one_line() -> None:
    with pytest.raises(OptionError, match=r"^calibration 'nosuch://b/c.json': expected a file"):
        Calibration.load("nosuch://b/c.json")


@pytest.mark.parametrize("field", ["backbone", "backbone_weights", "head_weights"])
def test_half_a_character_is_no_text_of_a_predictor(field: str) -> None:
    given = {"name": "mine", "backbone": "ViT-B-32", "backbone_weights": "/a b/\u00e9\u4e2d", "head_weights": "/h"}
    Predictor(**given)
    with pytest.raises(PredictorError, match=f"field {field}: expected valid Unicode"):
        Predictor(**given | {field: "/a\ud800"})
