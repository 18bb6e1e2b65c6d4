"""The functions inside Spark's Python workers: they resolve the device, and score pandas columns.

Workers import this module by name, so the model cache of `spark_aesthetic.images.pipeline` lives as long as a worker.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import astuple, replace
from itertools import chain, islice
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import pandas as pd
from pyspark import TaskContext

from spark_aesthetic.errors import MissingDependencyError, ResourceError, TableError
from spark_aesthetic.functions import costs
from spark_aesthetic.options import EncoderName, Options
from spark_aesthetic.predictors import weights
from spark_aesthetic.predictors.embeddings import score_embeddings
from spark_aesthetic.predictors.recipe import Predictor

if TYPE_CHECKING:
    from spark_aesthetic.images.pipeline import Pipeline


def granted(options: Options) -> Options:
    """Replace `device="auto"` and `num_threads=-1` by what Spark gave to this task.

    "auto" becomes the first GPU address of the task, or the CPU if the task has no GPU. Spark does not set
    CUDA_VISIBLE_DEVICES, so the address is torch's device number.
    """
    context = TaskContext.get()
    gpu = context.resources().get("gpu") if context is not None else None
    device = options.device
    if device == "auto":
        device = f"cuda:{gpu.addresses[0]}" if gpu is not None else "cpu"
    threads = options.num_threads
    if threads == -1:
        threads = context.cpus() if context is not None else 1
    return replace(options, device=device, num_threads=threads)


def score_images(batches: Iterable[pd.Series], predictor: Predictor, options: Options) -> Iterator[pd.DataFrame]:
    """Score columns of image bytes.

    Yields:
        Frames with the columns score (float32), error (text or None), embedding (float32 arrays or None) and those
        of `costs.Costs`. They have the rows of the input in the same order, but in different batches.
    """

    def load(granted: Options) -> Pipeline:
        from spark_aesthetic.images.pipeline import ImageScorer

        return ImageScorer(predictor, granted)

    return _piped(batches, options, load)


def clip_embeddings(batches: Iterable[pd.Series], predictor: Predictor, options: Options) -> Iterator[pd.DataFrame]:
    """Embed columns of image bytes with a predictor's backbone.

    Yields:
        Frames as from `score_images`, with NaN for every score.
    """

    def load(granted: Options) -> Pipeline:
        from spark_aesthetic.images.pipeline import Pipeline, dtype_for, load_encoder

        encoder = load_encoder(
            predictor, device=granted.device, dtype=dtype_for(granted), model_path=granted.model_path
        )
        return Pipeline(encoder, None, granted)

    return _piped(batches, options, load)


def embed_images(
    batches: Iterable[pd.Series], name: EncoderName, normalize: bool, options: Options
) -> Iterator[pd.DataFrame]:
    """Embed columns of image bytes with an encoder of timm or open_clip.

    Yields:
        Frames as from `score_images`, with NaN for every score.
    """

    def load(granted: Options) -> Pipeline:
        from spark_aesthetic.images.other_encoders import load_encoder
        from spark_aesthetic.images.pipeline import Pipeline, dtype_for

        encoder = load_encoder(name, unit=normalize, device=granted.device, dtype=dtype_for(granted))
        return Pipeline(encoder, None, granted)

    return _piped(batches, options, load)


def _piped(
    batches: Iterable[pd.Series], options: Options, load: Callable[[Options], Pipeline]
) -> Iterator[pd.DataFrame]:
    options = granted(options)
    _check_address(options.device)
    images = _images(batches)
    first = list(islice(images, 1))
    # An empty partition, such as a filter leaves, needs no model.
    if not first:
        return
    # torch is imported here, on the worker, and not on the driver; open_clip only if weights are not prepared yet.
    try:
        _check_device(options.device)
        pipeline = load(options)
    except ImportError as missing:
        raise MissingDependencyError(
            "image columns: expected the packages of spark-aesthetic[image] on every executor, found: "
            f"{missing}. Run pip install 'spark-aesthetic[image]' there; scoring embeddings needs none of them."
        ) from missing

    for rows in pipeline.score(chain(first, images)):
        embeddings = [
            None if error is not None else row for row, error in zip(rows.embeddings, rows.errors, strict=True)
        ]
        frame = pd.DataFrame(
            {
                "score": rows.scores,
                "error": pd.Series(rows.errors, dtype=object),
                "embedding": pd.Series(embeddings, dtype=object),
            }
        )
        # Costs are per batch. They are stored on the batch's first row and are 0 on all other rows, so a sum over rows
        # is correct.
        for name, value in zip(costs.NAMES, (*astuple(rows.stages), float(peak_memory_bytes())), strict=True):
            frame[name] = [value] + [0.0] * (len(frame) - 1)
        yield frame


def peak_memory_bytes() -> int:
    """Return the peak resident memory of this process, including shared pages."""
    status = Path("/proc/self/status")
    # On Linux getrusage returns the parent's peak if that was higher.
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    # ru_maxrss is in kB on Linux and in bytes on macOS.
    return getrusage(RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def score_vectors(
    batches: Iterable[pd.Series | pd.DataFrame], predictor: Predictor, normalize: bool, model_path: str | None
) -> Iterator[pd.DataFrame]:
    """Score columns of embeddings: arrays or ml Vectors.

    Yields:
        Frames with the columns score (float32) and error (text or None), one for each batch.
    """
    head = weights.load_head(predictor, model_path)
    for batch in batches:
        scores, errors = score_embeddings(head, list(_vectors(batch)), normalize=normalize)
        yield pd.DataFrame({"score": scores, "error": pd.Series(errors, dtype=object)})


def _vectors(batch: pd.Series | pd.DataFrame) -> Iterator[npt.ArrayLike | None]:
    # Spark passes a column of ml Vectors as a frame of the fields of their struct.
    if isinstance(batch, pd.DataFrame):
        if list(batch.columns) != ["type", "size", "indices", "values"]:
            raise _no_embeddings(f"a struct of {', '.join(batch.columns)}")
        yield from map(_dense, batch.itertuples())
        return
    for value in batch:
        if not isinstance(value, np.ndarray | list | None):
            raise _no_embeddings(f"{type(value).__name__} {str(value)[:60]}")
        yield value


def _no_embeddings(found: str) -> TableError:
    return TableError(
        f"embedding column: expected array<float>, array<double> or an ml Vector, found {found}. "
        "Name a column of embeddings."
    )


def _dense(row: Any) -> npt.ArrayLike | None:
    if pd.isna(row.type):
        return None
    if row.type == 1:
        return cast("npt.ArrayLike", row.values)
    vector = np.zeros(int(row.size))
    vector[row.indices] = row.values
    return vector


def _images(batches: Iterable[pd.Series]) -> Iterator[bytes | None]:
    for batch in batches:
        for value in batch:
            yield _bytes(value)


def _bytes(value: Any) -> bytes | None:
    if value is None or isinstance(value, bytes):
        return value
    if isinstance(value, bytearray | memoryview | np.bytes_):
        return bytes(value)
    raise TableError(
        f"image column: expected the bytes of image files (binary), found {type(value).__name__} {str(value)[:60]!r}. "
        "Read files with spark.read.format('binaryFile'), and decode base64 with unbase64."
    )


def _check_address(device: str) -> None:
    kind, _, address = device.partition(":")
    # Spark and nvidia-smi accept a GPU's UUID as an address, but torch does not.
    if kind == "cuda" and address and not address.isdecimal():
        raise ResourceError(
            f"device {device}: expected a GPU by its number, as in cuda:0, found {address!r}. Let the "
            "discovery script print numbers, as conf/gpu-discovery.sh does."
        )


def _check_device(device: str) -> None:
    if not device.startswith("cuda"):
        return
    import torch

    number = torch.device(device).index or 0
    if number >= torch.cuda.device_count():
        raise ResourceError(
            f"device {device}: expected a GPU that torch can use, found {torch.cuda.device_count()} GPUs. Install a "
            "CUDA build of torch and the GPU driver on the executors, or correct the discovery script's addresses."
        )
