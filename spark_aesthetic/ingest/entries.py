"""What a source of images is asked for: what is new there, in narrow rows, and the bytes of some of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence, Set
from typing import Any, NamedTuple, Protocol

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.pandas.functions import pandas_udf

from spark_aesthetic.images import headers
from spark_aesthetic.ingest.listing import PassedOver

# What each source reads: `modified_us` are microseconds of the epoch, since Python's local times repeat an hour a year.
READ = "path string, modified_us bigint, length bigint, image binary, error string"

# What a shard's name ends in.
TAR = re.compile(r"\.(tar|tar\.gz|tgz)$")


class Entry(NamedTuple):
    """A file, a shard or an address that is to be read.

    Attributes:
        path: Where it is.
        modified_us: When it was modified, in microseconds of the epoch, or None where nothing tells.
        length: Its bytes, or None.
        changed: A row of this path, or of this shard, is there, of an older file.
        version: Of a shard, as `places.version_of` has it.
    """

    path: str
    modified_us: int | None
    length: int | None
    changed: bool
    version: str | None = None


class ImageSource(Protocol):
    """What `ingest_images` asks of a source."""

    @property
    def texts(self) -> tuple[str, ...]:
        """Names of string columns that go along with the images."""

    @property
    def further(self) -> tuple[str, ...]:
        """Names of string columns that a table gets once a row has a value there."""

    def knowing(self, columns: Sequence[str]) -> ImageSource:
        """The same for a table that has these columns."""

    def new(self, known: DataFrame) -> tuple[int, Iterator[Entry]]:
        """How much is there, and what of it is new: first what no row has, and each of the two sorted by path.

        Args:
            known: Columns path, modified_us, length, ingested_us, whether it is to be tried again (`again`, boolean),
                whether it is a row of the table and no copy that was left out (`there`, boolean) and, where there are
                samples of shards, `__url__` and `__version__`.
        """

    @property
    def passed_over(self) -> PassedOver:
        """What is there and is not read."""

    def read(self, entries: Sequence[Entry]) -> DataFrame:
        """Columns as in `READ`, `texts` and `further`; at its end an entry may lack its row."""

    def mend(self, entries: Sequence[Entry], read: DataFrame, errors: Set[str]) -> DataFrame | None:
        """What was read, put right in a slower way that few entries need; None if the errors ask for none.

        `read` has the column `header` too.
        """

    def unread(self, entries: Sequence[Entry], read: DataFrame) -> DataFrame | None:
        """The rows that entries lack, with the reason; None where they all have one."""


def header_udf() -> Any:
    """`headers.read_headers` for a column of file bytes."""
    return pandas_udf(headers.read_headers, returnType=headers.HEADER)  # type: ignore[call-overload]  # PySpark's overloads


def entries_of(fresh: DataFrame, known: DataFrame, listed: DataFrame) -> Iterator[Entry]:
    """In order, and partition by partition, so that the driver never holds all of them."""
    there = known.where("there").select("path", F.lit(True).alias("changed"))
    marked = fresh.join(there, "path", "left").fillna({"changed": False})
    try:
        yield from (Entry(*row) for row in marked.orderBy("changed", "path").toLocalIterator())
    finally:
        listed.unpersist()


def no(kind: str, name: str) -> Column:
    """A column of nulls of a type."""
    return F.lit(None).cast(kind).alias(name)


def no_error() -> Column:
    """The column of rows that have been read."""
    return no("string", "error")
