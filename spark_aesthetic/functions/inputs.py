"""Checks of the columns that hold images or embeddings."""

from __future__ import annotations

import logging
import re

from pyspark.ml.functions import vector_to_array
from pyspark.ml.linalg import VectorUDT
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, BinaryType, DataType, DoubleType, FloatType, StructType

from spark_aesthetic.delta.naming import quoted
from spark_aesthetic.delta.schemas import column_path, column_type
from spark_aesthetic.delta.sessions import setting
from spark_aesthetic.errors import TableError
from spark_aesthetic.predictors.recipe import Predictor

_log = logging.getLogger("spark_aesthetic")

# If none of this many embeddings has the predictor's length, all embeddings are checked.
_SAMPLE_ROWS = 1000


def warn_of_large_batches(spark: SparkSession) -> None:
    """Warn if Spark would ignore its batch limits and pass thousands of images to Python at once."""
    name = "spark.sql.execution.arrow.pythonUDF.columnarInput.enabled"
    if (setting(spark, name) or "false").lower() == "true":
        _log.warning(
            "%s: expected false, found true, so up to 4096 images go to Python at once, regardless of "
            "spark.sql.execution.arrow.maxBytesPerBatch. Set it to false, as in conf/local.conf.", name,
        )  # fmt: skip


def check_image_type(found: DataType, given: str) -> None:
    """Check that a column holds bytes.

    Args:
        found: The column's type.
        given: The option and the column, as the caller wrote them: `--image-col photo`.

    Raises:
        TableError: The type is not binary. For a struct, the message names its fields that hold bytes.
    """
    # The field `data` of Spark's image source holds decoded pixels, not the bytes of a file.
    inside = bytes_within(found) if isinstance(found, StructType) and "nChannels" not in found.names else []
    if inside:
        raise TableError(
            f"{given}: expected binary (the bytes of image files), found {found.simpleString()}. Name its field "
            f"{' or '.join(inside)}: {given}.{inside[0]}"
        )
    if not isinstance(found, BinaryType):
        raise TableError(
            f"{given}: expected binary (the bytes of image files), found {found.simpleString()}. Read files with "
            "format binaryFile, decode base64 with unbase64, and score embeddings as embeddings, not as images."
        )


def bytes_within(found: StructType) -> list[str]:
    """List the paths of the fields that hold bytes, including fields of nested structs."""
    paths = []
    for field in found.fields:
        name = field.name if re.fullmatch(r"\w+", field.name) else quoted(field.name)
        if isinstance(field.dataType, BinaryType):
            paths.append(name)
        elif isinstance(field.dataType, StructType):
            paths += [f"{name}.{path}" for path in bytes_within(field.dataType)]
    return paths


def is_vector(found: DataType, given: str) -> bool:
    """Whether a column of embeddings holds ml Vectors; raises TableError if its type cannot hold embeddings."""
    if isinstance(found, VectorUDT):
        return True
    if not isinstance(found, ArrayType) or not isinstance(found.elementType, FloatType | DoubleType):
        raise TableError(
            f"{given}: expected array<float>, array<double> or an ml Vector, found {found.simpleString()}. Cast the "
            "column, or score image files as images, not as embeddings."
        )
    return False


def check_image_column(rows: DataFrame, column: str) -> None:
    """Raise TableError unless the column holds bytes."""
    check_image_type(column_type(rows, column_path(rows, column), "--image-col"), f"--image-col {column}")


def check_embedding_type(rows: DataFrame, column: str) -> bool:
    """Return whether a column of embeddings holds ml Vectors; raise TableError if its type cannot hold embeddings."""
    return is_vector(column_type(rows, column_path(rows, column), "--embedding-col"), f"--embedding-col {column}")


def check_lengths(rows: DataFrame, column: str, dimension: int, predictor: Predictor, *, vector: bool) -> None:
    """Raise TableError if the column has embeddings and none has the length that the predictor's head takes."""
    path = column_path(rows, column)
    embedding = F.col("embedding")
    # vector_to_array raises for null, so nulls are filtered first.
    known = rows.select(F.col(path).alias("embedding")).limit(_SAMPLE_ROWS).where(embedding.isNotNull())
    counted = {row.length: row["count"] for row in _lengths(known, vector).groupBy("length").count().collect()}
    if not counted or dimension in counted:
        return
    found = f"expected {dimension} numbers for {predictor.name}, found {max(counted, key=counted.__getitem__)}"
    # Only the first rows may be wrong, so search all rows. Spark stops at the first match.
    every = rows.select(F.col(path).alias("embedding")).where(embedding.isNotNull())
    if _lengths(every, vector).where(F.col("length") == dimension).isEmpty():
        raise TableError(
            f"--embedding-col {column}: {found}. Choose the --predictor with the backbone that made the embeddings."
        )
    _log.warning(
        "--embedding-col %s: %s in the first %d rows. Rows of another length get a reason instead of a score.",
        column, found, sum(counted.values()),
    )  # fmt: skip


def _lengths(rows: DataFrame, vector: bool) -> DataFrame:
    embedding = F.col("embedding")
    return rows.select(F.size(vector_to_array(embedding) if vector else embedding).alias("length"))
