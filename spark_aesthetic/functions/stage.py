"""The scorer as a stage of `pyspark.ml` pipelines."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from pyspark import keyword_only
from pyspark.ml import Transformer
from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.ml.param.shared import HasInputCol, HasOutputCol
from pyspark.ml.util import DefaultParamsReadable, DefaultParamsWritable
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, DataType, FloatType, StringType, StructType

from spark_aesthetic.delta import schemas
from spark_aesthetic.delta.naming import are_distinct, has_column
from spark_aesthetic.errors import OptionError, TableError, nearest
from spark_aesthetic.functions import inputs
from spark_aesthetic.functions.columns import embedding_columns, score_image
from spark_aesthetic.options import INPUT_KINDS, PILLOW_WARNS_PIXELS, Decode, Dtype, InputKind, Options
from spark_aesthetic.predictors import weights
from spark_aesthetic.predictors.recipe import BUILT_IN, DEFAULT, Predictor, resolve

if TYPE_CHECKING:
    from spark_aesthetic.training.ratings import HeadReport

# The name of the stage's param for each option.
_OPTIONS = {
    "batch_size": "batchSize",
    "device": "device",
    "dtype": "dtype",
    "decode": "decode",
    "num_threads": "numThreads",
    "max_pixels": "maxPixels",
    "model_path": "modelPath",
}
_DEFAULTS = {_OPTIONS[field.name]: field.default for field in fields(Options)}


def make_param(name: str, doc: str, converter: Any) -> Param[Any]:
    """Create a param, which a stage's class assigns to a class attribute."""
    return Param(Params._dummy(), name, doc, typeConverter=converter)


def _portable(predictor: str | Predictor) -> str:
    """Convert a predictor to a param's value: its name, or its whole recipe, so that a saved stage is complete."""
    if isinstance(predictor, str) and (predictor in BUILT_IN or predictor.startswith("{")):
        return predictor
    return resolve(predictor).to_json()


def _optional_string(value: Any) -> str | None:
    """Convert the value of a param that may be None, which `copy` and a saved stage can pass."""
    return None if value is None else TypeConverters.toString(value)


def _of_python(value: Any) -> Any:
    """Convert NumPy's numbers to Python's, because PySpark's converters accept only some of them."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return [_of_python(each) for each in value] if isinstance(value, list | tuple) else value


class CheckedParams(Params):
    """Params that are set together, and only if all of them are valid."""

    def _assign(self, given: dict[str, Any]) -> None:
        """Set params by name; None resets a param to its default.

        Raises:
            OptionError: A name is unknown or a value is invalid. No param is changed.
        """
        before = dict(self._paramMap)
        try:
            for name in given:
                if not self.hasParam(name):
                    raise OptionError(f"no param {name!r}: {nearest(name, [param.name for param in self.params])}")
            self._set(**given)
            self._check()
        except Exception:
            # Without this, every later call would fail on the invalid value.
            self._paramMap = before
            raise

    def _set(self, **given: Any) -> CheckedParams:
        """Set params; PySpark's `copy` calls this too. Raises OptionError for a value of the wrong type."""
        for name, value in given.items():
            if value is None:
                # A param that was set to None does not survive PySpark's save and load.
                self.clear(self.getParam(name))
                continue
            try:
                super()._set(**{name: _of_python(value)})
            except TypeError as error:
                raise OptionError(f"{name}={value!r}: expected a value of the param's type, found: {error}") from error
        return self

    def _check(self) -> object:
        """Raise an AestheticError unless the params are valid; `fit` and `transform` also take params directly."""
        raise NotImplementedError  # abstract: AestheticScorer and AestheticEstimator each check their own params


class AestheticScorer(
    CheckedParams,
    Transformer,
    HasInputCol,
    HasOutputCol,
    DefaultParamsReadable["AestheticScorer"],
    DefaultParamsWritable,
):
    """Scores a column of images or of CLIP embeddings, like `score_image` and `aesthetic_score_from_embedding`.

    The stage can be saved and loaded like any other, with your own predictor inside it, on classic sessions and on
    Spark Connect. Each image is scored once, regardless of how the output columns are used.

    Args:
        inputCol: Binary column of image files or, with `inputKind="embedding"`, a column of `array<float>`,
            `array<double>` or ml Vectors. A field of a struct, such as "image.bytes", works too.
        inputKind: "image" or "embedding".
        outputCol: Output column of the score, a `float`; null if there is no score.
        errorCol: Output column of the reason for a missing score, a `string`; omitted unless named.
        embeddingCol: Output column of the image's embedding, an `array<float>`; omitted unless named.
        predictor: A predictor, its name, or the path of its JSON file.
        normalize: Divide embeddings by their L2 norm first.
        batchSize: See `batch_size` in `spark_aesthetic.Options`.
        device: See `device` in `spark_aesthetic.Options`.
        dtype: See `dtype` in `spark_aesthetic.Options`.
        decode: See `decode` in `spark_aesthetic.Options`.
        numThreads: See `num_threads` in `spark_aesthetic.Options`.
        maxPixels: See `max_pixels` in `spark_aesthetic.Options`.
        modelPath: See `model_path` in `spark_aesthetic.Options`.

    Raises:
        PredictorError: No such predictor.
        OptionError: A misspelt param or a value outside its range.
        TableError: From `transform` and `transformSchema`: the input column is missing or has the wrong type, or an
            output column already exists.

    Examples:
        >>> scorer = AestheticScorer(inputCol="e", inputKind="embedding", errorCol="reason")
        >>> frame = spark.createDataFrame([([1.0] + [0.0] * 767,), ([1.0],)], "e array<float>")
        >>> [row.reason for row in scorer.transform(frame).collect()]
        [None, 'embedding: wrong length']
    """

    # A saved stage stores this as its class's module, so it must stay the same when files move.
    __module__ = "spark_aesthetic"

    inputKind = make_param("inputKind", "what the column holds: image or embedding", TypeConverters.toString)
    errorCol = make_param("errorCol", "output column of the reason why a row has no score", _optional_string)
    embeddingCol = make_param("embeddingCol", "output column of the image's embedding", _optional_string)
    predictor = make_param("predictor", "name of a predictor, or its JSON text", _portable)
    normalize = make_param("normalize", "divide embeddings by their L2 norm first", TypeConverters.toBoolean)
    batchSize = make_param(
        "batchSize", "rows in one forward pass; -1 chooses a size for the device", TypeConverters.toInt
    )
    device = make_param("device", "auto, or a torch device", TypeConverters.toString)
    dtype = make_param("dtype", "auto, float32, float16 or bfloat16", TypeConverters.toString)
    decode = make_param("decode", "exact or fast", TypeConverters.toString)
    numThreads = make_param("numThreads", "threads in a Python worker; -1 takes the task's cores", TypeConverters.toInt)
    maxPixels = make_param("maxPixels", "an image with more pixels gets no score", TypeConverters.toInt)
    modelPath = make_param("modelPath", "folder of the weights, or the backbone's file", _optional_string)

    # The training report, if AestheticEstimator made the head. It is not saved with the stage.
    report: HeadReport | None = None

    _input_kwargs: dict[str, Any]

    @keyword_only
    def __init__(
        self,
        *,
        inputCol: str | None = None,
        inputKind: InputKind = "image",
        outputCol: str = "aesthetic_score",
        errorCol: str | None = None,
        embeddingCol: str | None = None,
        predictor: str | Predictor = DEFAULT,
        normalize: bool = True,
        batchSize: int = -1,
        device: str = "auto",
        dtype: Dtype = "auto",
        decode: Decode = "exact",
        numThreads: int = -1,
        maxPixels: int = PILLOW_WARNS_PIXELS,
        modelPath: str | None = None,
        # Unknown names are accepted here, so that setParams can suggest the nearest valid one.
        **_: NoReturn,
    ) -> None:
        super().__init__()
        self._setDefault(
            inputKind="image", outputCol="aesthetic_score", errorCol=None, embeddingCol=None, predictor=DEFAULT,
            normalize=True, **_DEFAULTS,
        )  # fmt: skip
        self.setParams(**self._input_kwargs)

    @keyword_only
    def setParams(self, **_: Any) -> AestheticScorer:
        """Set several params by name, as the constructor takes them."""
        self._assign(self._input_kwargs)
        return self

    def _check(self) -> tuple[Predictor, Options]:
        """Check the params, and return the predictor and the options that they describe."""
        kind = self.getInputKind()
        if kind not in INPUT_KINDS:
            raise OptionError(f"inputKind={kind!r}: {nearest(kind, INPUT_KINDS)}")
        if kind == "embedding" and self.getEmbeddingCol() is not None:
            raise OptionError("embeddingCol: expected inputKind='image', found 'embedding'. Leave embeddingCol out.")
        outputs = [name for name, _ in self._outputs()]
        if not are_distinct(outputs):
            raise OptionError(
                f"outputCol, errorCol, embeddingCol: expected a different name for each, found {', '.join(outputs)}. "
                "Rename one."
            )
        options = {option: self.getOrDefault(param) for option, param in _OPTIONS.items()}
        return _restored(self.getOrDefault("predictor")), Options.of(**options)

    def transformSchema(self, schema: StructType) -> StructType:
        """Return the output schema of `transform` for an input schema; raises as `transform` does."""
        self._check()
        self._check_input(schema)
        for name, data_type in self._outputs():
            if has_column(schema.names, name):
                raise TableError(
                    f"output column {name!r}: the table has a column of that name. Drop it, or choose another name."
                )
            schema = StructType([*schema.fields]).add(name, data_type)
        return schema

    def _check_input(self, schema: StructType) -> bool:
        """Check the input column, and return whether it holds ml Vectors."""
        if not self.isDefined(self.inputCol):
            raise OptionError("inputCol: expected the name of a column, found none. Set inputCol.")
        name = self.getInputCol()
        found = schemas.type_at(schema, name)
        if found is None:
            raise TableError(f"inputCol: no column {name!r}: {nearest(name, schema.names)}")
        if self.getInputKind() == "embedding":
            return inputs.is_vector(found, f"inputCol {name}")
        inputs.check_image_type(found, f"inputCol {name}")
        return False

    def _outputs(self) -> list[tuple[str, DataType]]:
        wanted: list[tuple[str | None, DataType]] = [
            (self.getOutputCol(), FloatType()),
            (self.getErrorCol(), StringType()),
            (self.getEmbeddingCol(), ArrayType(FloatType())),
        ]
        return [(name, data_type) for name, data_type in wanted if name is not None]

    def _transform(self, dataset: DataFrame) -> DataFrame:
        predictor, options = self._check()
        self.transformSchema(dataset.schema)
        column = F.col(schemas.column_path(dataset, self.getInputCol()))
        if self.getInputKind() == "embedding":
            struct = embedding_columns(
                column,
                predictor=weights.pin(predictor, options.model_path),
                normalize=self.getNormalize(),
                vector=self._check_input(dataset.schema),
                model_path=options.model_path,
            )
        else:
            with_embedding = self.getEmbeddingCol() is not None
            struct = score_image(column, predictor=predictor, with_embedding=with_embedding, **asdict(options))
        scored = f"_aesthetic_{self.uid}"
        parts = {"score": self.getOutputCol(), "error": self.getErrorCol(), "embedding": self.getEmbeddingCol()}
        made = [F.col(scored)[part].alias(name) for part, name in parts.items() if name is not None]
        # "*" instead of the table's column names, which can be ambiguous after a join.
        return dataset.select("*", struct.alias(scored)).select("*", *made).drop(scored)

    def setInputCol(self, value: str) -> AestheticScorer:
        """Set `inputCol`."""
        return self.setParams(inputCol=value)

    def setInputKind(self, value: InputKind) -> AestheticScorer:
        """Set `inputKind`."""
        return self.setParams(inputKind=value)

    def getInputKind(self) -> str:
        """Get `inputKind`."""
        found: str = self.getOrDefault("inputKind")
        return found

    def setOutputCol(self, value: str) -> AestheticScorer:
        """Set `outputCol`."""
        return self.setParams(outputCol=value)

    def setErrorCol(self, value: str | None) -> AestheticScorer:
        """Set `errorCol`."""
        return self.setParams(errorCol=value)

    def getErrorCol(self) -> str | None:
        """Get `errorCol`."""
        found: str | None = self.getOrDefault("errorCol")
        return found

    def setEmbeddingCol(self, value: str | None) -> AestheticScorer:
        """Set `embeddingCol`."""
        return self.setParams(embeddingCol=value)

    def getEmbeddingCol(self) -> str | None:
        """Get `embeddingCol`."""
        found: str | None = self.getOrDefault("embeddingCol")
        return found

    def setPredictor(self, value: str | Predictor) -> AestheticScorer:
        """Set `predictor`: a predictor, its name, or the path of its JSON file."""
        return self.setParams(predictor=value)

    def getPredictor(self) -> Predictor:
        """Get `predictor`."""
        return _restored(self.getOrDefault("predictor"))

    def setNormalize(self, value: bool) -> AestheticScorer:
        """Set `normalize`."""
        return self.setParams(normalize=value)

    def getNormalize(self) -> bool:
        """Get `normalize`."""
        found: bool = self.getOrDefault("normalize")
        return found

    def setBatchSize(self, value: int) -> AestheticScorer:
        """Set `batchSize`."""
        return self.setParams(batchSize=value)

    def getBatchSize(self) -> int:
        """Get `batchSize`."""
        found: int = self.getOrDefault("batchSize")
        return found

    def setDevice(self, value: str) -> AestheticScorer:
        """Set `device`."""
        return self.setParams(device=value)

    def getDevice(self) -> str:
        """Get `device`."""
        found: str = self.getOrDefault("device")
        return found

    def setDtype(self, value: Dtype) -> AestheticScorer:
        """Set `dtype`."""
        return self.setParams(dtype=value)

    def getDtype(self) -> Dtype:
        """Get `dtype`."""
        found: Dtype = self.getOrDefault("dtype")
        return found

    def setDecode(self, value: Decode) -> AestheticScorer:
        """Set `decode`."""
        return self.setParams(decode=value)

    def getDecode(self) -> Decode:
        """Get `decode`."""
        found: Decode = self.getOrDefault("decode")
        return found

    def setNumThreads(self, value: int) -> AestheticScorer:
        """Set `numThreads`."""
        return self.setParams(numThreads=value)

    def getNumThreads(self) -> int:
        """Get `numThreads`."""
        found: int = self.getOrDefault("numThreads")
        return found

    def setMaxPixels(self, value: int) -> AestheticScorer:
        """Set `maxPixels`."""
        return self.setParams(maxPixels=value)

    def getMaxPixels(self) -> int:
        """Get `maxPixels`."""
        found: int = self.getOrDefault("maxPixels")
        return found

    def setModelPath(self, value: str | None) -> AestheticScorer:
        """Set `modelPath`."""
        return self.setParams(modelPath=value)

    def getModelPath(self) -> str | None:
        """Get `modelPath`."""
        found: str | None = self.getOrDefault("modelPath")
        return found


def _restored(text: str) -> Predictor:
    return Predictor.from_json(text) if text.startswith("{") else resolve(text)
