"""The column functions under the same names in SQL."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pyspark.sql import SparkSession

import spark_aesthetic
from spark_aesthetic.errors import OptionError, PredictorError
from spark_aesthetic.functions import udfs
from spark_aesthetic.options import OptionArgs, Options
from spark_aesthetic.predictors import weights
from spark_aesthetic.predictors.head import Head
from spark_aesthetic.predictors.recipe import BUILT_IN, DEFAULT, PACKAGED, PACKAGED_HEADS, Predictor, resolve

if TYPE_CHECKING:
    from typing_extensions import Unpack

# The parameter of the functions. In QUALIFY, LATERAL VIEW and subqueries Spark resolves a column of this name to the
# parameter, so the name must not occur in tables.
_PARAMETER = "_aesthetic_embedding"

_MADE = f"Made by spark-aesthetic {spark_aesthetic.__version__}"

# One part of a name in SQL: the catalog, the schema or the function.
_PART = r"([A-Za-z_]\w*|`([^`]|``)+`)"


def register(
    spark: SparkSession,
    *,
    predictor: str | Predictor = DEFAULT,
    prefix: str = "",
    **options: Unpack[OptionArgs],
) -> None:
    """Register the functions for SQL in a session, for one predictor and one set of options.

    The functions are `aesthetic_score(image)`, `clip_embedding(image)`, `score_image(image)` and
    `aesthetic_score_from_embedding(embedding)`, each with `prefix` before its name. To use several predictors in one
    session, register each with its own prefix.

    On Spark 4.2 or later and with an affine head, `aesthetic_score_from_embedding` is a SQL function without Python,
    which takes `ARRAY<FLOAT>` and `ARRAY<DOUBLE>`. Otherwise it is a pandas UDF, which also takes ml Vectors. Spark
    does not allow SQL functions in ORDER BY, UPDATE, DELETE, the clauses of MERGE or lambdas: score in a subquery, and
    use the name that its SELECT gives to the result.

    Args:
        spark: The session.
        predictor: A predictor, its name, or the path of its JSON file.
        prefix: Text before each name: ASCII letters, digits and _, not starting with a digit.
        **options: See `spark_aesthetic.Options`.

    Raises:
        PredictorError: No such predictor.
        OptionError: A misspelt option or a value outside its range.

    Examples:
        >>> register(spark, predictor="laion-aesthetics-v1", prefix="v1_")
        >>> spark.sql("SELECT v1_aesthetic_score_from_embedding(array_repeat(0.1, 768)) IS NULL AS missing").collect()
        [Row(missing=False)]
    """
    if not re.fullmatch(r"([A-Za-z_]\w*)?", prefix, flags=re.ASCII):
        raise OptionError(f"prefix={prefix!r}: expected ASCII letters, digits and _, no digit first, as in 'fast_'")
    checked = Options.of(register, **options)
    pinned = weights.pin(resolve(predictor), checked.model_path)
    head = weights.load_head(pinned, checked.model_path)
    # The data source has a fixed name, so `prefix` does not apply to it.
    from spark_aesthetic.webdataset.source import WebDataset

    spark.dataSource.register(WebDataset)
    spark.udf.register(f"{prefix}aesthetic_score", udfs.score_udf(pinned, checked))
    spark.udf.register(f"{prefix}clip_embedding", udfs.embedding_udf(pinned, checked))
    spark.udf.register(f"{prefix}score_image", udfs.score_image_udf(pinned, False, checked))
    from_embedding = f"{prefix}aesthetic_score_from_embedding"
    if udfs.runs_natively(head):
        # Spark does not replace a Python function by a SQL function.
        spark.sql(f"DROP TEMPORARY FUNCTION IF EXISTS {from_embedding}")
        # The comment leaves out the predictor, because its names come from users and must stay out of SQL text.
        spark.sql(_ddl("CREATE OR REPLACE TEMPORARY FUNCTION", from_embedding, _native(head), _MADE))
    else:
        spark.udf.register(from_embedding, udfs.vector_score_udf(pinned, checked.model_path))


def create_function_ddl(
    name: str, *, predictor: str | Predictor = DEFAULT, portable: bool | None = None, model_path: str | None = None
) -> str:
    """Write the DDL of a SQL function that scores embeddings without Python.

    Run it once in a catalog, and everyone who queries the catalog can call the function. It takes `ARRAY<FLOAT>` or
    `ARRAY<DOUBLE>` and returns FLOAT, which is null wherever `aesthetic_score_from_embedding` is. Its comment names the
    model, its checksums and its licence. In the comment, `_` replaces non-ASCII characters and characters that could
    have a meaning in SQL, such as quotes, backslashes and `$`.

    Args:
        name: The name of the function in SQL, such as "main.images.aesthetic_score_from_embedding".
        predictor: A predictor, its name, or the path of its JSON file. Its head must be affine, as those of all
            built-in predictors except `laion-aesthetics-v2-ava-relu` are. If the predictor has no checksum of its
            backbone, the backbone's file is read to compute it for the comment.
        portable: True uses `aggregate` and `zip_with`, which every engine with Spark's SQL has. False uses the vector
            functions of Spark 4.2, which are 27 times as fast (222,000 instead of 8,000 rows a second, measured on 2
            cores with 200,000 rows of 768 floats). None chooses by the version of this Spark and, on Spark Connect, of
            the server.
        model_path: See `spark_aesthetic.Options`.

    Raises:
        PredictorError: No such predictor, or its head is not affine.
        OptionError: The name is not valid for a function.

    Examples:
        >>> print(create_function_ddl("aesthetic", portable=True)[:51])
        CREATE OR REPLACE FUNCTION aesthetic(_aesthetic_emb
    """
    if not re.fullmatch(rf"{_PART}(\.{_PART}){{0,2}}", name, flags=re.ASCII):
        raise OptionError(
            f"name={name!r}: expected the name of a function, as in 'main.images.aesthetic_score'. Put characters "
            "other than ASCII letters, digits and _ between backquotes."
        )
    pinned = weights.pin(resolve(predictor), model_path)
    head = weights.load_head(pinned, model_path)
    if not head.affine:
        affine = [name for name, known in BUILT_IN.items() if known.head_weights.startswith(PACKAGED)]
        raise PredictorError(
            f"predictor {pinned.name!r}: expected an affine head, found one with activations, which SQL cannot hold. "
            f"Register it as a UDF with spark_aesthetic.register, or use one of {', '.join(affine)}."
        )
    if portable is None:
        portable = not udfs.runs_natively(head)
    expression = _portable(head) if portable else _native(head)
    return _ddl("CREATE OR REPLACE FUNCTION", name, expression, _comment(pinned))


def _ddl(statement: str, name: str, expression: str, comment: str) -> str:
    return f"{statement} {name}({_PARAMETER} ARRAY<FLOAT>) RETURNS FLOAT COMMENT '{comment}' RETURN\n{expression}"


def _comment(pinned: Predictor) -> str:
    """Return the COMMENT of a function, without any character that could have a meaning in SQL.

    Spark substitutes `${…}` in any SQL text, and its settings decide what a backslash or a doubled quote means.
    """
    packaged = PACKAGED_HEADS.get(pinned.head_weights.removeprefix(PACKAGED))
    licence = "see its publisher" if packaged is None else packaged.licence
    comment = (
        f"Aesthetic score of CLIP {pinned.backbone} embeddings: {pinned.model_id}, head sha256 {pinned.head_sha256}, "
        f"backbone sha256 {pinned.backbone_sha256}, licence of the head: {licence}. {_MADE}"
    )
    return re.sub(r"[^A-Za-z0-9 .,:@/()+_-]", "_", comment)


def _native(head: Head) -> str:
    # These are the guards of _native_score in spark_aesthetic.functions.columns. The comments there explain their form.
    checked = f"CASE WHEN size({_PARAMETER}) = {head.dimension} THEN {_PARAMETER} END"
    similarity = f"vector_cosine_similarity({checked}, {_weight(head, 'float')})"
    small = f"vector_norm({checked}, 2.0F) < float('infinity')"
    return (
        f"{similarity} * {head.norm!r}D + {head.bias!r}D\n"
        f"+ CASE WHEN CASE WHEN {similarity} = 0 THEN {small} ELSE {similarity} <= 2 END THEN 0.0D END"
    )


def _portable(head: Head) -> str:
    product = f"zip_with({_PARAMETER}, {_weight(head, 'double')}, (x, w) -> x * w)"
    product = f"aggregate({product}, 0.0D, (sum, xw) -> sum + xw)"
    square = f"aggregate({_PARAMETER}, 0.0D, (sum, x) -> sum + CAST(x AS DOUBLE) * x)"
    # Cast to float, the square is zero or infinite for the same embeddings as in the other implementations. NaN fails
    # the comparison with infinity.
    usable = f"CAST({square} AS FLOAT) > 0 AND CAST({square} AS FLOAT) < float('infinity')"
    return (
        f"CASE WHEN size({_PARAMETER}) = {head.dimension} AND {usable}\n"
        f"THEN CAST({product} / sqrt({square}) + {head.bias!r}D AS FLOAT) END"
    )


def _weight(head: Head, element: str) -> str:
    # from_json folds to one constant in 0.2 s. array(0.1F, ...) takes 5 s and runs at 0.6 times the speed.
    weight = f"from_json('{head.weight_text}', 'array<float>')"
    # The text holds float32 numbers, so it is parsed as float and cast afterwards.
    return weight if element == "float" else f"CAST({weight} AS ARRAY<{element}>)"
