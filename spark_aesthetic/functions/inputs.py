"""What a column of images or of embeddings must be."""

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
from spark_aesthetic.errors import TableError
from spark_aesthetic.predictors.recipe import Predictor

_log = logging.getLogger("spark_aesthetic")

# As many embeddings are looked at to tell a wrong predictor from a few wrong rows.
_SAMPLE_ROWS = 1000


def warn_of_large_batches(spark: SparkSession) -> None:
    """Say so where Spark would hand whole columnar batches of images to Python, thousands at once, past its limits."""
    name = "spark.sql.execution.arrow.pythonUDF.columnarInput.enabled"
    if (spark.conf.get(name, None) or "false").lower() == "true":
        _log.warning(
            "%s: expected false, found true: up to 4096 images then go to Python at once, whatever "
            "spark.sql.execution.arrow.maxBytesPerBatch says; set it as conf/local.conf does", name,
        )  # fmt: skip


def check_image_type(found: DataType, given: str) -> None:
    """Check that a column holds bytes.

    Args:
        found: Its type.
        given: The option and the column, as the caller wrote them: `--image-col photo`.

    Raises:
        TableError: Another type. For a struct the message names its fields that hold bytes.
    """
    # In the struct of Spark's image source `data` holds decoded pixels, not the bytes of a file.
    inside = bytes_within(found) if isinstance(found, StructType) and "nChannels" not in found.names else []
    if inside:
        raise TableError(
            f"{given}: expected binary (the bytes of image files), found {found.simpleString()}; name its field "
            f"{' or '.join(inside)}: {given}.{inside[0]}"
        )
    if not isinstance(found, BinaryType):
        raise TableError(
            f"{given}: expected binary (the bytes of image files), found {found.simpleString()}; read files with "
            "format binaryFile, decode base64 with unbase64; embeddings are scored as such, not as images"
        )


def bytes_within(found: StructType) -> list[str]:
    """List the paths of the fields that hold bytes, those of structs inside it too."""
    paths = []
    for field in found.fields:
        name = field.name if re.fullmatch(r"\w+", field.name) else quoted(field.name)
        if isinstance(field.dataType, BinaryType):
            paths.append(name)
        elif isinstance(field.dataType, StructType):
            paths += [f"{name}.{path}" for path in bytes_within(field.dataType)]
    return paths


def is_vector(found: DataType, given: str) -> bool:
    """Whether the type of a column of embeddings is that of ml Vectors; TableError if it is that of no embeddings."""
    if isinstance(found, VectorUDT):
        return True
    if not isinstance(found, ArrayType) or not isinstance(found.elementType, FloatType | DoubleType):
        raise TableError(
            f"{given}: expected array<float>, array<double> or an ml Vector, found {found.simpleString()}; cast it; "
            "bytes of image files are scored as images, not as embeddings"
        )
    return False


def check_image_column(rows: DataFrame, column: str) -> None:
    """Raise TableError unless the column holds bytes."""
    check_image_type(column_type(rows, column_path(rows, column), "--image-col"), f"--image-col {column}")


def check_embedding_type(rows: DataFrame, column: str) -> bool:
    """Return whether a column of embeddings has ml Vectors; raise TableError if it has no embeddings."""
    return is_vector(column_type(rows, column_path(rows, column), "--embedding-col"), f"--embedding-col {column}")


def check_lengths(rows: DataFrame, column: str, dimension: int, predictor: Predictor, *, vector: bool) -> None:
    """Raise TableError if the column has embeddings and none has the length that the predictor's head takes."""
    path = column_path(rows, column)
    embedding = F.col("embedding")
    # A null vector is left out before vector_to_array, which raises on it.
    known = rows.select(F.col(path).alias("embedding")).limit(_SAMPLE_ROWS).where(embedding.isNotNull())
    counted = {row.length: row["count"] for row in _lengths(known, vector).groupBy("length").count().collect()}
    if not counted or dimension in counted:
        return
    found = f"expected {dimension} numbers for {predictor.name}, found {max(counted, key=counted.__getitem__)}"
    # The first rows may be the wrong ones, so all are asked; Spark stops at the first that fits.
    every = rows.select(F.col(path).alias("embedding")).where(embedding.isNotNull())
    if _lengths(every, vector).where(F.col("length") == dimension).isEmpty():
        raise TableError(
            f"--embedding-col {column}: {found}; choose the --predictor whose backbone made the embeddings"
        )
    _log.warning(
        "--embedding-col %s: %s in the first %d rows; rows of another length get a reason and no score",
        column, found, sum(counted.values()),
    )  # fmt: skip


def _lengths(rows: DataFrame, vector: bool) -> DataFrame:
    embedding = F.col("embedding")
    return rows.select(F.size(vector_to_array(embedding) if vector else embedding).alias("length"))
