"""The jobs, as spark-submit and wheel tasks run them: arguments to a call of the package to an exit code."""

from __future__ import annotations

import argparse

from spark_aesthetic.cli.arguments import SIZE, TABLE, UNCHECKED, Parser, taken_by
from spark_aesthetic.cli.submit import Stderr, exit_with, session, stop_on_sigterm
from spark_aesthetic.options import Options
from spark_aesthetic.scoring.jobs import score_table as _score_table
from spark_aesthetic.scoring.rescore import rescore_from_embeddings as _rescore
from spark_aesthetic.scoring.summary import Summary


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
    arguments = Parser(prog="score_table", description="Add aesthetic scores to a Delta table.")
    arguments.take(
        _score_table,
        without=["every"],
        one_of=["image_col", "embedding_col", "rescore_from_embeddings"],
        needs_one=True,
        # Scores that are made again from their own embeddings have no other source.
        source=TABLE | {"required": False},
        scores=TABLE,
        max_bytes_per_chunk=SIZE,
        rescore_from_embeddings={
            "action": "store_true",
            "help": "Score the embeddings that --scores has kept with another head, without opening an image.",
        },
    )
    arguments.take(Options, dtype=UNCHECKED)
    args = arguments.parse_args()
    if args.rescore_from_embeddings:
        if args.scores is None:
            arguments.error("--rescore-from-embeddings: expected --scores, the table that has kept them")
        taken = ("rescore_from_embeddings", *taken_by(_rescore, args))
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
        return _rescore(spark, **taken_by(_rescore, args))
    if args.view and spark.conf.get("spark.sql.catalogImplementation") == "in-memory":
        Stderr().write(
            f"score_table: no metastore, so the view {args.view} ends with this run; to keep it, "
            "--conf spark.sql.catalogImplementation=hive\n"
        )
    return _score_table(spark, **taken_by(_score_table, args), **taken_by(Options, args) | {"progress_file": Stderr()})


def score_stream_arguments() -> argparse.Namespace:
    """Those of the command line.

    Raises:
        OptionError: They are not what the job takes.
    """
    arguments = Parser(prog="score_stream", description="Score new rows of a Delta table as they come.")
    arguments.take(
        _score_table,
        without=["view", "view_model", "reconcile", "retry_failed", "dry_run"],
        one_of=["image_col", "embedding_col"],
        needs_one=True,
        source=TABLE,
        scores=TABLE | {"required": True, "help": "Delta table for the scores, by name or by path."},
        max_bytes_per_chunk=SIZE,
        every={"metavar": "INTERVAL", "default": "1 minute", "help": "How often to look for new rows."},
    )
    arguments.take(Options, dtype=UNCHECKED)
    return arguments.parse_args()


def score_on_and_on() -> Summary:
    """Do what the command line of score_stream says."""
    args = vars(score_stream_arguments()) | {"progress_file": Stderr()}
    spark = session("score_stream")
    return _score_table(spark, **args, stopping=stop_on_sigterm(spark))
