"""Score a Delta table: spark-submit --properties-file conf/local.conf jobs/score_table.py --help.

The last line on stdout is one JSON object. Exit codes: 0 done; 1 failed; 2 something must be put right first,
said in one line on stderr.
"""

from __future__ import annotations

import argparse
import sys

from spark_aesthetic import Summary, rescore_from_embeddings, score_table
from spark_aesthetic.submit import Stderr, key_columns, parser, run, session, shared

NAME = "score_table"


def arguments() -> argparse.Namespace:
    arguments = parser(NAME, "Add aesthetic scores to a Delta table.", scores_required=False)
    arguments.add_argument("--view", metavar="NAME", help="with --scores: a view that joins both")
    arguments.add_argument(
        "--view-model", metavar="MODEL", help="the model that the view shows, or 'all' (default: this run's)"
    )
    arguments.add_argument(
        "--reconcile",
        action="store_true",
        help="compare keys first: score what is missing or changed, drop what is gone",
    )
    arguments.add_argument("--retry-failed", action="store_true", help="also score the rows that failed before")
    arguments.add_argument("--dry-run", action="store_true", help="check everything and count, write nothing")
    args = arguments.parse_args()
    if args.rescore_from_embeddings and args.scores is None:
        arguments.error("--rescore-from-embeddings: expected --scores, the table that has kept them")
    if not args.rescore_from_embeddings and args.source is None:
        arguments.error("--source: expected the table with the rows to score, found none")
    return args


def job() -> Summary:
    args = arguments()
    spark = session(NAME)
    if args.rescore_from_embeddings:
        return rescore_from_embeddings(
            spark,
            scores=args.scores,
            key=key_columns(args.key),
            predictor=args.predictor,
            model_path=args.model_path,
        )
    if args.view and spark.conf.get("spark.sql.catalogImplementation") == "in-memory":
        Stderr().write(
            f"{NAME}: no metastore, so the view {args.view} ends with this run; to keep it, "
            "--conf spark.sql.catalogImplementation=hive\n"
        )
    return score_table(
        spark,
        view=args.view,
        view_model=args.view_model,
        reconcile=args.reconcile,
        retry_failed=args.retry_failed,
        dry_run=args.dry_run,
        **shared(args),
    )


if __name__ == "__main__":
    code = run(NAME, job)
    # Runners that execute a job inside a process of their own can take SystemExit(0) for a failure.
    if code:
        sys.exit(code)
