"""The Spark data source "webdataset": shards of samples as rows, and rows as shards.

spark.read.format("webdataset").load("s3://bucket/{00000..00099}.tar")
df.write.format("webdataset").mode("append").option("samplesPerShard", 10000).save("s3://bucket/out")
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import chain, count, islice
from socket import gethostname
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
from pyspark.sql.types import (
    ArrayType,
    BinaryType,
    DataType,
    MapType,
    StringType,
    StructField,
    StructType,
    VariantType,
)

from spark_aesthetic.datasources import places, samples, shards, staging
from spark_aesthetic.errors import OptionError, TableError, nearest

KEY, URL, ERROR = "__key__", "__url__", "__error__"

# Given where a schema names it: shard and key of a sample, and of a further one of that key its number, so that no two
# rows of a shard have the same.
PATH = "__path__"

# Of one Arrow batch, so that a task needs the same memory for a shard of any size.
_BATCH_BYTES, _BATCH_ROWS = 4 << 20, 1000

# Of each shard that is looked at for the columns of a table whose schema is not given.
_SAMPLE_ROWS = 100

_READ = ("path", "columns", "metadataOnly", "onDamage", "sidecar", "sidecarKey")
_WRITTEN = ("path", "samplesPerShard", "keyCol", "sidecar")

# What a sidecar's name does not have of its shard's.
_TAR = re.compile(r"\.(tar(\.(gz|xz|bz2|zst))?|tgz)$")

# The column of keys in a sidecar.
SIDECAR_KEY = "key"


class WebDataset(DataSource):
    """Shards of samples, one row a sample.

    Reading: columns are `__key__`, `__url__` (string) and one for each extension that the first samples of the first,
    the middle and the last shard have: string for text and JSON, binary for the rest; a schema of one's own names
    others, and may have `__path__` (shard and key, and a number where the shard had that key before).
    One partition a shard, read from its beginning to its end in constant memory. Options: `columns`
    (extensions, separated by commas), `metadataOnly` (text alone; other bytes are passed over), `onDamage` ("fail", or
    "report": a damaged shard gives the samples before the damage and a last row with `__error__`), `sidecar` ("true":
    the columns of a Parquet file with the shard's stem are joined by its column `sidecarKey`, "key" by default, on the
    sample's key or the last part of that).

    Writing, with mode append or overwrite: a binary column becomes files of that extension, or of that of its bytes if
    it is called image or content; columns txt, caption, cls and the like text files; `json` and all others one JSON
    file, where of the same name the column counts. Text in `json` that is no JSON object stays as it is, and the other
    columns go to a file columns.json beside it. Null values have no file, and numbers that are not finite no place in
    the JSON; within arrays and structs they are null. Bytes stay as they are.
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
            text = shards.is_text(extension)
            if text or not options.metadata_only:
                fields.append(StructField(extension, StringType() if text else BinaryType()))
        if options.sidecar:
            known = {field.name for field in fields}
            beside = _sidecar_schema(urls[0])
            fields += [field for field in beside if field.name not in known and field.name != options.sidecar_key]
        if options.reports:
            fields.append(StructField(ERROR, StringType()))
        return StructType(fields)

    def reader(self, schema: StructType) -> DataSourceReader:
        """Reads what `schema` or the user says.

        Raises:
            OptionError: Damage is to be reported, and there is no column for it.
        """
        options = _Options.of(self.options, _READ)
        if options.reports and ERROR not in (name.lower() for name in schema.names):
            raise OptionError(
                f"webdataset: onDamage=report: expected the column {ERROR} in the schema, which damage is told in, "
                f"found none; add {ERROR} string to the schema"
            )
        return Reader(schema, options)

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
        """A shard each; on the driver.

        Raises:
            TableError: There are no shards, or a column has a type that neither their files nor the first sidecar have.
        """
        urls = shards.find(self._options.path)
        self._check_types(urls[0])
        return [Shard(url) for url in urls]

    def _check_types(self, first: str) -> None:
        others = [field for field in self._schema if not isinstance(field.dataType, StringType | BinaryType)]
        beside = _sidecar_schema(first).names if others and self._options.sidecar else []
        for field in others:
            if field.name.lower() not in map(str.lower, beside):
                raise TableError(
                    f"webdataset: column {field.name!r}: expected string or binary, which files of a shard are, found "
                    f"{field.dataType.simpleString()}; read it as string and cast it"
                )

    def read(self, partition: InputPartition) -> Iterator[pa.RecordBatch]:
        """On a worker: the samples of a shard, in batches bounded in bytes."""
        assert isinstance(partition, Shard)
        schema = to_arrow_schema(self._schema, timezone="UTC")
        # Names are blind to case, as Spark's; those of extensions are lower already.
        fields = {field.name.lower(): field for field in schema}
        text = {name for name, field in fields.items() if pa.types.is_string(field.type)}
        wanted = text if self._options.metadata_only else set(fields)
        columns: dict[str, list[Any]] = {name: [] for name in fields}
        rows = next(iter(columns.values()))
        size, beside, paths = 0, self._beside(partition.url), Counter[str]()

        def add(row: dict[str, Any]) -> None:
            for name, values in columns.items():
                values.append(row.get(name))

        def batch() -> pa.RecordBatch:
            arrays = [pa.array(columns[name], field.type) for name, field in fields.items()]
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
                if PATH in columns:
                    row[PATH] = _path(partition.url, sample, paths)
                if sample.fault is not None:
                    row[ERROR] = self._fault(partition.url, sample)
                add(row)
                if size >= _BATCH_BYTES or len(rows) == _BATCH_ROWS:
                    yield batch()
                    size = 0
        except shards.ShardError as error:
            if not self._options.reports:
                raise
            add({URL: partition.url, PATH: partition.url, ERROR: str(error)})
        if rows:
            yield batch()

    def _fault(self, url: str, sample: shards.Sample) -> str | None:
        if not self._options.reports:
            raise shards.ShardError(
                f"shard {url}, sample {sample.key!r}: {sample.fault}; write the shard again with all files of a sample "
                "one after another and links replaced by their files (tar --sort=name --dereference "
                "--hard-dereference), or read with option onDamage=report"
            )
        return sample.fault

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
        wanted = [name.lower() for name in self._schema.names]
        kept = [name for name in table.column_names if name.lower() in wanted or name == key]
        rows = table.select(kept).rename_columns([name.lower() for name in kept]).to_pylist()
        return {str(row[key.lower()]): row for row in rows}


def _path(url: str, sample: shards.Sample, seen: Counter[str]) -> str:
    path = first = f"{url}#{sample.key}"
    if sample.continues:
        return first if seen[first] == 1 else f"{first}#{seen[first]}"
    # Another key may be called as the second of this one would be.
    while path in seen:
        seen[first] += 1
        path = f"{first}#{seen[first]}"
    seen[path] = 1
    return path


def _sidecar_schema(url: str) -> StructType:
    with _open_sidecar(url) as file:
        return from_arrow_schema(pq.read_schema(file))


def _open_sidecar(url: str) -> IO[bytes]:
    system, place = shards.locate(_sidecar(url))
    try:
        with places.reaching(_sidecar(url)):
            file: IO[bytes] = system.open(place, "rb")
    except TableError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        raise TableError(
            f"webdataset: expected {_sidecar(url)} beside the shard, found nothing there; read without option sidecar"
        ) from error
    return file


def _sidecar(url: str) -> str:
    return _TAR.sub("", url) + ".parquet"


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
        for field in schema:
            _check_column(field, options)
        self._schema, self._options, self._overwrite = to_arrow_schema(schema, timezone="UTC"), options, overwrite
        self._kinds = ("tar", "parquet") if options.sidecar else ("tar",)
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
        numbers, rows = count(), samples.rows(iterator, without=URL)
        try:
            # The first row of each shard tells that there is one.
            for first in rows:
                done.stems.append(f"{attempt}-{len(done.stems):06d}")
                with closing(shards.ShardWriter(self._open(f"{done.stems[-1]}.tar"))) as shard:
                    beside = []
                    for row in islice(chain([first], rows), self._options.samples_per_shard):
                        given = row.pop(self._options.key_col, None)
                        key = f"{self._first:05d}-{done.partition:05d}-{next(numbers):08d}" if given is None else given
                        shard.write(str(key), samples.files_of(row))
                        if self._options.sidecar:
                            # No view of bytes, which would hold its whole batch.
                            told = {name: value for name, value in row.items() if not isinstance(value, memoryview)}
                            beside.append({**told, SIDECAR_KEY: str(key)})
                if self._options.sidecar:
                    with self._open(f"{done.stems[-1]}.parquet") as file:
                        pq.write_table(pa.Table.from_pylist(beside, self._sidecar_schema()), file)
        except BaseException:
            # The driver may have removed them; what is left goes with the rest.
            system, hidden = shards.locate(self._staged)
            for stem in done.stems:
                for kind in self._kinds:
                    with suppress(OSError):
                        system.rm_file(f"{hidden}/{stem}.{kind}")
            raise
        return done

    def _open(self, name: str) -> IO[bytes]:
        system, hidden = shards.locate(self._staged)
        try:
            file: IO[bytes] = system.open(f"{hidden}/{name}", "wb")
        except FileNotFoundError as error:
            raise TableError(
                f"webdataset: expected the folder {self._staged}, which the driver has made, found none on "
                f"{gethostname()}; write to a place that driver and executors share, one write at a time"
            ) from error
        return file

    def _sidecar_schema(self) -> pa.Schema:
        left_out = {self._options.key_col, URL, SIDECAR_KEY}
        kept = [field for field in self._schema if field.name not in left_out and not samples.holds_bytes(field.type)]
        return pa.schema([pa.field(SIDECAR_KEY, pa.string()), *kept])

    def commit(self, messages: list[WriterCommitMessage | None]) -> None:
        """On the driver, once all tasks are done: put shards in place, numbered on from those that are there."""
        tasks = sorted((task for task in messages if isinstance(task, Written)), key=lambda task: task.partition)
        numbers = count(0 if self._overwrite else _next_number(self._out))
        moves: dict[str, str] = {}
        for stem in (stem for task in tasks for stem in task.stems):
            number = next(numbers)
            moves |= {f"{stem}.{kind}": f"{number:05d}.{kind}" for kind in self._kinds}
        gone = []
        if self._overwrite:
            system, place = shards.locate(self._out)
            old = [name.rpartition("/")[2].removesuffix(".tar") for name in shards.tars(system, place)]
            gone = [name for stem in old for name in (f"{stem}.tar", f"{stem}.parquet") if name not in moves.values()]
        staging.commit(self._staged, moves, gone=gone, replaces=self._overwrite)

    def abort(self, messages: list[WriterCommitMessage | None]) -> None:
        """On the driver, when a task or the commit has failed: nothing is left."""
        staging.settle(self._out)


def _next_number(out: str) -> int:
    system, place = shards.locate(out)
    stems = (name.rpartition("/")[2].removesuffix(".tar") for name in shards.tars(system, place))
    return max((int(stem) for stem in stems if stem.isdecimal()), default=-1) + 1


def _check_column(field: StructField, options: _Options) -> None:
    """Raise TableError where the column's values would be lost."""
    name, has_bytes = field.name, isinstance(field.dataType, BinaryType)
    if _has_variant(field.dataType):
        raise TableError(
            f"webdataset: column {name!r}: expected a type that JSON has, found {field.dataType.simpleString()}; write "
            "to_json of what is variant"
        )
    if name == options.key_col:
        if has_bytes:
            raise TableError(f"webdataset: keyCol {name!r}: expected text or numbers, found binary; take hex({name})")
    elif options.sidecar and not has_bytes and name.lower() == SIDECAR_KEY:
        raise TableError(
            f"webdataset: column {name!r}: expected none of that name with sidecar=true, which has the samples' keys "
            "there, found one; rename it, or take it for keyCol"
        )


def _has_variant(kind: DataType) -> bool:
    if isinstance(kind, StructType):
        return any(_has_variant(field.dataType) for field in kind)
    if isinstance(kind, MapType):
        return _has_variant(kind.valueType)
    return isinstance(kind, VariantType) or (isinstance(kind, ArrayType) and _has_variant(kind.elementType))
