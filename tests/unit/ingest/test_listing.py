"""Files that a local folder has and Spark's listing leaves out. No test needs Spark."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from spark_aesthetic.ingest import listing
from spark_aesthetic.ingest.links import Links, links_below
from spark_aesthetic.ingest.listing import compare


def make(folder: Path, *names: str) -> list[str]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return [f"file:{folder}/{name}" for name in names]


def test_all_that_is_left_out_is_counted_and_named(tmp_path: Path) -> None:
    listed = make(tmp_path, "a.jpg", "sub/b.jpg", "k=1/c.jpg", "_k=2/d.jpg")
    make(tmp_path, "_a.jpg", ".b/c.jpg", ".b/d/e.jpg", "e.jpg._COPYING_")
    (tmp_path / "empty.jpg").touch()
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9t\xe9.jpg")).write_bytes(b"x")
    (tmp_path / "dangling.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "itself.jpg").symlink_to("itself.jpg")
    # This link makes a circle, which the comparison must not follow forever.
    (tmp_path / "sub" / "up").symlink_to(tmp_path)
    found = compare(str(tmp_path), None, listed, len(listed))
    assert found.counts == {listing.HIDDEN: 4, listing.EMPTY: 1, listing.NOT_UTF8: 1, listing.NO_FILE: 2}
    assert found.examples[listing.NOT_UTF8] == [f"{tmp_path}/\\udce9t\\udce9.jpg"]
    assert f"4 ({listing.HIDDEN}): " in str(found)
    assert "\n" not in str(found)
    assert str(found).endswith(", …") or "…" in str(found)


def test_what_java_does_not_see_is_named(tmp_path: Path) -> None:
    listed = make(tmp_path, "a.jpg")
    make(tmp_path, "ж.jpg", "日本.jpg", "plain.jpg")
    found = compare(str(tmp_path), None, listed, 1)
    assert found.counts == {listing.LOCALE: 2, listing.UNLISTED: 1}
    assert set(found.examples[listing.LOCALE]) == {f"{tmp_path}/ж.jpg", f"{tmp_path}/日本.jpg"}


@pytest.mark.parametrize("glob", ["*.{jpg,png}", "[a-c]?.[jp][pn]g", "[^d]?.{j,p}*g"])
def test_a_glob_that_another_case_would_match_is_told(tmp_path: Path, glob: str) -> None:
    listed = make(tmp_path, "a1.jpg", "b1.png")
    make(tmp_path, "c1.JPG", "c2.Png", "notes.txt", "readme.md")
    found = compare(str(tmp_path), glob, listed, 2)
    assert found.counts == {listing.OTHER_CASE: 2}


def test_folders_of_a_pattern_are_looked_at_and_those_that_are_called_so(tmp_path: Path) -> None:
    listed = make(tmp_path, "a1/x.jpg", "a2/x.jpg")
    make(tmp_path, "a1/_y.jpg", "a2/_y.jpg", "a3/_y.jpg")
    assert compare(f"{tmp_path}/a{{1,2}}", None, listed, 2).counts == {listing.HIDDEN: 2}
    make(tmp_path, "a[12]/x.jpg", "a[12]/.z.jpg")
    assert compare(f"{tmp_path}/a[12]", None, [], 1).counts == {listing.HIDDEN: 1}
    assert compare(f"{tmp_path}/{{unbalanced", None, [], 0).counts == {}


def test_links_that_lead_out_are_named_and_those_that_do_not_are_files(tmp_path: Path) -> None:
    listed = make(tmp_path / "in", "a.jpg", "sub/b.jpg")
    make(tmp_path / "out", "c.jpg", "deep/d.jpg")
    folder = tmp_path / "in"
    (folder / "within.jpg").symlink_to("sub/b.jpg")
    (folder / "through.jpg").symlink_to("../in/a.jpg")
    listed += [f"file:{folder}/within.jpg", f"file:{folder}/through.jpg"]
    assert links_below([str(folder)], str(folder)) == Links()
    (folder / "sub" / "file.jpg").symlink_to("../../out/c.jpg")
    (folder / "_hidden.jpg").symlink_to(tmp_path / "out" / "c.jpg")
    assert links_below([str(folder)], str(folder)) == Links(False, [f"{folder}/sub/file.jpg"])
    (folder / "folder").symlink_to(tmp_path / "out")
    (folder / "sub" / "up").symlink_to("..")
    assert links_below([str(folder)], str(folder)).to_folders
    assert sorted(f"file:{name}" for name in listing.files_below(str(folder), None)) == sorted(listed)
    found = compare(str(folder), None, listed, len(listed))
    assert found.counts == {listing.LINK: 2, listing.HIDDEN: 1}
    assert set(found.examples[listing.LINK]) == {f"{folder}/folder", f"{folder}/sub/file.jpg"}


def test_what_vanishes_meanwhile_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = make(tmp_path, "a.jpg", "z.jpg")
    make(tmp_path, "_temporary/0/part.jpg", "gone.jpg", "sub/deep/b.jpg", "sub/c.jpg")
    stat, getsize = os.stat, os.path.getsize

    def stat_late(path: str, **options: bool) -> os.stat_result:
        if str(path).endswith("_temporary"):
            shutil.rmtree(path)
        return stat(path, **options)

    def getsize_late(path: str) -> int:
        if path.endswith("gone.jpg"):
            Path(path).unlink()
        return getsize(path)

    # In some releases of Python isdir calls os.stat, which is replaced below.
    monkeypatch.setattr(os.path, "isdir", lambda path: Path(path).suffix == "")
    monkeypatch.setattr(os, "stat", stat_late)
    monkeypatch.setattr(os.path, "getsize", getsize_late)
    found = compare(str(tmp_path), None, [*listed, f"file:{tmp_path}/sub/deep/b.jpg", f"file:{tmp_path}/sub/c.jpg"], 4)
    assert found.counts == {listing.GONE: 2}
    assert set(found.examples[listing.GONE]) == {f"{tmp_path}/_temporary", f"{tmp_path}/gone.jpg"}


def test_names_that_a_terminal_would_obey_are_shown_escaped(tmp_path: Path) -> None:
    make(tmp_path, "_\x1b[2J\x1b]0;x\x07.jpg", "_photo\u202egpj.exe", "_line\nfeed.jpg")
    found = compare(str(tmp_path), None, [], 0)
    assert sorted(found.examples[listing.HIDDEN]) == [
        f"{tmp_path}/_\\x1b[2J\\x1b]0;x\\x07.jpg", f"{tmp_path}/_line\\nfeed.jpg", f"{tmp_path}/_photo\\u202egpj.exe",
    ]  # fmt: skip
