"""The jobs of curation, as spark-submit and wheel tasks run them: arguments to a call to an exit code."""

from __future__ import annotations

import argparse

from spark_aesthetic import files
from spark_aesthetic.cli.arguments import Parser, _numbers, key_columns
from spark_aesthetic.cli.submit import Result, Stderr, exit_with, session
from spark_aesthetic.curation.calibration import Calibration
from spark_aesthetic.curation.calibration import calibrate as _calibrate
from spark_aesthetic.curation.export import ExportSummary
from spark_aesthetic.curation.export import export_webdataset as _export_webdataset
from spark_aesthetic.curation.histogram import BIN_WIDTH
from spark_aesthetic.curation.keeping import KEPT_MODES, Kept, read_scores, write_kept
from spark_aesthetic.delta.tables import open_source
from spark_aesthetic.ingest.job import MAX_BYTES_PER_CHUNK, MAX_FILE_BYTES, IngestSummary
from spark_aesthetic.ingest.job import ingest_images as _ingest_images
from spark_aesthetic.ingest.sources import allowed_for, format_of
from spark_aesthetic.options import MODES
from spark_aesthetic.training.estimator import REG_PARAMS, AestheticEstimator
from spark_aesthetic.training.ratings import HeadReport


def train_head() -> None:
    """Fit a head to the ratings of a Delta table; see its --help."""
    exit_with("train_head", train_head_once)


def train_head_arguments() -> argparse.Namespace:
    """Those of the command line.

    Raises:
        OptionError: They are not what the job takes.
    """
    arguments = Parser(prog="train_head", description="Fit a head to ratings of images by their CLIP embeddings.")
    arguments.add_argument("--table", required=True, metavar="TABLE_OR_PATH", help="Delta table with the rated images")
    arguments.add_argument("--embedding-col", required=True, metavar="COL", help="column of CLIP embeddings")
    arguments.add_argument("--label-col", required=True, metavar="COL", help="column of ratings: any number")
    arguments.add_argument("--name", required=True, help="of the predictor, as in aesthetic_model")
    arguments.add_argument("--out", required=True, metavar="FOLDER", help="where <name>.json and its head are saved")
    arguments.add_argument(
        "--backbone", metavar="NAME", help="which made the embeddings (default: that of the default predictor)"
    )
    arguments.add_argument(
        "--backbone-weights", metavar="PATH_OR_URL", help="its file (default: the published one of the backbone)"
    )
    arguments.add_argument("--backbone-sha256", metavar="SHA256", help="its checksum (default: read from the file)")
    arguments.add_argument(
        "--num-folds", type=int, default=5, metavar="N", help="of the cross-validation (default: %(default)s)"
    )
    arguments.add_argument(
        "--reg-params", type=_numbers, default=list(REG_PARAMS), metavar="X[,X]",
        help="penalties that are tried (default: 1e-6 to 1 by tens)",
    )  # fmt: skip
    return arguments.parse_args()


def train_head_once() -> HeadReport:
    """Do what the command line of train_head says."""
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
    # At one version: the table is read twice.
    report = estimator.fit(open_source(session("train_head"), args.table, "--table").rows).report
    assert report is not None, "fit makes one"
    return report


def calibrate() -> None:
    """Choose the cut of a scores table; see its --help."""
    exit_with("calibrate", calibrate_once)


def curate() -> None:
    """Write the rows at or above a cut; see its --help."""
    exit_with("curate", curate_once)


def _scores_parser(name: str, description: str) -> Parser:
    made = Parser(prog=name, description=description)
    made.add_argument("--scores", required=True, metavar="TABLE_OR_PATH", help="Delta table with the scores")
    made.add_argument("--model", metavar="MODEL", help="as in aesthetic_model, where the table has scores of several")
    made.add_argument("--key", metavar="COL[,COL]", help="columns that together identify a row")
    made.add_argument("--by", metavar="COL[,COL]", help="columns that part the table: each group gets a cut of its own")
    made.add_argument("--score-col", default="aesthetic_score", metavar="COL", help="default: %(default)s")
    return made


def calibrate_arguments() -> argparse.Namespace:
    """Those of the command line."""
    arguments = _scores_parser("calibrate", "Choose the cut of a scores table, and see what it keeps.")
    arguments.add_argument("--labels", metavar="CSV", help="rows marked keep or drop, as the review page writes them")
    arguments.add_argument("--table", metavar="TABLE_OR_PATH", help="Delta table to take --by from, joined by --key")
    target = arguments.add_mutually_exclusive_group()
    target.add_argument("--keep", type=float, metavar="SHARE", help="of the scored rows, 0.1 for a tenth")
    target.add_argument("--top-k", type=int, metavar="N", help="so many rows, or some more in the cut's bin")
    target.add_argument("--min-score", type=float, metavar="SCORE", help="this cut")
    target.add_argument("--precision", type=float, metavar="SHARE", help="of the kept rows, by --labels")
    target.add_argument("--recall", type=float, metavar="SHARE", help="of the rows to keep, by --labels")
    arguments.add_argument(
        "--bin-width", type=float, default=BIN_WIDTH, metavar="POINTS",
        help="a power of two, for scores of another scale or very many groups (default: %(default)s)",
    )  # fmt: skip
    arguments.add_argument("--out", metavar="JSON", help="file for the calibration, as jobs/curate.py takes it")
    return arguments.parse_args()


def calibrate_once() -> Calibration:
    """Do what the command line of calibrate says."""
    args = calibrate_arguments()
    if args.out is not None:
        files.check_file(args.out, "--out", overwrite=True)
    spark = session("calibrate")
    key, by = _columns(args.key), _columns(args.by)
    scores = read_scores(spark, args.scores, model=args.model, by=by, table=args.table, key=key)
    made = _calibrate(
        scores, args.labels, keep=args.keep, top_k=args.top_k, min_score=args.min_score, precision=args.precision,
        recall=args.recall, by=by, score_col=args.score_col, key=key, bin_width=args.bin_width,
    )  # fmt: skip
    Stderr().write(f"{made}\n")
    if args.out is not None:
        made.save(args.out)
    return made.without_curves()


def curate_arguments() -> argparse.Namespace:
    """Those of the command line."""
    arguments = _scores_parser("curate", "Write the rows at or above a cut to a Delta table.")
    cut = arguments.add_mutually_exclusive_group(required=True)
    cut.add_argument(
        "--calibration", metavar="JSON", help="file that jobs/calibrate.py wrote; it knows --by and --model"
    )
    cut.add_argument("--min-score", type=float, metavar="SCORE", help="this cut")
    cut.add_argument("--keep", type=float, metavar="SHARE", help="of the scored rows, exactly; with --key")
    cut.add_argument("--top-k", type=int, metavar="N", help="so many rows, exactly; with --key")
    arguments.add_argument(
        "--table", metavar="TABLE_OR_PATH", help="Delta table of images whose rows to write, joined by --key"
    )
    arguments.add_argument("--out", required=True, metavar="TABLE_OR_PATH", help="Delta table to write")
    mode = arguments.add_mutually_exclusive_group()
    mode.add_argument(
        "--mode", choices=KEPT_MODES, default=KEPT_MODES[0],
        help="refuse an --out that is there, or replace it in one commit (default: %(default)s)",
    )  # fmt: skip
    mode.add_argument("--overwrite", action="store_true", help="the same as --mode overwrite")
    return arguments.parse_args()


def curate_once() -> Kept:
    """Do what the command line of curate says."""
    args = curate_arguments()
    spark = session("curate")
    return write_kept(
        spark,
        scores=args.scores,
        out=args.out,
        calibration=None if args.calibration is None else Calibration.load(args.calibration),
        wanted={"min_score": args.min_score, "keep": args.keep, "top_k": args.top_k},
        model=args.model,
        by=_columns(args.by),
        key=_columns(args.key),
        table=args.table,
        score_col=args.score_col,
        mode="overwrite" if args.overwrite else args.mode,
    )


def _columns(text: str | None) -> list[str]:
    return [] if text is None else key_columns(text)


def review() -> None:
    """Write a page to look at scored images, to move a cut and to label; see its --help."""
    exit_with("review", review_once)


def review_arguments() -> argparse.Namespace:
    """Those of the command line.

    Raises:
        OptionError: They are not what the job takes.
    """
    arguments = Parser(prog="review", description="Write a page to look at scored images around a cut, and to label.")
    arguments.add_argument("--scores", required=True, metavar="TABLE_OR_PATH", help="Delta table with the scores")
    arguments.add_argument(
        "--images", "--table", required=True, metavar="TABLE_OR_PATH", help="Delta table with the images"
    )
    arguments.add_argument("--key", required=True, metavar="COL[,COL]", help="columns that together identify a row")
    arguments.add_argument(
        "--image-col", default="image", metavar="COL", help="column of image bytes (default: %(default)s)"
    )
    arguments.add_argument("--score-col", default="aesthetic_score", metavar="COL", help="default: %(default)s")
    arguments.add_argument("--out", required=True, metavar="FILE", help="the page to write")
    arguments.add_argument("--n", type=int, default=400, metavar="N", help="images to show (default: %(default)s)")
    arguments.add_argument(
        "--cut", "--min-score", type=float, metavar="SCORE", help="where the cut stands at first (default: keeps half)"
    )
    arguments.add_argument("--seed", type=int, default=0, metavar="N", help="another one gives another sample")
    arguments.add_argument("--model", metavar="MODEL", help="the aesthetic_model to show where there are several")
    arguments.add_argument("--overwrite", action="store_true", help="replace the page if there is one")
    return arguments.parse_args()


def review_once() -> Result:
    """Do what the command line of review says."""
    # Here, because it needs Jinja2 and Pillow, which the other jobs do without.
    from spark_aesthetic.pages.review import review

    args = review_arguments()
    spark = session("review")
    return review(
        open_source(spark, args.scores, "scores").rows,
        args.images,
        key=key_columns(args.key),
        image_col=args.image_col,
        score_col=args.score_col,
        out=args.out,
        cut=args.cut,
        n=args.n,
        seed=args.seed,
        model=args.model,
        source=f"scores {args.scores}, images {args.images}",
        overwrite=args.overwrite,
    )


def ingest_images() -> None:
    """Take new images from files, shards or addresses into a Delta table; see its --help."""
    exit_with("ingest_images", ingest_once)


def ingest_arguments() -> argparse.Namespace:
    """Those of the command line of ingest_images.

    Raises:
        OptionError: They are not what the job takes.
    """
    arguments = Parser(prog="ingest_images", description="Take new images into a Delta table.")
    arguments.add_argument(
        "--source", required=True, metavar="PLACE", help="folder, WebDataset shards, or a table of paths or addresses"
    )
    arguments.add_argument("--table", required=True, metavar="TABLE_OR_PATH", help="Delta table for the images")
    arguments.add_argument("--format", metavar="NAME", help="folder, webdataset or uris (default: by the source)")
    arguments.add_argument("--uri-col", metavar="COL", help="of a table: the column of paths or addresses")
    arguments.add_argument("--glob", metavar="PATTERN", help="of a folder: what names of files must match")
    arguments.add_argument(
        "--keep-once", action="store_true", help="of images with the same bytes keep one; the others are listed"
    )
    arguments.add_argument(
        "--max-file-bytes",
        default=MAX_FILE_BYTES,
        metavar="SIZE",
        help="a larger file is not read (default: %(default)s)",
    )
    arguments.add_argument(
        "--max-bytes-per-chunk", default=MAX_BYTES_PER_CHUNK, metavar="SIZE",
        help="in one commit, about (default: %(default)s)",
    )  # fmt: skip
    arguments.add_argument(
        "--retry-failed", action="store_true", help="also read again what could not be read before or was no image"
    )
    arguments.add_argument(
        "--allow", action="append", default=[], metavar="PREFIX",
        help="addresses of --uri-col that begin so may be read, such as s3://bucket/photos/; may be repeated "
        "(default: http(s) to public addresses)",
    )  # fmt: skip
    return arguments.parse_args()


def ingest_once() -> IngestSummary:
    """Do what the command line of ingest_images says."""
    args = ingest_arguments()
    # Here too, where the option is called so, and before a session is made.
    allowed_for(format_of(args.source, format=args.format, uri_col=args.uri_col), args.allow, "--allow")
    return _ingest_images(session("ingest_images"), **vars(args))


def export_webdataset() -> None:
    """Write chosen rows of a table as WebDataset shards; see its --help."""
    exit_with("export_webdataset", export_once)


def export_arguments() -> argparse.Namespace:
    """Those of the command line.

    Raises:
        OptionError: They are not what the job takes.
    """
    arguments = Parser(prog="export_webdataset", description="Write chosen rows of a table as WebDataset shards.")
    arguments.add_argument("--table", required=True, metavar="TABLE_OR_PATH", help="table, view or Delta path")
    arguments.add_argument("--out", required=True, metavar="PATH", help="folder of the shards")
    arguments.add_argument("--where", metavar="CONDITION", help='such as "aesthetic_score >= 5.5" (default: all rows)')
    arguments.add_argument("--scores", metavar="TABLE_OR_PATH", help="scores table to join by --key")
    arguments.add_argument("--key", default="", metavar="COL[,COL]", help="columns that identify a row in both")
    arguments.add_argument("--model", metavar="MODEL", help="whose scores to take, where there are several")
    arguments.add_argument("--key-col", metavar="COL", help="column of the samples' keys (default: they are counted)")
    arguments.add_argument(
        "--image-col", default="image", metavar="COL", help="column of image bytes (default: %(default)s)"
    )
    arguments.add_argument("--columns", metavar="COL[,COL]", help="other columns to write (default: all)")
    arguments.add_argument(
        "--samples-per-shard", type=int, default=10_000, metavar="N", help="at most (default: %(default)s)"
    )
    arguments.add_argument("--sidecar", action="store_true", help="also all but images as Parquet beside each shard")
    arguments.add_argument(
        "--mode", choices=MODES, default=MODES[0],
        help="refuse a folder that has shards, number on from them, or replace them (default: %(default)s)",
    )  # fmt: skip
    return arguments.parse_args()


def export_once() -> ExportSummary:
    """Do what the command line of export_webdataset says."""
    args = vars(export_arguments())
    args["key"] = key_columns(args["key"]) if args["key"] else []
    args["columns"] = None if args["columns"] is None else key_columns(args["columns"])
    return _export_webdataset(session("export_webdataset"), **args)
