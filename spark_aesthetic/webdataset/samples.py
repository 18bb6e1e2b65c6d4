"""Convert rows to the files of samples: bytes, text, and everything else as JSON."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator
from contextlib import suppress
from math import isfinite
from typing import Any

import numpy as np
import pyarrow as pa

from spark_aesthetic.errors import TableError
from spark_aesthetic.images import formats
from spark_aesthetic.webdataset import shards, tar

# The file for the remaining columns if the sample's JSON is not an object.
_COLUMNS = "columns.json"

# Columns without an extension as their name. The extension of their files is derived from the bytes.
BY_CONTENT = ("image", "content")


def rows(batches: Iterator[pa.RecordBatch], *, without: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of batches as dictionaries, without one column. Bytes are views into the batch."""
    for batch in batches:
        columns = {
            name: views(column) if holds_bytes(column.type) else _values(column)
            for name, column in zip(batch.schema.names, batch.columns, strict=True)
            if name != without
        }
        for at in range(batch.num_rows):
            yield {name: values[at] for name, values in columns.items()}


def holds_bytes(kind: pa.DataType) -> bool:
    """Whether values of a type are bytes, which become separate files."""
    # Binary is large (64-bit offsets) if spark.sql.execution.arrow.useLargeVarTypes is set.
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def views(column: pa.Array) -> list[memoryview | None]:
    """Return views of the values, because Arrow's scalars would copy the bytes."""
    _, offsets, content = column.buffers()
    if len(column) == 0 or content is None:
        return [None if null.as_py() else memoryview(b"") for null in column.is_null()]
    places = np.frombuffer(offsets, np.int64 if pa.types.is_large_binary(column.type) else np.int32)
    places = places[column.offset : column.offset + len(column) + 1].tolist()
    valid, view = column.is_valid().to_pylist(), memoryview(content)
    return [view[begin:end] if there else None for there, begin, end in zip(valid, places, places[1:], strict=False)]


def _values(column: pa.Array) -> list[Any]:
    """Convert to Python values. A map becomes a dict, and a timestamp out of Python's range stays a scalar."""
    if not _has_maps(column.type):
        with suppress(OverflowError):
            return list(column.to_pylist())
    return [_value(scalar) for scalar in column]


def _has_maps(kind: pa.DataType) -> bool:
    inner = [kind.field(at).type for at in range(kind.num_fields)]
    return bool(pa.types.is_map(kind)) or any(map(_has_maps, inner))


def _value(scalar: pa.Scalar) -> Any:
    if not scalar.is_valid:
        return None
    if isinstance(scalar, pa.MapScalar):
        return {_value(entry["key"]): _value(entry["value"]) for entry in scalar.values}
    if isinstance(scalar, pa.ListScalar):
        return [_value(inner) for inner in scalar.values]
    if isinstance(scalar, pa.StructScalar):
        return {name: _value(inner) for name, inner in scalar.items()}
    try:
        return scalar.as_py()
    except OverflowError:
        # The sidecar stores timestamps in UTC and accepts this scalar.
        return scalar.cast(pa.timestamp("us", "UTC")) if getattr(scalar.type, "tz", None) else scalar


def files_of(row: dict[str, Any]) -> dict[str, tar.Buffer]:
    """Return the files of a sample by extension."""
    files, told = dict[str, tar.Buffer](), dict[str, Any]()

    def add(name: str, extension: str, content: tar.Buffer) -> None:
        if extension in files:
            raise TableError(
                f"webdataset: column {name!r}: expected one column of each extension, found two of {extension!r}. "
                "Rename one."
            )
        files[extension] = content

    for name, value in row.items():
        lower = name.lower()
        if isinstance(value, memoryview):
            add(name, formats.extension(bytes(value[:4096])) if lower in BY_CONTENT else lower, value)
        elif value is None:
            continue
        elif shards.is_text(lower) and (isinstance(value, str) or not lower.endswith(("json", "jsonl"))):
            add(name, lower, _text(value).encode())
        # JSON cannot represent NaN and infinity.
        elif not (isinstance(value, float) and not isfinite(value)):
            told[name] = value
    if told:
        # JSON text that is not an object is kept, and the remaining columns go to a separate file.
        for extension in ("json", _COLUMNS):
            merged = _with_columns(files.get(extension, b"{}"), told)
            if merged is not None:
                files[extension] = merged
                return files
        raise TableError(
            f"webdataset: columns json and {_COLUMNS}: expected a JSON object in one of them, to add the columns "
            f"{', '.join(told)}, found other text in both. Rename one."
        )
    return files


def _text(value: Any) -> str:
    return _dumped(value) if isinstance(value, list | dict) else _plain(value)


def _with_columns(text: tar.Buffer, told: dict[str, Any]) -> bytes | None:
    """Add columns to a JSON object, replacing values of the same name; None if the text is not a JSON object."""
    try:
        # By default, Python's json module reads and writes NaN, which is not valid JSON.
        known = json.loads(bytes(text), parse_constant=_refuse)
        return _dumped(known | told).encode() if isinstance(known, dict) else None
    except (ValueError, RecursionError):
        return None


def _refuse(constant: str) -> None:
    raise ValueError(f"not a JSON number: {constant}")


def _dumped(told: Any) -> str:
    try:
        return json.dumps(told, default=_plain, ensure_ascii=False, allow_nan=False)
    # ValueError is for NaN or infinity, TypeError for a map with keys that are not strings.
    except (ValueError, TypeError):
        return json.dumps(_sayable(told), default=_plain, ensure_ascii=False, allow_nan=False)


def _sayable(value: Any) -> Any:
    """Replace NaN and infinity by null, which preserves positions in lists, and convert keys to strings."""
    if isinstance(value, dict):
        return {_plain(name): _sayable(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_sayable(inner) for inner in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def _plain(value: Any) -> str:
    if isinstance(value, bytes):
        return b64encode(value).decode()
    return str(value.cast(pa.string()) if isinstance(value, pa.Scalar) else value)
