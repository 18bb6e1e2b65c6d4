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

import json
from typing import TYPE_CHECKING

from pyspark.sql import Column
from pyspark.sql import functions as F

from spark_aesthetic import embeddings, udfs, weights
from spark_aesthetic.head import Head
from spark_aesthetic.options import OptionArgs, Options
from spark_aesthetic.predictors import DEFAULT, Predictor, resolve
from spark_aesthetic.sql import register

if TYPE_CHECKING:
    from pyspark.sql._typing import ColumnOrName
    from typing_extensions import Unpack

__all__ = ["aesthetic_score", "aesthetic_score_from_embedding", "clip_embedding", "score_image", "register"]


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
    checked = Options.of(**options)
    pinned = weights.pin(resolve(predictor), checked.model_path)
    return udfs.score_udf(pinned, checked)(_column(image))


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
    checked = Options.of(**options)
    pinned = weights.pin(resolve(predictor), checked.model_path)
    return udfs.embedding_udf(pinned, checked)(_column(image))


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
    checked = Options.of(**options)
    pinned = weights.pin(resolve(predictor), checked.model_path)
    return udfs.score_image_udf(pinned, with_embedding, checked)(_column(image))


def aesthetic_score_from_embedding(
    embedding: ColumnOrName,
    *,
    predictor: str | Predictor = DEFAULT,
    normalize: bool = True,
    vector: bool = False,
    **options: Unpack[OptionArgs],
) -> Column:
    """Score CLIP image embeddings.

    With an affine head (all built-in ones but `laion-aesthetics-v2-ava-relu`) on Spark 4.2 or later this is a
    Spark expression: no Python worker, and 0.8 of the speed of reading the column (200,000 rows of 768 floats from
    Parquet on 2 cores, 148 against 182 thousand rows a second, medians of one run). Otherwise it is a pandas UDF.

    Args:
        embedding: array<float> or array<double> column, or an ml Vector column with `vector=True`.
        predictor: A predictor, its name, or the path of its JSON file; only its head is used.
        normalize: Divide by the L2 norm first, as the published heads expect. False saves a part of the time
            where embeddings are known to be of unit length.
        vector: The column holds ml Vectors. Spark casts those to no array, and a Column does not know its type
            before it meets a table, so it must be said.
        **options: See `spark_aesthetic.Options`; only `model_path` matters here, for a head that is not in the package.

    Returns:
        float: the score. Null where the embedding is null, of the wrong length, has a null, a NaN or an
        infinity in it, or is all zeros (without `normalize`, all zeros score as the head's bias).

    Raises:
        PredictorError: No such predictor.
        WeightsError: The head's file is missing or another one.

    >>> unit = [1.0] + [0.0] * 767
    >>> spark.createDataFrame([(unit,), ([1.0],)], "e array<float>").select(
    ...     (aesthetic_score_from_embedding("e") > 4).alias("above_4")).collect()
    [Row(above_4=True), Row(above_4=None)]
    """
    scored = embedding_columns(embedding, predictor=predictor, normalize=normalize, vector=vector, **options)
    # Without a name of its own the column would be called by the expression, with all its weights.
    return scored.getField("score").alias("aesthetic_score_from_embedding")


def embedding_columns(
    embedding: ColumnOrName,
    *,
    predictor: str | Predictor = DEFAULT,
    normalize: bool = True,
    vector: bool = False,
    **options: Unpack[OptionArgs],
) -> Column:
    """What `aesthetic_score_from_embedding` gives, with the reason: struct<score: float, error: string>."""
    model_path = Options.of(**options).model_path
    pinned = weights.pin(resolve(predictor), model_path)
    head = weights.load_head(pinned, model_path)
    column = _column(embedding)
    if udfs.runs_natively(head):
        if vector:
            from pyspark.ml.functions import vector_to_array

            # vector_to_array raises on null.
            column = F.when(column.isNotNull(), vector_to_array(column, dtype="float32"))
        score, error = _native(column.cast("array<float>"), head, normalize)
        return F.struct(score.alias("score"), error.alias("error"))
    return udfs.vector_udf(pinned, normalize, model_path)(column)


def _native(vector: Column, head: Head, normalize: bool) -> tuple[Column, Column]:
    # One text that folds to one constant. A literal list would be 768 expressions, each copied to every place that
    # names the weights: seconds of planning for each query.
    weight = F.from_json(F.lit(json.dumps(head.weight.tolist())), "array<float>")
    right_length = F.size(vector) == head.dimension
    # vector_inner_product raises on another length. What stands in a branch of a CASE is computed once more there, so
    # each guard becomes a null in an operand: the vector is read once for the norm and once for the product.
    checked = F.when(right_length, vector)
    product = F.call_function("vector_inner_product", checked, weight)
    norm = F.call_function("vector_norm", checked, F.lit(2.0).cast("float"))
    value = F.try_divide(product, norm) if normalize else product
    # A NaN or an infinity inside makes the norm, or else the product, not finite; a null inside makes it null.
    finite = F.abs(norm if normalize else product) < F.lit(float("inf"))
    score = (value + F.lit(head.bias) + F.when(finite, F.lit(0.0))).cast("float")
    error = (
        F.when(vector.isNull(), embeddings.NULL)
        .when(~right_length, embeddings.WRONG_LENGTH)
        .when(~F.coalesce(finite, F.lit(False)), embeddings.NOT_FINITE)
    )
    return score, (error.when(norm == 0, embeddings.ZERO_NORM) if normalize else error)


def _column(column: ColumnOrName) -> Column:
    return F.col(column) if isinstance(column, str) else column
