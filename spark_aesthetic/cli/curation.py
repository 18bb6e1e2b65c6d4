"""The jobs of curation: the entry points of spark-submit and of wheel tasks."""

from __future__ import annotations

import argparse

from spark_aesthetic import files
from spark_aesthetic.cli.arguments import SIZE, TABLE, UNCHECKED, Parser, columns, taken_by
from spark_aesthetic.cli.submit import Result, Stderr, exit_with, session
from spark_aesthetic.curation.calibration import Calibration
from spark_aesthetic.curation.calibration import calibrate as _calibrate
from spark_aesthetic.curation.export import ExportSummary
from spark_aesthetic.curation.export import export_webdataset as _export_webdataset
from spark_aesthetic.curation.keeping import Kept, read_scores, write_kept
from spark_aesthetic.curation.selection import curate as _curate
from spark_aesthetic.delta.tables import open_source
from spark_aesthetic.ingest.job import IngestSummary
from spark_aesthetic.ingest.job import ingest_images as _ingest_images
from spark_aesthetic.ingest.sources import allowed_for, format_of
from spark_aesthetic.training.estimator import AestheticEstimator
from spark_aesthetic.training.ratings import HeadReport


def train_head() -> None:
    """Fit a head to the ratings of a Delta table; see its --help."""
    exit_with("train_head", train_head_once)


def train_head_arguments() -> argparse.Namespace:
    """Parse the command line.

    Raises:
        OptionError: An option is missing, unknown or invalid.
    """
    arguments = Parser(prog="train_head", description="Fit a head that predicts ratings from CLIP embeddings.")
    arguments.add_argument("--table", required=True, metavar="TABLE_OR_PATH", help="Delta table with the rated images.")
    arguments.take(
        AestheticEstimator,
        without=["outputCol"],
        inputCol={"flags": ["--embedding-col"], "required": True},
        labelCol={"required": True},
        name={"required": True},
        path={
            "flags": ["--out"],
            "required": True,
            "help": "Folder for <name>.json and its head: local, /Volumes, dbfs:/, or an address that fsspec supports.",
        },
    )
    return arguments.parse_args()


def train_head_once() -> HeadReport:
    """Run train_head once with the options of the command line."""
    args = train_head_arguments()
    estimator = AestheticEstimator(
        inputCol=args.embedding_col,
        labelCol=args.label_col,
        name=args.name,
        path=args.out,
        backbone=args.backbone,
        backboneWeights=args.backbone_weights,
        backboneSha256=args.backbone_sha256,
        numFolds=args.num_folds,
        regParams=args.reg_params,
    )
    # `fit` reads the table twice, and `open_source` makes both reads see the same version.
    report = estimator.fit(open_source(session("train_head"), args.table, "--table").rows).report
    assert report is not None, "fit makes a report"
    return report


def calibrate() -> None:
    """Choose the cut of a scores table; see its --help."""
    exit_with("calibrate", calibrate_once)


def curate() -> None:
    """Write the rows at or above a cut; see its --help."""
    exit_with("curate", curate_once)


def calibrate_arguments() -> argparse.Namespace:
    """Parse the command line."""
    arguments = Parser(prog="calibrate", description="Choose the cut of a scores table and print what it keeps.")
    arguments.take(read_scores, scores=TABLE, table=TABLE)
    arguments.take(
        _calibrate,
        without=["by", "key"],
        one_of=["keep", "top_k", "min_score", "precision", "recall"],
        labels={"metavar": "CSV", "help": "Rows marked keep or drop, as the review page writes them."},
        out={"metavar": "JSON", "help": "File to write the calibration to, for jobs/curate.py --calibration."},
    )
    return arguments.parse_args()


def calibrate_once() -> Calibration:
    """Run calibrate once with the options of the command line."""
    args = calibrate_arguments()
    if args.out is not None:
        files.check_file(args.out, "--out", overwrite=True)
    spark = session("calibrate")
    made = _calibrate(read_scores(spark, **taken_by(read_scores, args)), **taken_by(_calibrate, args))
    Stderr().write(f"{made}\n")
    if args.out is not None:
        made.save(args.out)
    return made.without_curves()


def curate_arguments() -> argparse.Namespace:
    """Parse the command line."""
    arguments = Parser(prog="curate", description="Write the rows at or above a cut to a Delta table.")
    arguments.take(
        write_kept,
        one_of=["mode", "overwrite"],
        scores=TABLE,
        out=TABLE,
        table=TABLE,
        overwrite={"action": "store_true", "help": "The same as --mode overwrite."},
    )
    arguments.take(
        _curate,
        without=["by", "key", "score_col"],
        one_of=["calibration", "min_score", "keep", "top_k"],
        needs_one=True,
        calibration={"metavar": "JSON", "help": "File that jobs/calibrate.py wrote. It includes --by and --model."},
    )
    return arguments.parse_args()


def curate_once() -> Kept:
    """Run curate once with the options of the command line."""
    args = curate_arguments()
    spark = session("curate")
    own = {
        "calibration": None if args.calibration is None else Calibration.load(args.calibration),
        "wanted": {"min_score": args.min_score, "keep": args.keep, "top_k": args.top_k},
        "mode": "overwrite" if args.overwrite else args.mode,
    }
    return write_kept(spark, **taken_by(write_kept, args) | own)


def review() -> None:
    """Write a page on which people look at scored images, move the cut and label images; see its --help."""
    exit_with("review", review_once)


def review_arguments() -> argparse.Namespace:
    """Parse the command line.

    Raises:
        OptionError: An option is missing, unknown or invalid.
    """
    # The import is here because this module needs Jinja2 and Pillow, which the other jobs do not need.
    from spark_aesthetic.pages.review import review

    arguments = Parser(prog="review", description="Write a page to look at scored images and label them.")
    arguments.add_argument("--scores", required=True, metavar="TABLE_OR_PATH", help="Delta table with the scores.")
    arguments.take(
        review,
        without=["source"],
        images=TABLE | {"flags": ["--images", "--table"], "help": "Delta table with the images."},
        cut={"flags": ["--cut", "--min-score"]},
    )
    return arguments.parse_args()


def review_once() -> Result:
    """Run review once with the options of the command line."""
    args = vars(review_arguments())
    from spark_aesthetic.pages.review import review

    source = f"scores {args['scores']}, images {args['images']}"
    spark = session("review")
    args["scores"] = open_source(spark, args["scores"], "scores").rows
    return review(**args, source=source)


def ingest_images() -> None:
    """Add new images from files, shards or addresses to a Delta table; see its --help."""
    exit_with("ingest_images", ingest_once)


def ingest_arguments() -> argparse.Namespace:
    """Parse the command line.

    Raises:
        OptionError: An option is missing, unknown or invalid.
    """
    arguments = Parser(prog="ingest_images", description="Add new images to a Delta table.")
    arguments.take(
        _ingest_images,
        without=["max_files_per_chunk"],
        table=TABLE,
        format=UNCHECKED,
        max_file_bytes=SIZE,
        max_bytes_per_chunk=SIZE,
        allow={
            "action": "append",
            "type": None,
            "metavar": "PREFIX",
            # argparse cannot append to a tuple, which is the function's default.
            "default": [],
            "help": "Read the addresses of --uri-col with this prefix, such as s3://bucket/photos/. Repeat it for more "
            "prefixes. Without it, only http(s) to public addresses is read.",
        },
    )
    return arguments.parse_args()


def ingest_once() -> IngestSummary:
    """Run ingest_images once with the options of the command line."""
    args = ingest_arguments()
    # `ingest_images` checks this too. Here the message can name --allow, and no session has started yet.
    allowed_for(format_of(args.source, format=args.format, uri_col=args.uri_col), args.allow, "--allow")
    return _ingest_images(session("ingest_images"), **vars(args))


def export_webdataset() -> None:
    """Write chosen rows of a table as WebDataset shards; see its --help."""
    exit_with("export_webdataset", export_once)


def export_arguments() -> argparse.Namespace:
    """Parse the command line.

    Raises:
        OptionError: An option is missing, unknown or invalid.
    """
    arguments = Parser(prog="export_webdataset", description="Write chosen rows of a table as WebDataset shards.")
    arguments.take(
        _export_webdataset,
        table=TABLE,
        scores=TABLE,
        # Scripts may pass --key "" when they pass no --scores.
        key={"type": lambda text: columns(text) if text else []},
    )
    return arguments.parse_args()


def export_once() -> ExportSummary:
    """Run export_webdataset once with the options of the command line."""
    args = export_arguments()
    return _export_webdataset(session("export_webdataset"), **vars(args))
