"""Column functions, in the manner of `pyspark.sql.functions`.

All take a Column, a column name, or the path of a struct's field such as `image.bytes`; run lazily; and give null (with
a reason in `score_image`) for a row that cannot be scored.

How often is an image scored? `score_image`, `clip_embedding` and `image_embedding` are nondeterministic to Spark, so
that a filter on their result does not run them a second time below itself; a filter on another column then stays above
them: write it before. On Spark Connect each mention of a Column is a call: name it by `withColumn` before you take
several fields of it. `aesthetic_score` is deterministic, so that it stands inside aggregates, and filters on other
columns pass below it; filtering or sorting by its own result scores twice: write the scores first, or take
`score_image`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING

from pyspark.sql import Column
from pyspark.sql import functions as F

from spark_aesthetic.delta import connect
from spark_aesthetic.errors import OptionError, nearest
from spark_aesthetic.functions import udfs
from spark_aesthetic.functions.sql import register
from spark_aesthetic.options import INPUT_KINDS, EncoderName, InputKind, OptionArgs, Options
from spark_aesthetic.predictors import embeddings, weights
from spark_aesthetic.predictors.head import Head
from spark_aesthetic.predictors.recipe import BUILT_IN, DEFAULT, Predictor, resolve

if TYPE_CHECKING:
    from pyspark.sql._typing import ColumnOrName, UserDefinedFunctionLike
    from typing_extensions import Unpack

__all__ = [
    "aesthetic_score",
    "aesthetic_score_from_embedding",
    "clip_embedding",
    "image_embedding",
    "score_image",
    "register",
]


def aesthetic_score(
    image: ColumnOrName, *, predictor: str | Predictor = DEFAULT, **options: Unpack[OptionArgs]
) -> Column:
    """Score images by their bytes.

    Args:
        image: Binary column of whole image files (JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF).
        predictor: A predictor, its name, or the path of its JSON file.
        **options: See `spark_aesthetic.Options`.

    Returns:
        `float`, about 1 (poor) to 10 (fine), never clamped. Null for a null, undecodable or over-limit image.

    Raises:
        PredictorError: No such predictor, or one of your own whose backbone open_clip has not; the second where that is
            installed beside the session, else on the workers.
        OptionError: A misspelt option or a value outside its range.

    Examples:
        >>> spark.createDataFrame([(None,)], "image binary").select(
        ...     aesthetic_score("image", predictor="untrained-vit-b-32").alias("score")).collect()
        [Row(score=None)]
    """
    checked = Options.of(aesthetic_score, **options)
    pinned = weights.pin(_with_backbone(resolve(predictor)), checked.model_path)
    return _scored(udfs.score_udf(pinned, checked), image)


def clip_embedding(
    image: ColumnOrName, *, predictor: str | Predictor = DEFAULT, **options: Unpack[OptionArgs]
) -> Column:
    """Embed images with a predictor's backbone.

    Args:
        image: Binary column of whole image files.
        predictor: A predictor, its name, or the path of its JSON file; its head is neither used nor looked for.
        **options: See `spark_aesthetic.Options`.

    Returns:
        `array<float>`, the CLIP image embedding, of unit length (768 numbers for ViT-L/14). Null for a null,
        undecodable or over-limit image.

    Raises:
        PredictorError: No such predictor, or one of your own whose backbone open_clip has not; the second where that is
            installed beside the session, else on the workers.
        OptionError: A misspelt option or a value outside its range.
    """
    checked = Options.of(clip_embedding, **options)
    pinned = weights.pin_backbone(_with_backbone(resolve(predictor)), checked.model_path)
    return _scored(udfs.embedding_udf(pinned, checked), image)


def image_embedding(
    image: ColumnOrName,
    *,
    model_name: str = "vit_large_patch14_clip_quickgelu_224.openai",
    pretrained: bool | str = True,
    normalize: bool = True,
    **options: Unpack[OptionArgs],
) -> Column:
    """Embed images with any encoder of timm or open_clip, by its own preprocessing, for several classifiers to share.

    Of a classifier, such as "resnet50.a1_in1k", the embedding is what its last layer takes; of a CLIP model it is the
    projected one. For a predictor's own backbone `clip_embedding` is faster and loads its weights once a node.
    Preprocessing is the library's: some of timm's CLIP models crop closer than the reference does
    (vit_base_patch32_clip_quickgelu_224.openai to 0.9), and all drop an alpha channel before they resize.

    Args:
        image: Binary column of whole image files.
        model_name: A model of timm with its tag, as `timm.list_pretrained()` has them, or one of open_clip, as
            `open_clip.list_models()` has them.
        pretrained: The published weights, which the library downloads to its own cache on every worker's node; of
            open_clip's models True is the tag "openai", and another tag is given as such. False is seeded random
            weights, whose embeddings mean nothing. `model_path` stands for a download: a safetensors file, or a folder
            that has `<model_name>.safetensors` in it.
        normalize: Bring embeddings to unit length, as scores expect them.
        **options: See `spark_aesthetic.Options`.

    Returns:
        `array<float>`. Null for a null, undecodable or over-limit image, or an embedding that is not finite; the
        reason is not told, and `score_image` of this output calls it "null".

    Raises:
        OptionError: No such model or weights, a misspelt option or a value outside its range. The first two where timm
            is installed beside the session, else on the workers.
    """
    checked = Options.of(image_embedding, **options)
    name = EncoderName(model_name=model_name, pretrained=pretrained, model_path=checked.model_path)
    # A thin client of Spark Connect has no torch.
    if find_spec("timm") is not None and find_spec("open_clip") is not None:
        from spark_aesthetic.images import other_encoders

        other_encoders.check(name)
    return _scored(udfs.encoder_udf(name, normalize, checked), image)


def score_image(
    image: ColumnOrName,
    *,
    predictor: str | Predictor = DEFAULT,
    with_embedding: bool = False,
    input_kind: InputKind = "image",
    **options: Unpack[OptionArgs],
) -> Column:
    """Score images, or embeddings of them, and tell why some have no score, in one pass.

    Args:
        image: Binary column of whole image files; with `input_kind="embedding"` what `image_embedding`,
            `clip_embedding` or a table has: `array<float>` or `array<double>`.
        predictor: A predictor, its name, or the path of its JSON file.
        with_embedding: Also keep the embedding, so that another head can score it without the image.
        input_kind: "image" or "embedding".
        **options: See `spark_aesthetic.Options`.

    Returns:
        `struct<score float, error string[, embedding array<float>], model string>`. Exactly one of score
        and error is null; `error` is a short reason such as "decode: truncated JPEG". `model` is the predictor's
        `model_id`, also where there is an error. The struct itself is never null.

    Raises:
        PredictorError: No such predictor, or one of your own whose backbone open_clip has not; the second where that is
            installed beside the session, else on the workers.
        OptionError: A misspelt option or a value outside its range.

    Examples:
        >>> spark.createDataFrame([(b"GIF8?",)], "image binary").select(
        ...     score_image("image", predictor="untrained-vit-b-32").alias("s")).select("s.score", "s.error").collect()
        [Row(score=None, error='decode: damaged GIF')]
    """
    checked = Options.of(score_image, **options)
    pinned = weights.pin(resolve(predictor), checked.model_path)
    if input_kind not in INPUT_KINDS:
        raise OptionError(f"input_kind={input_kind!r}: {nearest(str(input_kind), INPUT_KINDS)}")
    if input_kind == "embedding":
        if with_embedding:
            raise OptionError("with_embedding: expected input_kind='image', found 'embedding', which holds it already")
        scored = embedding_columns(image, predictor=pinned, model_path=checked.model_path)
        # As that of images is called, and not by the expression, with all its weights.
        return scored.withField("model", F.lit(pinned.model_id)).alias("score_image")
    return _scored(udfs.score_image_udf(_with_backbone(pinned), with_embedding, checked), image)


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
    Spark expression: no Python worker, and 0.87 of the speed of reading the column, 0.93 without `normalize`
    (`make bench`: 200,000 rows of 768 floats from Delta, 2 cores, with the JVM option of conf/local.conf; 0.5 to 0.6
    without it).
    Otherwise it is a pandas UDF.

    Args:
        embedding: `array<float>` or `array<double>` column, or an ml Vector column with `vector=True`.
        predictor: A predictor, its name, or the path of its JSON file; its backbone is neither used nor looked for.
        normalize: Divide by the L2 norm first, as the published heads expect. False saves a part of the time
            where embeddings are known to be of unit length.
        vector: The column holds ml Vectors. Spark casts those to no array, and a Column does not know its type
            before it meets a table, so it must be said.
        **options: See `spark_aesthetic.Options`; only `model_path` matters here, for a head that is not in the package.

    Returns:
        `float`, the score. Null where the embedding is null, of the wrong length, has a null, a NaN or an
        infinity in it, or is all zeros (without `normalize`, all zeros score as the head's bias). Give what you make of
        it a name by `alias`: Spark else calls it by the expression, with all the weights.

    Raises:
        PredictorError: No such predictor.
        WeightsError: The head's file is missing or another one.
        pyspark.errors.AnalysisException: By the query: the column is of another type.

    Examples:
        >>> unit = [1.0] + [0.0] * 767
        >>> spark.createDataFrame([(unit,), ([1.0],)], "e array<float>").select(
        ...     (aesthetic_score_from_embedding("e") > 4).alias("above_4")).collect()
        [Row(above_4=True), Row(above_4=None)]
    """
    model_path = Options.of(aesthetic_score_from_embedding, **options).model_path
    pinned = weights.pin_head(resolve(predictor), model_path)
    head = weights.load_head(pinned, model_path)
    if udfs.runs_natively(head):
        score = _once(_column(embedding), lambda column: _native_score(as_array(column, vector), head, normalize))
    else:
        score = udfs.vector_udf(pinned, normalize, model_path)(as_array(embedding, vector)).getField("score")
    # Without a name of its own the column would be called by the expression, with all its weights.
    return score.alias("aesthetic_score_from_embedding")


def embedding_columns(
    embedding: ColumnOrName,
    *,
    predictor: Predictor,
    normalize: bool = True,
    vector: bool = False,
    model_path: str | None = None,
) -> Column:
    """What `aesthetic_score_from_embedding` gives, with the reason: struct<score: float, error: string>."""
    head = weights.load_head(predictor, model_path)
    if not udfs.runs_natively(head):
        return udfs.vector_udf(predictor, normalize, model_path)(as_array(embedding, vector))

    def scored(column: Column) -> Column:
        array = as_array(column, vector)
        score = _native_score(array, head, normalize)
        return F.struct(score.alias("score"), _native_error(array, score, head).alias("error"))

    return _once(_column(embedding), scored)


def _once(column: Column, expression: Callable[[Column], Column]) -> Column:
    """An expression that names a column several times, of a column that is computed once for each row.

    Where each mention would be computed, such as that of a model's result, the column is bound to a variable first, in
    a lambda. For a column of a table that would only cost (1.8 times the time).
    """
    if connect.computes_each_mention(column):
        return F.transform(F.array(column), expression)[0]
    return expression(column)


def as_array(embedding: ColumnOrName, vector: bool) -> Column:
    """A column of embeddings, ml Vectors or not, as array<float>; null where the embedding is.

    What cannot be one, such as text, numbers or Vectors that were not said to be, ends when Spark analyses the query.
    """
    column = _column(embedding)
    if vector:
        from pyspark.ml.functions import vector_to_array

        # vector_to_array raises on null.
        column = F.when(column.isNotNull(), vector_to_array(column, dtype="float32"))
    return column.cast("array<float>")


def _native_score(array: Column, head: Head, normalize: bool) -> Column:
    # One text that folds to one constant. A literal list would be 768 expressions, each copied to every place that
    # names the weights: seconds of planning for each query.
    weight = F.from_json(F.lit(head.weight_text), "array<float>")
    checked = _of_right_length(array, head)
    # What stands in a branch of a CASE is computed once more there, so each guard becomes a null in an operand.
    if normalize:
        # Product and norm in one pass over the embedding.
        similarity = F.call_function("vector_cosine_similarity", checked, weight)
        value = similarity * F.lit(head.norm)
        # A NaN or an infinity inside makes the similarity NaN, which to Spark is larger than any number. A norm beyond
        # float32 makes it 0, and only then is the norm itself computed.
        finite = F.when(similarity == 0, _norm(checked) < F.lit(float("inf"))).otherwise(similarity <= 2)
    else:
        value = F.call_function("vector_inner_product", checked, weight)
        finite = F.abs(value) < F.lit(float("inf"))
    return (value + F.lit(head.bias) + F.when(finite, F.lit(0.0))).cast("float")


def _native_error(array: Column, score: Column, head: Head) -> Column:
    """Why the score, of a normalised embedding, is null; computed where it is."""
    reason = (
        F.when(array.isNull(), embeddings.NULL)
        .when(F.size(array) != head.dimension, embeddings.WRONG_LENGTH)
        .when(_norm(_of_right_length(array, head)) == 0, embeddings.ZERO_NORM)
        .otherwise(embeddings.NOT_FINITE)
    )
    return F.when(score.isNull(), reason)


def _of_right_length(array: Column, head: Head) -> Column:
    # The vector functions raise on another length.
    return F.when(F.size(array) == head.dimension, array)


def _norm(array: Column) -> Column:
    return F.call_function("vector_norm", array, F.lit(2.0).cast("float"))


def _with_backbone(predictor: Predictor) -> Predictor:
    """The predictor, if its backbone is one that makes embeddings; whatever scores embeddings alone needs none."""
    # A thin client of Spark Connect has no open_clip, and importing it for what is known to be right takes seconds.
    if predictor not in BUILT_IN.values() and find_spec("open_clip") is not None:
        from spark_aesthetic.images import architectures

        architectures.embedding_dimension(predictor.backbone)
    return predictor


# Stands in the expression, so Spark's error shows it where a query with a struct is analysed.
_EXPECTED = (
    "image column: expected the bytes of image files (binary), found another type; read files with format binaryFile, "
    "decode base64 with unbase64, or name the field of a struct, as in image.bytes"
)


def _scored(function: UserDefinedFunctionLike, image: ColumnOrName) -> Column:
    """A UDF of a binary column. A struct fails when Spark analyses the query, text when it is run.

    For a binary column Spark's optimizer leaves nothing of the check.
    """
    column = _column(image)
    wrong = F.typeof(column) != "binary"
    checked = F.when(wrong, F.raise_error(F.lit(_EXPECTED)).cast("binary")).otherwise(column)
    # Otherwise the check would be a part of the name that Spark gives the column.
    name = function.func.__name__
    return function(checked).alias(name if isinstance(image, Column) else f"{name}({image})")


def _column(column: ColumnOrName) -> Column:
    return F.col(column) if isinstance(column, str) else column
