"""The Spark data source "webdataset": shards of samples as rows, and rows as shards.

spark.read.format("webdataset").load("s3://bucket/{00000..00099}.tar")
df.write.format("webdataset").mode("append").option("samplesPerShard", 10000).save("s3://bucket/out")
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import chain, count, islice
from math import isfinite
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark import TaskContext
from pyspark.sql.datasource import (
    DataSource,
    DataSourceArrowWriter,
    DataSourceReader,
    InputPartition,
    WriterCommitMessage,
)
from pyspark.sql.pandas.types import from_arrow_schema, to_arrow_schema
from pyspark.sql.types import BinaryType, StringType, StructField, StructType

from spark_aesthetic import formats
from spark_aesthetic.datasources import shards, staging, tar
from spark_aesthetic.errors import OptionError, TableError, nearest

KEY, URL, ERROR = "__key__", "__url__", "__error__"

# Of one Arrow batch, so that a task needs the same memory for a shard of any size.
_BATCH_BYTES, _BATCH_ROWS = 4 << 20, 1000

# Of each shard that is looked at for the columns of a table whose schema is not given.
_SAMPLE_ROWS = 100

_READ = ("path", "columns", "metadataOnly", "onDamage", "sidecar", "sidecarKey")
_WRITTEN = ("path", "samplesPerShard", "keyCol", "sidecar")

# The column of keys in a sidecar.
SIDECAR_KEY = "key"

# Columns that are called by what they hold; their files are called by what the bytes are.
_BY_CONTENT = ("image", "content")


class WebDataset(DataSource):
    """Shards of samples, one row a sample.

    Reading: columns are `__key__`, `__url__` (string) and one for each extension that the first samples of the first,
    the middle and the last shard have: string for text and JSON, binary for the rest; a schema of one's own names
    others. One partition a shard, read from its beginning to its end in constant memory. Options: `columns`
    (extensions, separated by commas), `metadataOnly` (text alone; other bytes are passed over), `onDamage` ("fail", or
    "report": a damaged shard gives the samples before the damage and a last row with `__error__`), `sidecar` ("true":
    the columns of a Parquet file with the shard's stem are joined by its column `sidecarKey`, "key" by default, on the
    sample's key or the last part of that).

    Writing, with mode append or overwrite: a binary column becomes files of that extension, or of that of its bytes if
    it is called image or content; columns txt, caption, cls and the like text files; `json` and all others one JSON
    file. Null values have no file, and numbers that are not finite no place in the JSON. Bytes stay as they are.
    Options: `samplesPerShard` (10,000), `keyCol` (`__key__`; without that column, and where it is null, keys are
    counted), `sidecar` ("true": all but bytes also as Parquet beside each shard). Shards are named 00000.tar and on,
    in the order of the partitions.

    Shards are put in place, each at once, when all tasks are done. Append numbers on from the greatest number there.
    Overwrite replaces the shards of the same number and then removes the other .tar files and their sidecars. A write
    that was killed is undone by the next one, or, if it was replacing shards already, brought to its end first; until
    then its hidden folder `_staged-…` stays. So one write at a time.

    Paths and addresses are those of fsspec; dbfs:/ is read where Databricks mounts it.
    """

    @classmethod
    def name(cls) -> str:
        """As `format` takes it."""
        return "webdataset"

    def schema(self) -> StructType:
        """The columns that the first samples have."""
        options = _Options.of(self.options, _READ)
        urls = shards.find(options.path)
        extensions: dict[str, None] = {}
        # Shards of one folder may come from several sources, in their order.
        for url in dict.fromkeys((urls[0], urls[len(urls) // 2], urls[-1])):
            # One that is to be reported is reported by its task.
            with suppress(*([shards.ShardError] if options.reports else [])):
                for sample in islice(shards.read(url, lambda _: False), _SAMPLE_ROWS):
                    extensions |= dict.fromkeys(sample.extensions)
        if options.columns is not None:
            for name in options.columns:
                if name not in extensions:
                    raise OptionError(f"webdataset: columns: no extension {name!r}: {nearest(name, list(extensions))}")
            extensions = dict.fromkeys(options.columns)
        fields = [StructField(KEY, StringType()), StructField(URL, StringType())]
        for extension in extensions:
            text = extension in shards.TEXT
            if text or not options.metadata_only:
                fields.append(StructField(extension, StringType() if text else BinaryType()))
        if options.sidecar:
            with _open_sidecar(urls[0]) as file:
                beside = from_arrow_schema(pq.read_schema(file))
            known = {field.name for field in fields}
            fields += [field for field in beside if field.name not in known and field.name != options.sidecar_key]
        if options.reports:
            fields.append(StructField(ERROR, StringType()))
        return StructType(fields)

    def reader(self, schema: StructType) -> DataSourceReader:
        """Reads what `schema` or the user says."""
        return Reader(schema, _Options.of(self.options, _READ))

    def writer(self, schema: StructType, overwrite: bool) -> DataSourceArrowWriter:
        """Writes rows of a schema."""
        return Writer(schema, _Options.of(self.options, _WRITTEN), overwrite)


@dataclass(frozen=True, kw_only=True)
class _Options:
    path: str
    columns: tuple[str, ...] | None
    metadata_only: bool
    reports: bool
    sidecar: bool
    sidecar_key: str
    samples_per_shard: int
    key_col: str

    @classmethod
    def of(cls, given: Any, valid: tuple[str, ...]) -> _Options:
        by_lower = {name.lower(): name for name in valid}
        for name in given:
            if name.lower() not in by_lower:
                raise OptionError(f"webdataset: no option {name!r}: {nearest(name, valid)}")

        def flag(name: str) -> bool:
            text = str(given.get(name, "false")).lower()
            if text not in ("true", "false"):
                raise OptionError(f"webdataset: {name}={text!r}: expected true or false")
            return text == "true"

        if "path" not in given:
            raise OptionError("webdataset: expected a path, found none; give it to load or save")
        damage = given.get("onDamage", "fail")
        if damage not in ("fail", "report"):
            raise OptionError(f"webdataset: onDamage={damage!r}: {nearest(damage, ('fail', 'report'))}")
        samples = str(given.get("samplesPerShard", "10000"))
        if not samples.isdecimal() or int(samples) == 0:
            raise OptionError(f"webdataset: samplesPerShard={samples!r}: expected a whole number of at least 1")
        columns = given.get("columns")
        return cls(
            path=given["path"],
            columns=None if columns is None else tuple(name.strip().lower() for name in columns.split(",")),
            metadata_only=flag("metadataOnly"),
            reports=damage == "report",
            sidecar=flag("sidecar"),
            sidecar_key=given.get("sidecarKey", SIDECAR_KEY),
            samples_per_shard=int(samples),
            key_col=given.get("keyCol", KEY),
        )


@dataclass
class Shard(InputPartition):
    """One partition."""

    url: str


class Reader(DataSourceReader):
    """Reads shards to Arrow batches."""

    def __init__(self, schema: StructType, options: _Options) -> None:
        self._schema, self._options = schema, options

    def partitions(self) -> list[InputPartition]:
        """A shard each; on the driver."""
        return [Shard(url) for url in shards.find(self._options.path)]

    def read(self, partition: InputPartition) -> Iterator[pa.RecordBatch]:
        """On a worker: the samples of a shard, in batches bounded in bytes."""
        assert isinstance(partition, Shard)
        schema = to_arrow_schema(self._schema)
        text = {field.name for field in schema if pa.types.is_string(field.type)}
        wanted = text if self._options.metadata_only else set(schema.names)
        columns: dict[str, list[Any]] = {name: [] for name in schema.names}
        size, beside = 0, self._beside(partition.url)

        def add(row: dict[str, Any]) -> None:
            for name, values in columns.items():
                values.append(row.get(name))

        def batch() -> pa.RecordBatch:
            arrays = [pa.array(columns[field.name], field.type) for field in schema]
            for values in columns.values():
                values.clear()
            return pa.RecordBatch.from_arrays(arrays, schema=schema)

        try:
            for sample in shards.read(partition.url, wanted.__contains__):
                told = beside.get(sample.key) or beside.get(sample.key.rpartition("/")[2], {})
                row: dict[str, Any] = {**told, KEY: sample.key, URL: partition.url}
                for extension, content in sample.files.items():
                    row[extension] = content.decode("utf-8", "replace") if extension in text else content
                    size += len(content)
                add(row)
                if size >= _BATCH_BYTES or len(columns[schema.names[0]]) == _BATCH_ROWS:
                    yield batch()
                    size = 0
        except shards.ShardError as error:
            if not self._options.reports or ERROR not in columns:
                raise
            add({URL: partition.url, ERROR: str(error)})
        if columns[schema.names[0]]:
            yield batch()

    def _beside(self, url: str) -> dict[str, dict[str, Any]]:
        if not self._options.sidecar:
            return {}
        key = self._options.sidecar_key
        with _open_sidecar(url) as file:
            table = pq.read_table(file)
        if key not in table.column_names:
            raise OptionError(
                f"webdataset: sidecarKey: no column {key!r} in {_sidecar(url)}: {nearest(key, table.column_names)}"
            )
        kept = [name for name in table.column_names if name in self._schema.names or name == key]
        return {str(row[key]): row for row in table.select(kept).to_pylist()}


def _open_sidecar(url: str) -> IO[bytes]:
    system, place = shards.locate(_sidecar(url))
    try:
        file: IO[bytes] = system.open(place, "rb")
    except FileNotFoundError as error:
        raise TableError(
            f"webdataset: expected {_sidecar(url)} beside the shard, found nothing there; read without option sidecar"
        ) from error
    return file


def _sidecar(url: str) -> str:
    return url.removesuffix(".gz").removesuffix(".tar") + ".parquet"


@dataclass
class Written(WriterCommitMessage):
    """What a task has staged: the stems of its shards, in their order, in the hidden folder."""

    partition: int
    stems: list[str]


class Writer(DataSourceArrowWriter):
    """Writes Arrow batches to shards beside their place, and puts them there when all tasks are done."""

    def __init__(self, schema: StructType, options: _Options, overwrite: bool) -> None:
        if options.key_col not in schema.names and options.key_col != KEY:
            raise OptionError(
                f"webdataset: keyCol: no column {options.key_col!r}: {nearest(options.key_col, schema.names)}"
            )
        self._schema, self._options, self._overwrite = to_arrow_schema(schema), options, overwrite
        self._out = shards.absolute(options.path)
        staging.settle(self._out)
        self._staged = staging.new(self._out)
        # Part of the keys that are counted, so that those of another write differ.
        self._first = 0 if overwrite else _next_number(self._out)

    def write(self, iterator: Iterator[pa.RecordBatch]) -> Written:
        """On a worker: the rows of one partition."""
        context = TaskContext.get()
        assert context is not None, "a task writes"
        done = Written(context.partitionId(), [])
        # An attempt of its own, so that one which was killed or runs twice is in nobody's way.
        attempt = f"{done.partition:06d}-{context.taskAttemptId()}"
        system, hidden = shards.locate(self._staged)
        system.makedirs(f"{hidden}/{attempt}", exist_ok=True)
        numbers, rows = count(), self._rows(iterator)
        try:
            # The first row of each shard tells that there is one.
            for first in rows:
                done.stems.append(f"{attempt}/{len(done.stems):06d}")
                with closing(shards.ShardWriter(system.open(f"{hidden}/{done.stems[-1]}.tar", "wb"))) as shard:
                    beside = []
                    for row in islice(chain([first], rows), self._options.samples_per_shard):
                        given = row.pop(self._options.key_col, None)
                        key = f"{self._first:05d}-{done.partition:05d}-{next(numbers):08d}" if given is None else given
                        shard.write(str(key), _files(row))
                        if self._options.sidecar:
                            beside.append({**row, SIDECAR_KEY: str(key)})
                if self._options.sidecar:
                    with system.open(f"{hidden}/{done.stems[-1]}.parquet", "wb") as file:
                        pq.write_table(pa.Table.from_pylist(beside, self._sidecar_schema()), file)
        except BaseException:
            system.rm(f"{hidden}/{attempt}", recursive=True)
            raise
        return done

    @staticmethod
    def _rows(batches: Iterator[pa.RecordBatch]) -> Iterator[dict[str, Any]]:
        """Row by row; bytes stay where they lie in the batch."""
        for batch in batches:
            columns = {
                name: column if pa.types.is_binary(column.type) else column.to_pylist()
                for name, column in zip(batch.schema.names, batch.columns, strict=True)
                if name != URL
            }
            for at in range(batch.num_rows):
                yield {name: _bytes_at(column, at) for name, column in columns.items()}

    def _sidecar_schema(self) -> pa.Schema:
        left_out = {self._options.key_col, URL, SIDECAR_KEY}
        kept = [field for field in self._schema if field.name not in left_out and not pa.types.is_binary(field.type)]
        return pa.schema([pa.field(SIDECAR_KEY, pa.string()), *kept])

    def commit(self, messages: list[WriterCommitMessage | None]) -> None:
        """On the driver, once all tasks are done: put shards in place, numbered on from those that are there."""
        tasks = sorted((task for task in messages if isinstance(task, Written)), key=lambda task: task.partition)
        numbers = count(0 if self._overwrite else _next_number(self._out))
        kinds = ("tar", "parquet") if self._options.sidecar else ("tar",)
        moves: dict[str, str] = {}
        for stem in (stem for task in tasks for stem in task.stems):
            number = next(numbers)
            moves |= {f"{stem}.{kind}": f"{number:05d}.{kind}" for kind in kinds}
        gone = []
        if self._overwrite:
            system, place = shards.locate(self._out)
            old = [name.rpartition("/")[2].removesuffix(".tar") for name in system.glob(f"{place}/*.tar")]
            gone = [name for stem in old for name in (f"{stem}.tar", f"{stem}.parquet") if name not in moves.values()]
        staging.commit(self._staged, moves, gone=gone, replaces=self._overwrite)

    def abort(self, messages: list[WriterCommitMessage | None]) -> None:
        """On the driver, when a task or the commit has failed: nothing is left."""
        staging.settle(self._out)


def _next_number(out: str) -> int:
    system, place = shards.locate(out)
    stems = (name.rpartition("/")[2].removesuffix(".tar") for name in system.glob(f"{place}/*.tar"))
    return max((int(stem) for stem in stems if stem.isdecimal()), default=-1) + 1


def _bytes_at(column: Any, at: int) -> Any:
    value = column[at]
    if not isinstance(value, pa.BinaryScalar):
        return value
    return memoryview(value.as_buffer()) if value.is_valid else None


def _files(row: dict[str, Any]) -> dict[str, tar.Buffer]:
    """What a sample consists of, by extension."""
    files, told = dict[str, tar.Buffer](), dict[str, Any]()
    text = row.get("json")
    for name, value in row.items():
        if isinstance(value, memoryview):
            called = formats.extension(bytes(value[:16])) if name in _BY_CONTENT else name
            if called in files:
                raise TableError(
                    f"webdataset: column {name!r}: expected one column of each extension, found two of {called!r}; "
                    "rename one"
                )
            files[called] = value
        elif name in shards.TEXT - {"json"} and value is not None:
            files[name] = str(value).encode()
        # JSON has no number for the rest.
        elif name != "json" and value is not None and not (isinstance(value, float) and not isfinite(value)):
            told[name] = value
    if isinstance(text, str):
        # As it is where nothing is added to it.
        files["json"] = (json.dumps(json.loads(text) | told, default=_plain) if told else text).encode()
    elif told:
        files["json"] = json.dumps(told, default=_plain, ensure_ascii=False).encode()
    return files


def _plain(value: Any) -> str:
    return b64encode(value).decode() if isinstance(value, bytes) else str(value)
