"""On a full disk, the error is one line with the remedy. With more room, the next run completes the work."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import own_session
from pyspark.sql import SparkSession

import spark_aesthetic as sa
from spark_aesthetic.delta.java import full_disk_explained
from spark_aesthetic.errors import ResourceError
from spark_aesthetic.testing import PUBLISHED_SCORES, noise_image, published_embeddings

pytestmark = [pytest.mark.usefixtures("interpreted"), own_session]

LINE = r"^expected room on disk .* found: .*No space left on device.*\. Make room and run again; .*$"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Return a function that mounts a file system of a given size, or resizes it."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def sized(size: str) -> Path:
        again = ["-o", f"remount,size={size}"] if folder.is_mount() else ["-t", "tmpfs", "-o", f"size={size}", "tmpfs"]
        if subprocess.run(["mount", *again, str(folder)], capture_output=True, check=False).returncode != 0:
            pytest.skip("a small file system cannot be mounted here: that needs root")
        return folder

    yield sized
    if folder.is_mount():
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("full", [pytest.param("scores", marks=pytest.mark.long), "checkpoint"])
def test_scores_that_found_no_room_are_ended_by_the_next_run(
    spark: SparkSession, tmp_path: Path, disk: Callable[[str], Path], full: str
) -> None:
    source = str(tmp_path / "source")
    rows = [(at, row.astype(float).tolist()) for at, row in enumerate(published_embeddings())]
    spark.createDataFrame(rows, "id int, e array<float>").repartition(5).write.format("delta").save(source)
    # The room is enough for the first chunk, not for the last.
    folders = {name: str(tmp_path / name) for name in ("scores", "checkpoint")}
    folders[full] = str(disk("48k") / full)
    given = {"source": source, "key": "id", "embedding_col": "e", "max_files_per_chunk": 1, **folders}
    with pytest.raises(ResourceError, match=LINE):
        sa.score_table(spark, **given)
    disk("8m")
    sa.score_table(spark, **given)
    found = spark.read.format("delta").load(folders["scores"]).orderBy("id").collect()
    assert [row.id for row in found] == list(range(10))
    assert [row.aesthetic_score for row in found] == pytest.approx(list(PUBLISHED_SCORES), abs=1e-3)


@pytest.mark.long
def test_images_that_found_no_room_are_taken_in_by_the_next_run(
    spark: SparkSession, tmp_path: Path, disk: Callable[[str], Path]
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for at in range(6):
        (folder / f"{at}.png").write_bytes(noise_image(at, width=120, height=120, file_format="PNG"))
    table = str(disk("200k") / "table")
    with pytest.raises(ResourceError, match=LINE):
        sa.ingest_images(spark, str(folder), table, max_files_per_chunk=2)
    disk("8m")
    sa.ingest_images(spark, str(folder), table, max_files_per_chunk=2)
    found = {Path(row.path).name: bytes(row.image) for row in spark.read.format("delta").load(table).collect()}
    assert found == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert spark.read.format("delta").load(table).count() == 6


@pytest.mark.parametrize(
    ("message", "named"),
    [
        ("[Errno 122] Disk quota exceeded: '/scratch/part-0'", "[Errno 122] Disk quota exceeded: '/scratch/part-0'"),
        ("Job aborted.\n\tat org.apache\njava.io.IOException: File too large\n\tat java.base", "File too large"),
        (
            "org.apache.hadoop.hdfs.protocol.DSQuotaExceededException: The DiskSpace quota of /x is exceeded",
            "The DiskSpace quota of /x is exceeded",
        ),
    ],
)
def test_the_line_that_names_the_lack_of_room_is_shown(message: str, named: str) -> None:
    with pytest.raises(ResourceError) as told, full_disk_explained():
        raise RuntimeError(message)
    assert f"found: {named}. Make room" in str(told.value)
    assert "\n" not in str(told.value)


def test_other_errors_stay_as_they_are() -> None:
    with pytest.raises(RuntimeError, match="space suit") as told, full_disk_explained():
        raise RuntimeError("no space suit")
    assert not isinstance(told.value, ResourceError)
