"""The scores table: its columns, and how rows get into it.

Everything about Delta goes through Spark SQL and DataFrames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import (
    ArrayType,
    DataType,
    FloatType,
    StringType,
    TimestampType,
)

from spark_aesthetic.delta import access, fitting, naming, tables
from spark_aesthetic.delta.commits import Commit, committed, logged, merge_into, properties, properties_clause
from spark_aesthetic.delta.java import Py4JJavaError
from spark_aesthetic.delta.naming import identifier, lacking, quoted
from spark_aesthetic.delta.sessions import statement, text_literal
from spark_aesthetic.errors import TableError

SCORE, ERROR, MODEL, SCORED_AT = "aesthetic_score", "aesthetic_error", "aesthetic_model", "aesthetic_scored_at"
EMBEDDING = "clip_embedding"

TYPES: dict[str, DataType] = {
    SCORE: FloatType(),
    ERROR: StringType(),
    MODEL: StringType(),
    SCORED_AT: TimestampType(),
    EMBEDDING: ArrayType(FloatType()),
}

# In rows that are merged: whether the row is another one than before, and whether it is gone from the source.
CHANGED, DELETED = "_aesthetic_changed", "_aesthetic_deleted"

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

    def check(self, spark: SparkSession, found: Row | None) -> None:
        """Check that scores can go there, without writing.

        Args:
            spark: The session.
            found: What `tables.detail` says of the table.

        Raises:
            TableError: A table is there with another type in one of the columns, or one that takes no updates; a schema
                of that name is missing.
        """
        if found is None:
            fitting.check_schema(spark, self.table, f"--scores {self.table!r}")
            return
        # An embedding or a version may come later: a table can be begun without them.
        required = [*self.key, *(name for name in self.written if name != EMBEDDING)]
        rows = tables.read_table(spark, self.table)
        fitting.check_columns(rows, self.types, self.table, required=required)
        fitting.check_updates(found, f"--scores {self.table!r}", "choose another scores table")
        new = lacking(rows.columns, self.types)
        fitting.check_names(found, new, f"--scores {self.table!r}")

    def make(self, spark: SparkSession, told: Mapping[str, str]) -> Row:
        """Create the table, with its comments, if it does not exist.

        Args:
            spark: A session of our own.
            told: Properties of a table that is created.

        Returns:
            What `tables.detail` says of the table.

        Raises:
            TableError: As `check` raises it, or the folder has files that are no Delta table.
        """
        found = tables.detail(spark, self.table)
        self.check(spark, found)
        if found is not None:
            add_columns(spark, self.identifier, tables.read_table(spark, self.table), self.types)
            return found
        # A chunk is as many small files as it had tasks; without the first a long run leaves millions.
        told = {"delta.autoOptimize.optimizeWrite": "true", **told}
        if naming.unusual(self.types):
            told["delta.columnMapping.mode"] = "name"
        create = (
            f"CREATE TABLE IF NOT EXISTS {self.identifier} ({_definitions(self.types)}) USING delta "
            "COMMENT 'Scores of spark-aesthetic: one row for each key and aesthetic_model' "
            f"TBLPROPERTIES {properties_clause(told)}"
        )
        occupied = ("DELTA_CREATE_TABLE_WITH_NON_EMPTY_LOCATION", "DELTA_MISSING_DELTA_TABLE")
        place, remedy = f"scores {self.table!r}", "grant access to it, or name another"
        try:
            with access.reaching(place, remedy, errors=(Py4JJavaError,)):
                # Several runs may create it at once. One may find the folder of another before its first commit, and
                # one may not see the table yet.
                committed(lambda: statement(spark, create), also=occupied[:1])
                committed(lambda: properties(spark, self.identifier), also=occupied[1:])
        except PySparkException as error:
            if not any(condition in str(error) for condition in occupied):
                raise
            raise TableError(
                f"scores {self.table!r}: expected a Delta table or room for one, found a folder with files of another "
                "kind; choose a name or a folder that is not there yet"
            ) from error
        return self.make(spark, told)

    def rows(self, spark: SparkSession) -> DataFrame:
        """The rows of this model."""
        return tables.read_table(spark, self.table).where(F.col(MODEL) == self.model)

    def keys(self, spark: SparkSession) -> DataFrame:
        """The keys of this model."""
        return self.rows(spark).select(*map(quoted, self.key))

    def append(self, rows: DataFrame, commit: Commit) -> None:
        """Add rows whose keys are not there, in one commit, or nothing if this commit has been made before."""
        writer = rows.write.format("delta").mode("append").options(**commit.options())
        tables.write_table(writer, self.table)

    def has(self, spark: SparkSession, checkpoint: str, chunk: int) -> bool:
        """Whether a chunk is among the last commits, of which a killed run's is one."""
        last = logged(spark, self.identifier, last=_LAST_COMMITS)
        return any((commit.told.get("checkpoint"), commit.told.get("chunk")) == (checkpoint, chunk) for commit in last)

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
            rows: The columns of `types`, `CHANGED` and `DELETED` (boolean). Existing rows are replaced only where the
                first is true, and dropped where the second is.
            commit: What the commit says of itself.
            inserts_only: No row is changed or deleted; Delta then rewrites no file.
            bounds: Least and greatest value of the first key column, by which Delta leaves out files of the table.

        Returns:
            How many rows were inserted, updated and deleted; None where this commit has been made before.
        """
        columns = list(map(quoted, self.types))
        updates = [f"{name} = scored.{name}" for name in columns]
        if EMBEDDING not in self.types and EMBEDDING in tables.read_table(spark, self.table).columns:
            # It is the embedding of the image that was replaced.
            updates.append(f"{EMBEDDING} = NULL")
        replace = (
            f"WHEN MATCHED AND scored.{DELETED} THEN DELETE "
            f"WHEN MATCHED AND scored.{CHANGED} THEN UPDATE SET {', '.join(updates)}"
        )
        within = ""
        if bounds is not None:
            least, greatest = map(_literal, bounds)
            within = f"AND target.{quoted(self.key[0])} BETWEEN {least} AND {greatest} "
        clauses = (
            f"ON {same_key(self.key, 'target')} AND target.{MODEL} = {text_literal(self.model)} {within}"
            f"{'' if inserts_only else replace} "
            f"WHEN NOT MATCHED AND NOT scored.{DELETED} THEN INSERT ({', '.join(columns)}) "
            f"VALUES ({', '.join(f'scored.{name}' for name in columns)})"
        )
        done = merge_into(spark, self.identifier, rows, clauses, commit)
        if not done:
            return None
        return done[0].num_inserted_rows, done[0].num_updated_rows, done[0].num_deleted_rows


def models_in(rows: DataFrame) -> list[str]:
    """The models of the rows of a scores table, in the order of their names."""
    return sorted(row[0] for row in rows.select(MODEL).distinct().dropna().collect())


def add_columns(spark: SparkSession, table: str, rows: DataFrame, types: dict[str, DataType]) -> None:
    """Add the columns that a table does not have, with their comments."""
    missing = {name: types[name] for name in lacking(rows.columns, types)}
    if missing:
        text = f"ALTER TABLE {table} ADD COLUMNS ({_definitions(missing)})"
        committed(lambda: statement(spark, text))


def _definitions(types: dict[str, DataType]) -> str:
    return ", ".join(
        f"{quoted(name)} {data_type.simpleString()}" + (f" COMMENT '{COMMENTS[name]}'" if name in COMMENTS else "")
        for name, data_type in types.items()
    )


def _literal(value: int | str) -> str:
    # Delta's MERGE binds no parameters.
    return str(int(value)) if isinstance(value, int) else text_literal(value)


def same_key(key: Sequence[str], left: str, right: str = "scored") -> str:
    """The condition that two rows have one key, for a statement."""
    return " AND ".join(f"{left}.{quoted(column)} = {right}.{quoted(column)}" for column in key)
