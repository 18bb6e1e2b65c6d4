"""The Delta table of images: its columns, its reads and writes, and the mark that a run leaves on its commits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StringType

import spark_aesthetic
from spark_aesthetic.delta import access, fitting, tables
from spark_aesthetic.delta.commits import Commit, Logged, committed, logged, merge_into
from spark_aesthetic.delta.naming import identifier, quoted
from spark_aesthetic.errors import TableError
from spark_aesthetic.scoring.target import add_columns

# Number of latest commits that are searched for a commit that was just made.
_LAST_COMMITS = 20

# All runs share this Delta transaction application id. Delta ignores a commit with a number not above the last one.
_APPLICATION = "spark_aesthetic.ingest"

# Helper columns of the MERGE source that are not table columns.
DROPPED, _KEPT = "_aesthetic_dropped", "_aesthetic_kept"

_COLUMNS = {
    "image_id": ("STRING", "SHA-256 of the bytes in 64 hexadecimal digits; SHA-256 of the path if there are no bytes"),
    "path": ("STRING", "Origin of the image: a file, an address, or shard#key"),
    "image": ("BINARY", "The unchanged bytes; null if they could not be read"),
    "width": ("INT", "Pixels, from the image header; null if unknown"),
    "height": ("INT", "Pixels, from the image header; null if unknown"),
    "format": ("STRING", "JPEG, PNG, WEBP, GIF, BMP, TIFF or AVIF, derived from the bytes, not from the name"),
    "error": ("STRING", "Why the bytes are missing or are not an image; null for an image"),
    "length": ("BIGINT", "Size of the file in bytes"),
    "modified_at": ("TIMESTAMP", "Modification time of the file; null if unknown"),
    "ingested_at": ("TIMESTAMP", "Start time of the run that wrote the row"),
}


@dataclass(frozen=True)
class RunMark:
    """The identity of a run in the commits of the table's history.

    Attributes:
        source: The source as the user wrote it.
        id: A unique id of the run.
        generation: A number greater than that of every run that began earlier.
    """

    source: str
    id: str
    generation: int

    def commit(self, number: int) -> Commit:
        """Mark the commit of a chunk. Delta drops it if a run of a higher generation has committed."""
        told = {
            "spark_aesthetic": spark_aesthetic.__version__, "ingested": self.source, "run": self.id, "chunk": number,
            "generation": self.generation,
        }  # fmt: skip
        return Commit(info=json.dumps(told), application=_APPLICATION, number=(self.generation << 20) + number)


@dataclass(frozen=True)
class ImageTable:
    """The Delta table of images.

    Attributes:
        spark: A private session.
        name: A catalog name or a path.
    """

    spark: SparkSession
    name: str

    def make(self) -> None:
        """Create the table if it does not exist.

        Raises:
            TableError: The table exists and lacks a column or has a different type.
        """
        described = tables.detail(self.spark, self.name)
        if described is None:
            self._create()
            return
        fitting.check_updates(described, f"--table {self.name!r}", "choose another table")
        found = {field.name: field.dataType.simpleString().upper() for field in self.rows().schema}
        for name, (kind, _) in _COLUMNS.items():
            if found.get(name) != kind:
                raise TableError(
                    f"--table {self.name!r}, column {name}: expected {kind}, found {found.get(name)}. This "
                    "table was not created by ingest_images; choose another table."
                )

    def _create(self) -> None:
        fitting.check_schema(self.spark, self.name, f"--table {self.name!r}")
        columns = ", ".join(f"{name} {kind} COMMENT '{comment}'" for name, (kind, comment) in _COLUMNS.items())
        # score_table needs the change data feed to follow replaced rows.
        create = (
            f"CREATE TABLE IF NOT EXISTS {identifier(self.name)} ({columns}) USING delta "
            "TBLPROPERTIES (delta.enableChangeDataFeed = true)"
        )
        with access.reaching(f"--table {self.name!r}"):
            committed(lambda: self.spark.sql(create), also=("DELTA_CREATE_TABLE_WITH_NON_EMPTY_LOCATION",))

    def version(self) -> int:
        """Return the newest version number."""
        return tables.current_version(self.spark, identifier(self.name))

    def rows(self, version: int | None = None) -> DataFrame:
        """Read the table at a version, or by default at the newest version when it is evaluated."""
        return tables.read_table(self.spark, self.name, version)

    def snapshot(self) -> DataFrame:
        """Read the table at its newest version."""
        # Without a version, Spark recomputes cached rows of the table after each write to it.
        return self.rows(self.version())

    def add_texts(self, names: list[str]) -> None:
        """Add string columns."""
        add_columns(self.spark, identifier(self.name), self.rows(), dict.fromkeys(names, StringType()))

    def last_generation(self) -> int:
        """Return the generation of the newest run in the table's history, or 0."""
        for last in (_LAST_COMMITS, None):
            told = [commit.told.get("generation") for commit in self._logged(last)]
            generations = [generation for generation in told if isinstance(generation, int)]
            if generations:
                return max(generations)
        return 0

    def append(self, rows: DataFrame, mark: RunMark, number: int) -> None:
        """Append rows, and add columns that the table lacks.

        Raises:
            TableError: A later run has begun.
        """
        options = mark.commit(number).options()
        writer = rows.write.format("delta").mode("append").option("mergeSchema", "true").options(**options)
        committed(lambda: tables.write_table(writer, self.name))
        self._check_alone(mark, number)

    def replace(self, rows: DataFrame, texts: Sequence[str], mark: RunMark, number: int) -> Row:
        """Merge rows by path, and delete the rows of paths that are marked `DROPPED`.

        Args:
            rows: Rows from `marked`.
            texts: String columns in addition to the standard columns.
            mark: The mark of the run.
            number: The chunk's number.

        Returns:
            The counts that Delta's MERGE reports.

        Raises:
            TableError: A later run has begun.
        """
        columns = list(map(quoted, [*_COLUMNS, *texts]))
        clauses = (
            f"ON target.path = scored.path WHEN MATCHED AND scored.{DROPPED} THEN DELETE "
            f"WHEN MATCHED THEN UPDATE SET {', '.join(f'{name} = scored.{name}' for name in columns)} "
            f"WHEN NOT MATCHED AND NOT scored.{DROPPED} THEN INSERT ({', '.join(columns)}) "
            f"VALUES ({', '.join(f'scored.{name}' for name in columns)})"
        )
        commit = mark.commit(number)
        done = committed(lambda: merge_into(self.spark, identifier(self.name), rows, clauses, commit))
        self._check_alone(mark, number)
        return done[0]

    def _check_alone(self, mark: RunMark, number: int) -> None:
        """Check that the commit was made (Delta drops it silently) and that no later run has committed."""
        last = [commit.told for commit in self._logged(_LAST_COMMITS)]
        later = any((told.get("generation") or 0) > mark.generation for told in last)
        if later or (mark.id, number) not in [(told.get("run"), told.get("chunk")) for told in last]:
            raise TableError(
                f"--table {self.name!r}: expected one run at a time, found that a later one has begun. "
                "Let the later run finish, then run again."
            )

    def _logged(self, last: int | None) -> list[Logged]:
        return logged(self.spark, identifier(self.name), last=last)


def marked(rows: DataFrame, kept: DataFrame | None, gone: DataFrame | None) -> DataFrame:
    """Mark rows for `ImageTable.replace`: rows not in `kept` and the paths in `gone` are `DROPPED`."""
    if kept is None:
        marked = rows.withColumn(DROPPED, F.lit(False))
    else:
        marked = rows.join(F.broadcast(kept.withColumn(_KEPT, F.lit(True))), "path", "left")
        marked = marked.withColumn(DROPPED, F.col(_KEPT).isNull()).drop(_KEPT)
    return (
        marked if gone is None else marked.unionByName(gone.withColumn(DROPPED, F.lit(True)), allowMissingColumns=True)
    )
