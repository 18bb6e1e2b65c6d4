"""The scores table: its columns, and how rows are written to it.

Delta is used only through Spark SQL and DataFrames.
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

# In rows to merge: whether the row has changed, and whether it was deleted from the source.
CHANGED, DELETED = "_aesthetic_changed", "_aesthetic_deleted"

COMMENTS = {
    SCORE: "Predicted visual appeal, about 1 (poor) to 10 (fine), never clamped; null if aesthetic_error has a reason",
    ERROR: "Why the row has no score; null where it has one",
    MODEL: "Predictor that scored the row: its name, @, and 12 hexadecimal digits that identify its weights",
    SCORED_AT: "Time at which scoring of the chunk with this row began",
    EMBEDDING: "CLIP image embedding of unit length, from which other heads can score without the image",
}


# A chunk is looked up among this many of the latest commits. Delta reads one file per commit.
_LAST_COMMITS = 50


@dataclass(frozen=True, kw_only=True)
class Target:
    """The part of a scores table that one model fills.

    Attributes:
        table: The table as the user names it.
        key: Columns that, with the model, identify a row.
        model: The predictor's `model_id`.
        kept: Types of the source's columns that are copied: the key and, if there is one, the version.
        written: Names of the columns that the job computes.
    """

    table: str
    key: tuple[str, ...]
    model: str
    kept: dict[str, DataType]
    written: tuple[str, ...]

    @property
    def identifier(self) -> str:
        """The table as an SQL identifier."""
        return identifier(self.table)

    @property
    def types(self) -> dict[str, DataType]:
        """The types of all columns, in their order."""
        return self.kept | {name: TYPES[name] for name in self.written}

    def check(self, spark: SparkSession, found: Row | None) -> None:
        """Check that scores can be written to the table, without writing.

        Args:
            spark: The session.
            found: The table's DESCRIBE DETAIL, or None if it does not exist.

        Raises:
            TableError: A column has another type, the table takes no updates, or the schema in its name does not exist.
        """
        if found is None:
            fitting.check_schema(spark, self.table, f"--scores {self.table!r}")
            return
        # Embeddings and versions are not required, because their columns may be added later.
        required = [*self.key, *(name for name in self.written if name != EMBEDDING)]
        rows = tables.read_table(spark, self.table)
        fitting.check_columns(rows, self.types, self.table, required=required)
        fitting.check_updates(found, f"--scores {self.table!r}", "choose another scores table")
        new = lacking(rows.columns, self.types)
        fitting.check_names(found, new, f"--scores {self.table!r}")

    def make(self, spark: SparkSession, told: Mapping[str, str]) -> Row:
        """Create the table with its comments if it does not exist; otherwise add missing columns.

        Args:
            spark: A session from `own_session`.
            told: Properties for a new table.

        Returns:
            The table's DESCRIBE DETAIL.

        Raises:
            TableError: The table fails `check`, or the folder has files that do not belong to a Delta table.
        """
        found = tables.detail(spark, self.table)
        self.check(spark, found)
        if found is not None:
            add_columns(spark, self.identifier, tables.read_table(spark, self.table), self.types)
            return found
        # Without optimizeWrite, a chunk leaves one small file per task, and a long run leaves millions.
        told = {"delta.autoOptimize.optimizeWrite": "true", **told}
        if naming.unusual(self.types):
            told["delta.columnMapping.mode"] = "name"
        create = (
            f"CREATE TABLE IF NOT EXISTS {self.identifier} ({_definitions(self.types)}) USING delta "
            "COMMENT 'Scores of spark-aesthetic: one row for each key and aesthetic_model' "
            f"TBLPROPERTIES {properties_clause(told)}"
        )
        occupied = ("DELTA_CREATE_TABLE_WITH_NON_EMPTY_LOCATION", "DELTA_MISSING_DELTA_TABLE")
        place, remedy = f"scores {self.table!r}", "grant access to it, or choose another place"
        try:
            with access.reaching(place, remedy, errors=(Py4JJavaError,)):
                # Several runs may create the table at once. A run may see the folder of another run before it has a
                # commit, or may not see the table yet.
                committed(lambda: statement(spark, create), also=occupied[:1])
                committed(lambda: properties(spark, self.identifier), also=occupied[1:])
        except PySparkException as error:
            if not any(condition in str(error) for condition in occupied):
                raise
            raise TableError(
                f"scores {self.table!r}: expected a Delta table or an empty folder, found a folder with other files. "
                "Choose a new name or a new folder."
            ) from error
        return self.make(spark, told)

    def rows(self, spark: SparkSession) -> DataFrame:
        """Return the rows of this model."""
        return tables.read_table(spark, self.table).where(F.col(MODEL) == self.model)

    def keys(self, spark: SparkSession) -> DataFrame:
        """Return the keys of this model."""
        return self.rows(spark).select(*map(quoted, self.key))

    def append(self, rows: DataFrame, commit: Commit) -> None:
        """Append rows with new keys in one commit; does nothing if the table already has this commit."""
        writer = rows.write.format("delta").mode("append").options(**commit.options())
        tables.write_table(writer, self.table)

    def has(self, spark: SparkSession, checkpoint: str, chunk: int) -> bool:
        """Whether the last commits include a chunk, for example one that a killed run has committed."""
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
        """Insert, update or delete rows in one commit; does nothing if the table already has this commit.

        Args:
            spark: The session.
            rows: The columns of `types`, `CHANGED` and `DELETED` (boolean). Existing rows are replaced only where
                `CHANGED` is true, and deleted where `DELETED` is true.
            commit: The metadata of the commit.
            inserts_only: Whether no row is changed or deleted; Delta then rewrites no file.
            bounds: Least and greatest value of the first key column, with which Delta skips files of the table.

        Returns:
            The number of inserted, updated and deleted rows; None if the table already has this commit.
        """
        columns = list(map(quoted, self.types))
        updates = [f"{name} = scored.{name}" for name in columns]
        if EMBEDDING not in self.types and EMBEDDING in tables.read_table(spark, self.table).columns:
            # The stored embedding is of the old image.
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
    """Return the models of the rows of a scores table, sorted by name."""
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
    # Delta's MERGE does not accept bound parameters.
    return str(int(value)) if isinstance(value, int) else text_literal(value)


def same_key(key: Sequence[str], left: str, right: str = "scored") -> str:
    """Return the SQL condition that two rows have the same key."""
    return " AND ".join(f"{left}.{quoted(column)} = {right}.{quoted(column)}" for column in key)
