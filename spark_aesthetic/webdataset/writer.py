"""The writer of the "webdataset" data source: rows to shards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, count, islice
from socket import gethostname
from time import monotonic
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark import TaskContext
from pyspark.sql.datasource import DataSourceArrowWriter, WriterCommitMessage
from pyspark.sql.pandas.types import to_arrow_schema
from pyspark.sql.types import BinaryType, StructField, StructType, VariantType

from spark_aesthetic.delta.datatypes import holds
from spark_aesthetic.delta.naming import folded
from spark_aesthetic.errors import AestheticError, OptionError, TableError, in_a_line, nearest
from spark_aesthetic.webdataset import samples, shards, staging
from spark_aesthetic.webdataset.given import KEY, SIDECAR_KEY, URL, Options

# Seconds between two heartbeats of a task.
_SIGN_SECONDS = 60.0


@dataclass
class Written(WriterCommitMessage):
    """The shards that a task has staged: their file names without extension in the hidden folder, in order."""

    partition: int
    stems: list[str]


class Writer(DataSourceArrowWriter):
    """Writes Arrow batches to staged shards, and moves them into place when all tasks are done."""

    def __init__(self, schema: StructType, options: Options, overwrite: bool) -> None:
        if options.key_col not in schema.names and options.key_col != KEY:
            raise OptionError(
                f"webdataset: keyCol: no column {options.key_col!r}: {nearest(options.key_col, schema.names)}"
            )
        for field in schema:
            _check_column(field, options)
        self._schema, self._options, self._overwrite = to_arrow_schema(schema, timezone="UTC"), options, overwrite
        self._kinds = ("tar", "parquet") if options.sidecar else ("tar",)
        self._out = shards.absolute(options.path)
        # The time of this task's last heartbeat.
        self._signed = float("-inf")
        staging.settle(self._out)
        self._staged = staging.new(self._out)
        try:
            # Generated keys contain this number, so that keys of different writes differ.
            self._first = 0 if overwrite else _next_number(self._out)
        except BaseException:
            staging.roll_back(self._staged)
            raise

    def write(self, iterator: Iterator[pa.RecordBatch]) -> Written:
        """On a worker: write the rows of one partition."""
        context = TaskContext.get()
        assert context is not None, "a task writes"
        done = Written(context.partitionId(), [])
        # File names contain the attempt, so that killed or speculative attempts of a task do not conflict.
        attempt = f"{done.partition:06d}-{context.taskAttemptId()}"
        numbers, rows = count(), samples.rows(iterator, without=URL)
        try:
            # A shard is opened only when its first row exists.
            for first in rows:
                done.stems.append(f"{attempt}-{len(done.stems):06d}")
                self._write_shard(done, chain([first], rows), numbers)
        except BaseException:
            # The driver may have removed these files already, and removes the remaining ones with the hidden folder.
            system, hidden = shards.locate(self._staged)
            for stem in done.stems:
                for kind in self._kinds:
                    with suppress(OSError):
                        system.rm_file(f"{hidden}/{stem}.{kind}")
            raise
        return done

    def _write_shard(self, done: Written, rows: Iterator[dict[str, Any]], numbers: Iterator[int]) -> None:
        """Write the task's current shard and its sidecar."""
        beside = []
        with self._writing():
            shard = shards.ShardWriter(self._open(f"{done.stems[-1]}.tar"))
        try:
            for row in islice(rows, self._options.samples_per_shard):
                given = row.pop(self._options.key_col, None)
                key = f"{self._first:05d}-{done.partition:05d}-{next(numbers):08d}" if given is None else str(given)
                files = samples.files_of(row)
                with self._writing():
                    self._sign()
                    shard.write(key, files)
                if self._options.sidecar:
                    # A view of bytes would keep its whole batch in memory.
                    told = {name: value for name, value in row.items() if not isinstance(value, memoryview)}
                    beside.append({**told, SIDECAR_KEY: key})
            with self._writing():
                shard.close()
        except BaseException:
            shard.abandon()
            raise
        if self._options.sidecar:
            with self._writing(), self._open(f"{done.stems[-1]}.parquet") as file:
                pq.write_table(pa.Table.from_pylist(beside, self._sidecar_schema()), file)

    def _sign(self) -> None:
        if monotonic() >= self._signed + _SIGN_SECONDS:
            self._signed = monotonic()
            staging.sign(self._staged)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Turn any exception of a file system, such as a full disk, into a one-line error."""
        try:
            yield
        except AestheticError:
            raise
        except FileNotFoundError as error:
            raise TableError(
                f"webdataset: expected the folder {self._staged} created by the driver, found none on "
                f"{gethostname()}. Write to a place that driver and executors share, one write at a time."
            ) from error
        except Exception as error:
            raise TableError(
                f"webdataset: {self._out}: expected a folder that can be written, found on {gethostname()}: "
                f"{in_a_line(error)}. Free some space or grant access, and run it again. No shard of this write was "
                "moved into place."
            ) from error

    def _open(self, name: str) -> IO[bytes]:
        system, hidden = shards.locate(self._staged)
        file: IO[bytes] = system.open(f"{hidden}/{name}", "wb")
        return file

    def _sidecar_schema(self) -> pa.Schema:
        left_out = {self._options.key_col, URL, SIDECAR_KEY}
        kept = [field for field in self._schema if field.name not in left_out and not samples.holds_bytes(field.type)]
        return pa.schema([pa.field(SIDECAR_KEY, pa.string()), *kept])

    def commit(self, messages: list[WriterCommitMessage | None]) -> None:
        """On the driver, after all tasks: move the shards into place. Append continues the existing numbers."""
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
        with self._writing():
            staging.commit(self._staged, moves, gone=gone, replaces=self._overwrite)

    def abort(self, messages: list[WriterCommitMessage | None]) -> None:
        """On the driver, after a failed task or commit: roll the write back."""
        staging.roll_back(self._staged)


def _next_number(out: str) -> int:
    system, place = shards.locate(out)
    stems = (name.rpartition("/")[2].removesuffix(".tar") for name in shards.tars(system, place))
    return max((int(stem) for stem in stems if stem.isdecimal()), default=-1) + 1


def _check_column(field: StructField, options: Options) -> None:
    """Raise TableError if the column's values would be lost."""
    name, has_bytes = field.name, isinstance(field.dataType, BinaryType)
    if holds(field.dataType, VariantType):
        raise TableError(
            f"webdataset: column {name!r}: expected a type that JSON has, found {field.dataType.simpleString()}. "
            "Apply to_json to the variant values."
        )
    if (has_bytes and name.lower() not in samples.BY_CONTENT) or shards.is_text(name):
        shards.check_extension(name.lower(), f"column {name!r}")
    if name == options.key_col:
        if has_bytes:
            raise TableError(f"webdataset: keyCol {name!r}: expected text or numbers, found binary. Use hex({name}).")
    elif options.sidecar and not has_bytes and folded(name) == SIDECAR_KEY:
        raise TableError(
            f"webdataset: column {name!r}: expected no column of that name with sidecar=true, because the sidecar "
            "stores the samples' keys in it, found one. Rename it, or use it as keyCol."
        )
