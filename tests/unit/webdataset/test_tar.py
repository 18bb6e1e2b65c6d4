"""Tar files as other programs write and read them."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from spark_aesthetic.webdataset import tar
from spark_aesthetic.webdataset.tar import TarReader
from spark_aesthetic.webdataset.tar_headers import DamageError

NAMES = ["a.jpg", "empty.txt", f"{'folder/' * 30}deep.jpg", f"{'n' * 180}.jpg", "grün/ж.json", f"{'ü' * 70}/x.png"]


def contents(number: int, name: str) -> bytes:
    return b"" if name.startswith("empty") else bytes([number]) * (511 + number)


def read(file: io.BytesIO) -> list[tuple[str, bytes]]:
    reader = TarReader(file)
    return [(name, reader.content()) for name, _ in reader]


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_and_bytes_are_those_that_tarfile_wrote(kind: int) -> None:
    # USTAR stores a long name only if it can split the name at a slash, so the longest names are left out.
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
    reader = TarReader(file, lambda: io.BytesIO(file.getvalue()))
    assert [(name, reader.content()) for name, _ in reader] == [
        (at, contents(0, names[0]) if at.startswith("other") else contents(number, name))
        for number, name in enumerate(names)
        for at in (name, *[f"other{number}"] * 2)
    ]


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
        (archive("a") + b"a signature", 10240),
        (archive("a") + b"no header of a file" * 100, 10240),
        (archive("a") + archive("b")[:1000], 10240),
        (archive("a", "ü" * 200)[:1536] + archive("ü" * 200)[:512] + b"9 x" + bytes(509), 1536),
    ],
    ids=[
        "empty",
        "text",
        "in a file",
        "no end",
        "in a header",
        "a byte of a header",
        "text behind the end",
        "more text behind the end",
        "another one that is cut off",
        "no pax record",
    ],
)
def test_damage_is_told_with_its_place(damaged: bytes, place: int) -> None:
    reader = TarReader(io.BytesIO(damaged))
    with pytest.raises(DamageError):
        [reader.content() for _ in reader]
    assert reader.place == place


def entry(name: str, content: bytes = b"", **fields: object) -> bytes:
    """Return a member with some header fields set, as other programs may set them."""
    header = tarfile.TarInfo(name)
    header.size = len(content)
    for field, value in fields.items():
        setattr(header, field, value)
    return header.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)


@pytest.mark.parametrize("gap", [512, 1024, 10240, 512 * 999])
def test_archives_that_were_concatenated_are_read_to_the_last(gap: int) -> None:
    whole = entry("a.jpg", b"1") + bytes(gap) + entry("b.jpg", b"2") + bytes(gap) + entry("c.jpg", b"3") + bytes(gap)
    assert read(io.BytesIO(whole)) == [("a.jpg", b"1"), ("b.jpg", b"2"), ("c.jpg", b"3")]


def test_a_global_header_ends_with_its_archive() -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"path": "all.jpg"}) as written:
        written.addfile(tarfile.TarInfo("a.jpg"))
    assert [name for name, _ in read(io.BytesIO(file.getvalue() + entry("b.jpg") + bytes(1024)))] == [
        "all.jpg",
        "b.jpg",
    ]


def test_links_are_read_as_what_they_lead_to() -> None:
    whole = b"".join(
        [
            entry("f/a.jpg", b"first"),
            entry("b.jpg", type=tarfile.LNKTYPE, linkname="f/a.jpg"),
            entry("f/c.jpg", type=tarfile.SYMTYPE, linkname="../b.jpg"),
            entry("d.jpg", type=tarfile.SYMTYPE, linkname="./later.jpg"),
            entry("./f/a.jpg", b"second"),
            entry("e.jpg", type=tarfile.LNKTYPE, linkname="./f/a.jpg"),
            entry("later.jpg", b"later"),
            entry("g.jpg", type=tarfile.LNKTYPE, linkname="n" * 180),
            bytes(1024),
            entry("n" * 180, b"long"),
            entry("h.jpg", type=tarfile.LNKTYPE, linkname="n" * 180),
            bytes(1024),
        ]
    )
    reader = TarReader(io.BytesIO(whole), lambda: io.BytesIO(whole))
    found = {name: reader.content() for name, _ in reader if name.endswith(".jpg")}
    assert found == {
        "f/a.jpg": b"first", "b.jpg": b"first", "f/c.jpg": b"first", "d.jpg": b"later", "./f/a.jpg": b"second",
        "e.jpg": b"second", "later.jpg": b"later", "g.jpg": b"long", "h.jpg": b"long",
    }  # fmt: skip


@pytest.mark.parametrize("linkname", ["/data/a.jpg", "../a.jpg", "b.jpg", "nowhere.jpg"])
def test_a_link_out_of_the_archive_or_to_itself_is_told(linkname: str) -> None:
    whole = entry("a.jpg", b"1") + entry("b.jpg", type=tarfile.SYMTYPE, linkname=linkname) + bytes(1024)
    reader = TarReader(io.BytesIO(whole), lambda: io.BytesIO(whole))
    told = dict.fromkeys(("a.jpg", "b.jpg"), "")
    for name, _ in reader:
        try:
            reader.content()
        except tar.LinkError as error:
            told[name] = str(error)
    assert told["a.jpg"] == ""
    assert "which the archive does not hold" in told["b.jpg"]


@pytest.mark.parametrize(
    "size", [b"-0000000001\0", b"\xff" * 12, b"12 34\0", b"9" * 11 + b"\0"], ids=["octal", "binary", "two", "decimal"]
)
def test_a_size_that_is_none_is_damage(size: bytes) -> None:
    block = bytearray(entry("a.jpg")[:512])
    block[124:136] = size.ljust(12, b"\0")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    with pytest.raises(DamageError):
        read(io.BytesIO(bytes(block) + bytes(1024)))


@pytest.mark.parametrize("text", ["-5", "1.5", "many", "9" * 30, str(1 << 59)])
def test_a_size_in_a_pax_header_that_is_none_is_damage(tmp_path: Path, text: str) -> None:
    header = tarfile.TarInfo("a.jpg")
    header.pax_headers = {"size": text}
    (tmp_path / "x.tar").write_bytes(header.tobuf(tarfile.PAX_FORMAT) + bytes(10240))
    with (tmp_path / "x.tar").open("rb") as file, pytest.raises((DamageError, tar.TooLargeError)):
        read(file)  # type: ignore[arg-type]
    with (tmp_path / "x.tar").open("rb") as file, pytest.raises(DamageError):
        list(TarReader(file))


def test_kinds_that_tar_does_not_know_are_files_and_notes_are_none() -> None:
    whole = (
        entry("volume", type=b"V") + entry("folder/", b"Ya.jpg\0", type=b"D") + entry("a.jpg", b"1", type=b"7")
        + entry("pipe", type=tarfile.FIFOTYPE) + entry("b.jpg", b"2", type=b"Z") + bytes(1024)
    )  # fmt: skip
    assert read(io.BytesIO(whole)) == [("a.jpg", b"1"), ("b.jpg", b"2")]


def contents_or_faults(whole: bytes) -> dict[str, bytes | str]:
    reader = TarReader(io.BytesIO(whole), lambda: io.BytesIO(whole))
    found: dict[str, bytes | str] = {}
    for name, _ in reader:
        try:
            found[name] = reader.content()
        except tar.MemberError as error:
            found[name] = str(error)
    return found


SPARSE = ("gnu", "oldgnu", "posix --sparse-version=0.0", "posix --sparse-version=0.1", "posix --sparse-version=1.0")


@pytest.mark.parametrize("kind", SPARSE)
@pytest.mark.parametrize("pieces", [1, 60], ids=["one piece", "blocks that say where pieces lie"])
def test_a_sparse_file_is_passed_over_and_the_next_one_read(tmp_path: Path, kind: str, pieces: int) -> None:
    if "GNU tar" not in subprocess.run(["tar", "--version"], capture_output=True, text=True, check=False).stdout:
        pytest.skip("needs GNU tar")
    names = ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    for name in ("a.jpg", "c.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    with (tmp_path / "b.jpg").open("wb") as file:
        for at in range(pieces):
            file.seek((at + 1) << 17)
            file.write(b"piece")
    (tmp_path / "d.jpg").symlink_to("b.jpg")
    command = f"tar -cSf x.tar --hole-detection=raw --format={kind}".split()
    subprocess.run([*command, *names], cwd=tmp_path, check=True)
    told = "a sparse file, stored without its runs of zeros"
    assert contents_or_faults((tmp_path / "x.tar").read_bytes()) == {
        "a.jpg": b"a.jpg", "b.jpg": told, "c.jpg": b"c.jpg", "d.jpg": f"a link to b.jpg, which is {told}",
    }  # fmt: skip


def test_a_part_of_another_volume_and_a_long_name_are_passed_over() -> None:
    long = f"{'n' * 5000}.seg.png"
    whole = entry("a.jpg", b"1" * 600, type=b"M") + entry(long, b"2") + entry("c.jpg", b"3") + bytes(1024)
    assert list(contents_or_faults(whole).values()) == [
        "the end of a file that begins in another volume",
        "a file with a name of 5008 characters, more than 4096",
        b"3",
    ]  # fmt: skip
    _, name, _ = contents_or_faults(whole)
    assert name.endswith("nn.seg.png")
    assert len(name) == 4097


@pytest.mark.parametrize("name", ["é", "ü" * 9])
def test_checksums_of_signed_bytes_are_taken_as_well(name: str) -> None:
    block = bytearray(entry(f"{name}.jpg", b"1"))
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(byte - 256 if byte > 127 else byte for byte in block[:512])
    assert read(io.BytesIO(bytes(block) + bytes(1024))) == [(f"{name}.jpg", b"1")]
    block[148:156] = b"%06o\0 " % (sum(byte - 256 if byte > 127 else byte for byte in block[:512]) + 1)
    with pytest.raises(DamageError, match="a header does not match its checksum"):
        read(io.BytesIO(bytes(block) + bytes(1024)))


def test_names_that_are_not_utf_8_stay_different() -> None:
    headers = [bytearray(entry(letter + ".jpg")) for letter in "ab"]
    for header, letter in zip(headers, (0xE9, 0xE8), strict=True):
        header[0] = letter
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header[:512])
    names = [name for name, _ in read(io.BytesIO(b"".join(map(bytes, headers)) + bytes(1024)))]
    assert names == ["\\xe9.jpg", "\\xe8.jpg"]
