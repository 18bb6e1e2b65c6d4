"""The interface of image sources: list new entries without their bytes, and read the bytes of some of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence, Set
from typing import Any, NamedTuple, Protocol

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.pandas.functions import pandas_udf

from spark_aesthetic.images import headers
from spark_aesthetic.ingest.listing import PassedOver

# The schema that each source reads. `modified_us` is microseconds since the epoch, because Python's local times repeat
# one hour per year.
READ = "path string, modified_us bigint, length bigint, image binary, error string"

TAR = re.compile(r"\.(tar|tar\.gz|tgz)$")


class Entry(NamedTuple):
    """A file, a shard or an address to read.

    Attributes:
        path: The path or address.
        modified_us: The modification time in microseconds since the epoch, or None if unknown.
        length: The size in bytes, or None if unknown.
        changed: Whether the table has rows of an older version of this file or shard.
        version: The shard's version from `places.version_of`; None for other entries.
    """

    path: str
    modified_us: int | None
    length: int | None
    changed: bool
    version: str | None = None


class ImageSource(Protocol):
    """The operations that `ingest_images` needs from a source."""

    @property
    def texts(self) -> tuple[str, ...]:
        """Names of the string columns that are stored with the images."""

    @property
    def further(self) -> tuple[str, ...]:
        """Names of the string columns that are added to the table as soon as a row has a value for them."""

    def knowing(self, columns: Sequence[str]) -> ImageSource:
        """Return this source for a table with these columns."""

    def new(self, known: DataFrame) -> tuple[int, Iterator[Entry]]:
        """Count the entries and return the new ones, then the changed ones, each group sorted by path.

        Args:
            known: Columns path, modified_us, length, ingested_us, `again` (boolean: try the entry again), `there`
                (boolean: a row of the table, not a copy that was left out) and, if the table has samples of shards,
                `__url__` and `__version__`.
        """

    @property
    def passed_over(self) -> PassedOver:
        """Files that exist in the source and are not read."""

    def read(self, entries: Sequence[Entry]) -> DataFrame:
        """Return the columns of `READ`, `texts` and `further`. An entry that cannot be read may have no row."""

    def mend(self, entries: Sequence[Entry], read: DataFrame, errors: Set[str]) -> DataFrame | None:
        """Return the rows after a slower repair that few entries need; None if no error requires it.

        `read` also has the column `header`.
        """

    def unread(self, entries: Sequence[Entry], read: DataFrame) -> DataFrame | None:
        """Return a row with a reason for each entry without a row in `read`; None if every entry has one."""


def header_udf() -> Any:
    """Return `headers.read_headers` as a UDF for a column of file bytes."""
    return pandas_udf(headers.read_headers, returnType=headers.HEADER)  # type: ignore[call-overload]  # PySpark's overloads


def entries_of(fresh: DataFrame, known: DataFrame, listed: DataFrame) -> Iterator[Entry]:
    """Yield the entries in order, one partition at a time, so that the driver never holds all of them."""
    there = known.where("there").select("path", F.lit(True).alias("changed"))
    marked = fresh.join(there, "path", "left").fillna({"changed": False})
    try:
        yield from (Entry(*row) for row in marked.orderBy("changed", "path").toLocalIterator())
    finally:
        listed.unpersist()


def no(kind: str, name: str) -> Column:
    """Return a column of typed nulls."""
    return F.lit(None).cast(kind).alias(name)


def no_error() -> Column:
    """Return a null `error` column, for rows that were read."""
    return no("string", "error")
