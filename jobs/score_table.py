"""Score a Delta table: spark-submit --properties-file conf/local.conf jobs/score_table.py --help.

The last line on stdout is one JSON object. Exit codes: 0 done; 1 failed; 2 something must be put right first,
said in one line on stderr.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import traceback
from typing import NoReturn

from pyspark import SparkConf, SparkContext
from pyspark.sql import SparkSession

from spark_aesthetic import AestheticError, score_table
from spark_aesthetic.errors import OptionError
from spark_aesthetic.predictors import DEFAULT


class Parser(argparse.ArgumentParser):
    """Takes a wrong argument for what it is here: something to put right first, said in one line."""

    def error(self, message: str) -> NoReturn:  # noqa: D102
        raise OptionError(f"{message}; see --help")


def arguments() -> argparse.Namespace:
    parser = Parser(prog="score_table", description="Add aesthetic scores to a Delta table.")
    parser.add_argument("--source", required=True, metavar="TABLE_OR_PATH", help="Delta table with the rows to score")
    parser.add_argument("--key", required=True, metavar="COL[,COL]", help="columns that together identify a row")
    column = parser.add_mutually_exclusive_group(required=True)
    column.add_argument("--image-col", metavar="COL", help="column of image bytes")
    column.add_argument("--embedding-col", metavar="COL", help="column of CLIP embeddings")
    parser.add_argument(
        "--scores", metavar="TABLE_OR_PATH", help="narrow Delta table for the scores (default: in place)"
    )
    parser.add_argument("--view", metavar="NAME", help="with --scores: a view that joins both")
    parser.add_argument(
        "--predictor", default=DEFAULT, metavar="NAME", help="name, or JSON file (default: %(default)s)"
    )
    parser.add_argument("--model-path", metavar="PATH", help="folder of the weights files, or the backbone's file")
    parser.add_argument("--with-embedding", action="store_true", help="also keep the CLIP embeddings")
    parser.add_argument(
        "--batch-size", type=int, default=-1, metavar="N", help="rows in a forward pass (default: chosen)"
    )
    parser.add_argument(
        "--num-threads", type=int, default=-1, metavar="N", help="threads a task (default: spark.task.cpus)"
    )
    parser.add_argument(
        "--decode", choices=("exact", "fast"), default="exact", help="as the reference, or DCT-scaled JPEG"
    )
    parser.add_argument("--dry-run", action="store_true", help="check everything and count, write nothing")
    return parser.parse_args()


def session() -> SparkSession:
    conf = SparkConf()
    if conf.get("spark.master", "local[*]").startswith("local"):
        # Else the workers run whatever python3 is on the PATH.
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.appName("spark-aesthetic: score_table")
    if not conf.contains("spark.ui.showConsoleProgress"):
        builder = builder.config("spark.ui.showConsoleProgress", "true")
    return builder.getOrCreate()


def complain(text: str) -> None:
    """Write to stderr. Under spark-submit a Python driver's own stderr is joined to stdout, so the JVM writes."""
    if "PYSPARK_GATEWAY_PORT" in os.environ and SparkContext._jvm is not None:
        SparkContext._jvm.System.err.println(text)
    else:
        print(text, file=sys.stderr)


def main() -> int:
    # Before it, SparkConf knows nothing of what spark-submit was given, and nobody writes to its stderr.
    SparkContext._ensure_initialized()
    # PySpark logs the whole Java stack of an analysis error even where it is caught.
    for logger in ("SQLQueryContextLogger", "DataFrameQueryContextLogger"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    try:
        args = arguments()
        spark = session()
        if args.view and spark.conf.get("spark.sql.catalogImplementation") == "in-memory":
            complain(
                f"score_table: no metastore, so the view {args.view} ends with this run; to keep it, "
                "--conf spark.sql.catalogImplementation=hive"
            )
        summary = score_table(
            spark,
            source=args.source,
            key=[column.strip() for column in args.key.split(",")],
            image_col=args.image_col,
            embedding_col=args.embedding_col,
            scores=args.scores,
            view=args.view,
            predictor=args.predictor,
            with_embedding=args.with_embedding,
            dry_run=args.dry_run,
            batch_size=args.batch_size,
            num_threads=args.num_threads,
            decode=args.decode,
            model_path=args.model_path,
        )
    except AestheticError as error:
        complain(f"score_table: {' '.join(str(error).split())}")
        return 2
    except Exception:
        complain(traceback.format_exc())
        return 1
    print(json.dumps(summary.to_dict()))
    return 0


if __name__ == "__main__":
    code = main()
    # Runners that execute a job inside a process of their own can take SystemExit(0) for a failure.
    if code:
        sys.exit(code)
