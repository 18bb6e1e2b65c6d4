"""Inspect the types of Spark's columns."""

from __future__ import annotations

from pyspark.sql.types import ArrayType, DataType, MapType, StructType


def holds(found: DataType, wanted: type[DataType]) -> bool:
    """Whether a type is the wanted one, or a struct, an array or a map that contains it.

    Examples:
        >>> from pyspark.sql.types import BinaryType, StringType
        >>> holds(ArrayType(BinaryType()), BinaryType), holds(StringType(), BinaryType)
        (True, False)
    """
    if isinstance(found, StructType):
        return any(holds(field.dataType, wanted) for field in found)
    if isinstance(found, ArrayType):
        return holds(found.elementType, wanted)
    if isinstance(found, MapType):
        return holds(found.keyType, wanted) or holds(found.valueType, wanted)
    return isinstance(found, wanted)
