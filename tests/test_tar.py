"""Tar files as other programs write and read them."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from spark_aesthetic.datasources import tar
from spark_aesthetic.datasources.tar import DamageError, TarReader

NAMES = ["a.jpg", "empty.txt", f"{'folder/' * 30}deep.jpg", f"{'n' * 180}.jpg", "grün/ж.json", f"{'ü' * 70}/x.png"]


def contents(number: int, name: str) -> bytes:
    return b"" if name.startswith("empty") else bytes([number]) * (511 + number)


def read(file: io.BytesIO) -> list[tuple[str, bytes]]:
    reader = TarReader(file)
    return [(name, reader.content()) for name, _ in reader]


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_and_bytes_are_those_that_tarfile_wrote(kind: int) -> None:
    # USTAR cuts a name of at most 255 bytes at a slash.
    names = [name for name in NAMES if kind != tarfile.USTAR_FORMAT or len(name) < 180]
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=kind, pax_headers={"comment": "for all"}) as archive:
        for number, name in enumerate(names):
            entry = tarfile.TarInfo(name)
            entry.size = len(contents(number, name))
            entry.mtime = 1.5 if kind == tarfile.PAX_FORMAT else 1
            archive.addfile(entry, io.BytesIO(contents(number, name)))
            for other in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE):
                beside = tarfile.TarInfo(f"other{number}")
                beside.type, beside.linkname = other, names[0]
                archive.addfile(beside)
    file.seek(0)
    assert read(file) == [(name, contents(number, name)) for number, name in enumerate(names)]


def test_what_is_written_tarfile_reads_and_is_the_same_each_time() -> None:
    def write() -> bytes:
        parts = [part for number, name in enumerate(NAMES) for part in tar.entry(name, contents(number, name))]
        whole = b"".join(parts)
        return whole + tar.end(len(whole))

    assert write() == write()
    assert len(write()) % tarfile.RECORDSIZE == 0
    with tarfile.open(fileobj=io.BytesIO(write())) as archive:
        found = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
    assert found == {name: contents(number, name) for number, name in enumerate(NAMES)}
    assert read(io.BytesIO(write())) == list(found.items())


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_file_of_nine_gigabytes_is_passed_over(tmp_path: Path, kind: int) -> None:
    large = tarfile.TarInfo("large.mp4")
    large.size = 9 << 30
    with (tmp_path / "x.tar").open("wb") as file:
        file.write(large.tobuf(kind))
        file.seek(large.size, 1)
        for part in tar.entry("small.txt", b"after it"):
            file.write(part)
        file.write(tar.end(0))
    with (tmp_path / "x.tar").open("rb") as file:
        reader = TarReader(file)
        sizes = dict(reader)
    assert sizes == {"large.mp4": 9 << 30, "small.txt": 8}


def archive(*names: str) -> bytes:
    whole = b"".join(part for name in names for part in tar.entry(name, b"x" * 600))
    return whole + tar.end(len(whole))


@pytest.mark.parametrize(
    ("damaged", "place"),
    [
        (b"", 0),
        (b"no tar file" * 100, 0),
        (archive("a", "b")[:900], 0),
        (archive("a", "b")[:1536], 1536),
        (archive("a", "b")[:1700], 1536),
        (archive("a", "b")[:1540] + b"\xff" + archive("a", "b")[1541:], 1536),
        (archive("a", "ü" * 200)[:1536] + archive("ü" * 200)[:512] + b"9 x" + bytes(509), 1536),
    ],
    ids=["empty", "text", "in a file", "no end", "in a header", "a byte of a header", "no pax record"],
)
def test_damage_is_told_with_its_place(damaged: bytes, place: int) -> None:
    reader = TarReader(io.BytesIO(damaged))
    with pytest.raises(DamageError):
        [reader.content() for _ in reader]
    assert reader.place == place
