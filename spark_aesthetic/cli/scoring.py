"""The jobs of scoring: the entry points of spark-submit and of wheel tasks."""

from __future__ import annotations

import argparse

from spark_aesthetic.cli.arguments import SIZE, TABLE, UNCHECKED, Parser, taken_by
from spark_aesthetic.cli.submit import Stderr, exit_with, session, stop_on_sigterm
from spark_aesthetic.delta.naming import name_parts, path_of
from spark_aesthetic.options import Options
from spark_aesthetic.scoring.jobs import score_table as _score_table
from spark_aesthetic.scoring.rescore import rescore_from_embeddings as _rescore
from spark_aesthetic.scoring.summary import Summary


def score_table() -> None:
    """Score the rows of a Delta table that have no score yet; see its --help."""
    exit_with("score_table", score_once)


def score_stream() -> None:
    """Score new rows of a Delta table as they arrive, until SIGTERM; see its --help."""
    exit_with("score_stream", score_on_and_on)


def score_table_arguments() -> argparse.Namespace:
    """Parse the command line.

    Raises:
        OptionError: An option is missing, unknown or invalid.
    """
    arguments = Parser(prog="score_table", description="Add aesthetic scores to a Delta table.")
    arguments.take(
        _score_table,
        without=["every"],
        one_of=["image_col", "embedding_col", "rescore_from_embeddings"],
        needs_one=True,
        # --rescore-from-embeddings reads the scores table and no source.
        source=TABLE | {"required": False},
        scores=TABLE,
        max_bytes_per_chunk=SIZE,
        rescore_from_embeddings={
            "action": "store_true",
            "help": "Score the embeddings in the table --scores with a different head, without reading an image.",
        },
    )
    arguments.take(Options, dtype=UNCHECKED)
    args = arguments.parse_args()
    if args.rescore_from_embeddings:
        if args.scores is None:
            arguments.error("--rescore-from-embeddings: expected --scores, the table with the embeddings, found none")
        taken = ("rescore_from_embeddings", *taken_by(_rescore, args))
        ignored = [
            name for name, value in vars(args).items() if name not in taken and value != arguments.get_default(name)
        ]
        if ignored:
            options = ", ".join(f"--{name.replace('_', '-')}" for name in ignored)
            arguments.error(f"{options}: expected none of these with --rescore-from-embeddings, which ignores them")
    if not args.rescore_from_embeddings and args.source is None:
        arguments.error("--source: expected the table with the rows to score, found none")
    return args


def score_once() -> Summary:
    """Run score_table once with the options of the command line."""
    args = score_table_arguments()
    spark = session("score_table")
    if args.rescore_from_embeddings:
        return _rescore(spark, **taken_by(_rescore, args))
    passing = [name for name in (args.scores, args.view) if name is not None and _is_in_session_catalog(name)]
    if passing and spark.conf.get("spark.sql.catalogImplementation") == "in-memory":
        Stderr().write(
            f"score_table: {', '.join(passing)}: a name that ends with this run, because Spark has no metastore. To "
            "keep it, pass --conf spark.sql.catalogImplementation=hive, or name the table by its path\n"
        )
    return _score_table(spark, **taken_by(_score_table, args), **taken_by(Options, args) | {"progress_file": Stderr()})


def _is_in_session_catalog(name: str) -> bool:
    """Whether a name is of Spark's own catalog: no path, and without another catalog before its schema."""
    return path_of(name) is None and len(name_parts(name) or ()) in (1, 2)


def score_stream_arguments() -> argparse.Namespace:
    """Parse the command line.

    Raises:
        OptionError: An option is missing, unknown or invalid.
    """
    arguments = Parser(prog="score_stream", description="Score new rows of a Delta table as they arrive.")
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
    """Run score_stream until SIGTERM, with the options of the command line."""
    args = vars(score_stream_arguments()) | {"progress_file": Stderr()}
    spark = session("score_stream")
    return _score_table(spark, **args, stopping=stop_on_sigterm(spark))
