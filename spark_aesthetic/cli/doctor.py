"""Check a machine and its Spark session: spark-aesthetic-doctor, or python -m spark_aesthetic doctor.

Each check does the real thing on a small scale: it writes a Delta table, scores embeddings, reads the path. Only
Spark's own packages are downloaded. The checks delete everything that they write, except a prepared backbone in the
cache.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

from spark_aesthetic import files, testing
from spark_aesthetic._version import __version__
from spark_aesthetic.cli.findings import (
    Fault,
    Finding,
    Skipped,
    Status,
    check_published,
    checked,
    version_of,
    without_secrets,
)
from spark_aesthetic.errors import PredictorError, in_a_line
from spark_aesthetic.predictors import cache, weights
from spark_aesthetic.predictors.packages import missing_for_images
from spark_aesthetic.predictors.recipe import DEFAULT, UNTRAINED, Predictor, resolve

_GB = 10**9

# The published ViT-L/14 is downloaded once per node (1.7 GB) and prepared once per node and dtype (1.2 GB).
_CACHE_BYTES = 3 * _GB

# The score of scikit-image's astronaut by the default predictor. Implementations agree within a tenth, because they
# resize images differently.
_ASTRONAUT, _TOLERANCE = 5.75, 0.1


def main() -> None:
    """Run the checks, print one line for each, and exit with 1 if one has failed."""
    parser = arguments()
    args = parser.parse_args()
    try:
        resolve(args.predictor)
    except PredictorError as error:
        parser.error(without_secrets(f"--predictor: {error}", args.predictor))
    findings = []
    for finding in examine(args):
        findings.append(finding)
        if not args.json:
            print(finding, flush=True)
    if args.json:
        print(json.dumps({"version": __version__, "checks": [asdict(finding) for finding in findings]}))
    else:
        counts = [f"{sum(finding.status == status for finding in findings)} {status}" for status in get_args(Status)]
        print(f"spark-aesthetic {__version__}: {len(findings)} checks: {', '.join(counts)}")
    # Runners that execute a job in their own process can take SystemExit(0) for a failure.
    if any(finding.status == "failed" for finding in findings):
        sys.exit(1)


def arguments() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="spark-aesthetic-doctor", description="Check a machine and its Spark session."
    )
    parser.add_argument("--json", action="store_true", help="Print one JSON object instead of lines.")
    parser.add_argument(
        "--path", action="append", default=[], metavar="PATH_OR_ADDRESS",
        help="A place that Python and Spark should be able to read, such as s3a://bucket/images; may be repeated.",
    )  # fmt: skip
    parser.add_argument(
        "--properties-file", metavar="FILE",
        help="Settings of the Spark session, as for spark-submit, such as conf/local.conf. Default: those of Spark.",
    )  # fmt: skip
    parser.add_argument(
        "--predictor", default=DEFAULT, help=f"The predictor with the weights to check. Default: {DEFAULT}."
    )
    parser.add_argument("--model-path", metavar="PATH", help="A folder with the weights files, as for score_table.")
    return parser


def examine(args: argparse.Namespace) -> Iterator[Finding]:
    """Run all checks, each after the result of the one before it."""
    predictor = resolve(args.predictor)
    yield checked("Python", _python)
    yield (java := checked("Java", _java))
    yield (pyspark := checked("pyspark and Delta", fits_together, _pyspark(), version_of("delta-spark")))
    yield checked("torch", _torch)
    yield checked("cache of weights", _cache, predictor, args.model_path)
    yield (backbone := checked("weights", _weights, predictor, args.model_path))
    yield checked("scores of embeddings", _embeddings)
    yield checked("score of an image", _image, backbone, predictor, args.model_path)
    for path in args.path:
        yield checked(f"{path} by Python", _read_by_python, path)
    if "failed" in (java.status, pyspark.status):
        yield Finding("Spark session", "skipped", "needs suitable versions of Java, pyspark and Delta")
    else:
        from spark_aesthetic.cli.doctor_session import examine_session

        yield from examine_session(args.properties_file, args.path)


def _python() -> str:
    found = f"{sys.version.split()[0]}, {sys.executable}"
    if not (3, 10) <= sys.version_info[:2] <= (3, 12):
        raise Fault(found, "Use Python 3.10 to 3.12.")
    return found


def _java() -> str:
    if "SPARK_REMOTE" in os.environ:
        raise Skipped("a client of Spark Connect needs none")
    home = os.environ.get("JAVA_HOME")
    java = str(Path(home) / "bin" / "java") if home else "java"
    try:
        said = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    except OSError as error:
        raise Fault(f"no Java ({error})", "Install Java 17, or set JAVA_HOME to it.") from error
    return suitable_java(said)


def suitable_java(said: str) -> str:
    """Return Java's version from the output of `java -version`; raise Fault if Spark cannot run on it.

    Examples:
        >>> suitable_java('openjdk version "17.0.12" 2024-07-16')
        '17.0.12'
    """
    found = re.search(r'version "((\d+)[^"]*)"', said)
    if found is None:
        raise Fault(f"no version in {said[:80]!r}", "Install Java 17, or set JAVA_HOME to it.")
    # Java 8 calls itself 1.8.
    if int(found[2]) < 17:
        raise Fault(found[1], "Install Java 17 or newer, or set JAVA_HOME to it.")
    return found[1]


def fits_together(pyspark: str | None, delta: str | None) -> str:
    """Return the versions of pyspark and delta-spark; raise Fault if they do not go together.

    Examples:
        >>> fits_together("4.2.0", "4.4.0")
        'pyspark 4.2.0, delta-spark 4.4.0'
    """
    if pyspark is None:
        raise Fault("no pyspark", "Run pip install 'spark-aesthetic[delta]', or use the cluster's own Python.")
    spark_release = _release(pyspark)
    if spark_release < (4, 0):
        raise Fault(f"pyspark {pyspark}", "Use Spark 4.0 or newer.")
    if delta is None:
        # Databricks has Delta without the Python package, and jars may come from the session's settings.
        return f"pyspark {pyspark}, no delta-spark"
    found = f"pyspark {pyspark}, delta-spark {delta}"
    delta_release = _release(delta)
    # Delta 4.0 is for Spark 4.0, 4.1 to 4.3 are also for Spark 4.1, and 4.4 is also for Spark 4.2. Only the
    # session can show whether newer releases go together.
    newest = (4, 0) if delta_release == (4, 0) else (4, 1) if delta_release < (4, 4) else (4, 2)
    if delta_release < (4, 0) or (spark_release > newest and delta_release <= (4, 4)):
        raise Fault(found, "Install a pair that goes together: 4.2 with 4.4, 4.1 with 4.3, or 4.0 with 4.0.")
    return found


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def _pyspark() -> str | None:
    # Databricks has pyspark without the metadata of a package.
    try:
        import pyspark
    except ImportError:
        return None
    return str(pyspark.__version__)


def _torch() -> str:
    version = version_of("torch")
    if version is None:
        raise Skipped("no torch, which only images need: pip install 'spark-aesthetic[image]'")
    missing = missing_for_images()
    if missing:
        raise Fault(f"torch {version}, but no {', '.join(missing)}", "Run pip install 'spark-aesthetic[image]'.")
    import torch

    gpus = [torch.cuda.get_device_properties(at) for at in range(torch.cuda.device_count())]
    named = [f"cuda:{at} {gpu.name} with {gpu.total_memory / _GB:.0f} GB" for at, gpu in enumerate(gpus)]
    return f"torch {version}, {', '.join(named) or 'no GPU'}"


def _cache(predictor: Predictor, model_path: str | None) -> str:
    folder = cache.cache_dir()
    free = shutil.disk_usage(folder).free
    found = f"{folder}, {free / _GB:.0f} GB free"
    if free < _CACHE_BYTES and not predictor.untrained and weights.local_backbone(predictor, model_path) is None:
        raise Fault(
            found, f"Free {_CACHE_BYTES / _GB:.0f} GB, or set SPARK_AESTHETIC_CACHE to a folder on a larger disk."
        )
    return found


def _weights(predictor: Predictor, model_path: str | None) -> str:
    if predictor.backbone_weights.startswith(UNTRAINED):
        raise Skipped("seeded random weights need no file")
    path = weights.local_backbone(predictor, model_path)
    if path is None and "://" not in predictor.backbone_weights:
        raise Fault(f"no file {predictor.backbone_weights}", "Put it there, or name its folder by --model-path.")
    if path is None:
        raise Skipped(
            f"no weights of {predictor.backbone} here yet; images download {predictor.backbone_weights} first"
        )
    return f"{path}, {'sha256 verified' if predictor.backbone_sha256 else 'no sha256 known'}"


def _embeddings() -> str:
    head = weights.load_head(weights.pin_head(resolve(DEFAULT)))
    return check_published(head(testing.published_embeddings()))


def _image(backbone: Finding, predictor: Predictor, model_path: str | None) -> str:
    missing = missing_for_images()
    if missing:
        raise Skipped(f"needs {', '.join(missing)}: pip install 'spark-aesthetic[image]'")
    if backbone.status != "ok":
        raise Skipped("needs the weights")
    if find_spec("skimage") is None or find_spec("sklearn") is None:
        raise Skipped("needs the photograph of the extra demo: pip install 'spark-aesthetic[demo]'")
    if predictor != resolve(DEFAULT):
        raise Skipped(f"only {DEFAULT} has a published score")
    from spark_aesthetic.images.pipeline import ImageScorer
    from spark_aesthetic.options import Options

    pinned, options = weights.pin(predictor, model_path), Options(device="cpu", num_threads=1, model_path=model_path)
    [rows] = ImageScorer(pinned, options).score([testing.photographs()["astronaut.png"]])
    score = float(rows.scores[0])
    if not abs(score - _ASTRONAUT) <= _TOLERANCE:
        raise Fault(
            f"the astronaut scores {score:.3f}, expected {_ASTRONAUT} ± {_TOLERANCE}", "Report it with this output."
        )
    return f"the astronaut scores {score:.3f}, published {_ASTRONAUT}"


def _read_by_python(path: str) -> str:
    import fsspec

    try:
        system, place = fsspec.core.url_to_fs(files.absolute(path))
        kind = system.info(place)["type"]
    # fsspec's file systems have no common base error, and one that is not installed raises ImportError.
    except Exception as error:
        remedy = "Check the address, fsspec's package for it (s3fs, gcsfs, adlfs), and its credentials."
        raise Fault(in_a_line(error), remedy) from error
    return f"a {kind}, read by {type(system).__name__}"
