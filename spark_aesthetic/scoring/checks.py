"""Checks before a run does any work. Each one raises an error with the remedy."""

from __future__ import annotations

import os
from collections.abc import Sequence

from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from spark_aesthetic.delta import access, fitting, naming, schemas, tables
from spark_aesthetic.delta.naming import quoted
from spark_aesthetic.delta.tables import Source
from spark_aesthetic.errors import MissingDependencyError, OptionError, ResourceError, TableError
from spark_aesthetic.predictors.packages import missing_for_images
from spark_aesthetic.predictors.recipe import Predictor
from spark_aesthetic.scoring import ledger
from spark_aesthetic.scoring.ledger import Ledger
from spark_aesthetic.scoring.target import SCORED_AT, TYPES, Target


def check_gpu_scheduling(spark: SparkSession) -> None:
    """Refuse settings with which Spark would wait forever.

    Raises:
        ResourceError: GPU amounts are set with a local master. It grants no GPUs, so tasks would never start.
    """
    master = spark.conf.get("spark.master", "")
    amount = spark.conf.get("spark.task.resource.gpu.amount", None)
    # Databricks' single-node clusters are local masters that do schedule GPUs.
    if "DATABRICKS_RUNTIME_VERSION" in os.environ:
        return
    if master is not None and master.split("[")[0] == "local" and amount is not None and float(amount) > 0:
        raise ResourceError(
            f"spark.task.resource.gpu.amount: expected no GPU amounts with master {master!r}, found {amount}, "
            "which a local master never grants. Remove the spark.*.resource.gpu.* settings, or use a standalone, "
            "YARN or Kubernetes master."
        )


def check_combination(
    *,
    image_col: str | None,
    embedding_col: str | None,
    scores: str | None,
    view: str | None,
    view_model: str | None,
    with_embedding: bool,
    reconcile: bool,
    version_col: str | None,
    every: str | None,
    shared_keys: bool,
) -> None:
    """Check that the options of a run fit together.

    Raises:
        OptionError: An option would have no effect in a run with `every`.
        TableError: An option is missing, or requires another option.
    """
    if (image_col is None) == (embedding_col is None):
        raise TableError("expected either --image-col or --embedding-col, found both or neither. Give one of them.")
    if scores is None:
        needing = {
            "--view": view, "--reconcile": reconcile or None, "--version-col": version_col, "--every": every,
            "--shared-keys": shared_keys or None,
        }  # fmt: skip
        for option, value in needing.items():
            if value is not None:
                raise TableError(
                    f"{option}: expected --scores with it, found none. Add --scores, the table for the scores."
                )
    if every is not None:
        for option, given in {"--view": view is not None, "--reconcile": reconcile}.items():
            if given:
                raise OptionError(
                    f"{option}: expected no --every with it, found both. Run once with {option}, then with --every."
                )
    if view_model is not None and view is None:
        raise TableError("--view-model: expected --view with it, found none. Name the view with --view.")
    if with_embedding and embedding_col is not None:
        raise TableError("--with-embedding: expected --image-col, found --embedding-col. Leave out --with-embedding.")


def check_session(spark: SparkSession, *, every: str | None, view: str | None, checkpoint: str | None) -> None:
    """Check the settings and options that Spark itself must accept.

    Raises:
        OptionError: Spark does not accept the interval.
        ResourceError: Tasks would never start.
        TableError: A view cannot have this name, or the checkpoint's folder cannot be reached.
    """
    check_gpu_scheduling(spark)
    if every is not None:
        check_interval(spark, every)
    if view is not None:
        check_view(spark, view)
    if checkpoint is not None:
        check_checkpoint(spark, checkpoint)


def check_interval(spark: SparkSession, every: str) -> None:
    """Raise OptionError unless Spark accepts the interval between two checks for new rows."""
    start = "TIMESTAMP '2000-01-01'"
    # A month has no fixed length, so Spark's triggers do not accept it.
    fits = f"{start} + at >= {start} AND extract(MONTH FROM at) = 0 AND extract(YEAR FROM at) = 0"
    found = spark.range(1).select(F.lit(every).try_cast("interval").alias("at")).select(F.expr(fits).alias("fits"))
    if not found.collect()[0].fits:
        raise OptionError(f"every={every!r}: expected an interval without months or years, such as '1 minute'")


def check_view(spark: SparkSession, view: str) -> None:
    """Raise TableError unless a view can have this name."""
    if naming.name_parts(view) is None:
        raise TableError(
            f"--view: expected a name for a view, found {view!r}. Put backquotes around name parts with other "
            "characters than letters, digits and _, and use an existing schema."
        )
    # Not check_schema, because a view cannot be named by a path, even if its name has a slash.
    fitting.check_name(spark, view, "--view")
    if spark.catalog.tableExists(view) and spark.catalog.getTable(view).tableType != "VIEW":
        raise TableError(
            f"--view: expected a new name or an existing view, found the table {view!r}. Choose another name."
        )


def check_weights(predictor: Predictor, model_path: str | None) -> None:
    """Check that images can be scored: packages are installed, and backbone and head have the right checksum and shape.

    Raises:
        MissingDependencyError: The extra "image" is not installed.
        PredictorError: The architecture does not exist.
        WeightsError: A file is missing, does not match its checksum, or does not fit the architecture.
    """
    missing = missing_for_images()
    if missing:
        raise MissingDependencyError(
            f"--image-col: expected the packages of the extra 'image', found no {', '.join(missing)}. Run "
            "pip install 'spark-aesthetic[image]' on the driver and on the executors."
        )
    # The import is here because it loads torch.
    from spark_aesthetic.images import prepare

    prepare.check(predictor, model_path)


def check_target(spark: SparkSession, source: Source, target: Target, *, is_source: bool, shared_keys: bool) -> Ledger:
    """Check the table for the scores before any work.

    Args:
        spark: The session.
        source: The table of images or embeddings.
        target: The scores table, or the staging table of a run in place.
        is_source: Whether the source itself gets the columns.
        shared_keys: Whether equal keys mean the same image in all sources of the scores table.

    Returns:
        The ledger of the scores table; an empty one if the table does not exist or is the source.

    Raises:
        TableError: The source does not allow updates in place, or the scores table does not fit the run.
    """
    if is_source:
        if source.append_only:
            raise TableError(
                f"source {source.table!r}: expected a table that allows updates in place, found the property "
                "delta.appendOnly = true. Score into a separate table (--scores), or unset the property."
            )
        own = {name: TYPES[name] for name in target.written if name != SCORED_AT}
        fitting.check_columns(source.rows, own, source.table, required=())
        return Ledger()
    found = tables.detail(spark, target.table)
    # One table has many names: a path, a link to the path, a catalog name.
    if found is not None and found.location == source.location:
        raise TableError(
            "--scores: expected a table other than --source, found the same. Leave out --scores to score in place."
        )
    known = Ledger() if found is None else Ledger.of(found.properties)
    ledger.check_copy(spark, known, target.table, source)
    ledger.check(known, target.table, source, target.key, shared_keys=shared_keys)
    target.check(spark, found)
    return known


def check_checkpoint(spark: SparkSession, checkpoint: str) -> None:
    """Raise TableError unless the file system of the checkpoint's folder can be reached."""
    with access.reaching(f"--checkpoint {checkpoint!r}"):
        try:
            access.files_reader(spark).text(naming.whole(checkpoint)).schema  # noqa: B018
        except AnalysisException as error:
            if not access.is_missing(error):
                raise


def version_column(rows: DataFrame, column: str, key: Sequence[str]) -> str:
    """Return the version column as the table spells it; raise TableError if it cannot be one."""
    name = schemas.spelled(rows, column)
    schemas.column_type(rows, quoted(name), "--version-col")
    naming.check_own_name(name, "--version-col")
    if name in key or naming.has_column(TYPES, name):
        raise TableError(
            f"--version-col: expected a column that is neither part of the key nor written by the job, found {name!r}"
        )
    return name
