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

# The stage's params by the options that they stand for.
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
    """A param for the body of a stage's class."""
    return Param(Params._dummy(), name, doc, typeConverter=converter)


def _portable(predictor: str | Predictor) -> str:
    """As a param keeps it: a name, or the whole recipe, so that a saved stage needs no other file of ours."""
    if isinstance(predictor, str) and (predictor in BUILT_IN or predictor.startswith("{")):
        return predictor
    return resolve(predictor).to_json()


def _optional_string(value: Any) -> str | None:
    """The converter of a param that may be None, as `copy` and a saved stage may have it."""
    return None if value is None else TypeConverters.toString(value)


def _of_python(value: Any) -> Any:
    """Give NumPy's numbers as Python's, since PySpark's converters take only some of them."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return [_of_python(each) for each in value] if isinstance(value, list | tuple) else value


class CheckedParams(Params):
    """Params that are set together, and only if all of them are right."""

    def _assign(self, given: dict[str, Any]) -> None:
        """Set params by name; None sets one back to its default.

        Raises:
            OptionError: There is no param of a name, or a value is refused. The stage is then as it was.
        """
        before = dict(self._paramMap)
        try:
            for name in given:
                if not self.hasParam(name):
                    raise OptionError(f"no param {name!r}: {nearest(name, [param.name for param in self.params])}")
            self._set(**given)
            self._check()
        except Exception:
            # Otherwise each later call would meet the value that was refused.
            self._paramMap = before
            raise

    def _set(self, **given: Any) -> CheckedParams:
        """Set params, which PySpark's `copy` does by this too; raises OptionError for a value of another type."""
        for name, value in given.items():
            if value is None:
                # PySpark saves no None that was set.
                self.clear(self.getParam(name))
                continue
            try:
                super()._set(**{name: _of_python(value)})
            except TypeError as error:
                raise OptionError(f"{name}={value!r}: expected a value of the param's type, found: {error}") from error
        return self

    def _check(self) -> object:
        """Raise an AestheticError unless the params are right; those of `fit` and `transform` pass no setter."""
        raise NotImplementedError  # every stage has its own


class AestheticScorer(
    CheckedParams,
    Transformer,
    HasInputCol,
    HasOutputCol,
    DefaultParamsReadable["AestheticScorer"],
    DefaultParamsWritable,
):
    """Scores a column of images or of CLIP embeddings, as `score_image` and `aesthetic_score_from_embedding` do.

    Saved and loaded like any other stage, with a predictor of your own inside it; on classic sessions and on Connect.
    Each image is scored once, whatever is done with the columns.

    Args:
        inputCol: Binary column of image files, or with `inputKind="embedding"` `array<float>`, `array<double>` or an
            ml Vector; it may be the field of a struct, such as "image.bytes".
        inputKind: "image" or "embedding".
        outputCol: `float`: the score; null where there is none.
        errorCol: `string`: why there is none; left out unless named.
        embeddingCol: `array<float>`: the image's embedding; left out unless named.
        predictor: A predictor, its name, or the path of its JSON file.
        normalize: Divide embeddings by their length first.
        batchSize: This and the others are those of `spark_aesthetic.Options`.
        device: As there.
        dtype: As there.
        decode: As there.
        numThreads: As there.
        maxPixels: As there.
        modelPath: As there.

    Raises:
        PredictorError: No such predictor.
        OptionError: A misspelt param or a value outside its range.
        TableError: By `transform` and `transformSchema`: no such column, another type, or a column of the output's
            name is there already.

    Examples:
        >>> scorer = AestheticScorer(inputCol="e", inputKind="embedding", errorCol="reason")
        >>> frame = spark.createDataFrame([([1.0] + [0.0] * 767,), ([1.0],)], "e array<float>")
        >>> [row.reason for row in scorer.transform(frame).collect()]
        [None, 'embedding: wrong length']
    """

    # A saved stage names its class by this: the place that stays.
    __module__ = "spark_aesthetic"

    inputKind = make_param("inputKind", "what the column holds: image or embedding", TypeConverters.toString)
    errorCol = make_param("errorCol", "output column of the reason why a row has no score", _optional_string)
    embeddingCol = make_param("embeddingCol", "output column of the image's embedding", _optional_string)
    predictor = make_param("predictor", "name of a predictor, or its JSON text", _portable)
    normalize = make_param("normalize", "divide embeddings by their length first", TypeConverters.toBoolean)
    batchSize = make_param("batchSize", "rows in one forward pass; -1 chooses for the device", TypeConverters.toInt)
    device = make_param("device", "auto, or a torch device", TypeConverters.toString)
    dtype = make_param("dtype", "auto, float32, float16 or bfloat16", TypeConverters.toString)
    decode = make_param("decode", "exact or fast", TypeConverters.toString)
    numThreads = make_param("numThreads", "threads in a Python worker; -1 takes the task's cores", TypeConverters.toInt)
    maxPixels = make_param("maxPixels", "an image of more pixels gets no score", TypeConverters.toInt)
    modelPath = make_param("modelPath", "folder of the weights, or the backbone's file", _optional_string)

    # Of a head that AestheticEstimator made, what it found; not saved with the stage.
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
        # Taken here, so that setParams can name the nearest.
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
        """The predictor and the options of the params, checked."""
        kind = self.getInputKind()
        if kind not in INPUT_KINDS:
            raise OptionError(f"inputKind={kind!r}: {nearest(kind, INPUT_KINDS)}")
        if kind == "embedding" and self.getEmbeddingCol() is not None:
            raise OptionError("embeddingCol: expected inputKind='image', found 'embedding', which holds them already")
        outputs = [name for name, _ in self._outputs()]
        if not are_distinct(outputs):
            raise OptionError(
                f"outputCol, errorCol, embeddingCol: expected a name of its own for each, found {', '.join(outputs)}; "
                "rename one"
            )
        options = {option: self.getOrDefault(param) for option, param in _OPTIONS.items()}
        return _restored(self.getOrDefault("predictor")), Options.of(**options)

    def transformSchema(self, schema: StructType) -> StructType:
        """The schema that `transform` gives for one that it gets; raises as that does."""
        self._check()
        self._check_input(schema)
        for name, data_type in self._outputs():
            if has_column(schema.names, name):
                raise TableError(f"output column {name!r}: the table has one of that name; drop it, or name another")
            schema = StructType([*schema.fields]).add(name, data_type)
        return schema

    def _check_input(self, schema: StructType) -> bool:
        """Whether the input column holds ml Vectors."""
        if not self.isDefined(self.inputCol):
            raise OptionError("inputCol: expected the name of a column, found none; set it")
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
        # By no name of the table, of which a join leaves several.
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
        """Set the predictor: one, its name, or the path of its JSON file."""
        return self.setParams(predictor=value)

    def getPredictor(self) -> Predictor:
        """Get the predictor."""
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
