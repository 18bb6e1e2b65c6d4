"""Fit a head to the user's own ratings with an estimator for `pyspark.ml`."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from math import isfinite
from typing import Any, NoReturn

import numpy as np
from pyspark import keyword_only
from pyspark.ml import Estimator
from pyspark.ml.param import TypeConverters
from pyspark.ml.param.shared import HasInputCol, HasLabelCol, HasOutputCol
from pyspark.ml.util import DefaultParamsReadable, DefaultParamsWritable
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import DataType, NumericType, StructType
from safetensors.numpy import save

from spark_aesthetic import files
from spark_aesthetic.delta import schemas
from spark_aesthetic.delta.frames import on_disk
from spark_aesthetic.errors import OptionError, TableError, nearest
from spark_aesthetic.functions import inputs
from spark_aesthetic.functions.columns import as_array
from spark_aesthetic.functions.stage import AestheticScorer, CheckedParams, make_param
from spark_aesthetic.predictors import cache, weights
from spark_aesthetic.predictors.recipe import BUILT_IN, DEFAULT, UNTRAINED, Predictor
from spark_aesthetic.training import ratings
from spark_aesthetic.training.ratings import HeadReport
from spark_aesthetic.training.ridge import Doubles, cross_validate

_log = logging.getLogger("spark_aesthetic")

REG_PARAMS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)

# Published predictors by the checksum of their backbone; the first one in `BUILT_IN` wins.
_PUBLISHED = {
    str(predictor.backbone_sha256): predictor for predictor in reversed(BUILT_IN.values()) if not predictor.untrained
}


class AestheticEstimator(
    CheckedParams,
    Estimator[AestheticScorer],
    HasInputCol,
    HasLabelCol,
    HasOutputCol,
    DefaultParamsReadable["AestheticEstimator"],
    DefaultParamsWritable,
):
    """Fits a head to ratings of images from their CLIP embeddings and returns an `AestheticScorer` with that head.

    The head is affine, like that of the default predictor. It is fitted by ridge regression in closed form to
    embeddings scaled to unit length. Cross-validation chooses the penalty, and its folds also give the figures of the
    report. The executors read the table in two passes, or in three if no published predictor has this backbone's
    weights; the driver collects one square matrix, as wide as the embeddings, for each fold. Classic sessions and Spark
    Connect are supported.

    `fit` writes three files to the folder `path`: the head, `head-<first 12 digits of its sha256>.safetensors`; the
    predictor, `<name>.json`, which you can use wherever a predictor's name is accepted; and `<name>.report.json`. The
    scorer also has the report, a `HeadReport`, in its attribute `report`.

    A row is left out if its embedding is null, has the wrong length, is all zeros, or contains a null, a NaN or an
    infinity, or if its rating is null, NaN or infinite. The report counts these rows by reason.

    Args:
        inputCol: Column of CLIP embeddings: `array<float>`, `array<double>` or ml Vector, with any norm above zero.
        labelCol: Numeric column of ratings. Several rows may rate one image.
        outputCol: Column of scores (float) that the returned scorer adds.
        name: Name of the predictor, as in the `aesthetic_model` of its scores.
        path: Folder for the three files: local, /Volumes, dbfs:/, or a URL that fsspec supports. It is created if it is
            missing. By default it is a folder in the cache of this machine. Before Spark 4.2 the executors read the
            head from it too.
        backbone: The open_clip architecture that computed the embeddings.
        backboneWeights: Path or URL of the backbone's file; by default the published one.
        backboneSha256: SHA-256 checksum of that file; by default it is computed from the file.
        numFolds: Number of folds of the cross-validation, 2 to 20.
        regParams: Penalties to try, as in Spark's LinearRegression without standardization.

    Raises:
        OptionError: A value is outside its range, or the folder is not writable. Raised before any row is read.
        PredictorError: The name or the backbone is not valid for a predictor.
        TableError: From `fit` and `transformSchema`: a column is missing or has the wrong type. From `fit`: there are
            no embeddings of the backbone's length, fewer than 10 rows per fold, or all ratings are equal.
        WeightsError: The backbone's file is needed for its checksum and is missing.

    Examples:
        >>> AestheticEstimator(inputCol="e", labelCol="stars", name="stock-photos", path="/models").getNumFolds()
        5
    """

    # Saved stages contain this path of the class, so it must stay valid when modules move.
    __module__ = "spark_aesthetic"

    name = make_param("name", "name of the predictor to create", TypeConverters.toString)
    path = make_param("path", "folder for the head, its predictor and its report", TypeConverters.toString)
    backbone = make_param("backbone", "open_clip architecture that computed the embeddings", TypeConverters.toString)
    backboneWeights = make_param("backboneWeights", "path or URL of the backbone's file", TypeConverters.toString)
    backboneSha256 = make_param("backboneSha256", "SHA-256 checksum of the backbone's file", TypeConverters.toString)
    numFolds = make_param("numFolds", "number of folds of the cross-validation", TypeConverters.toInt)
    regParams = make_param("regParams", "penalties to try", TypeConverters.toListFloat)

    _input_kwargs: dict[str, Any]

    @keyword_only
    def __init__(
        self,
        *,
        inputCol: str = "clip_embedding",
        labelCol: str = "rating",
        outputCol: str = "aesthetic_score",
        name: str = "own-head",
        path: str | None = None,
        backbone: str = BUILT_IN[DEFAULT].backbone,
        backboneWeights: str | None = None,
        backboneSha256: str | None = None,
        numFolds: int = 5,
        regParams: Sequence[float] = REG_PARAMS,
        # Accept unknown names here, so that the error of setParams can suggest the nearest param.
        **_: NoReturn,
    ) -> None:
        super().__init__()
        self._setDefault(
            inputCol="clip_embedding", labelCol="rating", outputCol="aesthetic_score", name="own-head", path=None,
            backbone=BUILT_IN[DEFAULT].backbone, backboneWeights=None, backboneSha256=None, numFolds=5,
            regParams=list(REG_PARAMS),
        )  # fmt: skip
        self.setParams(**self._input_kwargs)

    @keyword_only
    def setParams(self, **_: Any) -> AestheticEstimator:
        """Set several params by name; see the constructor."""
        self._assign(self._input_kwargs)
        return self

    def _check(self) -> None:
        if not 2 <= self.getNumFolds() <= 20:
            raise OptionError(f"numFolds={self.getNumFolds()}: expected 2 to 20 (--num-folds)")
        tried = self.getRegParams()
        if not tried or not all(isfinite(value) and value > 0 for value in tried):
            raise OptionError(
                f"regParams={tried}: expected numbers above zero (--reg-params), such as {list(REG_PARAMS)}"
            )

    def transformSchema(self, schema: StructType) -> StructType:
        """Return the schema of the scorer's output; check params and columns as `fit` does."""
        self._check()
        self._check_columns(schema)
        return self._scorer(DEFAULT).transformSchema(schema)

    def _check_columns(self, schema: StructType) -> bool:
        """Check the columns; return whether the embeddings are ml Vectors."""
        label = _type_of(schema, self.getLabelCol(), "labelCol")
        if not isinstance(label, NumericType):
            raise TableError(
                f"labelCol {self.getLabelCol()}: expected a number, found {label.simpleString()}. Cast it to double."
            )
        name = self.getInputCol()
        return inputs.is_vector(_type_of(schema, name, "inputCol"), f"inputCol {name}")

    def _scorer(self, predictor: str) -> AestheticScorer:
        return AestheticScorer(
            inputCol=self.getInputCol(), inputKind="embedding", outputCol=self.getOutputCol(), predictor=predictor
        )

    def _fit(self, dataset: DataFrame) -> AestheticScorer:
        # Check again, because the param maps of `fit`, `copy` and ParamGridBuilder bypass the setters.
        self._check()
        vector = self._check_columns(dataset.schema)
        unfitted = self._unfitted()
        published = _PUBLISHED.get(unfitted.backbone_sha256 or "")
        published_head = None if published is None else weights.load_head(published)
        folder = files.absolute(self.getPath() or str(cache.cache_dir() / "heads"))
        files.check_writable(folder, "path")

        given = (self.getInputCol(), self.getLabelCol())
        embedding, rating = (F.col(schemas.column_path(dataset, name)) for name in given)
        num_folds = self.getNumFolds()
        rows = ratings.rated(dataset, as_array(embedding, vector), rating, num_folds)
        expected = None if published_head is None else published_head.dimension
        width = ratings.width_of(rows, expected, unfitted.backbone)
        sums, left_out = ratings.add_up(rows, width, num_folds)
        used = ratings.check_sums(sums, left_out)
        fitted = cross_validate(sums, self.getRegParams())
        if len(self.getRegParams()) > 1 and fitted.reg_param in (min(self.getRegParams()), max(self.getRegParams())):
            _log.warning(
                "the best of regParams (--reg-params), %g, is the lowest or highest: try values beyond it",
                fitted.reg_param,
            )
        with on_disk(ratings.score_out_of_fold(rows, width, fitted.by_fold, published_head)) as scored:
            figures = ratings.figures(scored)

        predictor = _save_head(fitted.solution, unfitted, folder)
        report = HeadReport(
            model=predictor.model_id,
            predictor=f"{folder}/{predictor.name}.json",
            rows=used,
            left_out=left_out,
            reg_param=fitted.reg_param,
            num_folds=num_folds,
            own=figures["own"],
            published_model=None if published is None else published.model_id,
            published=figures.get("published"),
        )
        predictor.save(report.predictor)
        text = json.dumps(report.to_dict(), indent=2) + "\n"
        files.write(f"{folder}/{predictor.name}.report.json", text.encode())
        scorer = self._scorer(report.predictor)
        scorer.report = report
        return scorer

    def _unfitted(self) -> Predictor:
        """Return the predictor with the default head as a placeholder for the head that is not fitted yet."""
        backbone, source = self.getBackbone(), self.getBackboneWeights()
        if source is None:
            known = {predictor.backbone: predictor for predictor in _PUBLISHED.values()}
            if backbone not in known:
                raise OptionError(
                    f"backboneWeights: expected the file of backbone {backbone!r}, found none. Give the file, or a "
                    f"published backbone: {nearest(backbone, known)}"
                )
            source, sha256 = known[backbone].backbone_weights, known[backbone].backbone_sha256
        else:
            sha256 = self.getBackboneSha256()
        if not source.startswith(UNTRAINED):
            source = files.absolute(source)
        named = replace(
            BUILT_IN[DEFAULT], name=self.getName(), backbone=backbone, backbone_weights=source, backbone_sha256=sha256
        )
        return weights.pin(named)

    def setInputCol(self, value: str) -> AestheticEstimator:
        """Set `inputCol`."""
        return self.setParams(inputCol=value)

    def setLabelCol(self, value: str) -> AestheticEstimator:
        """Set `labelCol`."""
        return self.setParams(labelCol=value)

    def setOutputCol(self, value: str) -> AestheticEstimator:
        """Set `outputCol`."""
        return self.setParams(outputCol=value)

    def setName(self, value: str) -> AestheticEstimator:
        """Set `name`."""
        return self.setParams(name=value)

    def getName(self) -> str:
        """Get `name`."""
        found: str = self.getOrDefault("name")
        return found

    def setPath(self, value: str | None) -> AestheticEstimator:
        """Set `path`."""
        return self.setParams(path=value)

    def getPath(self) -> str | None:
        """Get `path`."""
        found: str | None = self.getOrDefault("path")
        return found

    def setBackbone(self, value: str) -> AestheticEstimator:
        """Set `backbone`."""
        return self.setParams(backbone=value)

    def getBackbone(self) -> str:
        """Get `backbone`."""
        found: str = self.getOrDefault("backbone")
        return found

    def setBackboneWeights(self, value: str | None) -> AestheticEstimator:
        """Set `backboneWeights`."""
        return self.setParams(backboneWeights=value)

    def getBackboneWeights(self) -> str | None:
        """Get `backboneWeights`."""
        found: str | None = self.getOrDefault("backboneWeights")
        return found

    def setBackboneSha256(self, value: str | None) -> AestheticEstimator:
        """Set `backboneSha256`."""
        return self.setParams(backboneSha256=value)

    def getBackboneSha256(self) -> str | None:
        """Get `backboneSha256`."""
        found: str | None = self.getOrDefault("backboneSha256")
        return found

    def setNumFolds(self, value: int) -> AestheticEstimator:
        """Set `numFolds`."""
        return self.setParams(numFolds=value)

    def getNumFolds(self) -> int:
        """Get `numFolds`."""
        found: int = self.getOrDefault("numFolds")
        return found

    def setRegParams(self, value: Sequence[float]) -> AestheticEstimator:
        """Set `regParams`."""
        return self.setParams(regParams=value)

    def getRegParams(self) -> list[float]:
        """Get `regParams`."""
        found: list[float] = self.getOrDefault("regParams")
        return found


def _type_of(schema: StructType, name: str, option: str) -> DataType:
    found = schemas.type_at(schema, name)
    if found is None:
        raise TableError(f"{option}: no column {name!r}: {nearest(name, schema.names)}")
    return found


def _save_head(solution: Doubles, unfitted: Predictor, folder: str) -> Predictor:
    """Save a head under a name with its checksum, and return a predictor that refers to it by a relative path."""
    tensors = {"weight": solution[None, :-1].astype(np.float32), "bias": solution[-1:].astype(np.float32)}
    content = save(tensors)
    sha256 = hashlib.sha256(content).hexdigest()
    predictor = replace(unfitted, head_weights=f"head-{sha256[:12]}.safetensors", head_sha256=sha256)
    files.write(f"{folder}/{predictor.head_weights}", content)
    return predictor
