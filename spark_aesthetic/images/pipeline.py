"""The image pipeline: threads decode images ahead of inference, and rows leave in order. It does not use Spark.

    images -> decode (pool) -> batch -> encode and score (pool on a CPU, two threads with a GPU) -> rows in order

On a CPU the threads that Spark gave to the task do both: each batch is encoded by one thread, and several batches run
at once. This avoids oversubscription, and no core waits for other cores at the end of a matrix product. With a GPU all
these threads decode, and two more prepare one batch on the host while the device computes another.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock, Semaphore
from time import perf_counter
from typing import cast

import numpy as np
import numpy.typing as npt
import torch

from spark_aesthetic.images.budget import Budget
from spark_aesthetic.images.decode import Pixels, Rejection, decode
from spark_aesthetic.images.encoder import Encoder, ImageEncoder
from spark_aesthetic.options import Options
from spark_aesthetic.predictors import cache, weights
from spark_aesthetic.predictors.head import Head
from spark_aesthetic.predictors.recipe import Predictor

# On one thread ViT-B/32 encodes 13.8, 14.7, 15.6 and 15.1 images/s in batches of 4, 8, 16 and 32. The rate of ViT-L/14
# is constant from 2 on.
_BATCH_ROWS_CPU = 16
# Not measured, because no GPU was available.
_BATCH_ROWS_GPU = 256

# These limits keep the memory besides the model below 1 GB. They apply, in this order, to files that wait for a thread,
# images being decoded, decoded pixels that wait for a batch or the device (with a GPU 340 rows of 224 pixels, on a CPU
# far fewer), and on a CPU the activations of all threads. An image that needs more than the limit for decoding is
# decoded alone, such as a WebP of more than 20 megapixels, which takes up to 20 bytes per pixel.
_FILE_BYTES = 64 << 20
_DECODING_BYTES = 384 << 20
_PIXEL_BYTES = 256 << 20
_ACTIVATION_BYTES = 256 << 20

NOT_FINITE = "model: not finite"
OUT_OF_MEMORY = "model: out of memory"

# Messages of torch on a CPU, and of cuBLAS about its workspace, when memory runs out.
_NO_MEMORY = ("can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")


@dataclass
class Stages:
    """Seconds per stage, summed over threads that can run at the same time.

    Attributes:
        decode: Decoding bytes to pixels, including waits for memory.
        transfer: Stacking pixels to a batch and starting its copy to the device. A GPU copies later, during `infer`.
        infer: Encoding a batch to embeddings; with a GPU, including the wait for the batch before it.
        wait: Waiting for the next image from Spark.
    """

    decode: float = 0.0
    transfer: float = 0.0
    infer: float = 0.0
    wait: float = 0.0


@dataclass(frozen=True)
class ScoredRows:
    """The results of some consecutive rows.

    Attributes:
        scores: float32 of shape (n,), NaN where there is an error or no head.
        embeddings: float32 of shape (n, dimension), NaN where there is an error.
        errors: A reason or None for each row.
        stages: The seconds that these rows took.
    """

    scores: npt.NDArray[np.float32]
    embeddings: npt.NDArray[np.float32]
    errors: list[str | None]
    stages: Stages


@lru_cache(maxsize=2)
def load_model(predictor: Predictor, *, device: str, dtype: str, model_path: str | None) -> tuple[ImageEncoder, Head]:
    """Load a pinned predictor's model, once per process.

    Raises:
        WeightsError: A file is missing, does not match its checksum, or does not fit the architecture; or the head does
            not fit the backbone.
    """
    encoder = load_encoder(predictor, device=device, dtype=dtype, model_path=model_path)
    head = weights.load_head(predictor, model_path)
    weights.check_dimension(predictor, head, encoder.dimension)
    return encoder, head


def load_encoder(predictor: Predictor, *, device: str, dtype: str, model_path: str | None) -> ImageEncoder:
    """Load the pinned backbone of a predictor, once per process.

    The cache key is the content of the weights, not an object. A notebook cell that runs again therefore loads nothing,
    and predictors with the same backbone share one encoder.

    Raises:
        WeightsError: A file is missing, does not match its checksum, or does not fit the architecture.
    """
    prepared = weights.prepared_path(predictor, dtype)
    if not cache.is_whole(prepared):
        # Imported here, because it imports open_clip, which takes several times as long as torch.
        from spark_aesthetic.images.prepare import prepare

        prepare(predictor, dtype=dtype, model_path=model_path)
    return _mapped(prepared, device)


@lru_cache(maxsize=2)
def _mapped(prepared: Path, device: str) -> ImageEncoder:
    return ImageEncoder(prepared, device=device)


def dtype_for(options: Options) -> str:
    """Return the dtype of weights and arithmetic. "auto" is resolved by the device."""
    on_gpu = torch.device(options.device).type == "cuda"
    return options.dtype if options.dtype != "auto" else ("float16" if on_gpu else "float32")


class Pipeline:
    """Encodes images on one device, and scores them if there is a head.

    Args:
        encoder: An encoder on the device.
        head: A head for its embeddings; None leaves every score NaN.
        options: Options in which the device is not "auto" and the number of threads is not -1.
    """

    def __init__(self, encoder: Encoder, head: Head | None, options: Options) -> None:
        self._on_gpu = torch.device(options.device).type == "cuda"
        self.encoder, self.head, self.options = encoder, head, options
        rows = (
            options.batch_size if options.batch_size != -1 else (_BATCH_ROWS_GPU if self._on_gpu else _BATCH_ROWS_CPU)
        )
        # Batches on the device at once. One more waits for the device, and two are being decoded.
        self._passes = 2 if self._on_gpu else options.num_threads
        pixel_bytes = 3 * self.encoder.side**2
        self.batch_rows = max(1, min(rows, _PIXEL_BYTES // (pixel_bytes * (self._passes + 3))))
        # Rows in one forward pass, until the device runs out of memory for the first time.
        self._fitting_rows = self.batch_rows
        if not self._on_gpu:
            fitting = _ACTIVATION_BYTES // (self.encoder.row_bytes * options.num_threads)
            self._fitting_rows = max(1, min(self.batch_rows, fitting))
        self._budget = Budget(_DECODING_BYTES)
        # Each batch on the device holds one permit. A batch that runs out of memory takes all permits and tries again.
        self._passing = Semaphore(self._passes)
        self._taking_all = Lock()

    def score(self, images: Iterable[bytes | None]) -> Iterator[ScoredRows]:
        """Score a stream of images of any length. A bad image affects only its own row.

        Rows leave in their original order, `batch_rows` at a time. The bytes in flight are limited, and that limits
        `batch_size` too. If a batch does not fit the device's memory even when it runs alone, it and all later batches
        go through the model in smaller parts.
        """
        with ExitStack() as stack:
            decoding = inferring = self._pool(stack, "decode", self.options.num_threads)
            if self._on_gpu:
                inferring = self._pool(stack, "infer", self._passes)
            ahead: deque[Future[ScoredRows]] = deque()
            for rows, stages in self._batches(decoding, images):
                ahead.append(inferring.submit(self._infer, rows, stages))
                if len(ahead) > self._passes:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def _pool(self, stack: ExitStack, name: str, threads: int) -> ThreadPoolExecutor:
        # Each thread uses one core. torch stores this number per thread, and uses all cores by default.
        pool = ThreadPoolExecutor(threads, name, initializer=torch.set_num_threads, initargs=(1,))
        stack.callback(pool.shutdown, cancel_futures=True)
        return pool

    def _batches(
        self, pool: ThreadPoolExecutor, images: Iterable[bytes | None]
    ) -> Iterator[tuple[list[Pixels | Rejection], Stages]]:
        rows: list[Pixels | Rejection] = []
        stages = Stages()
        for decoded, decode_seconds, wait_seconds in self._decoded(pool, images):
            rows.append(decoded)
            stages.decode += decode_seconds
            stages.wait += wait_seconds
            if len(rows) == self.batch_rows:
                yield rows, stages
                rows, stages = [], Stages()
        if rows:
            yield rows, stages

    def _decoded(
        self, pool: ThreadPoolExecutor, images: Iterable[bytes | None]
    ) -> Iterator[tuple[Pixels | Rejection, float, float]]:
        """Yield each decoded image, the seconds of its decoding, and the seconds of waiting for it."""
        ahead: deque[tuple[Future[tuple[Pixels | Rejection, float]], int, float]] = deque()
        file_bytes = 0
        asked = perf_counter()
        for image in images:
            came = perf_counter()
            size = len(image) if image is not None else 0
            while ahead and (len(ahead) >= 2 * self.batch_rows or file_bytes + size > _FILE_BYTES):
                future, freed, waited = ahead.popleft()
                file_bytes -= freed
                yield *future.result(), waited
            ahead.append((pool.submit(self._decode, image), size, came - asked))
            file_bytes += size
            asked = perf_counter()
        for future, _, waited in ahead:
            yield *future.result(), waited

    def _decode(self, image: bytes | None) -> tuple[Pixels | Rejection, float]:
        started = perf_counter()
        decoded = decode(
            image,
            side=self.encoder.side,
            max_pixels=self.options.max_pixels,
            fast=self.options.decode == "fast",
            holding=self._budget.holding,
            preprocess=self.encoder.preprocess,
        )
        return decoded, perf_counter() - started

    def _infer(self, rows: list[Pixels | Rejection], stages: Stages) -> ScoredRows:
        errors = [str(row) if isinstance(row, Rejection) else None for row in rows]
        scores = np.full(len(rows), np.nan, dtype=np.float32)
        embeddings = np.full((len(rows), self.encoder.dimension), np.nan, dtype=np.float32)
        good = [number for number, error in enumerate(errors) if error is None]
        while good:
            limits = self.encoder.limits
            at = good[: min(self._fitting_rows, limits.rows)]
            pixels = [cast("Pixels", rows[number]) for number in at]
            encoded = self._encoded(pixels, stages, alone=limits.alone)
            if encoded is None and not limits.alone:
                encoded = self._encoded(pixels, stages, alone=True)
                limits.alone = encoded is not None
            if encoded is None and len(at) > 1:
                limits.rows = min(limits.rows, len(at) // 2)
                continue
            good = good[len(at) :]
            if encoded is None:
                errors[at[0]] = OUT_OF_MEMORY
                continue
            finite = np.asarray(np.isfinite(encoded).all(axis=1))
            scored = scores[at]
            if self.head is not None:
                # float16 overflows beyond 65,504, and damaged weights can hold anything.
                with np.errstate(over="ignore", invalid="ignore"):
                    scored = self.head(encoded)
                finite &= np.isfinite(scored)
            for row, number in enumerate(at):
                if finite[row]:
                    embeddings[number], scores[number] = encoded[row], scored[row]
                else:
                    errors[number] = NOT_FINITE
        return ScoredRows(scores, embeddings, errors, stages)

    @contextmanager
    def _pass(self, alone: bool) -> Iterator[None]:
        with self._taking_all if alone else nullcontext():
            held = self._passes if alone else 1
            for _ in range(held):
                self._passing.acquire()
            try:
                yield
            finally:
                self._passing.release(held)

    def _encoded(self, pixels: list[Pixels], stages: Stages, *, alone: bool = False) -> npt.NDArray[np.float32] | None:
        """Return the embeddings, or None if the device's memory ran out. `alone` keeps other batches off the device."""
        with self._pass(alone):
            return self._attempted(pixels, stages)

    def _attempted(self, pixels: list[Pixels], stages: Stages) -> npt.NDArray[np.float32] | None:
        started = perf_counter()
        try:
            held = self.encoder.to_device(pixels)
            moved = perf_counter()
            stages.transfer += moved - started
            encoded = self.encoder(held)
            stages.infer += perf_counter() - moved
        except RuntimeError as error:
            # OutOfMemoryError is a RuntimeError; this is its name before torch 2.5.
            if not isinstance(error, torch.cuda.OutOfMemoryError) and not any(w in str(error) for w in _NO_MEMORY):
                raise
            # The traceback keeps this attempt's tensors alive until this method returns, so the caller does the retry.
            return None
        return encoded


class ImageScorer(Pipeline):
    """Scores images with one predictor on one device.

    Args:
        predictor: A pinned predictor (see `spark_aesthetic.predictors.weights.pin`).
        options: Options in which the device is not "auto" and the number of threads is not -1.
    """

    def __init__(self, predictor: Predictor, options: Options) -> None:
        model = load_model(predictor, device=options.device, dtype=dtype_for(options), model_path=options.model_path)
        super().__init__(*model, options)
