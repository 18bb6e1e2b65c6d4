"""PySpark's daemon of workers, with torch already imported, so that each worker it forks has torch at once.

Spark ends a worker that was idle for a minute, so the suite's few sessions start dozens of workers.
"""

from __future__ import annotations

import runpy

import pandas  # noqa: F401
import pyarrow  # noqa: F401
import torch  # noqa: F401

runpy.run_module("pyspark.daemon", run_name="__main__", alter_sys=True)
