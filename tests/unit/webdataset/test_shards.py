"""Shards without Spark: how they are located, which samples they have, and how damage is reported."""

from __future__ import annotations

import json
import tarfile
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest
from pyspark.sql.types import BinaryType, StringType, StructField, StructType
from shard_files import add, make_shard

from spark_aesthetic.errors import MissingDependencyError, OptionError, TableError
from spark_aesthetic.webdataset import compressed, places, shards
from spark_aesthetic.webdataset.samples import files_of, views
from spark_aesthetic.webdataset.shards import ShardError
from spark_aesthetic.webdataset.source import WebDataset, _sidecar


def test_dbfs_is_where_databricks_mounts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spark_aesthetic.files._MOUNT", f"{tmp_path}/")
    make_shard(tmp_path / "a.tar", 2)
    (found,) = shards.find("dbfs:/a.tar")
    assert [sample.key for sample in shards.read(found, lambda _: True)] == ["some/00000", "some/00001"]
    assert shards.absolute("dbfs:/out/") == str(tmp_path / "out")


def test_a_local_shard_has_one_address(tmp_path: Path) -> None:
    make_shard(tmp_path / "a.tar", 1)
    for url in (f"{tmp_path}//a.tar", f"file:{tmp_path}/a.tar", f"file://{tmp_path}/*.tar", f"{tmp_path}/.//"):
        assert shards.find(url) == [str(tmp_path / "a.tar")]
    assert shards.absolute(f"file://{tmp_path}/") == str(tmp_path)


def test_a_store_whose_package_is_missing_is_named() -> None:
    with pytest.raises(MissingDependencyError, match=r"smb://.*expected the package of that file system"):
        shards.find("smb://server/a.tar")


def test_a_file_system_that_fails_is_no_damage(tmp_path: Path) -> None:
    # After this error Spark runs the task again. If it counted as damage, onDamage=report would skip samples that
    # exist.
    with pytest.raises(IsADirectoryError):
        list(shards.read(str(tmp_path), lambda _: True))


def test_a_package_that_a_compression_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(compressed.compr, "zstd", raising=False)
    (tmp_path / "x.tar.zst").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(100))
    with pytest.raises(MissingDependencyError, match=r"x.tar.zst: .* compressed by zstd"):
        list(shards.read(str(tmp_path / "x.tar.zst"), lambda _: True))


def test_damage_within_bz2_is_told(tmp_path: Path) -> None:
    make_shard(tmp_path / "x.tar", 300, mode="w:bz2")
    whole = (tmp_path / "x.tar").read_bytes()
    (tmp_path / "x.tar").write_bytes(whole[:60] + bytes(200) + whole[260:])
    with pytest.raises(ShardError, match="Invalid data stream"):
        list(shards.read(str(tmp_path / "x.tar"), lambda _: True))


def test_names_of_files_and_folders_may_look_like_patterns(tmp_path: Path) -> None:
    folder = tmp_path / "a [1]*?"
    folder.mkdir()
    make_shard(folder / "x[0].tar", 1)
    assert shards.find(str(folder)) == shards.find(str(folder / "x[0].tar")) == [str(folder / "x[0].tar")]


def test_names_of_sidecars() -> None:
    kinds = ("tar", "tgz", "tar.gz", "tar.xz", "tar.bz2", "tar.zst")
    assert {_sidecar(f"s3://b/a.tar/x.{kind}") for kind in kinds} == {"s3://b/a.tar/x.parquet"}


def test_a_second_sample_of_a_key_has_a_path_of_its_own(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("a.jpg", "a#2.jpg", "a.jpg", "a.jpg"):
            add(tar, name, b"x")
    reader = WebDataset({"path": str(tmp_path / "x.tar")}).reader(
        StructType([StructField("__path__", StringType()), StructField("jpg", BinaryType())])
    )
    (partition,) = reader.partitions()
    (batch,) = reader.read(partition)
    paths = [path.rpartition("x.tar#")[2] for path in batch.column(0).to_pylist()]
    assert paths == ["a", "a#2", "a#3", "a#4"]


@pytest.mark.parametrize(("key", "extension"), [("a", "mask/b"), ("__notes__/a", "jpg"), ("__a", "b__")])
def test_names_that_readers_pass_over_are_refused(tmp_path: Path, key: str, extension: str) -> None:
    with (tmp_path / "x.tar").open("wb") as file:
        shard = shards.ShardWriter(file)
        with pytest.raises(TableError, match=r"webdataset: (file|key) '.*expected (an extension|a file name|one )"):
            shard.write(key, {extension: b"x"})
        shard.write("__a__", {"jpg": b"x"})
        shard.close()
    assert [sample.key for sample in shards.read(str(tmp_path / "x.tar"), lambda _: True)] == ["__a__"]


def test_columns_that_would_be_lost_are_refused(tmp_path: Path) -> None:
    def write(schema: StructType, **options: str) -> None:
        WebDataset({"path": str(tmp_path / "out"), **options}).writer(schema, overwrite=False)

    schema = StructType([StructField("id", BinaryType()), StructField("Key", StringType())])
    with pytest.raises(TableError, match=r"keyCol 'id': expected text or numbers, found binary\. Use hex\(id\)"):
        write(schema, keyCol="id")
    with pytest.raises(TableError, match="column 'Key': expected no column of that name with sidecar=true"):
        write(schema, sidecar="true")
    assert not (tmp_path / "out").exists()
    write(schema, sidecar="true", keyCol="Key")


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_bytes_are_taken_where_they_lie(kind: pa.DataType) -> None:
    values = [b"skipped", b"ab", None, b"", b"cde"]
    assert views(pa.array(values, kind)[1:]) == values[1:]
    assert views(pa.array([None, b""], kind)) == [None, b""]
    assert views(pa.array([], kind)) == []


def test_text_that_is_no_object_has_the_other_columns_beside_it() -> None:
    for text in ('["a"]', "{cut off", "NaN"):
        files = files_of({"json": text, "score": 1.5, "at": {"x": [1.0, float("nan")]}})
        assert files["json"] == text.encode()
        assert json.loads(bytes(files["columns.json"])) == {"score": 1.5, "at": {"x": [1.0, None]}}
    files = files_of({"json": '{"a": "ü", "b": 1}', "b": 2, "en.txt": "x", "cls": 3})
    assert files == {"json": '{"a": "ü", "b": 2}'.encode(), "en.txt": b"x", "cls": b"3"}


@pytest.mark.parametrize("kind", ["w:gz", "w:xz", "w:bz2"])
def test_compressed_shards_are_read_and_their_damage_told(tmp_path: Path, kind: str) -> None:
    make_shard(tmp_path / "x.tar", 300, mode=kind)
    samples = list(shards.read(str(tmp_path / "x.tar"), lambda _: True))
    assert [len(sample.files["jpg"]) for sample in samples] == [700 + at for at in range(300)]
    whole = (tmp_path / "x.tar").read_bytes()
    (tmp_path / "x.tar").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ShardError, match=r"damage at byte \d+"):
        list(shards.read(str(tmp_path / "x.tar"), lambda _: True))


def test_no_sample_is_lost_among_names_that_are_odd(tmp_path: Path) -> None:
    names = [
        "a.jpg",
        "a.txt",
        "a.jpg",
        "b.JPG",
        ".hidden.jpg",
        "__notes__/a.json",
        "noextension",
        "c/.x.jpg",
        "c.d/e.f.jpg",
    ]
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in names:
            add(tar, name, name.encode())
    found = [(sample.key, sample.extensions) for sample in shards.read(str(tmp_path / "x.tar"), lambda _: True)]
    assert found == [("a", ("jpg", "txt")), ("a", ("jpg",)), ("b", ("jpg",)), ("c.d/e", ("f.jpg",))]


def test_files_without_an_extension_are_told_once_a_shard(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def read(*names: str) -> list[str]:
        in_order(tmp_path / "x.tar", *names)
        caplog.clear()
        assert [sample.key for sample in shards.read(str(tmp_path / "x.tar"), lambda _: True)] == ["a"]
        return [record.getMessage() for record in caplog.records]

    assert read("a.jpg", "a.txt", "._a", ".hidden", "__notes__", "__notes__/a", "sub/__notes__", "sub/.b") == []
    told = f"shard {tmp_path}/x.tar: 2 files without an extension are left out: 1, sub/turned\\u202e. Give them an "
    assert read("1", "a.jpg", "sub/turned\u202e") == [f"{told}extension, such as .jpg."]
    (line,) = read("a.jpg", *[f"photos/IMG_{at}" for at in range(50)])
    assert "50 files without an extension are left out: photos/IMG_0, photos/IMG_1, photos/IMG_2, …. Give" in line


def test_files_of_megabytes_are_read_one_at_a_time(tmp_path: Path) -> None:
    # The files contain only zeros, which take no space on the disk.
    with (tmp_path / "x.tar").open("wb") as file:
        for at in range(32):
            header = tarfile.TarInfo(f"{at:03d}.jpg")
            header.size = 8 << 20
            file.write(header.tobuf())
            file.seek(header.size, 1)
        file.write(bytes(10240))
    source = WebDataset({"path": str(tmp_path / "x.tar")})
    reader = source.reader(source.schema())
    (partition,) = reader.partitions()
    # PySpark imports pandas at the first batch, which must not count as memory of the reader.
    next(iter(reader.read(partition)))
    tracemalloc.start()
    rows = sum(batch.num_rows for batch in reader.read(partition))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows == 32
    assert peak < 24 << 20
    assert pa.default_memory_pool().max_memory() < 80 << 20


def test_what_is_not_there_is_an_error_that_names_it(tmp_path: Path) -> None:
    make_shard(tmp_path / "00000.tar", 1)
    with pytest.raises(TableError, match=r"expected the shard .*00001.tar, found nothing"):
        shards.find(str(tmp_path / "{00000..00001}.tar"))
    with pytest.raises(TableError, match="found none"):
        shards.find(str(tmp_path / "*.tgz"))


def test_option_errors_are_of_the_package() -> None:
    with pytest.raises(OptionError, match="expected a path"):
        WebDataset({}).schema()


def in_order(path: Path, *names: str, mode: str = "w") -> None:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name in names:
            add(tar, name, name.encode())


def rows(path: Path, schema: str, **options: str) -> list[dict[str, object]]:
    names = [StructField(name, BinaryType() if name == "jpg" else StringType()) for name in schema.split()]
    reader = WebDataset({"path": str(path), **options}).reader(StructType(names))
    return [row for part in reader.partitions() for batch in reader.read(part) for row in batch.to_pylist()]


@pytest.mark.parametrize("kind", ["", "gz", "bz2", "xz", "zst"])
def test_shards_that_were_concatenated_are_read_whole(tmp_path: Path, kind: str) -> None:
    parts = []
    for at in range(3):
        path = tmp_path / f"{at}"
        make_shard(path, 4, start=4 * at, mode="w" if kind in ("", "zst") else f"w:{kind}")
        whole = path.read_bytes()
        parts.append(pytest.importorskip("zstandard").compress(whole) if kind == "zst" else whole)
    (tmp_path / "all.tar").write_bytes(b"".join(parts))
    found = list(shards.read(str(tmp_path / "all.tar"), lambda _: True))
    assert [sample.key for sample in found] == [f"some/{at:05d}" for at in range(12)]
    assert [len(sample.files["jpg"]) for sample in found] == [700 + at for at in range(12)]


def test_the_last_sample_before_something_that_is_no_archive_is_whole(tmp_path: Path) -> None:
    make_shard(tmp_path / "x.tar", 2)
    with (tmp_path / "x.tar").open("ab") as file:
        file.write(b"a signature")
    found = []
    with pytest.raises(ShardError, match="something other than an archive follows the end mark"):
        found.extend(shards.read(str(tmp_path / "x.tar"), lambda _: True))
    samples = shards.read(str(tmp_path / "x.tar"), lambda _: True)
    assert [next(samples).key, next(samples).key] == ["some/00000", "some/00001"]


@pytest.mark.parametrize("kind", ["", "gz"])
def test_links_within_a_shard_have_content(tmp_path: Path, kind: str) -> None:
    with tarfile.open(tmp_path / "x.tar", f"w:{kind}") as tar:  # type: ignore[call-overload]
        tar.add(tmp_path, "images.v1")
        for at in range(50):
            add(tar, f"images.v1/{at:02d}.jpg", bytes([at]) * 2000)
        for at in range(50):
            link = tarfile.TarInfo(f"copy/{at:02d}.jpg")
            link.type, link.linkname = (
                (tarfile.LNKTYPE, f"images.v1/{at:02d}.jpg")
                if at % 2
                else (tarfile.SYMTYPE, f"../images.v1/{at:02d}.jpg")
            )
            tar.addfile(link)
            add(tar, f"copy/{at:02d}.txt", b"a copy")
        link = tarfile.TarInfo("latest.v1")
        link.type, link.linkname = tarfile.SYMTYPE, "images.v1"
        tar.addfile(link)
    found = {sample.key: sample for sample in shards.read(str(tmp_path / "x.tar"), lambda _: True)}
    assert len(found) == 100
    for at in range(50):
        assert found[f"copy/{at:02d}"].files == {"jpg": bytes([at]) * 2000, "txt": b"a copy"}
        assert found[f"copy/{at:02d}"].fault is None


def test_a_link_out_of_a_shard_fails_or_is_reported(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        link = tarfile.TarInfo("a.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/data/a.jpg"
        tar.addfile(link)
        add(tar, "a.txt", b"caption")
        add(tar, "b.jpg", b"b")
    with pytest.raises(ShardError, match=r"sample 'a': sample: jpg is a link to /data/a.jpg.*--dereference"):
        rows(tmp_path / "x.tar", "__key__ jpg")
    first, second = rows(tmp_path / "x.tar", "__key__ jpg txt __error__", onDamage="report")
    assert first == {
        "__key__": "a", "jpg": None, "txt": "caption",
        "__error__": "sample: jpg is a link to /data/a.jpg, which the archive does not hold",
    }  # fmt: skip
    assert second == {"__key__": "b", "jpg": b"b", "txt": None, "__error__": None}
    # A read without the column jpg does not need the link.
    assert len(rows(tmp_path / "x.tar", "__key__ txt")) == 2


def test_samples_in_parts_fail_or_are_reported_with_the_path_that_joins_them(tmp_path: Path) -> None:
    in_order(tmp_path / "x.tar", "a.jpg", "b.jpg", "b.jpg", "c.jpg", "c.txt", "a.txt", "b.txt", "a.json", "c.jpg")
    with pytest.raises(ShardError, match=r"sample 'a': .*apart in the shard, jpg before txt\. .*--sort=name"):
        rows(tmp_path / "x.tar", "__key__ jpg")
    found = rows(tmp_path / "x.tar", "__path__ jpg txt json __error__", onDamage="report")
    url = tmp_path / "x.tar"
    apart = "sample: its files are apart in the shard, "
    assert [(str(row["__path__"]).removeprefix(f"{url}#"), row["__error__"]) for row in found] == [
        ("a", None), ("b", None), ("b#2", None), ("c", None), ("a", f"{apart}jpg before txt"),
        ("b#2", f"{apart}jpg before txt"), ("a", f"{apart}jpg, txt before json"),
        ("c#2", f"{apart}jpg, txt before jpg"),
    ]  # fmt: skip
    # No file is lost: all nine have a row.
    files = [row[name] for row in found for name in ("jpg", "txt", "json") if row[name] is not None]
    assert len(files) == 9


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("0.jpg 1.jpg 0.txt 0.jpg", {"0": None, "1": None, "0#2": "jpg before txt, jpg"}),
        ("0.jpg 0.txt 1.jpg 0.txt", {"0": None, "1": None, "0#2": "jpg, txt before txt"}),
        # The same extensions again, in any order, are the key's second sample. A file that follows at once is one too.
        ("0.jpg 0.txt 1.jpg 0.txt 0.jpg", {"0": None, "1": None, "0#2": None}),
        ("0.jpg 0.txt 0.jpg 1.jpg 1.txt", {"0": None, "0#2": None, "1": None}),
    ],
)
def test_samples_in_parts_that_overlap_are_told(tmp_path: Path, names: str, expected: dict[str, str | None]) -> None:
    in_order(tmp_path / "x.tar", *names.split())
    found = rows(tmp_path / "x.tar", "__path__ jpg txt __error__", onDamage="report")
    told = {str(row["__path__"]).partition("x.tar#")[2]: row["__error__"] for row in found}
    assert told == {path: None if parts is None else f"{shards.APART}, {parts}" for path, parts in expected.items()}
    assert sum(row[name] is not None for row in found for name in ("jpg", "txt")) == len(names.split())


def test_many_samples_in_parts_take_little_memory(tmp_path: Path) -> None:
    block = tarfile.TarInfo("0000000.jpg")
    block.size = 1
    content = b"x" + bytes(511)
    with (tmp_path / "x.tar").open("wb") as file:
        for extension in ("jpg", "txt"):
            for at in range(10_000):
                block.name = f"{at:07d}.{extension}"
                file.write(block.tobuf() + content)
        file.write(bytes(1024))
    tracemalloc.start()
    faults = sum(sample.fault is not None for sample in shards.read(str(tmp_path / "x.tar"), lambda _: True))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert faults == 10_000
    assert peak < 5 << 20


def test_paths_are_first_what_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    names = [
        "{a,b}.tar",
        "x::y.tar",
        "a\\b.tar",
        "~c.tar",
        "q?.tar",
        "s*[t].tar",
        "{0..1}/z.tar",
        "w[0]/z.tar",
        "m::n/z.tar",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        make_shard(tmp_path / name, 1)
    # The names would match these files if they were patterns.
    for name in ("a.tar", "b.tar", "qq.tar", "0/z.tar", "1/z.tar", "w0/z.tar", "home/h.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        make_shard(tmp_path / name, 1)
    for name in names:
        assert shards.find(f"{tmp_path}/{name}") == [f"{tmp_path}/{name}"]
        assert [sample.key for sample in shards.read(f"{tmp_path}/{name}", lambda _: True)] == ["some/00000"]
    # A folder may have such a name, and a pattern may follow it.
    for name in ("{0..1}", "w[0]", "m::n"):
        assert shards.find(f"{tmp_path}/{name}") == [f"{tmp_path}/{name}/z.tar"]
        assert shards.find(f"{tmp_path}/{name}/*.tar") == [f"{tmp_path}/{name}/z.tar"]
    assert shards.find("~/h.tar") == [f"{tmp_path}/home/h.tar"] == shards.find("~/*.tar")
    monkeypatch.chdir(tmp_path)
    assert shards.find("~c.tar") == [f"{tmp_path}/~c.tar"]
    # If no file or folder has that name, the name is a pattern.
    assert shards.find(f"{tmp_path}/{{a,qq}}.tar") == [f"{tmp_path}/a.tar", f"{tmp_path}/qq.tar"]
    assert len(shards.find(f"{tmp_path}/q*.tar")) == 2


def test_paths_in_a_list_are_all_read(tmp_path: Path) -> None:
    for at in range(4):
        make_shard(tmp_path / f"{at}.tar", 1)
    listed = shards.find(f"{tmp_path}/3.tar::{tmp_path}/{{0..1}}.tar::{tmp_path}/2.*")
    assert listed == [f"{tmp_path}/{at}.tar" for at in (3, 0, 1, 2)]
    with pytest.raises(TableError, match=r"expected the shard .*/9.tar, found nothing"):
        shards.find(f"{tmp_path}/1.tar::{tmp_path}/9.tar")
    assert shards.find(f"file://{tmp_path}/3.tar::file://{tmp_path}/1.tar") == [f"{tmp_path}/{at}.tar" for at in (3, 1)]
    # fsspec would chain these addresses.
    with pytest.raises(TableError, match=r"expected the shard simplecache, found nothing"):
        shards.find(f"simplecache::file://{tmp_path}/1.tar")
    with pytest.raises(TableError, match="found several that fsspec would chain"):
        shards.locate("memory://a::memory://b")
    with pytest.raises(TableError, match="Unbalanced braces"):
        shards.find(f"{tmp_path}/{{0,1.tar")


def test_a_folder_tells_which_of_its_shards_it_passes_over(tmp_path: Path) -> None:
    for name in ("0.tar", "1.TAR", "2.tar.gz", "3.tgz", "4.tar.zst"):
        make_shard(tmp_path / name, 1)
    (tmp_path / "0.parquet").touch()
    (tmp_path / "5.tar").mkdir()
    found = places.look(str(tmp_path))
    assert [url for url, _ in found.shards] == [f"{tmp_path}/0.tar"]
    assert found.passed_over == [f"{tmp_path}/{name}" for name in ("1.TAR", "2.tar.gz", "3.tgz", "4.tar.zst")]
    (tmp_path / "0.tar").unlink()
    with pytest.raises(TableError, match=r"found none, and 4 with other extensions \(.*1.TAR, …\)"):
        places.look(str(tmp_path))


@pytest.mark.parametrize(
    ("place", "found"),
    [
        ("http://127.0.0.1:9/{0..1}.tar", "ConnectionError"),
        ("http://127.0.0.1:9/", "ConnectionError"),
        ("nosuch://bucket/a.tar", "Protocol not known: nosuch"),
        ("ftp://127.0.0.1:9/a.tar", "ConnectionRefusedError"),
    ],
)
def test_a_place_that_cannot_be_reached_is_one_line(place: str, found: str) -> None:
    with pytest.raises(TableError, match=found) as caught:
        shards.find(place)
    assert "\n" not in str(caught.value)
