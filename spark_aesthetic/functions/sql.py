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

# The parameter of the functions. Spark takes a column of that name in QUALIFY, LATERAL VIEW and subqueries for the
# parameter, so it is none that a table has.
_PARAMETER = "_aesthetic_embedding"

_MADE = f"Made by spark-aesthetic {spark_aesthetic.__version__}"

# Of a name in SQL, which may have a catalog and a schema before it.
_PART = r"([A-Za-z_]\w*|`([^`]|``)+`)"


def register(
    spark: SparkSession,
    *,
    predictor: str | Predictor = DEFAULT,
    prefix: str = "",
    **options: Unpack[OptionArgs],
) -> None:
    """Make the functions known to a session's SQL, for one predictor and one set of options.

    Registers `aesthetic_score(image)`, `clip_embedding(image)`, `score_image(image)` and
    `aesthetic_score_from_embedding(embedding)`, each with `prefix` before its name; several predictors stand
    side by side under several prefixes. On Spark 4.2 or later, with an affine head, the last one is a SQL
    function without Python: it takes ARRAY<FLOAT> and ARRAY<DOUBLE>. Otherwise it is a pandas UDF and takes
    ml Vectors too. Spark takes no SQL function in ORDER BY, in UPDATE, DELETE and the clauses of MERGE, and in lambdas:
    score in a subquery, and use the name that its SELECT gives to the result.

    Args:
        spark: The session.
        predictor: A predictor, its name, or the path of its JSON file.
        prefix: Put before each name: ASCII letters, digits and _.
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
        raise OptionError(f"prefix={prefix!r}: expected ASCII letters, digits and _ as in 'fast_', no digit first")
    checked = Options.of(register, **options)
    pinned = weights.pin(resolve(predictor), checked.model_path)
    head = weights.load_head(pinned, checked.model_path)
    # A data source, which has but one name.
    from spark_aesthetic.webdataset.source import WebDataset

    spark.dataSource.register(WebDataset)
    spark.udf.register(f"{prefix}aesthetic_score", udfs.score_udf(pinned, checked))
    spark.udf.register(f"{prefix}clip_embedding", udfs.embedding_udf(pinned, checked))
    spark.udf.register(f"{prefix}score_image", udfs.score_image_udf(pinned, False, checked))
    from_embedding = f"{prefix}aesthetic_score_from_embedding"
    if udfs.runs_natively(head):
        # Spark puts no function of SQL in the place of one of Python.
        spark.sql(f"DROP TEMPORARY FUNCTION IF EXISTS {from_embedding}")
        # Without the predictor's names, which are its user's and have no place in SQL text.
        spark.sql(_ddl("CREATE OR REPLACE TEMPORARY FUNCTION", from_embedding, _native(head), _MADE))
    else:
        spark.udf.register(from_embedding, udfs.vector_score_udf(pinned, checked.model_path))


def create_function_ddl(
    name: str, *, predictor: str | Predictor = DEFAULT, portable: bool | None = None, model_path: str | None = None
) -> str:
    """The text of a SQL function that scores embeddings without Python: for a catalog, once, and for all who query it.

    What it makes takes ARRAY<FLOAT> (ARRAY<DOUBLE> too) and gives FLOAT, null where
    `aesthetic_score_from_embedding` gives null. Its comment names the model, its checksums and its licence. Characters
    that could mean something in SQL, such as quotes, backslashes and `$`, and those beyond ASCII are `_` there.

    Args:
        name: Of the function, as SQL takes it: "main.images.aesthetic_score_from_embedding".
        predictor: A predictor, its name, or the path of its JSON file; its head must be affine, as all built-in ones
            but `laion-aesthetics-v2-ava-relu` are. For the comment the backbone's file is read where the predictor has
            no checksum of it.
        portable: Write `aggregate` and `zip_with`, which every engine with Spark's SQL has, instead of the vector
            functions of Spark 4.2, which are 27 times as fast (222,000 and 8,000 rows a second, measured on 2 cores
            with 200,000 rows of 768 floats); None decides by the Spark at hand, with Spark Connect the server too.
        model_path: See `spark_aesthetic.Options`.

    Raises:
        PredictorError: No such predictor, or its head is not affine.
        OptionError: No name of a function.

    Examples:
        >>> print(create_function_ddl("aesthetic", portable=True)[:51])
        CREATE OR REPLACE FUNCTION aesthetic(_aesthetic_emb
    """
    if not re.fullmatch(rf"{_PART}(\.{_PART}){{0,2}}", name, flags=re.ASCII):
        raise OptionError(
            f"name={name!r}: expected that of a function, as in 'main.images.aesthetic_score'; put other characters "
            "than ASCII letters, digits and _ between backquotes"
        )
    pinned = weights.pin(resolve(predictor), model_path)
    head = weights.load_head(pinned, model_path)
    if not head.affine:
        affine = [name for name, known in BUILT_IN.items() if known.head_weights.startswith(PACKAGED)]
        raise PredictorError(
            f"predictor {pinned.name!r}: expected an affine head, which SQL can hold, found one with activations; "
            f"register it as a UDF, or take one of {', '.join(affine)}"
        )
    if portable is None:
        portable = not udfs.runs_natively(head)
    expression = _portable(head) if portable else _native(head)
    return _ddl("CREATE OR REPLACE FUNCTION", name, expression, _comment(pinned))


def _ddl(statement: str, name: str, expression: str, comment: str) -> str:
    return f"{statement} {name}({_PARAMETER} ARRAY<FLOAT>) RETURNS FLOAT COMMENT '{comment}' RETURN\n{expression}"


def _comment(pinned: Predictor) -> str:
    """What a function says of itself, with nothing in it that could be anything but text in SQL.

    Spark puts values in the place of `${…}` in any SQL text, and its settings decide what a backslash or a doubled
    quote means.
    """
    packaged = PACKAGED_HEADS.get(pinned.head_weights.removeprefix(PACKAGED))
    licence = "as its publisher says" if packaged is None else packaged.licence
    comment = (
        f"Aesthetic score of CLIP {pinned.backbone} embeddings: {pinned.model_id}, head sha256 {pinned.head_sha256}, "
        f"backbone sha256 {pinned.backbone_sha256}, licence of the head: {licence}. {_MADE}"
    )
    return re.sub(r"[^A-Za-z0-9 .,:@/()+_-]", "_", comment)


def _native(head: Head) -> str:
    # The same guards as spark_aesthetic.functions.columns has as Columns, and the same reasons for their form.
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
    # As float the square is zero or infinite for the same embeddings as in the other ways to a score; NaN passes no
    # comparison with infinity.
    usable = f"CAST({square} AS FLOAT) > 0 AND CAST({square} AS FLOAT) < float('infinity')"
    return (
        f"CASE WHEN size({_PARAMETER}) = {head.dimension} AND {usable}\n"
        f"THEN CAST({product} / sqrt({square}) + {head.bias!r}D AS FLOAT) END"
    )


def _weight(head: Head, element: str) -> str:
    # from_json folds to one constant in 0.2 s; array(0.1F, ...) takes 5 s and runs at 0.6 of the speed.
    weight = f"from_json('{head.weight_text}', 'array<float>')"
    # The text is that of float32.
    return weight if element == "float" else f"CAST({weight} AS ARRAY<{element}>)"
