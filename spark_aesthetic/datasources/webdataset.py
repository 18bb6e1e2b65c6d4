"""The Spark data source "webdataset": shards of samples as rows, and rows as shards.

spark.read.format("webdataset").load("s3://bucket/{00000..00099}.tar")
df.write.format("webdataset").mode("append").option("samplesPerShard", 10000).save("s3://bucket/out")
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any
from uuid import uuid4

import fsspec
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

from spark_aesthetic.datasources import shards
from spark_aesthetic.errors import OptionError, TableError, nearest
from spark_aesthetic.formats import sniff

KEY, URL, ERROR = "__key__", "__url__", "__error__"

# Of one Arrow batch, so that a task needs the same memory for a shard of any size.
_BATCH_BYTES, _BATCH_ROWS = 16 << 20, 1000

# Looked at for the columns of a table whose schema is not given.
_SAMPLE_SHARDS, _SAMPLE_ROWS = 3, 100

_READ = ("path", "columns", "metadataOnly", "onDamage", "sidecar", "sidecarKey")
_WRITTEN = ("path", "samplesPerShard", "keyCol", "sidecar")

# How a file of these bytes is called in a shard.
_EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif"}


class WebDataset(DataSource):
    """Shards of samples, one row a sample.

    Reading: columns are `__key__`, `__url__` (string) and one for each extension that the first samples of the first
    shards have: string for text and JSON, binary for the rest; a schema of one's own names others. One partition a
    shard, read from its beginning to its end in constant memory. Options: `columns` (extensions, separated by commas),
    `metadataOnly` (text alone; other bytes are passed over), `onDamage` ("fail", or "report": a damaged shard gives
    the samples before the damage and a last row with `__error__`), `sidecar` ("true": the columns of a Parquet file
    with the shard's stem are joined on its column `sidecarKey`, "key" by default).

    Writing, with mode append or overwrite: a binary column becomes files of that extension, or of that of its bytes if
    it is called image or content; columns txt, caption, cls and the like text files; `json` and all others one JSON
    file. Null values have no file. Images keep their bytes. Options: `samplesPerShard` (10,000), `keyCol` (`__key__`;
    without that column keys are counted), `sidecar` ("true": all but bytes also as Parquet beside each shard). Shards
    are named 00000.tar and on, the same for the same partitions. They are put in place when all tasks are done; what a
    failed job wrote is not visible, though a task that was still at work may leave its folder `_staged-…`.

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
        for url in urls[:_SAMPLE_SHARDS]:
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
            with fsspec.open(_sidecar(urls[0]), "rb") as file:
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
            sidecar_key=given.get("sidecarKey", "key"),
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
        names, text = schema.names, {name for name in schema.names if pa.types.is_string(schema.field(name).type)}
        beside = self._beside(partition.url)
        rows: list[dict[str, Any]] = []
        size = 0

        def batch() -> pa.RecordBatch:
            return pa.RecordBatch.from_pylist(rows, schema=schema)

        try:
            for sample in shards.read(partition.url, lambda extension: extension in names):
                row: dict[str, Any] = {
                    **beside.get(sample.key.rpartition("/")[2], {}),
                    KEY: sample.key,
                    URL: partition.url,
                }
                for extension, content in sample.files.items():
                    row[extension] = content.decode("utf-8", "replace") if extension in text else content
                    size += len(content)
                rows.append(row)
                if size >= _BATCH_BYTES or len(rows) == _BATCH_ROWS:
                    yield batch()
                    rows, size = [], 0
        except shards.ShardError as error:
            if not self._options.reports or ERROR not in names:
                raise
            rows.append({URL: partition.url, ERROR: str(error)})
        if rows:
            yield batch()

    def _beside(self, url: str) -> dict[str, dict[str, Any]]:
        if not self._options.sidecar:
            return {}
        key = self._options.sidecar_key
        with fsspec.open(_sidecar(url), "rb") as file:
            table = pq.read_table(file)
        if key not in table.column_names:
            raise TableError(
                f"webdataset: sidecarKey: no column {key!r} in {_sidecar(url)}: {nearest(key, table.column_names)}"
            )
        kept = [name for name in table.column_names if name in self._schema.names or name == key]
        return {str(row.pop(key)): row for row in table.select(kept).to_pylist()}


def _sidecar(url: str) -> str:
    return url.removesuffix(".gz").removesuffix(".tar") + ".parquet"


@dataclass
class Written(WriterCommitMessage):
    """What a task has written, in the order of its shards."""

    partition: int
    shards: list[str]
    rows: list[int]


class Writer(DataSourceArrowWriter):
    """Writes Arrow batches to shards beside their place, and puts them there when all tasks are done."""

    def __init__(self, schema: StructType, options: _Options, overwrite: bool) -> None:
        self._schema, self._options, self._overwrite = schema, options, overwrite
        self._staged = f"{options.path.rstrip('/')}/_staged-{uuid4().hex}"
        if options.key_col not in schema.names and options.key_col != KEY:
            raise OptionError(
                f"webdataset: keyCol: no column {options.key_col!r}: {nearest(options.key_col, schema.names)}"
            )

    def write(self, iterator: Iterator[pa.RecordBatch]) -> Written:
        """On a worker: the rows of one partition."""
        context = TaskContext.get()
        assert context is not None, "a task writes"
        # An attempt of its own, so that one which was killed or runs twice is in nobody's way.
        folder = f"{self._staged}/{context.partitionId():06d}-{context.taskAttemptId()}"
        system, _ = fsspec.core.url_to_fs(folder)
        system.makedirs(folder, exist_ok=True)
        done = Written(context.partitionId(), [], [])
        shard: shards.ShardWriter | None = None
        beside: list[dict[str, Any]] = []
        try:
            for batch in iterator:
                for row in batch.to_pylist():
                    if shard is None:
                        done.shards.append(f"{folder}/{len(done.shards):06d}")
                        shard = shards.ShardWriter(fsspec.open(f"{done.shards[-1]}.tar", "wb").open())
                    key, files, told = self._sample(row, context.partitionId(), sum(done.rows) + shard.samples)
                    shard.write(key, files)
                    if self._options.sidecar:
                        beside.append({"key": key, **told})
                    if shard.samples == self._options.samples_per_shard:
                        self._close(shard, beside, done)
                        shard, beside = None, []
            if shard is not None:
                self._close(shard, beside, done)
        except BaseException:
            system.rm(folder, recursive=True)
            raise
        return done

    def _close(self, shard: shards.ShardWriter, beside: list[dict[str, Any]], done: Written) -> None:
        shard.close()
        done.rows.append(shard.samples)
        if self._options.sidecar:
            with fsspec.open(f"{done.shards[-1]}.parquet", "wb") as file:
                pq.write_table(pa.Table.from_pylist(beside), file)

    def _sample(self, row: dict[str, Any], partition: int, number: int) -> tuple[str, dict[str, bytes], dict[str, Any]]:
        """Key, files and, of what is no bytes, the fields."""
        given = row.pop(self._options.key_col, None)
        key = f"{partition:06d}{number:08d}" if given is None else str(given)
        if "." in key.rpartition("/")[2] or not key:
            raise TableError(
                f"webdataset: key {key!r}: expected one without a dot, at which readers cut it; take another column, "
                "or replace(key, '.', '_')"
            )
        row.pop(URL, None)
        files, told = dict[str, bytes](), dict[str, Any]()
        for name, value in row.items():
            if value is None:
                continue
            if isinstance(value, bytes):
                files[_extension(name, value)] = value
            elif name == "json":
                told |= json.loads(value)
            elif name in shards.TEXT:
                files[name] = str(value).encode()
            else:
                told[name] = value
        if told:
            files["json"] = json.dumps(told, default=str, ensure_ascii=False).encode()
        return key, files, told

    def commit(self, messages: list[WriterCommitMessage | None]) -> None:
        """On the driver, once all tasks are done: put shards in place, numbered on from those that are there."""
        path = self._options.path.rstrip("/")
        system, place = fsspec.core.url_to_fs(path)
        there = system.glob(f"{place}/*.tar")
        number = 0 if self._overwrite else len(there)
        if self._overwrite:
            for old in [*there, *system.glob(f"{place}/*.parquet")]:
                system.rm(old)
        tasks = sorted((task for task in messages if isinstance(task, Written)), key=lambda task: task.partition)
        for task in tasks:
            for staged in task.shards:
                for kind in ("parquet", "tar") if self._options.sidecar else ("tar",):
                    system.mv(f"{staged}.{kind}", f"{place}/{number:05d}.{kind}")
                number += 1
        self._clear()

    def abort(self, messages: list[WriterCommitMessage | None]) -> None:
        """On the driver, when a task has failed: nothing is left."""
        self._clear()

    def _clear(self) -> None:
        system, place = fsspec.core.url_to_fs(self._staged)
        if system.exists(place):
            system.rm(place, recursive=True)


def _extension(name: str, content: bytes) -> str:
    """Of a column that is called by what it holds; else the column's name is the extension."""
    if name not in ("image", "content"):
        return name
    return _EXTENSIONS.get(sniff(content) or "", "bin")
