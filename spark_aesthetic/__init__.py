"""Score the visual appeal of images, or of their CLIP embeddings, where they already live: in Spark tables.

>>> import spark_aesthetic as sa
>>> sa.resolve(sa.DEFAULT).name
'laion-aesthetics-v2'
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# What `from spark_aesthetic import *` brings: names of two words or more. Names of one word, such as display, register,
# history or Summary, are left out because a notebook may use them for something else, as Databricks does display. They
# are imported by name (`from spark_aesthetic import review`) or used as attributes (`sa.review`).
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
    from spark_aesthetic.curation.estimator import AestheticEstimator
    from spark_aesthetic.curation.export import export_webdataset
    from spark_aesthetic.curation.ingest import ingest_images
    from spark_aesthetic.curation.metadata import save_metadata
    from spark_aesthetic.curation.quality import describe_scores, score_drift
    from spark_aesthetic.curation.review import review as review
    from spark_aesthetic.curation.selection import curate as curate
    from spark_aesthetic.errors import AestheticError
    from spark_aesthetic.functions import (
        aesthetic_score,
        aesthetic_score_from_embedding,
        clip_embedding,
        image_embedding,
        score_image,
    )
    from spark_aesthetic.notebook import display as display
    from spark_aesthetic.options import Options as Options
    from spark_aesthetic.predictors import DEFAULT as DEFAULT
    from spark_aesthetic.predictors import Predictor as Predictor
    from spark_aesthetic.predictors import resolve as resolve
    from spark_aesthetic.sql import create_function_ddl
    from spark_aesthetic.sql import register as register
    from spark_aesthetic.tables import Summary as Summary
    from spark_aesthetic.tables import history as history
    from spark_aesthetic.tables import rescore_from_embeddings, score_table
    from spark_aesthetic.transformer import AestheticScorer


_HOME = {
    "aesthetic_score": "functions",
    "aesthetic_score_from_embedding": "functions",
    "clip_embedding": "functions",
    "image_embedding": "functions",
    "score_image": "functions",
    "register": "sql",
    "create_function_ddl": "sql",
    "AestheticScorer": "transformer",
    "AestheticEstimator": "curation.estimator",
    "score_table": "tables",
    "rescore_from_embeddings": "tables",
    "history": "tables",
    "calibrate": "curation.calibration",
    "Calibration": "curation.calibration",
    "curate": "curation.selection",
    "describe_scores": "curation.quality",
    "score_drift": "curation.quality",
    "export_webdataset": "curation.export",
    "display": "notebook",
    "review": "curation.review",
    "ingest_images": "curation.ingest",
    "save_metadata": "curation.metadata",
    "Summary": "tables",
    "Predictor": "predictors",
    "DEFAULT": "predictors",
    "resolve": "predictors",
    "Options": "options",
    "AestheticError": "errors",
}


def __getattr__(name: str) -> Any:
    # Importing the package must load neither torch nor pyspark: a name loads its module on first use.
    if name not in _HOME:
        raise AttributeError(f"module 'spark_aesthetic' has no attribute {name!r}")
    return getattr(import_module(f"spark_aesthetic.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*_HOME, "__version__"]
