"""What must be right before a run does any work: each check raises an error that says what to do."""

from __future__ import annotations

import os
from importlib.util import find_spec

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from spark_aesthetic.delta.fitting import check_name
from spark_aesthetic.delta.naming import name_parts
from spark_aesthetic.errors import MissingDependencyError, OptionError, ResourceError, TableError
from spark_aesthetic.predictors.recipe import Predictor


def check_gpu_scheduling(spark: SparkSession) -> None:
    """Refuse settings under which Spark would wait for ever.

    Raises:
        ResourceError: A local master with GPU amounts: it has no GPUs to give, and its tasks never start.
    """
    master = spark.conf.get("spark.master", "")
    amount = spark.conf.get("spark.task.resource.gpu.amount", None)
    # Databricks' single-node clusters are local masters that do schedule GPUs.
    if "DATABRICKS_RUNTIME_VERSION" in os.environ:
        return
    if master is not None and master.split("[")[0] == "local" and amount is not None and float(amount) > 0:
        raise ResourceError(
            f"spark.task.resource.gpu.amount: expected no GPU amounts with master {master!r}, found {amount}; a local "
            "master never grants them and would wait for ever. Remove the spark.*.resource.gpu.* settings, or use "
            "a standalone, YARN or Kubernetes master"
        )


def check_interval(spark: SparkSession, every: str) -> None:
    """Raise OptionError unless Spark takes it for a time between two looks for new rows."""
    start = "TIMESTAMP '2000-01-01'"
    # Months have no length, so the triggers of Spark take none.
    fits = f"{start} + at >= {start} AND extract(MONTH FROM at) = 0 AND extract(YEAR FROM at) = 0"
    found = spark.range(1).select(F.lit(every).try_cast("interval").alias("at")).select(F.expr(fits).alias("fits"))
    if not found.collect()[0].fits:
        raise OptionError(f"every={every!r}: expected an interval without months or years, such as '1 minute'")


def check_view(spark: SparkSession, view: str) -> None:
    """Raise TableError unless a view can go by this name."""
    if name_parts(view) is None:
        raise TableError(
            f"--view: expected a name for a view, found {view!r}; put other characters than letters, digits and _ "
            "between backquotes, and a schema that is there before it"
        )
    # Not by check_schema, for a view has no path, whatever is between its backquotes.
    check_name(spark, view, "--view")
    if spark.catalog.tableExists(view) and spark.catalog.getTable(view).tableType != "VIEW":
        raise TableError(f"--view: expected a free name or that of a view, found the table {view!r}; choose another")


def check_weights(predictor: Predictor, model_path: str | None) -> None:
    """Check that images can be scored: packages, backbone and head, verified by checksum and by shape.

    Raises:
        MissingDependencyError: The extra "image" is not installed.
        PredictorError: There is no such architecture.
        WeightsError: A file is missing, another one, or does not fit.
    """
    missing = [name for name in ("torch", "torchvision", "open_clip", "PIL", "simplejpeg") if find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            f"--image-col: expected the packages of the extra 'image', found no {', '.join(missing)}; "
            "pip install 'spark-aesthetic[image]' on the driver and on the executors"
        )
    # Here, because it loads torch.
    from spark_aesthetic.images import prepare

    prepare.check(predictor, model_path)
