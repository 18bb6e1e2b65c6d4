"""Measure the cost of fitting a head: compare a fit with a scan of the same embeddings.

    python benchmarks/fit.py [--rows 200000] [--width 768] [--repeats 3]

Both take turns in one session, and the ratio is taken within a round. The embeddings and ratings are seeded noise.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import tempfile
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from chunks import session

import spark_aesthetic as sa


def main() -> None:
    """Measure scan and fit, and print their times and the memory of the driver."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    spark = session()
    work = Path(tempfile.mkdtemp(prefix="spark-aesthetic-fit-"))
    try:
        # A separate process keeps the memory for making the rows out of this one's peak.
        maker = get_context("spawn").Process(target=make, args=(work / "rated", args.rows, args.width))
        maker.start()
        maker.join()
        rated = spark.read.parquet(str(work / "rated"))
        estimator = sa.AestheticEstimator(
            path=str(work / "heads"), backbone="ViT-B-32", backboneWeights="none.safetensors", backboneSha256="0" * 64
        )
        before = peak_mib()
        rounds = []
        for _ in range(args.repeats):
            start = perf_counter()
            rated.selectExpr("sum(clip_embedding[0] + rating)").collect()
            scanned = perf_counter()
            report = estimator.fit(rated).report
            rounds.append((scanned - start, perf_counter() - scanned))
            print(f"scan {rounds[-1][0]:.1f} s, fit {rounds[-1][1]:.1f} s")
        assert report is not None
        print(f"R2 {report.own.r2:.4f}, penalty {report.reg_param:g}")
        print(
            f"median: fit {median(fit for _, fit in rounds):.1f} s, {median(f / s for s, f in rounds):.1f} times a scan"
        )
        print(f"the driver's Python grew by {peak_mib() - before} MiB")
    finally:
        shutil.rmtree(work)


def make(folder: Path, rows: int, width: int) -> None:
    """Write eight files with embeddings that are not centred and ratings that are half noise."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    weight = draw.standard_normal(width)
    for file in range(8):
        embeddings = (draw.standard_normal((rows // 8, width)) + 0.5).astype(np.float32)
        unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
        ratings = 5 + unit @ weight + draw.standard_normal(rows // 8)
        arrays = pa.FixedSizeListArray.from_arrays(unit.ravel(), width).cast(pa.list_(pa.float32()))
        table = pa.table({"clip_embedding": arrays, "rating": ratings})
        pq.write_table(table, folder / f"{file}.parquet", use_dictionary=False)


def peak_mib() -> int:
    """Return the peak resident memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main()
