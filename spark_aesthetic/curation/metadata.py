"""Save all columns except the images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from spark_aesthetic.delta.naming import are_same_columns, column_named, lacking, names, quoted
from spark_aesthetic.delta.schemas import column_path, column_type, holds_bytes, path_parts, spelled
from spark_aesthetic.errors import TableError
from spark_aesthetic.options import MODES, Mode, check_mode

__all__ = ["save_metadata"]


def save_metadata(
    df: DataFrame,
    path: str,
    *,
    image_cols: str | Sequence[str] | None = None,
    mode: Mode | Literal["ignore"] = "errorifexists",
) -> None:
    """Write all columns except the bytes of images to Parquet files.

    The image columns are not in the plan, so Spark does not read them from a Delta or Parquet table. Embeddings and
    scores are metadata and are written.

    Args:
        df: Rows with images and their metadata.
        path: Folder of the Parquet files.
        image_cols: The column or columns to leave out; by default each binary column, and each struct, array or map
            that contains one, such as the column of Spark's image source. A path such as "image.bytes" leaves out one
            field of a struct.
        mode: "errorifexists" (Spark's "error"), "append", "overwrite" or "ignore", as `DataFrameWriter.mode` takes it.

    Raises:
        TableError: A column of `image_cols` is missing, or no column is left to write.
        OptionError: `mode` is not one of these.
    """
    mode = check_mode("mode", mode, (*MODES, "ignore"))
    left_out, fields = set[str](), dict[str, list[list[str]]]()
    for name in names(image_cols):
        column_type(df, column_path(df, name), "image_cols")
        found = column_named(df.columns, name)
        if found is not None:
            left_out.add(found)
        else:
            top, *inside = path_parts(name)
            fields.setdefault(spelled(df, top), []).append(inside)
    if image_cols is None:
        left_out = {field.name for field in df.schema if holds_bytes(field.dataType)}
    # Spark cannot drop every field of a struct, so a struct without remaining fields is left out as a whole.
    left_out |= {name for name, paths in fields.items() if _are_all(df, name, paths)}
    kept = [name for name in df.columns if name not in left_out]
    if not kept:
        raise TableError(
            f"save_metadata: expected columns beside those of images, found only {', '.join(df.columns)}. Name those "
            "to leave out with image_cols."
        )
    columns = [F.col(quoted(name)) for name in kept]
    for at, name in enumerate(kept):
        if name in fields:
            columns[at] = _without(df, name, fields[name]).alias(name)
    df.select(*columns).write.mode(mode).parquet(path)


def _without(df: DataFrame, column: str, paths: Sequence[Sequence[str]]) -> Column:
    """Return a struct without some of its fields."""
    struct, kind = F.col(quoted(column)), df.schema[column].dataType
    if any(len(path) > 1 for path in paths) or not isinstance(kind, StructType):
        return struct.dropFields(*[".".join(map(quoted, path)) for path in paths])
    # Build a new struct from the fields to keep, because Spark reads even the fields that dropFields drops.
    others = [struct.getField(name).alias(name) for name in lacking([path[0] for path in paths], kind.names)]
    return F.when(struct.isNotNull(), F.struct(*others))


def _are_all(df: DataFrame, column: str, paths: Sequence[Sequence[str]]) -> bool:
    """Whether the paths name every field of the struct."""
    found = df.schema[column].dataType
    whole = [path[0] for path in paths if len(path) == 1]
    return isinstance(found, StructType) and are_same_columns(whole, found.names)
