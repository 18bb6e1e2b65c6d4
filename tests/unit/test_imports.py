"""The cost of importing the package, and the parts that work without the heavy packages."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import spark_aesthetic

# This code hides the packages of the extra "image", as if they were not installed.
WITHOUT_TORCH = """
import sys
from importlib.abc import MetaPathFinder
class Missing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "open_clip", "PIL"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
"""


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_loads_neither_torch_nor_pyspark() -> None:
    code = "import spark_aesthetic, sys; print([n for n in ('torch', 'pyspark', 'numpy') if n in sys.modules])"
    assert python(code) == "[]"


def test_importing_the_functions_loads_no_torch() -> None:
    code = "import spark_aesthetic.functions, spark_aesthetic.scoring.jobs, sys; print('torch' in sys.modules)"
    # PySpark raises warnings of its own on import, so this process runs without `-W error`.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_every_public_name_is_there() -> None:
    for name in dir(spark_aesthetic):
        assert getattr(spark_aesthetic, name) is not None
    assert set(spark_aesthetic.__all__) < set(dir(spark_aesthetic))


def test_a_star_brings_no_name_that_a_notebook_has() -> None:
    own: dict[str, object] = {
        name: name
        for name in ("display", "history", "register", "review", "resolve", "calibrate", "curate", "Summary", "Options",
                     "spark", "sql", "table", "dbutils", "DEFAULT")
    }  # fmt: skip
    brought = dict(own)
    exec("from spark_aesthetic import *", brought)
    assert {name: brought[name] for name in own} == own
    assert "score_table" in brought
    # The star brings exactly the names of two words or more.
    words = {name: len(re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)) for name in dir(spark_aesthetic)}
    assert set(spark_aesthetic.__all__) == {name for name, count in words.items() if count > 1}
    # All other names can be imported by name.
    exec("from spark_aesthetic import display, history, register, review, Calibration", brought)


def test_a_misspelt_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'aesthetic_scor'"):
        spark_aesthetic.aesthetic_scor  # noqa: B018


def test_embeddings_are_scored_without_torch() -> None:
    code = WITHOUT_TORCH + (
        "from spark_aesthetic import resolve, testing\n"
        "from spark_aesthetic.predictors import weights\n"
        "head = weights.load_head(weights.pin(resolve('laion-aesthetics-v2')))\n"
        "print([round(float(score), 3) for score in head(testing.published_embeddings())])"
    )
    assert python(code) == "[1.655, 2.359, 3.07, 3.672, 4.238, 4.701, 5.073, 5.365, 5.577, 5.747]"


def test_image_bytes_without_torch_say_what_to_install() -> None:
    code = WITHOUT_TORCH + (
        "import pandas as pd\n"
        "from spark_aesthetic.errors import MissingDependencyError\n"
        "from spark_aesthetic.options import Options\n"
        "from spark_aesthetic.predictors.recipe import resolve\n"
        "from spark_aesthetic.functions.worker import score_images\n"
        "try:\n    next(score_images([pd.Series([b''])], resolve('untrained-vit-b-32'), Options()))\n"
        "except MissingDependencyError as error:\n    print(error)"
    )
    assert "pip install 'spark-aesthetic[image]'" in python(code)


def test_a_worker_that_finds_its_weights_prepared_does_without_open_clip(tmp_path: Path) -> None:
    code = """
import sys
from spark_aesthetic.predictors import weights
from spark_aesthetic.images.pipeline import ImageScorer
from spark_aesthetic.options import Options
from spark_aesthetic.testing import noise_image, small_predictor
(rows,) = ImageScorer(weights.pin(small_predictor()), Options(device="cpu", num_threads=1)).score([noise_image(0)])
print(rows.errors, "open_clip" in sys.modules)
"""
    environment = {**os.environ, "SPARK_AESTHETIC_CACHE": str(tmp_path)}
    said = [
        subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert said == ["[None] True\n", "[None] False\n"]
