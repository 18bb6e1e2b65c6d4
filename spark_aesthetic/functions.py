"""Column functions, in the manner of `pyspark.sql.functions`.

All take a Column or a column name, run lazily, and give null (with a reason in `score_image`) for a row that
cannot be scored.

How often is an image scored? `score_image` and `clip_embedding` are nondeterministic to Spark, so that a
filter on their result does not run them a second time below itself; a filter on another column then stays above them:
write it before. `aesthetic_score` is deterministic, so that it stands inside aggregates, and filters on other
columns pass below it; filtering or sorting by its own result scores twice: write the scores first, or take
`score_image`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

import pandas as pd
import pyspark
from pyspark.sql import Column
from pyspark.sql import functions as F
from pyspark.sql.pandas.functions import pandas_udf
from pyspark.sql.types import ArrayType, DataType, FloatType, StringType, StructField, StructType

from spark_aesthetic import embeddings, weights, worker
from spark_aesthetic.head import Head
from spark_aesthetic.options import OptionArgs, Options
from spark_aesthetic.predictors import DEFAULT, Predictor, resolve

if TYPE_CHECKING:
    from pyspark.sql._typing import ColumnOrName, UserDefinedFunctionLike
    from typing_extensions import Unpack

# The first release with vector_inner_product and vector_norm.
_NATIVE_SINCE = (4, 2)


def aesthetic_score(
    image: ColumnOrName, *, predictor: str | Predictor = DEFAULT, **options: Unpack[OptionArgs]
) -> Column:
    """Score images by their bytes.

    Args:
        image: Binary column of whole image files (JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF).
        predictor: A predictor, its name, or the path of its JSON file.
        **options: See `spark_aesthetic.Options`.

    Returns:
        float: about 1 (poor) to 10 (fine), never clamped. Null for a null, undecodable or over-limit image.

    Raises:
        PredictorError: No such predictor.
        OptionError: A misspelt option or a value outside its range.

    >>> spark.createDataFrame([(None,)], "image binary").select(
    ...     aesthetic_score("image", predictor="untrained-vit-b-32").alias("score")).collect()
    [Row(score=None)]
    """
    return score_udf(predictor, Options.of(**options))(_column(image))


def clip_embedding(
    image: ColumnOrName, *, predictor: str | Predictor = DEFAULT, **options: Unpack[OptionArgs]
) -> Column:
    """Embed images with a predictor's backbone.

    Args:
        image: Binary column of whole image files.
        predictor: A predictor, its name, or the path of its JSON file; its head is not used.
        **options: See `spark_aesthetic.Options`.

    Returns:
        array<float>: the CLIP image embedding, of unit length (768 numbers for ViT-L/14). Null for a null,
        undecodable or over-limit image.

    Raises:
        PredictorError: No such predictor.
        OptionError: A misspelt option or a value outside its range.
    """
    return embedding_udf(predictor, Options.of(**options))(_column(image))


def score_image(
    image: ColumnOrName,
    *,
    predictor: str | Predictor = DEFAULT,
    with_embedding: bool = False,
    **options: Unpack[OptionArgs],
) -> Column:
    """Score images and tell why some have no score, in one pass.

    Args:
        image: Binary column of whole image files.
        predictor: A predictor, its name, or the path of its JSON file.
        with_embedding: Also keep the embedding, so that another head can score it without the image.
        **options: See `spark_aesthetic.Options`.

    Returns:
        struct<score: float, error: string[, embedding: array<float>], model: string>. Exactly one of score
        and error is null; `error` is a short reason such as "decode: truncated JPEG". `model` is the predictor's
        `model_id`, also where there is an error. The struct itself is never null.

    Raises:
        PredictorError: No such predictor.
        OptionError: A misspelt option or a value outside its range.

    >>> spark.createDataFrame([(b"GIF8?",)], "image binary").select(
    ...     score_image("image", predictor="untrained-vit-b-32").alias("s")).select("s.score", "s.error").collect()
    [Row(score=None, error='decode: damaged GIF')]
    """
    return score_image_udf(predictor, with_embedding, Options.of(**options))(_column(image))


def aesthetic_score_from_embedding(
    embedding: ColumnOrName,
    *,
    predictor: str | Predictor = DEFAULT,
    normalize: bool = True,
    vector: bool = False,
    model_path: str | None = None,
) -> Column:
    """Score CLIP image embeddings.

    With an affine head (all built-in ones but `laion-aesthetics-v2-ava-relu`) on Spark 4.2 or later this is a
    Spark expression: no Python worker, near the speed of reading the column. Otherwise it is a pandas UDF.

    Args:
        embedding: array<float> or array<double> column, or an ml Vector column with `vector=True`.
        predictor: A predictor, its name, or the path of its JSON file; only its head is used.
        normalize: Divide by the L2 norm first, as the published heads expect. False saves a part of the time
            where embeddings are known to be of unit length.
        vector: The column holds ml Vectors. Spark casts those to no array, and a Column does not know its type
            before it meets a table, so it must be said.
        model_path: A folder with the head's file, where it is not in the package.

    Returns:
        float: the score. Null where the embedding is null, of the wrong length, has a null, a NaN or an
        infinity in it, or is all zeros (without `normalize`, all zeros score as the head's bias).

    Raises:
        PredictorError: No such predictor.
        WeightsError: The head's file is missing or another one.

    >>> unit = [1.0] + [0.0] * 767
    >>> spark.createDataFrame([(unit,), ([1.0],)], "e array<float>").select(
    ...     F.round(aesthetic_score_from_embedding("e"), 2).alias("score")).collect()
    [Row(score=5.26), Row(score=None)]
    """
    scored = embedding_columns(
        embedding, predictor=predictor, normalize=normalize, vector=vector, model_path=model_path
    )
    # Without a name of its own the column would be called by the expression, with all its weights.
    return scored.getField("score").alias("aesthetic_score_from_embedding")


def embedding_columns(
    embedding: ColumnOrName,
    *,
    predictor: str | Predictor = DEFAULT,
    normalize: bool = True,
    vector: bool = False,
    model_path: str | None = None,
) -> Column:
    """What `aesthetic_score_from_embedding` gives, with the reason: struct<score: float, error: string>."""
    pinned = weights.pin(resolve(predictor), model_path)
    head = weights.load_head(pinned, model_path)
    column = _column(embedding)
    if runs_natively(head):
        if vector:
            from pyspark.ml.functions import vector_to_array

            # vector_to_array raises on null.
            column = F.when(column.isNotNull(), vector_to_array(column, dtype="float32"))
        score, error = _native(column.cast("array<float>"), head, normalize)
        return F.struct(score.alias("score"), error.alias("error"))
    return vector_udf(pinned, normalize, model_path)(column)


def runs_natively(head: Head) -> bool:
    """Whether this Spark scores embeddings with this head without Python."""
    return head.affine and tuple(int(part) for part in pyspark.__version__.split(".")[:2]) >= _NATIVE_SINCE


def _native(vector: Column, head: Head, normalize: bool) -> tuple[Column, Column]:
    # As a cast literal the weights fold to one constant; array(lit, lit, ...) would stay 768 expressions.
    weight = F.lit(head.weight.tolist()).cast("array<float>")
    right_length = F.size(vector) == head.dimension
    product = F.call_function("vector_inner_product", vector, weight)
    norm = F.call_function("vector_norm", vector, F.lit(2.0).cast("float"))
    # A NaN or an infinity inside makes the norm, or else the product, not finite; a null inside makes it null.
    # vector_inner_product raises on another length, so it is only evaluated behind right_length.
    finite = F.abs(norm if normalize else product) < F.lit(float("inf"))
    value = F.try_divide(product, norm) if normalize else product
    score = F.when(right_length & finite, value + F.lit(head.bias)).cast("float")
    error = (
        F.when(vector.isNull(), embeddings.NULL)
        .when(~right_length, embeddings.WRONG_LENGTH)
        .when(~F.coalesce(finite, F.lit(False)), embeddings.NOT_FINITE)
    )
    return score, (error.when(norm == 0, embeddings.ZERO_NORM) if normalize else error)


def score_udf(predictor: str | Predictor, options: Options) -> UserDefinedFunctionLike:
    """The pandas UDF behind `aesthetic_score`, as `register` gives it to SQL."""
    pinned = weights.pin(resolve(predictor), options.model_path)

    def aesthetic_score(batches: Iterator[pd.Series]) -> Iterator[pd.Series]:
        return (frame["score"] for frame in worker.score_images(batches, pinned, options))

    return _iterator_udf(aesthetic_score, FloatType())


def embedding_udf(predictor: str | Predictor, options: Options) -> UserDefinedFunctionLike:
    """The pandas UDF behind `clip_embedding`."""
    pinned = weights.pin(resolve(predictor), options.model_path)

    def clip_embedding(batches: Iterator[pd.Series]) -> Iterator[pd.Series]:
        return (frame["embedding"] for frame in worker.score_images(batches, pinned, options))

    return _iterator_udf(clip_embedding, ArrayType(FloatType())).asNondeterministic()


def score_image_udf(predictor: str | Predictor, with_embedding: bool, options: Options) -> UserDefinedFunctionLike:
    """The pandas UDF behind `score_image`."""
    pinned = weights.pin(resolve(predictor), options.model_path)
    model = pinned.model_id
    fields = [StructField("score", FloatType()), StructField("error", StringType())]
    if with_embedding:
        fields.append(StructField("embedding", ArrayType(FloatType())))
    schema = StructType([*fields, StructField("model", StringType())])

    def score_image(batches: Iterator[pd.Series]) -> Iterator[pd.DataFrame]:
        return (frame.assign(model=model)[schema.names] for frame in worker.score_images(batches, pinned, options))

    return _iterator_udf(score_image, schema).asNondeterministic()


def vector_udf(pinned: Predictor, normalize: bool, model_path: str | None) -> UserDefinedFunctionLike:
    """The pandas UDF that scores embeddings, with the reason, where Spark's own functions cannot."""

    def score_embedding(batches: Iterator[pd.Series]) -> Iterator[pd.DataFrame]:
        return worker.score_vectors(batches, pinned, normalize, model_path)

    return _iterator_udf(score_embedding, "score float, error string")


def vector_score_udf(pinned: Predictor, model_path: str | None) -> UserDefinedFunctionLike:
    """The same with the score alone, as `register` gives it to SQL."""

    def aesthetic_score_from_embedding(batches: Iterator[pd.Series]) -> Iterator[pd.Series]:
        return (frame["score"] for frame in worker.score_vectors(batches, pinned, True, model_path))

    return _iterator_udf(aesthetic_score_from_embedding, FloatType())


def _iterator_udf(
    function: Callable[[Iterator[pd.Series]], Iterator[Any]], returns: DataType | str
) -> UserDefinedFunctionLike:
    # The overloads of pandas_udf ask for a functionType, which its documentation has deprecated.
    make_udf: Any = pandas_udf
    return cast("UserDefinedFunctionLike", make_udf(function, returns))


def _column(column: ColumnOrName) -> Column:
    return F.col(column) if isinstance(column, str) else column
