"""The column functions under the same names in SQL."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pyspark.sql import SparkSession

from spark_aesthetic import udfs, weights
from spark_aesthetic.head import Head
from spark_aesthetic.options import OptionArgs, Options
from spark_aesthetic.predictors import DEFAULT, Predictor, resolve

if TYPE_CHECKING:
    from typing_extensions import Unpack


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
    ml Vectors too.

    Args:
        spark: The session.
        predictor: A predictor, its name, or the path of its JSON file.
        prefix: Put before each name.
        **options: See `spark_aesthetic.Options`.

    Raises:
        PredictorError: No such predictor.
        OptionError: A misspelt option or a value outside its range.

    >>> register(spark, predictor="laion-aesthetics-v1", prefix="v1_")
    >>> spark.sql("SELECT v1_aesthetic_score_from_embedding(array_repeat(0.1, 768)) IS NULL AS missing").collect()
    [Row(missing=False)]
    """
    checked = Options.of(**options)
    pinned = weights.pin(resolve(predictor), checked.model_path)
    spark.udf.register(f"{prefix}aesthetic_score", udfs.score_udf(pinned, checked))
    spark.udf.register(f"{prefix}clip_embedding", udfs.embedding_udf(pinned, checked))
    spark.udf.register(f"{prefix}score_image", udfs.score_image_udf(pinned, False, checked))
    from_embedding = f"{prefix}aesthetic_score_from_embedding"
    head = weights.load_head(pinned, checked.model_path)
    if udfs.runs_natively(head):
        spark.sql(_native_ddl(from_embedding, head))
    else:
        spark.udf.register(from_embedding, udfs.vector_score_udf(pinned, checked.model_path))


def _native_ddl(name: str, head: Head) -> str:
    # from_json folds to one constant in 0.2 s; array(0.1F, ...) takes 5 s and runs at 0.6 of the speed.
    weight = json.dumps(head.weight.tolist())
    # The same guards as spark_aesthetic.functions has as Columns, and the same reasons for their form.
    checked = f"CASE WHEN size(embedding) = {head.dimension} THEN embedding END"
    similarity = f"vector_cosine_similarity({checked}, from_json('{weight}', 'array<float>'))"
    small = f"vector_norm({checked}, 2.0F) < float('infinity')"
    return f"""
        CREATE OR REPLACE TEMPORARY FUNCTION {name}(embedding ARRAY<FLOAT>) RETURNS FLOAT RETURN
        {similarity} * {head.norm!r}D + {head.bias!r}D
        + CASE WHEN CASE WHEN {similarity} = 0 THEN {small} ELSE {similarity} <= 2 END THEN 0.0D END"""
