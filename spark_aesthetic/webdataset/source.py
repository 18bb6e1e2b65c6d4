"""The Spark data source "webdataset": read shards as rows, and write rows as shards.

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

# Limits of one Arrow batch, so that a task's memory does not depend on the shard's size.
_BATCH_BYTES, _BATCH_ROWS = 4 << 20, 1000

# Samples per shard that are read to infer the schema, and the maximum number of inferred columns. Without this maximum,
# files named 1.x.txt, 2.x.txt, … could add a column each.
_SAMPLE_ROWS, _MAX_COLUMNS = 100, 200

# The extension of a shard, which .parquet replaces in its sidecar's name.
_TAR = re.compile(r"\.(tar(\.(gz|xz|bz2|zst))?|tgz)$")


class WebDataset(DataSource):
    """Read and write WebDataset shards, with one row per sample.

    Reading: the columns are `__key__` and `__url__` (string), and one column for each extension in the first samples of
    the first, middle and last shard: string for text and JSON, binary for the rest. A user-defined schema may contain
    different extensions and `__path__` (shard and key, with a number if the shard repeats the key). Each shard is one
    partition and is read sequentially in constant memory. Options:

    - `columns`: extensions, separated by commas.
    - `metadataOnly`: "true" reads only text and skips the remaining bytes.
    - `maxMemberBytes` ("256m"): larger files are skipped, and their sample is faulty.
    - `onDamage`: "fail" (default) or "report". With "report", a damaged shard returns the samples before the damage and
      a last row with `__error__`, and a faulty sample has its fault in `__error__`.
    - `sidecar`: "true" also reads the Parquet file beside each shard, with the shard's name and .parquet in place of
      .tar. Its column `sidecarKey` ("key") is matched with the sample's key, or with the last part of the key.

    A file named `….__name__` makes its sample faulty, because such names are reserved for the reader's columns.

    Writing, with mode append or overwrite: a binary column becomes files with the column's name as extension; for
    columns named image or content, the extension is derived from the bytes. Columns such as txt, caption and cls become
    text files. All remaining columns are merged into the JSON object of column `json` and replace its values of the
    same name. If `json` is not a JSON object, it is kept and they go to columns.json. Null values have no file. NaN and
    infinity are left out of the JSON, and are null inside arrays and structs. Bytes are not changed. Options:

    - `samplesPerShard` (10,000).
    - `keyCol` (`__key__`): if this column does not exist or is null, samples are numbered.
    - `sidecar`: "true" also writes all columns except bytes to a Parquet file beside each shard.

    Shards are named 00000.tar, 00001.tar, … in the order of the partitions. They are moved into place when all tasks
    are done, each atomically. Append continues after the greatest existing number. Overwrite replaces shards with the
    same number and then removes all remaining .tar files and their sidecars. The next write rolls a killed write back,
    or finishes it if it was already replacing shards; until then its hidden folder `_staged-…` remains. Only one write
    to a folder may run at a time; a second one is refused.

    Paths may be local or any address that fsspec supports; dbfs:/ is read from Databricks' local mount.
    """

    @classmethod
    def name(cls) -> str:
        """Return the name for `format`."""
        return "webdataset"

    def schema(self) -> StructType:
        """Infer the columns from the first samples."""
        options = Options.of(self.options, READ)
        urls = shards.find(options.path)
        # Extensions by folded name, because Spark's column names ignore case.
        found: dict[str, str] = {}
        # A folder may hold shards from several sources in sequence, so its first, middle and last shards are sampled.
        for url in dict.fromkeys((urls[0], urls[len(urls) // 2], urls[-1])):
            # With onDamage=report, the task that reads a damaged shard reports it.
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
        """Return a reader for the inferred or user-defined schema.

        Raises:
            OptionError: onDamage is "report", and the schema has no column `__error__`.
        """
        options = Options.of(self.options, READ)
        if options.reports and not has_column(schema.names, ERROR):
            raise OptionError(
                f"webdataset: onDamage=report: expected the column {ERROR} in the schema, "
                f"found none. Add {ERROR} string to the schema."
            )
        return Reader(schema, options)

    def writer(self, schema: StructType, overwrite: bool) -> DataSourceArrowWriter:
        """Return a writer for the rows of a schema."""
        return Writer(schema, Options.of(self.options, WRITTEN), overwrite)


@dataclass
class Shard(InputPartition):
    """A partition: one shard."""

    url: str


class Reader(DataSourceReader):
    """Reads shards to Arrow batches."""

    def __init__(self, schema: StructType, options: Options) -> None:
        self._schema, self._options = schema, options

    def partitions(self) -> list[InputPartition]:
        """On the driver: return one partition per shard.

        Raises:
            TableError: No shards exist, or a column has a type that neither files nor the first sidecar can have.
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
                    f"webdataset: column {field.name!r}: expected string or binary, the types of shard files, found "
                    f"{field.dataType.simpleString()}. Read it as string and cast it."
                )

    def read(self, partition: InputPartition) -> Iterator[pa.RecordBatch]:
        """On a worker: yield the samples of a shard in batches of bounded size."""
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
                # These are set last, so that no file or sidecar can override them.
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
                f"shard {url}, sample {sample.key[:100]!r}: {sample.fault}. Write the shard again with consecutive "
                "files per sample and links replaced by their files (tar --sort=name --dereference --hard-dereference, "
                "without --sparse) and with files within the limits, or read with option onDamage=report."
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
    """Fold a name so that names which Spark may treat as equal are equal, such as s and the long s (U+017F)."""
    return name.upper().lower()


def _path(url: str, sample: shards.Sample, seen: Counter[int]) -> str:
    """Return a path that is unique in the shard; `seen` stores hashes of the paths that were returned."""
    path = first = f"{url}#{sample.key}"
    if sample.continues:
        number = seen[hash(first)]
        return first if number == 1 else f"{first}#{number}"
    # Two samples can get the same path: the second sample of the key `a` and the first one of the key `a#2`.
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
                f"webdataset: {_sidecar(url)}: expected a Parquet file, found: {str(error).splitlines()[0][:200]}. "
                "Write it again, or read without option sidecar."
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
            f"webdataset: expected {_sidecar(url)} beside the shard, found nothing there. Read without option sidecar."
        ) from error
    return file


def _sidecar(url: str) -> str:
    return _TAR.sub("", url) + ".parquet"
