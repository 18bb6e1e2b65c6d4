"""Measure the cost of choosing a score threshold: calibrate ten million scores on two cores.

    python benchmarks/calibration.py [--rows 10000000] [--repeats 3]

For comparison, each round also runs Spark's percentile_approx with count, min, max and mean on the same Delta table.
The scores are synthetic: a normal distribution with mean 5 and standard deviation 1.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

from chunks import session
from pyspark.sql import functions as F

import spark_aesthetic as sa


def main() -> None:
    """Measure each run and print a line for it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    spark = session()
    work = Path(tempfile.mkdtemp(prefix="spark-aesthetic-calibration-"))
    try:
        path = str(work / "scores")
        spark.range(0, args.rows, 1, 8).selectExpr(
            "uuid() AS id",
            "CAST(5 + randn(0) AS FLOAT) AS aesthetic_score",
            "IF(id % 1000 = 0, 'decode: truncated JPEG', NULL) AS aesthetic_error",
            "'laion-aesthetics-v2@875870216cca' AS aesthetic_model",
            "concat('source-', id % 20) AS source",
        ).withColumn("aesthetic_score", F.expr("IF(aesthetic_error IS NULL, aesthetic_score, NULL)")).write.format(
            "delta"
        ).save(path)
        scores = spark.read.format("delta").load(path)
        labels = (
            scores.where("aesthetic_score BETWEEN 5.5 AND 7")
            .limit(2000)
            .selectExpr("id", "IF(aesthetic_score + randn(1) > 6, 'keep', 'drop') AS label")
            .toPandas()
        )
        marked = spark.createDataFrame(labels)
        shares = [at / 100 for at in range(1, 100)]
        score = F.col("aesthetic_score")
        peer = (F.percentile_approx(score, shares), F.count(score), F.min(score), F.max(score), F.mean(score))
        runs = {
            "calibrate(keep=0.1)": lambda: sa.calibrate(scores, keep=0.1),
            "calibrate(keep=0.1, by=source), 20 sources": lambda: sa.calibrate(scores, keep=0.1, by="source"),
            "calibrate(precision=0.8), 2,000 labels": lambda: sa.calibrate(scores, marked, precision=0.8, key="id"),
            "describe_scores": lambda: sa.describe_scores(scores).collect(),
            "score_drift of two such tables": lambda: sa.score_drift(scores, scores),
            "curate(top_k=100000), counted": lambda: sa.curate(scores, top_k=100_000, key="id").count(),
            "percentile_approx": lambda: scores.select(*peer).collect(),
            "percentile_approx, accuracy 100000": lambda: scores.select(
                F.percentile_approx(score, shares, 100_000), *peer[1:]
            ).collect(),
        }
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(args.repeats):
            for name, run in runs.items():
                started = perf_counter()
                run()
                seconds[name].append(perf_counter() - started)
                print(f"{name}: {seconds[name][-1]:.2f} s", file=sys.stderr, flush=True)
        for name, values in seconds.items():
            print(f"{args.rows} rows, {name}: first {values[0]:.2f}, median {median(values):.2f} s", flush=True)
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
