"""The Spark data source "webdataset": shards of samples as rows, and rows as shards.

spark.read.format("webdataset").load("s3://bucket/{00000..00099}.tar")
df.write.format("webdataset").mode("append").option("samplesPerShard", 10000).save("s3://bucket/out")
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql.datasource import (
    DataSource,
    DataSourceArrowWriter,
    DataSourceReader,
    InputPartition,
)
from pyspark.sql.pandas.types import from_arrow_schema, to_arrow_schema
from pyspark.sql.types import BinaryType, StringType, StructField, StructType

from spark_aesthetic.delta.naming import folded, has_column
from spark_aesthetic.errors import OptionError, TableError, nearest
from spark_aesthetic.webdataset import places, shards
from spark_aesthetic.webdataset.given import ERROR, KEY, PATH, READ, SIDECAR_KEY, URL, WRITTEN, Options
from spark_aesthetic.webdataset.writer import Writer

__all__ = ["ERROR", "KEY", "PATH", "SIDECAR_KEY", "URL", "WebDataset"]

# Of one Arrow batch, so that a task needs the same memory for a shard of any size.
_BATCH_BYTES, _BATCH_ROWS = 4 << 20, 1000

# Of each shard that is looked at for the columns of a table whose schema is not given, and how many columns these make
# at most: files called 1.x.txt, 2.x.txt, … have an extension each.
_SAMPLE_ROWS, _MAX_COLUMNS = 100, 200

# What a sidecar's name does not have of its shard's.
_TAR = re.compile(r"\.(tar(\.(gz|xz|bz2|zst))?|tgz)$")


class WebDataset(DataSource):
    """Shards of samples, one row a sample.

    Reading: columns are `__key__`, `__url__` (string) and one for each extension that the first samples of the first,
    the middle and the last shard have: string for text and JSON, binary for the rest; a schema of one's own names
    others, and may have `__path__` (shard and key, and a number where the shard had that key before).
    One partition a shard, read from its beginning to its end in constant memory. Options: `columns`
    (extensions, separated by commas), `metadataOnly` (text alone; other bytes are passed over), `maxMemberBytes`
    ("256m"; a larger file is passed over, which is a fault of its sample), `onDamage` ("fail", or "report": a damaged
    shard gives the samples before the damage and a last row with `__error__`, and a faulty sample its fault there),
    `sidecar` ("true": the columns of a Parquet file with the shard's stem are joined by its column `sidecarKey`, "key"
    by default, on the sample's key or the last part of that). Files called `….__name__` are a fault: columns of the
    reader are called so.

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
    then its hidden folder `_staged-…` stays. A folder takes one write at a time; a second one is refused.

    Paths and addresses are those of fsspec; dbfs:/ is read where Databricks mounts it.
    """

    @classmethod
    def name(cls) -> str:
        """As `format` takes it."""
        return "webdataset"

    def schema(self) -> StructType:
        """The columns that the first samples have."""
        options = Options.of(self.options, READ)
        urls = shards.find(options.path)
        # By what Spark, which is blind to case, takes for one name.
        found: dict[str, str] = {}
        # Shards of one folder may come from several sources, in their order.
        for url in dict.fromkeys((urls[0], urls[len(urls) // 2], urls[-1])):
            # One that is to be reported is reported by its task.
            with suppress(*([shards.ShardError] if options.reports else [])):
                for sample in islice(shards.read(url, lambda _: False), _SAMPLE_ROWS):
                    for extension in sample.extensions:
                        if len(found) < _MAX_COLUMNS:
                            found.setdefault(_folded(extension), extension)
        extensions = dict.fromkeys(found.values())
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
            known = {_folded(name) for name in (KEY, URL, ERROR, PATH, *extensions)}
            for field in _sidecar_schema(urls[0]):
                if _folded(field.name) not in known and field.name != options.sidecar_key:
                    fields.append(field)
                    known.add(_folded(field.name))
        if options.reports:
            fields.append(StructField(ERROR, StringType()))
        return StructType(fields)

    def reader(self, schema: StructType) -> DataSourceReader:
        """Reads what `schema` or the user says.

        Raises:
            OptionError: Damage is to be reported, and there is no column for it.
        """
        options = Options.of(self.options, READ)
        if options.reports and not has_column(schema.names, ERROR):
            raise OptionError(
                f"webdataset: onDamage=report: expected the column {ERROR} in the schema, which damage is told in, "
                f"found none; add {ERROR} string to the schema"
            )
        return Reader(schema, options)

    def writer(self, schema: StructType, overwrite: bool) -> DataSourceArrowWriter:
        """Writes rows of a schema."""
        return Writer(schema, Options.of(self.options, WRITTEN), overwrite)


@dataclass
class Shard(InputPartition):
    """One partition."""

    url: str


class Reader(DataSourceReader):
    """Reads shards to Arrow batches."""

    def __init__(self, schema: StructType, options: Options) -> None:
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
            if not has_column(beside, field.name):
                raise TableError(
                    f"webdataset: column {field.name!r}: expected string or binary, which files of a shard are, found "
                    f"{field.dataType.simpleString()}; read it as string and cast it"
                )

    def read(self, partition: InputPartition) -> Iterator[pa.RecordBatch]:
        """On a worker: the samples of a shard, in batches bounded in bytes."""
        assert isinstance(partition, Shard)
        schema = to_arrow_schema(self._schema, timezone="UTC")
        # Extensions are in lower case already.
        fields = {folded(field.name): field for field in schema}
        text = {name for name, field in fields.items() if pa.types.is_string(field.type)}
        wanted = text if self._options.metadata_only else set(fields)
        columns: dict[str, list[Any]] = {name: [] for name in fields}
        rows = next(iter(columns.values()))
        size, beside, paths = 0, self._beside(partition.url), Counter[int]()

        def add(row: dict[str, Any]) -> None:
            for name, values in columns.items():
                values.append(row.get(name))

        def batch() -> pa.RecordBatch:
            arrays = [pa.array(columns[name], field.type) for name, field in fields.items()]
            for values in columns.values():
                values.clear()
            return pa.RecordBatch.from_arrays(arrays, schema=schema)

        try:
            for sample in shards.read(partition.url, wanted.__contains__, self._options.max_member_bytes):
                row: dict[str, Any] = {}
                if beside:
                    row |= beside.get(sample.key) or beside.get(sample.key.rpartition("/")[2], {})
                for extension, content in sample.files.items():
                    row[extension] = content.decode("utf-8", "replace") if extension in text else content
                    size += len(content)
                # Last, so that no file and no sidecar has their place.
                row[KEY], row[URL] = sample.key, partition.url
                row[PATH] = _path(partition.url, sample, paths) if PATH in columns else None
                row[ERROR] = self._fault(partition.url, sample) if sample.fault is not None else None
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
                f"shard {url}, sample {sample.key[:100]!r}: {sample.fault}; write the shard again with all files of a "
                "sample one after another, links replaced by their files (tar --sort=name --dereference "
                "--hard-dereference, without --sparse) and files within the limits, or read with option onDamage=report"
            )
        return sample.fault

    def _beside(self, url: str) -> dict[str, dict[str, Any]]:
        if not self._options.sidecar:
            return {}
        key = self._options.sidecar_key
        table = _sidecar_of(url, pq.read_table)
        if key not in table.column_names:
            raise OptionError(
                f"webdataset: sidecarKey: no column {key!r} in {_sidecar(url)}: {nearest(key, table.column_names)}"
            )
        wanted = set(map(folded, self._schema.names))
        kept = [name for name in table.column_names if folded(name) in wanted or name == key]
        rows = table.select(kept).rename_columns(list(map(folded, kept))).to_pylist()
        return {str(row[folded(key)]): row for row in rows}


def _folded(name: str) -> str:
    """Equal where Spark may take two names for one: also for the long s and s, which have one capital."""
    return name.upper().lower()


def _path(url: str, sample: shards.Sample, seen: Counter[int]) -> str:
    """Unique in a shard; what was given is kept as a number."""
    path = first = f"{url}#{sample.key}"
    if sample.continues:
        number = seen[hash(first)]
        return first if number == 1 else f"{first}#{number}"
    # Another key may be called as the second of this one would be.
    while hash(path) in seen:
        seen[hash(first)] += 1
        path = f"{first}#{seen[hash(first)]}"
    seen[hash(path)] = 1
    return path


def _sidecar_schema(url: str) -> StructType:
    return from_arrow_schema(_sidecar_of(url, pq.read_schema))


def _sidecar_of(url: str, read: Callable[[IO[bytes]], Any]) -> Any:
    with _open_sidecar(url) as file:
        try:
            return read(file)
        except (pa.ArrowException, ValueError) as error:
            raise TableError(
                f"webdataset: {_sidecar(url)}: expected a Parquet file, found: {str(error).splitlines()[0][:200]}; "
                "write it again, or read without option sidecar"
            ) from error


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
