"""The jobs, as spark-submit and wheel tasks run them: arguments to a call of the package to an exit code."""

from __future__ import annotations

import argparse

from spark_aesthetic.cli.arguments import key_columns
from spark_aesthetic.cli.submit import Stderr, exit_with, parser, session, shared, stop_on_sigterm
from spark_aesthetic.scoring.jobs import Summary
from spark_aesthetic.scoring.jobs import rescore_from_embeddings as _rescore
from spark_aesthetic.scoring.jobs import score_table as _score_table


def score_table() -> None:
    """Score the rows of a Delta table that have no score yet; see its --help."""
    exit_with("score_table", score_once)


def score_stream() -> None:
    """Score rows of a Delta table as they come, until SIGTERM; see its --help."""
    exit_with("score_stream", score_on_and_on)


def score_table_arguments() -> argparse.Namespace:
    """Those of the command line.

    Raises:
        OptionError: They are not what the job takes.
    """
    arguments = parser("score_table", "Add aesthetic scores to a Delta table.", scores_required=False)
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
    if args.rescore_from_embeddings:
        if args.scores is None:
            arguments.error("--rescore-from-embeddings: expected --scores, the table that has kept them")
        taken = ("rescore_from_embeddings", "scores", "key", "predictor", "model_path")
        ignored = [
            name for name, value in vars(args).items() if name not in taken and value != arguments.get_default(name)
        ]
        if ignored:
            options = ", ".join(f"--{name.replace('_', '-')}" for name in ignored)
            arguments.error(
                f"{options}: expected none of them with --rescore-from-embeddings, which takes no notice of it"
            )
    if not args.rescore_from_embeddings and args.source is None:
        arguments.error("--source: expected the table with the rows to score, found none")
    return args


def score_once() -> Summary:
    """Do what the command line of score_table says."""
    args = score_table_arguments()
    spark = session("score_table")
    if args.rescore_from_embeddings:
        return _rescore(
            spark,
            scores=args.scores,
            key=key_columns(args.key),
            predictor=args.predictor,
            model_path=args.model_path,
        )
    if args.view and spark.conf.get("spark.sql.catalogImplementation") == "in-memory":
        Stderr().write(
            f"score_table: no metastore, so the view {args.view} ends with this run; to keep it, "
            "--conf spark.sql.catalogImplementation=hive\n"
        )
    return _score_table(
        spark,
        view=args.view,
        view_model=args.view_model,
        reconcile=args.reconcile,
        retry_failed=args.retry_failed,
        dry_run=args.dry_run,
        **shared(args),
    )


def score_on_and_on() -> Summary:
    """Do what the command line of score_stream says."""
    arguments = parser("score_stream", "Score new rows of a Delta table as they come.", scores_required=True)
    arguments.add_argument(
        "--every", default="1 minute", metavar="INTERVAL", help="how often to look for new rows (default: %(default)s)"
    )
    args = arguments.parse_args()
    spark = session("score_stream")
    return _score_table(spark, every=args.every, stopping=stop_on_sigterm(spark), **shared(args))
