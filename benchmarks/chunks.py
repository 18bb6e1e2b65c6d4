"""Measure the cost of chunks: compare a run of 20 chunks with one plain write of the same rows.

    python benchmarks/chunks.py [--rows 20000] [--chunks 20] [--repeats 3]

It also measures a run that finds 100 new rows, in a table of 10 files and in one of 1,000. All runs take turns in one
session, and ratios are taken within a round. The weights are seeded and untrained; the images are small noise.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter

from pyspark.sql import DataFrame, SparkSession

import spark_aesthetic as sa
from spark_aesthetic.testing import noise_image, small_predictor


def main() -> None:
    """Measure both comparisons and print their lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--chunks", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    spark = session()
    work = Path(tempfile.mkdtemp(prefix="spark-aesthetic-chunks-"))
    try:
        chunking(spark, work, args.rows, args.chunks, args.repeats)
        growing(spark, work, args.repeats)
    finally:
        shutil.rmtree(work)


def session() -> SparkSession:
    """Make a session on two cores with the settings of conf/local.conf."""
    os.environ["PYSPARK_PYTHON"] = sys.executable
    builder = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
    for line in (Path(__file__).parents[1] / "conf" / "local.conf").read_text().splitlines():
        if line.startswith("spark.") and not line.startswith("spark.master"):
            builder = builder.config(*line.split(maxsplit=1))
    spark = builder.config("spark.ui.showConsoleProgress", "false").getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    return spark


def chunking(spark: SparkSession, work: Path, rows: int, chunks: int, repeats: int) -> None:
    """Compare a run over all rows in chunks with one write of them."""
    predictor = small_predictor()

    def make(rows: int, chunks: int) -> str:
        source = str(work / f"source-{rows}")
        images = [(at, bytearray(noise_image(at))) for at in range(rows)]
        frame = spark.createDataFrame(images, "id bigint, image binary")
        # Two equal files per chunk keep both cores busy, so the times contain no wait for a longer file.
        frame.repartition(2 * chunks).write.format("delta").save(source)
        return source

    numbers = iter(range(1_000_000))

    def chunked(source: str, rows: int, chunks: int) -> None:
        done = sa.score_table(
            spark, source=source, key=["id"], image_col="image", scores=str(work / f"chunked-{next(numbers)}"),
            predictor=predictor, max_files_per_chunk=2,
        )  # fmt: skip
        assert (done.scored, done.chunks) == (rows, chunks), done

    def plain(source: str) -> None:
        struct = sa.score_image("image", predictor=predictor).alias("s")
        scored = spark.read.format("delta").load(source).select("id", struct)
        scored.select("id", "s.*").write.format("delta").save(str(work / f"plain-{next(numbers)}"))

    # The first runs load torch in the driver, the model in the workers and Spark's streaming, so they are not timed.
    warm, source = make(20 * chunks, chunks), make(rows, chunks)
    plain(warm)
    chunked(warm, 20 * chunks, chunks)
    seconds = in_turn(
        {"plain write": lambda: plain(source), f"{chunks} chunks": lambda: chunked(source, rows, chunks)}, repeats
    )
    report(f"{rows} rows", seconds)


def growing(spark: SparkSession, work: Path, repeats: int) -> None:
    """Compare runs that find 100 new embeddings, in tables of 10 and of 1,000 files with 20 rows each."""

    def some(start: int, count: int) -> DataFrame:
        numbers = "transform(sequence(0, 767), at -> CAST(sin(id * 768 + at) AS FLOAT)) AS e"
        return spark.range(start, start + count).selectExpr("id", numbers)

    runs: dict[str, Callable[[], None]] = {}
    for files in (10, 1000):
        source, scores = str(work / f"files-{files}"), str(work / f"scores-{files}")
        some(0, 20 * files).repartition(files).write.format("delta").save(source)
        at = iter(range(20 * files, 10_000_000, 100))

        def run(source: str = source, scores: str = scores) -> None:
            sa.score_table(spark, source=source, key=["id"], embedding_col="e", scores=scores)

        def more(source: str = source, run: Callable[[], None] = run, at: iter[int] = at) -> float:  # type: ignore[valid-type]
            some(next(at), 100).coalesce(1).write.format("delta").mode("append").save(source)
            started = perf_counter()
            run()
            return perf_counter() - started

        run()
        runs[f"{files} files"] = more
    for _ in range(4):
        for run in runs.values():
            run()
    report("100 new rows", in_turn(runs, 3 * repeats))


def in_turn(runs: dict[str, Callable[[], float | None]], repeats: int) -> dict[str, list[float]]:
    """Return the seconds of each run; in each round, all runs follow one after the other."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            started = perf_counter()
            own = run()
            seconds[name].append(perf_counter() - started if own is None else own)
            print(f"{name}: {seconds[name][-1]:.2f} s", file=sys.stderr, flush=True)
    return seconds


def report(what: str, seconds: dict[str, list[float]]) -> None:
    """Print minimum, median and maximum of the seconds, and of each round's ratio of the second run to the first."""
    first, second = seconds
    for name, values in seconds.items():
        print(f"{what}, {name}: {min(values):.2f}, {median(values):.2f}, {max(values):.2f} s")
    ratios = [b / a for a, b in zip(seconds[first], seconds[second], strict=True)]
    print(f"{what}, {second} / {first}: {min(ratios):.3f}, {median(ratios):.3f}, {max(ratios):.3f}", flush=True)


if __name__ == "__main__":
    main()
