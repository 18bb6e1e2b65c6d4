"""Measure the fixed cost of a run that finds nothing new or ten new rows, compared with a bare Delta copy.

    python benchmarks/fixed.py [--repeats 5] [--rows 11]

Every measurement is the first work of a new JVM with the settings of conf/local.conf. Its time begins when the session
is ready. The bare copy reads a Delta table of embeddings and writes it to a new Delta table. All measurements take
turns, and ratios are taken within a round. For a run that finds nothing new, the data files of the source are removed
first, so it cannot read them. A last line has the times of 50 such runs in one warm session.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

from chunks import session
from pyspark.sql import SparkSession

import spark_aesthetic as sa
from spark_aesthetic.testing import published_embeddings

CASES = ("bare copy", "nothing new", "ten new rows")


def main() -> None:
    """Measure all cases in turn, and print a line for each and one for each ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", type=int, default=11)
    parser.add_argument("--case", choices=[*CASES, "source", "warm"], help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case is not None:
        print(json.dumps(measured(args.case, args.work, args.rows)))
        return
    work = Path(tempfile.mkdtemp(prefix="spark-aesthetic-fixed-"))
    try:
        child("source", work, args.rows)
        found: dict[str, list[dict[str, float]]] = {case: [] for case in CASES}
        for _ in range(args.repeats):
            for case in CASES:
                found[case].append(child(case, work, args.rows))
                print(f"{case}: {found[case][-1]}", file=sys.stderr, flush=True)
        for case, values in found.items():
            seconds = [value["seconds"] for value in values]
            counts = f"{values[-1]['jobs']:.0f} Spark jobs, {values[-1]['commits']:.0f} commits"
            print(f"{case}: {min(seconds):.1f}, {median(seconds):.1f}, {max(seconds):.1f} s; {counts}")
        for case in CASES[1:]:
            pairs = zip(found[case], found[CASES[0]], strict=True)
            ratios = [value["seconds"] / bare["seconds"] for value, bare in pairs]
            print(f"{case} / bare copy: {min(ratios):.2f}, {median(ratios):.2f}, {max(ratios):.2f}")
        print(f"nothing new in one session: {child('warm', work, args.rows)}")
    finally:
        shutil.rmtree(work)


def child(case: str, work: Path, rows: int) -> dict[str, float]:
    """Measure a case in a new process."""
    command = [sys.executable, __file__, "--case", case, "--work", str(work), "--rows", str(rows)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def add(spark: SparkSession, table: str, first: int, count: int) -> None:
    """Append rows of published embeddings."""
    embeddings = published_embeddings().astype(float).tolist()
    rows = [(at, embeddings[at % 10]) for at in range(first, first + count)]
    frame = spark.createDataFrame(rows, "id bigint, e array<float>").coalesce(1)
    frame.write.format("delta").mode("append").save(table)


def score(spark: SparkSession, folder: Path) -> sa.Summary:
    """Score the source of a folder into a scores table beside it."""
    return sa.score_table(spark, source=f"{folder}/source", key=["id"], embedding_col="e", scores=f"{folder}/scores")


def measured(case: str, work: Path, rows: int) -> dict[str, float]:
    """Make the tables of a case, or measure it on a copy of them."""
    # Always at the same path, because a scores table also knows its source by the place.
    folder = work / "tables"
    spark = session()
    if case == "source":
        add(spark, f"{folder}/source", 0, rows)
        score(spark, folder)
        shutil.copytree(folder, work / "all scored")
        add(spark, f"{folder}/source", rows, 10)
        shutil.copytree(folder, work / "ten new rows")
        return {}
    shutil.rmtree(folder)
    shutil.copytree(work / ("ten new rows" if case == "ten new rows" else "all scored"), folder)
    if case in ("nothing new", "warm"):
        for file in Path(folder, "source").glob("*.parquet"):
            file.unlink()
    jobs, commits = _jobs(spark), _commits(folder)
    if case == "warm":
        times = []
        for _ in range(60):
            started = perf_counter()
            score(spark, folder)
            times.append(perf_counter() - started)
        return {"first 10 of 50": round(median(times[10:20]), 2), "last 10 of 50": round(median(times[-10:]), 2)}
    started = perf_counter()
    if case == "bare copy":
        spark.read.format("delta").load(f"{folder}/source").write.format("delta").save(f"{folder}/bare")
    else:
        done = score(spark, folder)
        assert done.scored == (10 if case == "ten new rows" else 0), done
    seconds = perf_counter() - started
    return {"seconds": round(seconds, 2), "jobs": _jobs(spark) - jobs, "commits": _commits(folder) - commits}


def _jobs(spark: SparkSession) -> int:
    return int(spark._jsc.sc().dagScheduler().numTotalJobs())


def _commits(folder: Path) -> int:
    return len(list(Path(folder, "scores", "_delta_log").glob("*.json")))


if __name__ == "__main__":
    main()
