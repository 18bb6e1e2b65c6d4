"""The scores table: its columns, and how rows get into it.

Everything about Delta goes through Spark SQL and DataFrames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import (
    ArrayType,
    DataType,
    FloatType,
    StringType,
    TimestampType,
)

from spark_aesthetic import preflight
from spark_aesthetic.commits import Commit, committed, merge_into, properties
from spark_aesthetic.errors import TableError
from spark_aesthetic.preflight import identifier, quoted

SCORE, ERROR, MODEL, SCORED_AT = "aesthetic_score", "aesthetic_error", "aesthetic_model", "aesthetic_scored_at"
EMBEDDING = "clip_embedding"

TYPES: dict[str, DataType] = {
    SCORE: FloatType(),
    ERROR: StringType(),
    MODEL: StringType(),
    SCORED_AT: TimestampType(),
    EMBEDDING: ArrayType(FloatType()),
}

COMMENTS = {
    SCORE: "Predicted visual appeal, about 1 (poor) to 10 (fine), never clamped; null where aesthetic_error says why",
    ERROR: "Why the row has no score; null where it has one",
    MODEL: "Predictor that made the row: its name, @, and 12 digits that stand for its weights",
    SCORED_AT: "When the chunk that holds the row began to be scored",
    EMBEDDING: "CLIP image embedding of unit length, from which other heads can score without the image",
}


# As far back a chunk is looked for; Delta reads a file for each.
_LAST_COMMITS = 50


@dataclass(frozen=True, kw_only=True)
class Target:
    """The part of a scores table that one model fills.

    Attributes:
        table: As the user names it.
        key: Columns that, with the model, identify a row.
        model: The predictor's `model_id`.
        kept: Types of the source's columns that go there as they are: the key, and perhaps a version.
        written: Names of the columns that are made.
    """

    table: str
    key: tuple[str, ...]
    model: str
    kept: dict[str, DataType]
    written: tuple[str, ...]

    @property
    def identifier(self) -> str:
        """The table as SQL takes it."""
        return identifier(self.table)

    @property
    def types(self) -> dict[str, DataType]:
        """Of all columns, in their order."""
        return self.kept | {name: TYPES[name] for name in self.written}

    def make(self, spark: SparkSession) -> str:
        """Create the table if it is not there, its comments included.

        Returns:
            The table's folder.

        Raises:
            TableError: A table is there with another type in one of the columns, or files that are no Delta table.
        """
        found = preflight.detail(spark, self.table)
        if found is not None:
            # An embedding or a version may come later: a table can be begun without them.
            required = [*self.key, *(name for name in self.written if name != EMBEDDING)]
            rows = spark.table(self.identifier)
            preflight.check_columns(rows, self.types, self.table, required=required)
            add_columns(spark, self.identifier, rows, self.types)
            return str(found.location)
        create = (
            f"CREATE TABLE IF NOT EXISTS {self.identifier} ({_definitions(self.types)}) USING delta "
            "COMMENT 'Scores of spark-aesthetic: one row for each key and aesthetic_model' "
            # A chunk is as many small files as it had tasks; without it a long run leaves millions.
            "TBLPROPERTIES ('delta.autoOptimize.optimizeWrite' = 'true')"
        )
        occupied = ("DELTA_CREATE_TABLE_WITH_NON_EMPTY_LOCATION", "DELTA_MISSING_DELTA_TABLE")
        try:
            # Of runs that make it at once some find another's folder before its first commit, or see it a moment later.
            committed(lambda: spark.sql(create), also=occupied[:1])
            committed(lambda: properties(spark, self.identifier), also=occupied[1:])
        except PySparkException as error:
            if not any(condition in str(error) for condition in occupied):
                raise
            raise TableError(
                f"scores {self.table!r}: expected a Delta table or room for one, found a folder with files of another "
                "kind; choose a name or a folder that is not there yet"
            ) from error
        return preflight.whole(self.table) if "/" in self.table else self.make(spark)

    def rows(self, spark: SparkSession) -> DataFrame:
        """The rows of this model."""
        return spark.table(self.identifier).where(F.col(MODEL) == self.model)

    def keys(self, spark: SparkSession) -> DataFrame:
        """The keys of this model."""
        return self.rows(spark).select(*map(quoted, self.key))

    def append(self, rows: DataFrame, commit: Commit) -> None:
        """Add rows whose keys are not there, in one commit, or nothing if this commit has been made before."""
        writer = rows.write.format("delta").mode("append")
        for name, value in commit.options().items():
            writer = writer.option(name, value)
        if "/" in self.table:
            writer.save(preflight.whole(self.table))
        else:
            writer.saveAsTable(self.table)

    def has(self, spark: SparkSession, checkpoint: str, chunk: int) -> bool:
        """Whether a chunk is among the last commits, of which a killed run's is one."""
        told = F.from_json("userMetadata", "checkpoint string, chunk bigint")
        chunks = (
            spark.sql(f"DESCRIBE HISTORY {self.identifier} LIMIT {_LAST_COMMITS}")
            .select(told.alias("told"))
            .select("told.*")
        )
        return not chunks.where((F.col("checkpoint") == checkpoint) & (F.col("chunk") == chunk)).isEmpty()

    def merge(
        self,
        spark: SparkSession,
        rows: DataFrame,
        commit: Commit,
        *,
        inserts_only: bool,
        bounds: tuple[int | str, int | str] | None = None,
    ) -> tuple[int, int, int] | None:
        """Add, replace or drop rows, in one commit, or do nothing if this commit has been made before.

        Args:
            spark: The session.
            rows: The columns of `types`, whether the row is another than before (`_changed`, boolean) and whether it is
                gone (`_deleted`, boolean). A key that is there and not another stays as it is.
            commit: What the commit says of itself.
            inserts_only: No row is another or gone; Delta then rewrites no file.
            bounds: Least and greatest value of the first key column, by which Delta leaves out files of the table.

        Returns:
            How many rows were inserted, updated and deleted; None where this commit has been made before.
        """
        columns = list(map(quoted, self.types))
        updates = [f"{name} = scored.{name}" for name in columns]
        if EMBEDDING not in self.types and EMBEDDING in spark.table(self.identifier).columns:
            # That of the row before it was another.
            updates.append(f"{EMBEDDING} = NULL")
        replace = (
            "WHEN MATCHED AND scored._deleted THEN DELETE "
            f"WHEN MATCHED AND scored._changed THEN UPDATE SET {', '.join(updates)}"
        )
        within = ""
        if bounds is not None:
            least, greatest = map(_literal, bounds)
            within = f"AND target.{quoted(self.key[0])} BETWEEN {least} AND {greatest} "
        clauses = (
            f"ON {same_key(self.key, 'target')} AND target.{MODEL} = '{self.model}' {within}"
            f"{'' if inserts_only else replace} "
            f"WHEN NOT MATCHED AND NOT scored._deleted THEN INSERT ({', '.join(columns)}) "
            f"VALUES ({', '.join(f'scored.{name}' for name in columns)})"
        )
        done = merge_into(spark, self.identifier, rows, clauses, commit)
        if not done:
            return None
        return done[0].num_inserted_rows, done[0].num_updated_rows, done[0].num_deleted_rows


def add_columns(spark: SparkSession, table: str, rows: DataFrame, types: dict[str, DataType]) -> None:
    """Add the columns that a table does not have, with their comments."""
    known = [name.lower() for name in rows.columns]
    missing = {name: data_type for name, data_type in types.items() if name.lower() not in known}
    if missing:
        committed(lambda: spark.sql(f"ALTER TABLE {table} ADD COLUMNS ({_definitions(missing)})"))


def _definitions(types: dict[str, DataType]) -> str:
    return ", ".join(
        f"{quoted(name)} {data_type.simpleString()}" + (f" COMMENT '{COMMENTS[name]}'" if name in COMMENTS else "")
        for name, data_type in types.items()
    )


def _literal(value: int | str) -> str:
    # Delta's MERGE binds no parameters.
    if isinstance(value, int):
        return str(value)
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def same_key(key: Sequence[str], left: str, right: str = "scored") -> str:
    """The condition that two rows have one key."""
    return " AND ".join(f"{left}.{quoted(column)} = {right}.{quoted(column)}" for column in key)
