"""Everything but the pixels."""

from __future__ import annotations

from collections.abc import Sequence

from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, BinaryType, DataType, MapType, StructType

from spark_aesthetic.curation.columns import check_columns
from spark_aesthetic.errors import TableError
from spark_aesthetic.preflight import names, quoted, spelled

__all__ = ["save_metadata"]


def save_metadata(
    df: DataFrame, path: str, *, image_cols: str | Sequence[str] | None = None, mode: str = "error"
) -> None:
    """Write all columns but those with the bytes of images to Parquet files.

    The columns are left out of the plan, so of a Delta or Parquet table their bytes are not read either. Embeddings
    and scores are metadata: they stay.

    Args:
        df: Rows of images and what is known of them.
        path: Folder of the Parquet files.
        image_cols: The column or columns to leave out; by default each binary column, and each struct, array or map
            that holds one, such as the column of Spark's image source.
        mode: As `DataFrameWriter.mode` takes it.

    Raises:
        TableError: There is no such column, or no other.
    """
    left_out = [spelled(df, name) for name in names(image_cols)]
    check_columns(df, left_out, "image_cols")
    if image_cols is None:
        left_out = [field.name for field in df.schema if _holds_bytes(field.dataType)]
    kept = [name for name in df.columns if name not in left_out]
    if not kept:
        raise TableError(
            f"save_metadata: expected columns beside those of images, found only {', '.join(df.columns)}; name those "
            "to leave out with image_cols"
        )
    df.select(*[F.col(quoted(name)) for name in kept]).write.mode(mode).parquet(path)


def _holds_bytes(found: DataType) -> bool:
    if isinstance(found, StructType):
        return any(_holds_bytes(field.dataType) for field in found)
    if isinstance(found, ArrayType):
        return _holds_bytes(found.elementType)
    if isinstance(found, MapType):
        return _holds_bytes(found.keyType) or _holds_bytes(found.valueType)
    return isinstance(found, BinaryType)
