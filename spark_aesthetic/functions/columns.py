"""Column functions in the style of `pyspark.sql.functions`.

Each takes a Column, a column name, or the path of a struct's field such as `image.bytes`, runs lazily, and returns null
for a row that cannot be scored. `score_image` also returns the reason.

The following decides how often an image is scored:

- `score_image`, `clip_embedding` and `image_embedding` are nondeterministic to Spark, so a filter on their result does
  not run them a second time. In return, Spark does not push filters on other columns below them, so filter first. On
  Spark Connect every reference to the Column runs the function again: assign it with `withColumn` before you read
  several of its fields.
- `aesthetic_score` is deterministic, so it works inside aggregates, and Spark pushes filters on other columns below it.
  Filtering or sorting by its result scores twice: write the scores first, or use `score_image`.
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
        `float`, about 1 (poor) to 10 (fine), never clamped. Null if the image is null, cannot be decoded, or has more
        than `max_pixels`.

    Raises:
        PredictorError: No such predictor, or open_clip does not have its backbone. If the calling process has
            open_clip, the backbone is checked at the call, and otherwise on the workers.
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
        predictor: A predictor, its name, or the path of its JSON file. Its head is not loaded.
        **options: See `spark_aesthetic.Options`.

    Returns:
        `array<float>`, the CLIP image embedding of unit length (768 numbers for ViT-L/14). Null if the image is null,
        cannot be decoded, or has more than `max_pixels`.

    Raises:
        PredictorError: No such predictor, or open_clip does not have its backbone. If the calling process has
            open_clip, the backbone is checked at the call, and otherwise on the workers.
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
    """Embed images with any encoder of timm or open_clip, so that several classifiers can share the embeddings.

    The embedding of a classification model such as "resnet50.a1_in1k" is the input of its last layer, and that of a
    CLIP model is the projected image embedding. For a predictor's own backbone `clip_embedding` is faster and loads the
    weights once per node. The library's own preprocessing applies: some of timm's CLIP models crop closer than the
    reference (vit_base_patch32_clip_quickgelu_224.openai to 0.9), and all timm models drop an alpha channel before
    resizing.

    Args:
        image: Binary column of whole image files.
        model_name: A model that `timm.list_pretrained()` lists, with its tag, or one that `open_clip.list_models()`
            lists.
        pretrained: True uses the published weights, which the library downloads to its own cache on every worker's
            node; for a model of open_clip they have the tag "openai". A string is another tag of open_clip. False uses
            seeded random weights, and the embeddings mean nothing. `model_path` replaces the download by a safetensors
            file, or by `<model_name>.safetensors` in a folder.
        normalize: Scale embeddings to unit length, as predictors expect them.
        **options: See `spark_aesthetic.Options`.

    Returns:
        `array<float>`. Null if the image is null, cannot be decoded, or has more than `max_pixels`, or if the embedding
        is not finite. The reason is lost: `score_image` on this column returns the error "null".

    Raises:
        OptionError: No such model or weights, a misspelt option or a value outside its range. If the calling
            process has timm and open_clip, model and weights are checked at the call, and otherwise on the workers.
    """
    checked = Options.of(image_embedding, **options)
    name = EncoderName(model_name=model_name, pretrained=pretrained, model_path=checked.model_path)
    # A thin client of Spark Connect has no torch, so the workers check the name.
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
    """Score images or embeddings, and give the reason for each missing score, in one pass.

    Args:
        image: Binary column of whole image files or, with `input_kind="embedding"`, an `array<float>` or
            `array<double>` column of embeddings.
        predictor: A predictor, its name, or the path of its JSON file.
        with_embedding: Also return the embedding, so that another head can score it without the image.
        input_kind: "image" or "embedding".
        **options: See `spark_aesthetic.Options`.

    Returns:
        `struct<score float, error string[, embedding array<float>], model string>`. Exactly one of score
        and error is null; `error` is a short reason such as "decode: truncated JPEG". `model` is the predictor's
        `model_id`, also in a row with an error. The struct itself is never null.

    Raises:
        PredictorError: No such predictor, or open_clip does not have its backbone. If the calling process has
            open_clip, the backbone is checked at the call, and otherwise on the workers.
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
            raise OptionError(
                "with_embedding: expected input_kind='image', found 'embedding'. Leave with_embedding out."
            )
        scored = embedding_columns(image, predictor=pinned, model_path=checked.model_path)
        # Without the alias Spark would name the column by its expression, with all weights.
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

    On Spark 4.2 or later and with an affine head (all built-in predictors except `laion-aesthetics-v2-ava-relu`) this
    is a Spark expression without a Python worker. It runs at 0.87 times the speed of reading the column, or at 0.93
    with `normalize=False` (`make bench`: 200,000 rows of 768 floats from Delta, 2 cores, with the JVM option of
    conf/local.conf; 0.5 to 0.6 without that option).
    Otherwise it is a pandas UDF.

    Args:
        embedding: `array<float>` or `array<double>` column, or an ml Vector column with `vector=True`.
        predictor: A predictor, its name, or the path of its JSON file. Its backbone is not loaded.
        normalize: Divide by the L2 norm first, as the published heads expect. False is faster, and correct if all
            embeddings have unit length.
        vector: Whether the column holds ml Vectors. Spark cannot cast them to arrays, and the type of a Column is
            not known before Spark analyses the query.
        **options: See `spark_aesthetic.Options`. Only `model_path` has an effect, for a head outside of the package.

    Returns:
        `float`, the score. Null if the embedding is null, has the wrong length, contains a null, NaN or infinity, or is
        all zeros (with `normalize=False`, all zeros score as the head's bias). Name any expression of this column with
        `alias`; without one Spark's name for it contains all weights.

    Raises:
        PredictorError: No such predictor.
        WeightsError: The head's file is missing or does not match its checksum.
        pyspark.errors.AnalysisException: The column has another type; raised when Spark analyses the query.

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
    # Without the alias Spark would name the column by its expression, with all weights.
    return score.alias("aesthetic_score_from_embedding")


def embedding_columns(
    embedding: ColumnOrName,
    *,
    predictor: Predictor,
    normalize: bool = True,
    vector: bool = False,
    model_path: str | None = None,
) -> Column:
    """Score embeddings like `aesthetic_score_from_embedding`, and return struct<score: float, error: string>."""
    head = weights.load_head(predictor, model_path)
    if not udfs.runs_natively(head):
        return udfs.vector_udf(predictor, normalize, model_path)(as_array(embedding, vector))

    def scored(column: Column) -> Column:
        array = as_array(column, vector)
        score = _native_score(array, head, normalize)
        return F.struct(score.alias("score"), _native_error(array, score, head).alias("error"))

    return _once(_column(embedding), scored)


def _once(column: Column, expression: Callable[[Column], Column]) -> Column:
    """Apply an expression that refers to its column several times, and compute the column once per row.

    If Spark would compute every reference, as for a model's result, a lambda binds the column to a variable first. A
    table's column is not bound, because that takes 1.8 times as long.
    """
    if connect.computes_each_mention(column):
        return F.transform(F.array(column), expression)[0]
    return expression(column)


def as_array(embedding: ColumnOrName, vector: bool) -> Column:
    """Convert a column of arrays or ml Vectors to array<float>. Null stays null.

    A column of another type, such as text, or of ml Vectors without `vector`, fails when Spark analyses the query.
    """
    column = _column(embedding)
    if vector:
        from pyspark.ml.functions import vector_to_array

        # vector_to_array raises for null.
        column = F.when(column.isNotNull(), vector_to_array(column, dtype="float32"))
    return column.cast("array<float>")


def _native_score(array: Column, head: Head, normalize: bool) -> Column:
    # JSON text folds to one constant. A literal list would be 768 expressions, copied to every reference to the
    # weights, and each query would take seconds to plan.
    weight = F.from_json(F.lit(head.weight_text), "array<float>")
    checked = _of_right_length(array, head)
    # Spark would compute an expression again in a branch of a CASE. Therefore each guard is an operand that is null if
    # the embedding cannot be scored.
    if normalize:
        # This function computes product and norm in one pass over the embedding.
        similarity = F.call_function("vector_cosine_similarity", checked, weight)
        value = similarity * F.lit(head.norm)
        # A NaN or infinity in the embedding makes the similarity NaN, which Spark orders above every number. A norm too
        # large for float32 makes it 0, so the norm is computed only then.
        finite = F.when(similarity == 0, _norm(checked) < F.lit(float("inf"))).otherwise(similarity <= 2)
    else:
        value = F.call_function("vector_inner_product", checked, weight)
        finite = F.abs(value) < F.lit(float("inf"))
    return (value + F.lit(head.bias) + F.when(finite, F.lit(0.0))).cast("float")


def _native_error(array: Column, score: Column, head: Head) -> Column:
    """Return the reason why the score of a normalised embedding is null; computed only for null scores."""
    reason = (
        F.when(array.isNull(), embeddings.NULL)
        .when(F.size(array) != head.dimension, embeddings.WRONG_LENGTH)
        .when(_norm(_of_right_length(array, head)) == 0, embeddings.ZERO_NORM)
        .otherwise(embeddings.NOT_FINITE)
    )
    return F.when(score.isNull(), reason)


def _of_right_length(array: Column, head: Head) -> Column:
    # The vector functions raise for an array of another length.
    return F.when(F.size(array) == head.dimension, array)


def _norm(array: Column) -> Column:
    return F.call_function("vector_norm", array, F.lit(2.0).cast("float"))


def _with_backbone(predictor: Predictor) -> Predictor:
    """Check that a predictor's backbone is supported, and return the predictor. Only functions of images need this."""
    # A thin client of Spark Connect has no open_clip. Built-in backbones need no check, and the import takes seconds.
    if predictor not in BUILT_IN.values() and find_spec("open_clip") is not None:
        from spark_aesthetic.images import architectures

        architectures.embedding_dimension(predictor.backbone)
    return predictor


# The message is part of the expression, so Spark's error shows it when the analysis of a struct column fails.
_EXPECTED = (
    "image column: expected the bytes of image files (binary), found another type. Read files with format binaryFile, "
    "decode base64 with unbase64, or name the field of a struct, as in image.bytes."
)


def _scored(function: UserDefinedFunctionLike, image: ColumnOrName) -> Column:
    """Apply a UDF to a binary column. A struct fails when Spark analyses the query, and text when the query runs.

    For a binary column Spark's optimizer removes the check.
    """
    column = _column(image)
    wrong = F.typeof(column) != "binary"
    checked = F.when(wrong, F.raise_error(F.lit(_EXPECTED)).cast("binary")).otherwise(column)
    # Without the alias Spark's name for the column would contain the check.
    name = function.func.__name__
    return function(checked).alias(name if isinstance(image, Column) else f"{name}({image})")


def _column(column: ColumnOrName) -> Column:
    return F.col(column) if isinstance(column, str) else column
