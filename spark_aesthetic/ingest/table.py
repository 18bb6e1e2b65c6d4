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

# As far back a commit is looked for that was made a moment ago.
_LAST_COMMITS = 20

# All runs into a table share it: Delta accepts each number of an application once, and no number below the last.
_APPLICATION = "spark_aesthetic.ingest"

# Columns of a MERGE's rows that the table does not have.
DROPPED, _KEPT = "_aesthetic_dropped", "_aesthetic_kept"

_COLUMNS = {
    "image_id": ("STRING", "sha256 of the bytes, 64 hexadecimal digits; of the path where there are no bytes"),
    "path": ("STRING", "Where the image comes from: a file, an address, or shard#key"),
    "image": ("BINARY", "The bytes as they were found; null where they could not be had"),
    "width": ("INT", "Pixels, as the header says; null where it says nothing"),
    "height": ("INT", "Pixels, as the header says; null where it says nothing"),
    "format": ("STRING", "JPEG, PNG, WEBP, GIF, BMP, TIFF or AVIF, by the bytes and not by the name"),
    "error": ("STRING", "Why there are no bytes, or why they are no image; null where all is well"),
    "length": ("BIGINT", "Bytes of the file"),
    "modified_at": ("TIMESTAMP", "When the file was modified; null where nothing tells"),
    "ingested_at": ("TIMESTAMP", "When the run began that wrote the row"),
}


@dataclass(frozen=True)
class RunMark:
    """What the commits of a run say of it in the table's history.

    Attributes:
        source: The source of its images, as the user names it.
        id: Of this run alone.
        generation: Greater than that of every run that began before it.
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
    """The Delta table into which images are taken.

    Attributes:
        spark: A session of our own.
        name: By catalog, or a path.
    """

    spark: SparkSession
    name: str

    def make(self) -> None:
        """Create the table if it is not there.

        Raises:
            TableError: A table is there without the columns, or with other types.
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
                    f"--table {self.name!r}, column {name}: expected {kind}, found {found.get(name)}; choose "
                    "another table: this one was not made by ingest_images"
                )

    def _create(self) -> None:
        fitting.check_schema(self.spark, self.name, f"--table {self.name!r}")
        columns = ", ".join(f"{name} {kind} COMMENT '{comment}'" for name, (kind, comment) in _COLUMNS.items())
        # The feed lets score_table follow the rows that are replaced.
        create = (
            f"CREATE TABLE IF NOT EXISTS {identifier(self.name)} ({columns}) USING delta "
            "TBLPROPERTIES (delta.enableChangeDataFeed = true)"
        )
        with access.reaching(f"--table {self.name!r}"):
            committed(lambda: self.spark.sql(create), also=("DELTA_CREATE_TABLE_WITH_NON_EMPTY_LOCATION",))

    def version(self) -> int:
        """The number of its newest version."""
        return tables.current_version(self.spark, identifier(self.name))

    def rows(self, version: int | None = None) -> DataFrame:
        """The table as it is when it is read, or at one of its versions."""
        return tables.read_table(self.spark, self.name, version)

    def snapshot(self) -> DataFrame:
        """The table at its newest version."""
        # Without the version, Spark computes again what it keeps of these rows once the table is written to.
        return self.rows(self.version())

    def add_texts(self, names: list[str]) -> None:
        """Add columns of strings."""
        add_columns(self.spark, identifier(self.name), self.rows(), dict.fromkeys(names, StringType()))

    def last_generation(self) -> int:
        """The generation of the newest run in the table's history, or 0."""
        for last in (_LAST_COMMITS, None):
            told = [commit.told.get("generation") for commit in self._logged(last)]
            generations = [generation for generation in told if isinstance(generation, int)]
            if generations:
                return max(generations)
        return 0

    def append(self, rows: DataFrame, mark: RunMark, number: int) -> None:
        """Add rows, and columns that the table does not have.

        Raises:
            TableError: A later run has begun.
        """
        options = mark.commit(number).options()
        writer = rows.write.format("delta").mode("append").option("mergeSchema", "true").options(**options)
        committed(lambda: tables.write_table(writer, self.name))
        self._check_alone(mark, number)

    def replace(self, rows: DataFrame, texts: Sequence[str], mark: RunMark, number: int) -> Row:
        """Put rows in place of those of the same path, and delete the rows of paths that are `DROPPED`.

        Args:
            rows: From `marked`.
            texts: Columns of strings beside those that every table has.
            mark: The run that does it.
            number: Of the chunk.

        Returns:
            The counts that Delta gives.

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
        """Check that a commit was made, since Delta does not say if it dropped it, and that no later run made one."""
        last = [commit.told for commit in self._logged(_LAST_COMMITS)]
        later = any((told.get("generation") or 0) > mark.generation for told in last)
        if later or (mark.id, number) not in [(told.get("run"), told.get("chunk")) for told in last]:
            raise TableError(
                f"--table {self.name!r}: expected this run alone to take images in, found that a later one has begun; "
                "let that one finish, then run again"
            )

    def _logged(self, last: int | None) -> list[Logged]:
        return logged(self.spark, identifier(self.name), last=last)


def marked(rows: DataFrame, kept: DataFrame | None, gone: DataFrame | None) -> DataFrame:
    """Rows for `ImageTable.replace`: `DROPPED` are those that are not kept, and the paths that are gone."""
    if kept is None:
        marked = rows.withColumn(DROPPED, F.lit(False))
    else:
        marked = rows.join(F.broadcast(kept.withColumn(_KEPT, F.lit(True))), "path", "left")
        marked = marked.withColumn(DROPPED, F.col(_KEPT).isNull()).drop(_KEPT)
    return (
        marked if gone is None else marked.unionByName(gone.withColumn(DROPPED, F.lit(True)), allowMissingColumns=True)
    )
