"""Score the visual appeal of images, or of their CLIP embeddings, in the Spark tables that hold them.

>>> import spark_aesthetic as sa
>>> sa.resolve(sa.DEFAULT).name
'laion-aesthetics-v2'
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from spark_aesthetic._version import __version__ as __version__

# `from spark_aesthetic import *` imports only names of two words or more. One-word names such as display, register,
# history or Summary are left out because a notebook may use them for something else, as Databricks uses display. Import
# them by name (`from spark_aesthetic import review`), or use them as attributes (`sa.review`).
__all__ = [
    "aesthetic_score",
    "aesthetic_score_from_embedding",
    "clip_embedding",
    "image_embedding",
    "score_image",
    "create_function_ddl",
    "AestheticScorer",
    "AestheticEstimator",
    "score_table",
    "rescore_from_embeddings",
    "describe_scores",
    "score_drift",
    "export_webdataset",
    "ingest_images",
    "save_metadata",
    "AestheticError",
]

if TYPE_CHECKING:
    from spark_aesthetic.curation.calibration import Calibration as Calibration
    from spark_aesthetic.curation.calibration import calibrate as calibrate
    from spark_aesthetic.curation.export import export_webdataset
    from spark_aesthetic.curation.metadata import save_metadata
    from spark_aesthetic.curation.quality import describe_scores, score_drift
    from spark_aesthetic.curation.selection import curate as curate
    from spark_aesthetic.delta.commits import history as history
    from spark_aesthetic.errors import AestheticError
    from spark_aesthetic.functions.columns import (
        aesthetic_score,
        aesthetic_score_from_embedding,
        clip_embedding,
        image_embedding,
        score_image,
    )
    from spark_aesthetic.functions.sql import create_function_ddl
    from spark_aesthetic.functions.sql import register as register
    from spark_aesthetic.functions.stage import AestheticScorer
    from spark_aesthetic.ingest.job import ingest_images
    from spark_aesthetic.options import Options as Options
    from spark_aesthetic.pages.display import display as display
    from spark_aesthetic.pages.review import review as review
    from spark_aesthetic.predictors.recipe import DEFAULT as DEFAULT
    from spark_aesthetic.predictors.recipe import Predictor as Predictor
    from spark_aesthetic.predictors.recipe import resolve as resolve
    from spark_aesthetic.scoring.jobs import score_table
    from spark_aesthetic.scoring.rescore import rescore_from_embeddings
    from spark_aesthetic.scoring.summary import Summary as Summary
    from spark_aesthetic.training.estimator import AestheticEstimator


_HOME = {
    "aesthetic_score": "functions.columns",
    "aesthetic_score_from_embedding": "functions.columns",
    "clip_embedding": "functions.columns",
    "image_embedding": "functions.columns",
    "score_image": "functions.columns",
    "register": "functions.sql",
    "create_function_ddl": "functions.sql",
    "AestheticScorer": "functions.stage",
    "AestheticEstimator": "training.estimator",
    "score_table": "scoring.jobs",
    "rescore_from_embeddings": "scoring.rescore",
    "history": "delta.commits",
    "calibrate": "curation.calibration",
    "Calibration": "curation.calibration",
    "curate": "curation.selection",
    "describe_scores": "curation.quality",
    "score_drift": "curation.quality",
    "export_webdataset": "curation.export",
    "display": "pages.display",
    "review": "pages.review",
    "ingest_images": "ingest.job",
    "save_metadata": "curation.metadata",
    "Summary": "scoring.summary",
    "Predictor": "predictors.recipe",
    "DEFAULT": "predictors.recipe",
    "resolve": "predictors.recipe",
    "Options": "options",
    "AestheticError": "errors",
}


def __getattr__(name: str) -> Any:
    # Importing the package must load neither torch nor pyspark, so each name loads its module on first use.
    if name not in _HOME:
        raise AttributeError(f"module 'spark_aesthetic' has no attribute {name!r}")
    return getattr(import_module(f"spark_aesthetic.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*_HOME, "__version__"]
