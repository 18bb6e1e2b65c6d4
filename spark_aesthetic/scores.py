"""The scores table: its columns, what it knows of its sources, and how rows get into it.

Everything about Delta goes through Spark SQL and DataFrames.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TypeVar
from uuid import uuid4

from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import (
    ArrayType,
    DataType,
    FloatType,
    LongType,
    StringType,
    StructField,
    StructType,
    TimestampType,
)
from pyspark.sql.utils import is_remote

from spark_aesthetic import preflight
from spark_aesthetic.errors import TableError
from spark_aesthetic.java import Py4JJavaError
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

# In front of every name of ours among the properties of a scores table.
_PROPERTY = "spark_aesthetic."

Done = TypeVar("Done")

# So often a commit is tried that another one, of another model or of maintenance, has come before.
ATTEMPTS = 5

# How Delta says so: by condition, or by the name of the class where there is none.
_CONFLICTS = (
    "DELTA_CONCURRENT", "io.delta.exceptions.Concurrent", "DELTA_METADATA_CHANGED", "MetadataChangedException",
    "DELTA_PROTOCOL_CHANGED", "ProtocolChangedException", "DELTA_SCHEMA_CHANGE_SINCE_ANALYSIS",
)  # fmt: skip

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


@dataclass(frozen=True, kw_only=True)
class Commit:
    """What a commit says of itself, and how it is told from its own repetition.

    Attributes:
        info: Where its rows come from, as JSON in the table's history.
        application: With `number`, what makes it happen once: Delta ignores a commit of a number that it has had.
        number: Of the chunk.
    """

    info: str
    application: str | None = None
    number: int | None = None

    def options(self) -> dict[str, str]:
        """As a writer takes them."""
        options = {"userMetadata": self.info}
        if self.application is not None:
            options |= {"txnAppId": self.application, "txnVersion": str(self.number)}
        return options

    @contextmanager
    def settings(self, spark: SparkSession) -> Iterator[None]:
        """The same for statements, which take no options, while they run."""
        names = {
            "userMetadata": "spark.databricks.delta.commitInfo.userMetadata",
            "txnAppId": "spark.databricks.delta.write.txnAppId",
            "txnVersion": "spark.databricks.delta.write.txnVersion",
        }
        told = self.options()
        if is_remote():
            # There a chunk runs in the user's own session, whose other commits would pass for this one. A MERGE that is
            # repeated changes nothing.
            told = {"userMetadata": self.info}
        with settings(spark, {names[name]: value for name, value in told.items()}):
            yield


@contextmanager
def settings(spark: SparkSession, values: dict[str, str]) -> Iterator[None]:
    """Give settings of a session other values for a while."""
    before = {name: spark.conf.get(name, None) for name in values}
    for name, value in values.items():
        spark.conf.set(name, value)
    try:
        yield
    finally:
        for name, known in before.items():
            if known is None:
                spark.conf.unset(name)
            else:
                spark.conf.set(name, known)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a model has come with a source; kept among the properties of the scores table.

    Attributes:
        checkpoint: Name of the checkpoint's folder; another one for each beginning.
        generation: A number that grows with each beginning, so that Delta refuses chunks of an earlier one.
        began_empty: The model had no row here before its first chunk, so the next ones of the beginning meet none.
        feed: The source's change data feed is read, not its files.
        starting_version: Of the source; None is all of its rows at the beginning and what comes after.
        backbone: What the embeddings of this model depend on.
        location: The source's folder: a table made anew there is another one to Delta, and the same to its users.
        comparing: A comparison of keys has begun, and has not ended.
    """

    checkpoint: str
    generation: int
    began_empty: bool
    feed: bool
    starting_version: int | None
    backbone: str
    location: str
    comparing: bool = False


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


def is_conflict(error: Exception) -> bool:
    """Whether a commit failed for another one that came between, so that it can be tried again."""
    return any(name in str(error) for name in _CONFLICTS)


def committed(commit: Callable[[], Done], check: Callable[[], object] = lambda: None, also: Sequence[str] = ()) -> Done:
    """Commit, and again where another commit came between (or for other reasons) and `check` raises nothing."""
    for attempt in range(ATTEMPTS):
        try:
            return commit()
        except (PySparkException, Py4JJavaError) as error:
            again = is_conflict(error) or any(name in str(error) for name in also)
            if attempt == ATTEMPTS - 1 or not again:
                raise
        time.sleep(0.2 * 2**attempt * random.random())
        check()
    raise AssertionError("the last attempt returns or raises")


def merge_into(spark: SparkSession, table: str, rows: DataFrame, clauses: str, commit: Commit) -> list[Row]:
    """MERGE rows, called `scored` in the clauses, into a table, called `target`; gives what Delta says of it."""
    view = f"spark_aesthetic_{uuid4().hex}"
    rows.createTempView(view)
    try:
        with commit.settings(spark):
            merge = f"MERGE INTO {table} AS target USING {view} AS scored {clauses}"
            return spark.sql(merge).collect()
    finally:
        spark.catalog.dropTempView(view)


def _literal(value: int | str) -> str:
    # Delta's MERGE binds no parameters.
    if isinstance(value, int):
        return str(value)
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def load_progress(spark: SparkSession, target: Target) -> dict[str, Progress]:
    """What is known of each source of the model, by the source's id."""
    start = _property(target.model, "")
    known = properties(spark, target.identifier).items()
    return {name.removeprefix(start): Progress(**json.loads(text)) for name, text in known if name.startswith(start)}


def save_progress(spark: SparkSession, target: Target, changed: dict[str, Progress]) -> None:
    """Keep what is known of sources. A chunk that another run is writing then fails to commit."""
    values = ", ".join(
        f"'{_property(target.model, source)}' = '{json.dumps(asdict(progress))}'"
        for source, progress in changed.items()
    )
    committed(lambda: spark.sql(f"ALTER TABLE {target.identifier} SET TBLPROPERTIES ({values})"))


def forget_progress(spark: SparkSession, target: Target, sources: Iterable[str]) -> None:
    """Know nothing of some sources any more."""
    names = ", ".join(f"'{_property(target.model, source)}'" for source in sources)
    if names:
        committed(lambda: spark.sql(f"ALTER TABLE {target.identifier} UNSET TBLPROPERTIES IF EXISTS ({names})"))


def end_beginnings(spark: SparkSession, target: Target) -> None:
    """Let the streams of a model know that rows of it come from elsewhere too; one at a commit has to look again."""
    known = load_progress(spark, target)
    told = {source: replace(progress, began_empty=False) for source, progress in known.items() if progress.began_empty}
    if told:
        save_progress(spark, target, told)


def backbones(spark: SparkSession, table: str) -> dict[str, str]:
    """What the embeddings of each model here depend on."""
    found = {}
    for name, text in properties(spark, table).items():
        if name.startswith(_PROPERTY):
            model = name.removeprefix(_PROPERTY).rpartition("/")[0]
            found[model] = str(json.loads(text)["backbone"])
    return found


def properties(spark: SparkSession, table: str) -> dict[str, str]:
    """The table's properties."""
    return {row.key: row.value for row in spark.sql(f"SHOW TBLPROPERTIES {table}").collect()}


def _property(model: str, source_id: str) -> str:
    return f"{_PROPERTY}{model}/{source_id}"


def make_view(
    spark: SparkSession, view: str, source: preflight.Source, target: Target, models: Sequence[str], *, suffixed: bool
) -> None:
    """Make or replace a view of the source with its scores.

    Args:
        spark: The session.
        view: Its name.
        source: The table of images or embeddings.
        target: The scores table.
        models: The models to show.
        suffixed: Name each model's columns by its predictor too; else there is one model.
    """
    made = [name for name in target.written if not suffixed or name not in (MODEL, SCORED_AT)]
    columns = [f"source.{quoted(name)}" for name in source.rows.columns if name.lower() not in target.written]
    joins = []
    for number, model in enumerate(models):
        scored = f"scored_{number}"
        suffix = f"_{_suffix(model, models)}" if suffixed else ""
        columns += [f"{scored}.{name} AS {quoted(name + suffix)}" for name in made]
        joins.append(
            f"LEFT JOIN {target.identifier} AS {scored} "
            f"ON {same_key(target.key, 'source', scored)} AND {scored}.{MODEL} = '{model}'"
        )
    spark.sql(
        f"CREATE OR REPLACE VIEW {view} AS SELECT {', '.join(columns)} FROM {source.identifier} AS source "
        + " ".join(joins)
    )


def _suffix(model: str, models: Sequence[str]) -> str:
    name = model.split("@")[0]
    unique = sum(other.split("@")[0] == name for other in models) == 1
    return "".join(letter if letter.isalnum() else "_" for letter in (name if unique else model))


def same_key(key: Sequence[str], left: str, right: str = "scored") -> str:
    """The condition that two rows have one key."""
    return " AND ".join(f"{left}.{quoted(column)} = {right}.{quoted(column)}" for column in key)


_INFO = StructType(
    [
        StructField("spark_aesthetic", StringType()),
        StructField("model", StringType()),
        StructField("predictor", StringType()),
        StructField("options", StringType()),
        StructField("source", StringType()),
        StructField("source_id", StringType()),
        StructField("source_version", LongType()),
        StructField("chunk", LongType()),
        StructField("checkpoint", StringType()),
        StructField("scored_at", TimestampType()),
    ]
)


def history(spark: SparkSession, scores: str) -> DataFrame:
    """Which run scored what: the commits of a scores table that scores came by.

    Args:
        spark: A session with Delta Lake.
        scores: The table by catalog name or by path.

    Returns:
        A row a commit, the newest first, with version (bigint), timestamp, operation, package_version, model,
        predictor (JSON, with the sha256 of its weights), options (JSON), source, source_id (Delta's), source_version
        (bigint; of the newest row in the chunk), chunk (bigint; null where no stream wrote it), checkpoint (of that
        stream), scored_at (timestamp; that of a chunk's rows), rows_written (bigint), rows_deleted (bigint).

    Raises:
        TableError: There is no such Delta table.
    """
    if not preflight.is_delta(spark, scores):
        raise TableError(f"scores {scores!r}: expected a Delta table, found none; check the name or path")
    commits = spark.sql(f"DESCRIBE HISTORY {identifier(scores)}")
    info, metric = F.from_json("userMetadata", _INFO), F.col("operationMetrics")
    told = commits.select("version", "timestamp", "operation", info.alias("info"), metric.alias("metrics"))
    merged = F.col("metrics.numTargetRowsInserted").cast("long") + F.col("metrics.numTargetRowsUpdated").cast("long")
    appended = F.col("metrics.numOutputRows").cast("long")
    return told.where("info.spark_aesthetic IS NOT NULL").select(
        "version", "timestamp", "operation",
        F.col("info.spark_aesthetic").alias("package_version"),
        "info.model", "info.predictor", "info.options", "info.source", "info.source_id", "info.source_version",
        "info.chunk", "info.checkpoint", "info.scored_at",
        F.when(F.col("operation") == "MERGE", merged).otherwise(appended).alias("rows_written"),
        F.coalesce(F.col("metrics.numTargetRowsDeleted").cast("long"), F.lit(0)).alias("rows_deleted"),
    )  # fmt: skip
