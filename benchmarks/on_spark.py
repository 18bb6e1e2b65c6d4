"""Serve the contestants of one Spark session: this package, and the pandas UDFs that people write today."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import peer_model
from peer_model import score
from pyspark.ml.functions import predict_batch_udf
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.functions import pandas_udf
from pyspark.sql.types import FloatType
from serve import serve

import spark_aesthetic as sa


def main(model: str, batch_rows: int, cores: int) -> None:
    """Serve the contestants; `model` is a folder that `inputs.write_model` wrote, with predictor.json added."""
    os.environ["PYSPARK_PYTHON"] = sys.executable
    conf = Path(__file__).parents[1] / "conf" / "local.conf"
    builder = SparkSession.builder.master(f"local[{cores}]").config("spark.ui.enabled", "false")
    for line in conf.read_text().splitlines():
        if line.startswith("spark.") and not line.startswith("spark.master"):
            builder = builder.config(*line.split(maxsplit=1))
    spark = builder.config("spark.ui.showConsoleProgress", "false").getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")

    def rows(data: str) -> DataFrame:
        return spark.read.format("delta").load(data)

    def scored(column: Callable[[], Column], settings: dict[str, str] | None = None) -> Callable[[str, str], None]:
        def run(data: str, out: str) -> None:
            # The batch sizes of conf/local.conf suit this package, which cuts batches itself. Peers need their own.
            for name, value in (settings or {}).items():
                spark.conf.set(name, value)
            rows(data).select("name", column().alias("score")).write.format("delta").save(out)
            for name in settings or {}:
                spark.conf.unset(name)

        return run

    def summed(column: Callable[[], Column]) -> Callable[[str, str], None]:
        def run(data: str, out: str) -> None:
            scores = rows(data).select(column().alias("score"))
            sums = scores.agg(F.sum("score"), F.sum(F.col("score").cast("double") * F.col("score"))).collect()
            Path(out).write_text(json.dumps(list(sums[0])))

        return run

    # Workers load the model once per function, so queries share one function.
    usual, batched = _usual(model, batch_rows), _batched(model, batch_rows)
    usual_embeddings, batched_embeddings = _usual_embeddings(), _batched_embeddings()
    mine = f"{model}/predictor.json"
    # The peers run one forward pass per Arrow batch. With our settings some batches have 13 images and some 3.
    whole = {
        "spark.sql.execution.arrow.maxRecordsPerBatch": str(batch_rows),
        "spark.sql.execution.arrow.maxBytesPerBatch": str(256 << 20),
    }

    def ours(**options: object) -> Callable[[], Column]:
        return lambda: sa.score_image("image", predictor=mine, batch_size=batch_rows, **options).getField("score")

    def convert(data: str, out: str) -> None:
        spark.sql(f"CONVERT TO DELTA parquet.`{data}`")

    serve(
        {
            "convert to Delta": convert,
            "spark-aesthetic": scored(ours()),
            "spark-aesthetic fast": scored(ours(decode="fast")),
            "spark-aesthetic fast bfloat16": scored(ours(decode="fast", dtype="bfloat16")),
            "pandas UDF": scored(lambda: usual("image"), whole),
            "predict_batch_udf": scored(lambda: batched("image"), whole),
            "scan only": summed(lambda: F.element_at("embedding", 768)),
            "spark-aesthetic, normalize=False": summed(
                lambda: sa.aesthetic_score_from_embedding("embedding", normalize=False)
            ),
            "spark-aesthetic, embeddings": summed(lambda: sa.aesthetic_score_from_embedding("embedding")),
            "pandas UDF, embeddings": summed(lambda: usual_embeddings("embedding")),
            "predict_batch_udf, embeddings": summed(lambda: batched_embeddings("embedding")),
        }
    )


def _usual(model: str, batch_rows: int) -> Callable[[str], Column]:
    @pandas_udf(FloatType())
    def usual(batches: Iterator[pd.Series]) -> Iterator[pd.Series]:
        peer_model.load(model)
        for images in batches:
            parts = [images[at : at + batch_rows] for at in range(0, len(images), batch_rows)]
            yield pd.Series(np.concatenate([score(model, list(part)) for part in parts]))

    return usual


def _batched(model: str, batch_rows: int) -> Callable[[str], Column]:
    def make_predict() -> Callable[[np.ndarray], np.ndarray]:
        peer_model.load(model)
        return lambda images: score(model, list(images))

    return predict_batch_udf(make_predict, return_type=FloatType(), batch_size=batch_rows)


def _usual_embeddings() -> Callable[[str], Column]:
    weight, bias = _default_head()

    @pandas_udf(FloatType())
    def usual(batches: Iterator[pd.Series]) -> Iterator[pd.Series]:
        for embeddings in batches:
            rows = np.stack(embeddings)
            rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
            yield pd.Series(rows @ weight + bias)

    return usual


def _batched_embeddings() -> Callable[[str], Column]:
    weight, bias = _default_head()

    def make_predict() -> Callable[[np.ndarray], np.ndarray]:
        return lambda rows: rows / np.linalg.norm(rows, axis=1, keepdims=True) @ weight + bias

    return predict_batch_udf(make_predict, return_type=FloatType(), batch_size=4096, input_tensor_shapes=[[768]])


def _default_head() -> tuple[np.ndarray, float]:
    from spark_aesthetic.predictors import weights

    head = weights.load_head(weights.pin(sa.resolve(sa.DEFAULT)))
    return head.weight, head.bias


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
