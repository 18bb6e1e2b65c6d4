"""The pipeline between decoding and the head: the order of rows, the borders of batches, and failures of the model."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pytest
import torch
from conftest import REPOSITORY
from PIL import Image

from spark_aesthetic.images.budget import Budget
from spark_aesthetic.images.encoder import Limits
from spark_aesthetic.images.pipeline import NOT_FINITE, OUT_OF_MEMORY, ImageScorer, ScoredRows
from spark_aesthetic.options import Options
from spark_aesthetic.predictors import weights
from spark_aesthetic.testing import noise_image, small_predictor

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


def grey(level: int) -> bytes:
    file = BytesIO()
    Image.new("L", (8, 8), level).save(file, "PNG")
    return file.getvalue()


class Encoder:
    """An encoder that writes an image's grey level into its embedding and runs out of memory above `most_rows` rows."""

    side, dimension, preprocess = 224, 384, None

    def __init__(self, most_rows: int = 1000, hopeless: int | None = None) -> None:
        self.most_rows, self.hopeless, self.limits = most_rows, hopeless, Limits()
        self.calls: list[int] = []

    def to_device(self, pixels: list[Bytes]) -> Bytes:
        return np.stack(pixels)

    def __call__(self, pixels: Bytes) -> Floats:
        levels = pixels[:, 0, 0, 0]
        self.calls.append(len(pixels))
        if len(pixels) > self.most_rows or self.hopeless in levels:
            raise torch.OutOfMemoryError
        embeddings = np.zeros((len(pixels), 384), np.float32)
        embeddings[:, 0] = levels
        return embeddings


@pytest.fixture(scope="module")
def scorer_of(cache: object) -> Callable[..., ImageScorer]:
    predictor = weights.pin(small_predictor())

    def make(encoder: object, batch_size: int, num_threads: int = 2) -> ImageScorer:
        scorer = ImageScorer(predictor, Options(device="cpu", num_threads=num_threads, batch_size=batch_size))
        scorer.encoder = encoder  # type: ignore[assignment]  # the part that there is no GPU for
        return scorer

    return make


def check_exactly_one_of_score_and_error(rows: ScoredRows) -> None:
    for score, embedding, error in zip(rows.scores, rows.embeddings, rows.errors, strict=True):
        assert np.isfinite(score) == (error is None)
        assert np.isfinite(embedding).all() if error is None else np.isnan(embedding).all()


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 8, 9, 30])
def test_rows_keep_order_and_count_across_batch_borders(scorer_of: Callable[..., ImageScorer], count: int) -> None:
    scorer = scorer_of(Encoder(), 4)
    images = [None if level % 5 == 2 else grey(level) for level in range(count)]
    batches = list(scorer.score(iter(images)))
    assert [len(rows.errors) for rows in batches] == [4] * (count // 4) + [count % 4] * (count % 4 > 0)
    level = 0
    for rows in batches:
        check_exactly_one_of_score_and_error(rows)
        for embedding, error in zip(rows.embeddings, rows.errors, strict=True):
            assert error == ("null" if level % 5 == 2 else None)
            assert error is not None or embedding[0] == level
            level += 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_what_is_not_finite_is_an_error_of_its_row_alone(scorer_of: Callable[..., ImageScorer], value: float) -> None:
    class Damaged(Encoder):
        def __call__(self, pixels: Bytes) -> Floats:
            embeddings = np.full((len(pixels), 384), 0.1, np.float32)
            # The last value is finite, and only the head's sum overflows.
            embeddings[1] = value * np.sign(scorer.head.weight)
            return embeddings

    scorer = scorer_of(Damaged(), 3)
    (rows,) = scorer.score([grey(1), grey(2), grey(3)])
    assert rows.errors == [None, NOT_FINITE, None]
    check_exactly_one_of_score_and_error(rows)


def test_a_device_that_runs_out_of_memory_gets_smaller_batches_from_then_on(
    scorer_of: Callable[..., ImageScorer],
) -> None:
    encoder = Encoder(most_rows=3)
    batches = list(scorer_of(encoder, 8, num_threads=1).score([grey(level) for level in range(20)]))
    assert [len(rows.errors) for rows in batches] == [8, 8, 4]
    assert np.concatenate([rows.embeddings[:, 0] for rows in batches]).tolist() == list(range(20))
    # Each size that does not fit is tried again when nothing else is on the device.
    assert encoder.calls == [8, 8, 4, 4] + [2] * 10


def test_an_image_that_fails_alone_has_its_error_and_its_neighbours_their_scores(
    scorer_of: Callable[..., ImageScorer],
) -> None:
    (rows,) = scorer_of(Encoder(hopeless=2), 5).score([grey(0), b"", grey(1), grey(2), grey(3)])
    assert rows.errors == [None, "decode: empty", None, OUT_OF_MEMORY, None]
    check_exactly_one_of_score_and_error(rows)


def decoding_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_a_stream_closed_early_ends_its_threads(scorer_of: Callable[..., ImageScorer]) -> None:
    assert decoding_threads() == []
    stream = scorer_of(Encoder(), 2).score(grey(level) for level in range(100))
    next(stream)
    assert decoding_threads() != []
    stream.close()  # type: ignore[attr-defined]  # a generator
    assert decoding_threads() == []


def test_files_are_taken_in_only_as_far_as_their_bytes_allow(scorer_of: Callable[..., ImageScorer]) -> None:
    taken = 0

    def files() -> Iterator[bytes]:
        nonlocal taken
        for _ in range(100):
            taken += 1
            yield bytes(10 << 20)

    stream = scorer_of(Encoder(), 16).score(files())
    next(stream)
    # Three batches are in progress, files of 64 MB wait for a thread, and one file has just arrived. A limit by rows
    # would let two batches wait.
    assert taken <= 3 * 16 + 6 + 1
    assert sum(len(rows.errors) for rows in stream) == 100 - 16


def test_the_stages_tell_where_the_time_went(scorer_of: Callable[..., ImageScorer]) -> None:
    def slow() -> Iterator[bytes]:
        for level in range(4):
            time.sleep(0.05)
            yield grey(level)

    class Slow(Encoder):
        def __call__(self, pixels: Bytes) -> Floats:
            time.sleep(0.3)
            return super().__call__(pixels)

    (rows,) = scorer_of(Slow(), 4).score(slow())
    assert 0.3 <= rows.stages.infer < 0.6
    assert 0.2 <= rows.stages.wait < 0.5
    assert 0 < rows.stages.decode < 0.2
    assert 0 < rows.stages.transfer < 0.2


def test_threads_hold_no_more_than_the_budget_together() -> None:
    budget, most = Budget(100), 0

    def hold(amount: int) -> None:
        nonlocal most
        with budget.holding(amount):
            most = max(most, budget.size - budget.free)
            time.sleep(0.001)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(hold, [30, 60, 90, 150] * 20))
    assert (most, budget.free) == (100, 100)


# This script prints by how much the peak of memory grows after a first image. Some images are small.
LARGE = """
import sys
from spark_aesthetic.predictors import weights
from spark_aesthetic.images.pipeline import ImageScorer
from spark_aesthetic.options import Options
from spark_aesthetic.testing import noise_image, small_predictor
from spark_aesthetic.functions.worker import peak_memory_bytes
with open(sys.argv[1], "rb") as file:
    data = file.read()
scorer = ImageScorer(weights.pin(small_predictor()), Options(device="cpu", num_threads=6))
list(scorer.score([noise_image(0)]))
before = peak_memory_bytes()
images = [data, data, noise_image(1), data, data, data, noise_image(2), data]
errors = [error for rows in scorer.score(images) for error in rows.errors]
assert errors == [None] * 8, errors
print(peak_memory_bytes() - before)
"""


def test_what_the_device_holds_is_known_to_later_tasks(scorer_of: Callable[..., ImageScorer]) -> None:
    encoder = Encoder(most_rows=3)
    for _ in range(2):
        list(scorer_of(encoder, 8, num_threads=1).score([grey(level) for level in range(8)]))
    failures = [rows for rows in encoder.calls if rows > 3]
    # Each size fails once beside other work and once alone. A later task begins with the size that fits.
    assert failures == [8, 8, 4, 4]


def test_a_pass_that_fits_alone_is_made_alone_from_then_on(scorer_of: Callable[..., ImageScorer]) -> None:
    class Crowded(Encoder):
        passing = most = failed = 0

        def __call__(self, pixels: Bytes) -> Floats:
            self.passing += 1
            self.most = max(self.most, self.passing)
            time.sleep(0.02)
            crowded = self.passing > 1 or (self.most > 1 and not self.limits.alone and self.failed == 0)
            self.passing -= 1
            if crowded:
                self.failed += 1
                raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
            return super().__call__(pixels)

    encoder = Crowded()
    batches = list(scorer_of(encoder, 2, num_threads=2).score([grey(level) for level in range(40)]))
    assert [error for rows in batches for error in rows.errors] == [None] * 40
    assert encoder.limits.alone
    # Only the two passes that ran at the same time may fail.
    assert 1 <= encoder.failed <= 2
    assert encoder.limits.rows >= 40


def test_another_error_of_torch_is_no_lack_of_memory(scorer_of: Callable[..., ImageScorer]) -> None:
    class Broken(Encoder):
        def __call__(self, pixels: Bytes) -> Floats:
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        list(scorer_of(Broken(), 2).score([grey(1)]))


def test_every_thread_of_a_task_counts_for_one_core(scorer_of: Callable[..., ImageScorer]) -> None:
    class Counting(Encoder):
        threads: ClassVar[set[int]] = set()

        def __call__(self, pixels: Bytes) -> Floats:
            self.threads.add(torch.get_num_threads())
            return super().__call__(pixels)

    encoder = Counting()
    list(scorer_of(encoder, 2).score([grey(level) for level in range(8)]))
    assert encoder.threads == {1}


@pytest.mark.long
def test_the_benchmark_for_gpus_checks_itself_on_a_cpu(tmp_path: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "benchmarks" / "gpu.py"), "--device", "cpu", "--minutes", "2"]
    subprocess.run([*command, "--out", str(tmp_path / "out")], check=True, capture_output=True, timeout=300)
    rows = json.loads((tmp_path / "out" / "gpu.json").read_text())["rows"]
    measured = {
        part: [row for row in rows if row["part"] == part and row["value"]] for part in {r["part"] for r in rows}
    }
    assert all(measured.values()), rows
    assert {"limit", "pixels", "engine", "decode", "variants", "transfer"} <= measured.keys()
    notes = {row["what"]: row["note"] for row in rows}
    assert notes["exact, 1 threads"] == "pixels move by 0.00 of 255 on average, scores by 0.00000 at most"
    moved = re.search(r"([0-9.]+) at most", notes["int8, scaled by row, torch.float32"])
    assert moved is not None
    assert 0 < float(moved[1]) < 0.1
    assert measured["variants"][0]["note"] == "scores move by 0.00000 on average, 0.00000 at most"


FIFTY_MEGAPIXELS = (8660, 5774)


@pytest.mark.parametrize(
    ("file_format", "mode", "size", "options"),
    [
        ("JPEG", "RGB", FIFTY_MEGAPIXELS, {}),
        pytest.param("JPEG", "RGB", FIFTY_MEGAPIXELS, {"progressive": True, "subsampling": 0}, marks=pytest.mark.long),
        pytest.param("PNG", "RGBA", FIFTY_MEGAPIXELS, {"compress_level": 1}, marks=pytest.mark.long),
        pytest.param("WEBP", "RGB", FIFTY_MEGAPIXELS, {"method": 0}, marks=pytest.mark.long),
        # This image is thin. It has few pixels, and 89 megapixels once its width is scaled to the target's.
        pytest.param("PNG", "RGB", (10, 17_800), {}, marks=pytest.mark.long),
    ],
)
def test_large_images_on_six_threads_take_less_than_a_gigabyte(
    file_format: str, mode: str, size: tuple[int, int], options: dict[str, object], tmp_path: Path
) -> None:
    # The image is encoded in this process, because encoding takes memory too.
    file = tmp_path / "large"
    Image.open(BytesIO(noise_image(0))).convert(mode).resize(size).save(file, file_format, **options)
    done = subprocess.run(
        [sys.executable, "-c", LARGE, str(file)], check=True, capture_output=True, text=True, timeout=250
    )
    assert int(done.stdout) < 1e9


EMPTY = """
import sys
import pandas as pd
from spark_aesthetic.options import Options
from spark_aesthetic.predictors.recipe import resolve
from spark_aesthetic.functions.worker import score_images
for batches in ([], [pd.Series([], dtype=object)]):
    assert list(score_images(batches, resolve("untrained-vit-b-32"), Options(device="cpu", num_threads=1))) == []
assert "torch" not in sys.modules
"""


def test_an_empty_partition_loads_no_model_and_no_torch() -> None:
    subprocess.run([sys.executable, "-c", EMPTY], check=True, timeout=60)
