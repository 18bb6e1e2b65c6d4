"""Compare our data source for shards with Python's tarfile, and measure the memory of an export.

    python benchmarks/shards.py [--megabytes 512] [--repeats 3] [--only read]

Reading: one shard, one core (local[1]), from the page cache. Three readers take turns in one process: a loop over
tarfile that reads every file and keeps none, the same loop as the simplest Python data source into Spark's null sink,
and our source into the null sink. The first is the limit of Python, the second that of a Python data source with
tarfile. Writing: one task writes 1 GB of images from a Delta table to one shard, and the peak memory of its
Python worker is measured.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import perf_counter

from pyspark.sql import SparkSession
from pyspark.sql.datasource import DataSource, DataSourceReader, InputPartition

import spark_aesthetic as sa


class Plain(DataSource):
    """The shortest data source that reads a shard with tarfile."""

    @classmethod
    def name(cls) -> str:
        """Return the name for `format`."""
        return "plain_tarfile"

    def schema(self) -> str:
        """Return the schema that our source infers."""
        return "__key__ string, __url__ string, jpg binary, txt string, json string"

    def reader(self, schema: object) -> DataSourceReader:
        """Return the reader of the shard."""
        return PlainReader(self.options["path"])


class PlainReader(DataSourceReader):
    """A reader of one shard."""

    def __init__(self, path: str) -> None:
        self.path = path

    def partitions(self) -> list[InputPartition]:
        """Return one partition, the shard."""
        return [InputPartition(0)]

    def read(self, partition: InputPartition) -> Iterator[tuple[str, str, bytes, str, str]]:
        """Read the samples of the shard."""
        with tarfile.open(self.path) as archive:
            sample: dict[str, bytes] = {}
            for member in archive:
                key, _, extension = member.name.partition(".")
                sample[extension] = archive.extractfile(member).read()  # type: ignore[union-attr]
                if len(sample) == 3:
                    yield key, self.path, sample["jpg"], sample["txt"].decode(), sample["json"].decode()
                    sample = {}


def main() -> None:
    """Measure reading and writing, and print their lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=("read", "write"))
    args = parser.parse_args()
    os.environ["PYSPARK_PYTHON"] = sys.executable
    builder = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false")
    for line in (Path(__file__).parents[1] / "conf" / "local.conf").read_text().splitlines():
        if line.startswith("spark.") and not line.startswith("spark.master"):
            builder = builder.config(*line.split(maxsplit=1))
    spark = builder.getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    spark.dataSource.register(Plain)
    sa.register(spark)
    work = Path(tempfile.mkdtemp(prefix="spark-aesthetic-shards-"))
    try:
        # Write first, because `mark` would also count the plain source's workers, which hold batches of 1,000 images.
        if args.only != "read":
            writing(spark, work)
        if args.only != "write":
            for kilobytes in (10, 30, 100, 1000):
                reading(spark, work / "x.tar", kilobytes, args.megabytes, args.repeats)
    finally:
        shutil.rmtree(work)


def reading(spark: SparkSession, shard: Path, kilobytes: int, megabytes: int, repeats: int) -> None:
    """Compare the readers on images of one size, each with a caption and a JSON file."""
    image = os.urandom(kilobytes * 1000)
    with tarfile.open(shard, "w") as archive:
        for at in range(megabytes * 1000 // kilobytes):
            for extension, content in (("jpg", image), ("txt", b"a caption"), ("json", b'{"width": 512}')):
                entry = tarfile.TarInfo(f"{at:09d}.{extension}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))

    def loop() -> None:
        with tarfile.open(shard) as archive:
            for member in archive:
                archive.extractfile(member).read()  # type: ignore[union-attr]

    def to_null(name: str) -> None:
        spark.read.format(name).load(str(shard)).write.format("noop").mode("overwrite").save()

    runs = {
        "tarfile": loop,
        "tarfile in Spark": lambda: to_null("plain_tarfile"),
        "ours": lambda: to_null("webdataset"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            started = perf_counter()
            run()
            seconds[name].append(perf_counter() - started)
    for name, values in seconds.items():
        # The first round fills the page cache and starts the workers.
        ratios = sorted(one / our for one, our in zip(values[1:], seconds["ours"][1:], strict=True))
        speed = megabytes / median(values[1:])
        print(f"{kilobytes} kB, {name}: {speed:.0f} MB/s; ours is {median(ratios):.2f} times as fast "
              f"({ratios[0]:.2f} to {ratios[-1]:.2f})", flush=True)  # fmt: skip


def writing(spark: SparkSession, work: Path) -> None:
    """Export 10,000 images of 100 kB to one shard, and print the speed and the worker's peak memory."""
    rows = spark.range(0, 10_000, numPartitions=8).selectExpr(
        "id", "CAST(concat(id, repeat(uuid(), 2800)) AS BINARY) AS image", "rand(1) * 10 AS aesthetic_score"
    )
    rows.write.format("delta").save(str(work / "images"))
    started = perf_counter()
    done = sa.export_webdataset(spark, table=str(work / "images"), key_col="id", out=str(work / "out"))
    seconds = perf_counter() - started
    assert (done.rows, done.shards) == (10_000, 1), done
    # Workers stay alive for the next task, so their marks can still be read; the greatest one counts.
    marks = [mark(process) for process in Path("/proc").iterdir() if process.name.isdigit()]
    print(f"export of {done.image_bytes / 1e9:.2f} GB to one shard: {done.image_bytes / seconds / 1e6:.0f} MB/s, "
          f"worker's high-water mark {max(marks) / 1e6:.2f} GB", flush=True)  # fmt: skip


def mark(process: Path) -> int:
    """Return the peak resident memory (VmHWM) of a Python worker of Spark in kB; 0 for any other process."""
    try:
        if b"pyspark.daemon" not in (process / "cmdline").read_bytes():
            return 0
        status = (process / "status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return 0


if __name__ == "__main__":
    main()
