"""The pandas UDFs behind the column functions and the SQL functions.

Each except `encoder_udf` takes a pinned predictor, so that the workers get the checksums of the weights with it.
`spark_aesthetic.functions.columns` explains why some are nondeterministic to Spark.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

import pandas as pd
from pyspark.sql.pandas.functions import pandas_udf
from pyspark.sql.types import ArrayType, DataType, DoubleType, FloatType, StringType, StructField, StructType

from spark_aesthetic.delta import connect
from spark_aesthetic.functions import costs, worker
from spark_aesthetic.options import EncoderName, Options
from spark_aesthetic.predictors.head import Head
from spark_aesthetic.predictors.recipe import Predictor

if TYPE_CHECKING:
    from pyspark.sql._typing import UserDefinedFunctionLike

# The first release with vector_inner_product, vector_cosine_similarity and vector_norm.
_NATIVE_SINCE = (4, 2)


def runs_natively(head: Head) -> bool:
    """Whether Spark, including the server on Spark Connect, can score embeddings with this head without Python."""
    # The cosine similarity between an embedding and weights of all zeros is undefined.
    return head.affine and head.norm > 0 and connect.oldest_release() >= _NATIVE_SINCE


def score_udf(pinned: Predictor, options: Options) -> UserDefinedFunctionLike:
    """Return the UDF behind `aesthetic_score`."""

    def aesthetic_score(batches: Iterator[pd.Series]) -> Iterator[pd.Series]:
        return (frame["score"] for frame in worker.score_images(batches, pinned, options))

    return _iterator_udf(aesthetic_score, FloatType())


def embedding_udf(pinned: Predictor, options: Options) -> UserDefinedFunctionLike:
    """Return the UDF behind `clip_embedding`."""

    def clip_embedding(batches: Iterator[pd.Series]) -> Iterator[pd.Series]:
        return (frame["embedding"] for frame in worker.clip_embeddings(batches, pinned, options))

    return _iterator_udf(clip_embedding, ArrayType(FloatType())).asNondeterministic()


def encoder_udf(name: EncoderName, normalize: bool, options: Options) -> UserDefinedFunctionLike:
    """Return the UDF behind `image_embedding`."""

    def image_embedding(batches: Iterator[pd.Series]) -> Iterator[pd.Series]:
        return (frame["embedding"] for frame in worker.embed_images(batches, name, normalize, options))

    return _iterator_udf(image_embedding, ArrayType(FloatType())).asNondeterministic()


def score_image_udf(pinned: Predictor, with_embedding: bool, options: Options) -> UserDefinedFunctionLike:
    """Return the UDF behind `score_image`."""
    model = pinned.model_id
    schema = StructType([*_result_fields(with_embedding), StructField("model", StringType())])

    def score_image(batches: Iterator[pd.Series]) -> Iterator[pd.DataFrame]:
        return (frame.assign(model=model)[schema.names] for frame in worker.score_images(batches, pinned, options))

    return _iterator_udf(score_image, schema).asNondeterministic()


def job_udf(pinned: Predictor, with_embedding: bool, options: Options) -> UserDefinedFunctionLike:
    """Return the UDF of a job over images: score and error as in `score_image`, and the cost columns."""
    spent = [StructField(name, DoubleType()) for name in costs.NAMES]
    schema = StructType([*_result_fields(with_embedding), *spent])

    def score_image(batches: Iterator[pd.Series]) -> Iterator[pd.DataFrame]:
        return (frame[schema.names] for frame in worker.score_images(batches, pinned, options))

    return _iterator_udf(score_image, schema).asNondeterministic()


def vector_udf(pinned: Predictor, normalize: bool, model_path: str | None) -> UserDefinedFunctionLike:
    """Return the UDF that returns score and error of embeddings where Spark's own functions cannot."""

    def score_embedding(batches: Iterator[pd.Series]) -> Iterator[pd.DataFrame]:
        return worker.score_vectors(batches, pinned, normalize, model_path)

    return _iterator_udf(score_embedding, "score float, error string")


def vector_score_udf(pinned: Predictor, model_path: str | None) -> UserDefinedFunctionLike:
    """Return the UDF that returns only the score of embeddings where Spark's own functions cannot."""

    def aesthetic_score_from_embedding(batches: Iterator[pd.Series]) -> Iterator[pd.Series]:
        return (frame["score"] for frame in worker.score_vectors(batches, pinned, True, model_path))

    return _iterator_udf(aesthetic_score_from_embedding, FloatType())


def _result_fields(with_embedding: bool) -> list[StructField]:
    embedding = [StructField("embedding", ArrayType(FloatType()))] if with_embedding else []
    return [StructField("score", FloatType()), StructField("error", StringType()), *embedding]


def _iterator_udf(
    function: Callable[[Iterator[pd.Series]], Iterator[Any]], returns: DataType | str
) -> UserDefinedFunctionLike:
    # The overloads of pandas_udf require a functionType, which is deprecated.
    make_udf: Any = pandas_udf
    return cast("UserDefinedFunctionLike", make_udf(function, returns))
