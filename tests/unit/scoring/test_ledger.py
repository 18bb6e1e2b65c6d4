"""The ledger of a scores table: what its properties say, and which sources it admits."""

from __future__ import annotations

from typing import Any

import pytest
from pyspark.sql import DataFrame

from spark_aesthetic.delta.tables import Source
from spark_aesthetic.errors import TableError
from spark_aesthetic.scoring import ledger
from spark_aesthetic.scoring.ledger import KnownSource, Ledger, Progress

NASTY = [
    "/a/Ann's set",
    '/a/12" set',
    "/a/b\\c",
    "/a/${env:HOME}",
    "/a/x';--",
    "/a/100%41",
    "/a/e\u0301\u202e",
    "/a/`b`",
]


def source(id: str = "one", location: str = "file:/a", table: str = "/a") -> Source:
    rows: DataFrame = None  # type: ignore[assignment]  # nothing here reads it
    values: dict[str, Any] = {"size": 0, "files": 0, "feed": False, "append_only": False, "plain": True, "version": 0}
    return Source(table=table, id=id, location=location, partitions=(), rows=rows, **values)


def progress(location: str, **changed: Any) -> Progress:
    values: dict[str, Any] = {
        "checkpoint": "c", "generation": 7, "began_empty": True, "feed": False, "starting_version": None,
        "backbone": "ViT-L-14@ab", "location": location,
    }  # fmt: skip
    return Progress(**values | changed)


@pytest.mark.parametrize("location", NASTY)
def test_properties_hold_any_path_without_a_letter_that_means_something_in_sql(location: str) -> None:
    noted = ledger.described(source(location=location, table=location), ["it's", "${env:HOME}", "a\\b"])
    noted |= {"spark_aesthetic.v2@12/one": ledger._encoded(progress(location).__dict__)}
    assert not {"'", '"', "\\", "$", "`", ";"} & set("".join([*noted, *noted.values()]))
    found = Ledger.of(noted)
    assert found.key == ("it's", "${env:HOME}", "a\\b")
    assert found.sources == {"one": KnownSource(table=location, location=location)}
    assert found.progress == {("v2@12", "one"): progress(location)}


def test_properties_of_earlier_releases_and_of_others_are_read_as_they_are() -> None:
    text = (
        '{"checkpoint": "c", "generation": 7, "began_empty": true, "feed": false, "starting_version": null, '
        '"backbone": "ViT-L-14@ab", "location": "file:/a%41"}'
    )
    found = Ledger.of({"spark_aesthetic.v2@12/one": text, "delta.minReaderVersion": "1", "owner": "a/b"})
    assert found.key is None
    assert found.of_model("v2@12") == {"one": progress("file:/a%41")}
    assert found.sources["one"].location == "file:/a%41"
    assert found.backbones() == {"v2@12": "ViT-L-14@ab"}
    assert found.has_key(["anything"])


OTHER = source(id="two", location="file:/b")
KNOWN = {"one": KnownSource(table="/a", location="file:/a")}


@pytest.mark.parametrize(
    ("known", "asking", "shared_keys", "admitted"),
    [
        pytest.param({}, source(), False, True, id="the first source"),
        pytest.param(KNOWN, source(), False, True, id="the same again"),
        pytest.param(KNOWN, source(location="file:/moved"), False, True, id="the same, moved"),
        pytest.param(KNOWN, source(id="two"), False, True, id="another made in its place"),
        pytest.param(KNOWN, OTHER, False, False, id="another one"),
        pytest.param(KNOWN, OTHER, True, True, id="another one with shared keys"),
        pytest.param(KNOWN | {"two": KnownSource(table="b", location="file:/b")}, OTHER, False, True, id="a known one"),
    ],
)  # fmt: skip
def test_a_scores_table_admits_a_source(
    known: dict[str, KnownSource], asking: Source, shared_keys: bool, admitted: bool
) -> None:
    assert Ledger(sources=known).admits(asking, shared_keys=shared_keys) is admitted


def test_another_source_is_refused_with_both_ways_out() -> None:
    with pytest.raises(TableError, match=r"found scores of '/a'.*its own scores table, or.* --shared-keys"):
        ledger.check(Ledger(sources=KNOWN), "s", source(id="two", location="file:/b"), ["id"], shared_keys=False)


@pytest.mark.parametrize(
    ("key", "fits"),
    [(["shard", "id"], True), (["ID", "Shard"], True), (["shard"], False), (["shard", "id", "x"], False)],
)
def test_a_scores_table_knows_its_key(key: list[str], fits: bool) -> None:
    known = Ledger(key=("shard", "id"))
    assert known.has_key(key) is fits
    if not fits:
        with pytest.raises(TableError, match=r"--key shard.*: expected shard, id, the key of the scores 's', found"):
            ledger.check_key(known, "s", key)
