"""The steps of `make demo` around jobs/score_table.py: make the tables before it, query and show the scores after."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

from pyspark.sql import DataFrame, SparkSession

from spark_aesthetic import DEFAULT, resolve
from spark_aesthetic.errors import WeightsError
from spark_aesthetic.pages.gallery import ScoredEmbedding, ScoredImage, gallery
from spark_aesthetic.predictors import weights
from spark_aesthetic.testing import photographs, published_embeddings

log = logging.getLogger("demo")


def choose_predictor() -> None:
    """Print the name of the published predictor, or of one with random weights if CLIP's weights are unavailable."""
    try:
        weights.backbone_file(resolve(DEFAULT))
    except WeightsError as error:
        log.warning("CLIP's weights are not available: %s", error)
        log.warning(
            "the photographs are scored with seeded RANDOM weights (untrained-vit-b-32), so their scores mean nothing"
        )
        print("untrained-vit-b-32")
    else:
        print(DEFAULT)


def write_tables(spark: SparkSession, out: Path) -> None:
    """Write the photographs and the published embeddings as tables, which the examples of README and docs read too."""
    files: dict[str, bytes | None] = dict(photographs())
    # Real tables contain damaged and missing images, so add one of each.
    files |= {"china_cut_off.jpg": photographs()["china.jpg"][:60_000], "missing.jpg": None}
    images = [(name, None if data is None else bytearray(data)) for name, data in files.items()]
    images_frame = spark.createDataFrame(images, "name string, image binary")
    images_frame.write.format("delta").mode("overwrite").save(str(out / "photographs"))
    embeddings = [(f"rating{at}", row.astype(float).tolist()) for at, row in enumerate(published_embeddings())]
    embeddings_frame = spark.createDataFrame(embeddings, "name string, embedding array<float>")
    # An earlier demo may have left score columns in the table, so replace the schema too.
    writer = embeddings_frame.write.format("delta").mode("overwrite").option("overwriteSchema", "true")
    writer.save(str(out / "embeddings"))
    log.info("wrote %d photographs and %d embeddings as Delta tables to %s", len(images), len(embeddings), out)


def query(spark: SparkSession, sql: str) -> DataFrame:
    print(f"\nspark-sql> {sql}")
    frame = spark.sql(sql)
    frame.show(20, truncate=False)
    return frame


def write_page(spark: SparkSession, out: Path) -> None:
    scored = query(
        spark,
        "SELECT name, round(aesthetic_score, 3) AS aesthetic_score, aesthetic_model "
        f"FROM delta.`{out}/embeddings` ORDER BY name",
    ).collect()
    query(
        spark,
        "SELECT p.name, round(s.aesthetic_score, 3) AS aesthetic_score, s.aesthetic_error, s.aesthetic_model "
        f"FROM delta.`{out}/photographs` p JOIN delta.`{out}/photograph_scores` s ON p.name = s.name "
        "ORDER BY s.aesthetic_score DESC NULLS LAST",
    )
    rows = spark.sql(
        f"SELECT p.name, p.image, s.* EXCEPT (name) FROM delta.`{out}/photographs` p "
        f"JOIN delta.`{out}/photograph_scores` s ON p.name = s.name"
    ).collect()
    page = gallery(
        [
            ScoredImage(
                row.name, None if row.image is None else bytes(row.image), row.aesthetic_score, row.aesthetic_error
            )
            for row in rows
        ],
        rows[0].aesthetic_model,
        [ScoredEmbedding(row.name, row.aesthetic_score) for row in scored],
        scored[0].aesthetic_model,
        title="spark-aesthetic: the demo's photographs",
        subtitle="Scored by jobs/score_table.py with spark-submit, in Delta tables.",
    )
    (out / "index.html").write_text(page, encoding="utf-8")
    log.info("wrote the page %s", out / "index.html")


def main() -> int:
    parser = argparse.ArgumentParser(prog="demo")
    parser.add_argument("step", choices=("predictor", "tables", "page"))
    parser.add_argument("--out", type=Path, default=Path("demo-output"))
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="demo: %(message)s")
    # At the level INFO py4j logs every call.
    logging.getLogger("py4j").setLevel(logging.WARNING)
    if args.step == "predictor":
        choose_predictor()
        return 0
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    spark = SparkSession.builder.appName(f"spark-aesthetic: demo {args.step}").getOrCreate()
    step = write_tables if args.step == "tables" else write_page
    step(spark, args.out.absolute())
    return 0


if __name__ == "__main__":
    sys.exit(main())
