"""The image pipeline: bytes are decoded on threads ahead of inference, and leave in order. Knows no Spark."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import cast

import numpy as np
import numpy.typing as npt
import torch

from spark_aesthetic import weights
from spark_aesthetic.clip import ImageEncoder
from spark_aesthetic.decode import Pixels, Rejection, decode
from spark_aesthetic.head import Head
from spark_aesthetic.options import Options
from spark_aesthetic.predictors import Predictor

# Enough rows to keep the arithmetic units busy; more only holds decoded pixels (150 kB a row) longer.
_BATCH_ROWS_CPU = 16
_BATCH_ROWS_GPU = 256

NOT_FINITE = "model: not finite"
OUT_OF_MEMORY = "model: out of memory"


@dataclass(frozen=True)
class ScoredRows:
    """What became of some consecutive rows.

    Attributes:
        scores: float32 of shape (n,), NaN where there is an error.
        embeddings: float32 of shape (n, dimension), unit length, NaN where there is an error.
        errors: A reason or None for each row.
    """

    scores: npt.NDArray[np.float32]
    embeddings: npt.NDArray[np.float32]
    errors: list[str | None]


@lru_cache(maxsize=2)
def load_model(predictor: Predictor, *, device: str, dtype: str, model_path: str | None) -> tuple[ImageEncoder, Head]:
    """Load a pinned predictor's model, once a process.

    The key is the content of the recipe, not an object: running a notebook cell again loads nothing.

    Raises:
        WeightsError: A file is missing, another one, or does not fit the architecture; or head and backbone
            do not go together.
    """
    prepared = weights.prepared_path(predictor, dtype)
    if not prepared.exists():
        # Here, because it imports open_clip, which takes several times as long as torch.
        from spark_aesthetic.prepare import prepare

        prepare(predictor, dtype=dtype, model_path=model_path)
    encoder = ImageEncoder(prepared, device=device)
    head = weights.load_head(predictor, model_path)
    weights.check_dimension(predictor, head, encoder.dimension)
    return encoder, head


class ImageScorer:
    """Scores images with one predictor on one device.

    Args:
        predictor: Pinned (see `spark_aesthetic.weights.pin`).
        options: With a device and a number of threads that are not left open.
    """

    def __init__(self, predictor: Predictor, options: Options) -> None:
        on_gpu = torch.device(options.device).type == "cuda"
        dtype = options.dtype if options.dtype != "auto" else ("float16" if on_gpu else "float32")
        self.encoder, self.head = load_model(
            predictor, device=options.device, dtype=dtype, model_path=options.model_path
        )
        # Most rows that went into a forward pass since the device ran out of memory, if it did.
        self._fitting_rows: int | None = None
        self.threads = options.num_threads
        self.batch_rows = (
            options.batch_size if options.batch_size != -1 else (_BATCH_ROWS_GPU if on_gpu else _BATCH_ROWS_CPU)
        )
        self._decode = partial(
            decode, side=self.encoder.side, max_pixels=options.max_pixels, fast=options.decode == "fast"
        )

    def score(self, images: Iterable[bytes | None]) -> Iterator[ScoredRows]:
        """Score a stream of images of any length; one bad image costs one row.

        Rows come out in the order they went in, `batch_size` at a time, however they were grouped before. At
        most two batches of pixels are decoded ahead. Where a batch does not fit the device's memory, it and
        all later ones go through the model in smaller parts.
        """
        # PySpark's own thread settings stop at OMP_NUM_THREADS, which torch reads once at import.
        torch.set_num_threads(self.threads)
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="decode")
        try:
            rows: list[Pixels | Rejection] = []
            for decoded in self._decoded(pool, images):
                rows.append(decoded)
                if len(rows) == self.batch_rows:
                    yield self._infer(rows)
                    rows = []
            if rows:
                yield self._infer(rows)
        finally:
            pool.shutdown(cancel_futures=True)

    def _decoded(self, pool: ThreadPoolExecutor, images: Iterable[bytes | None]) -> Iterator[Pixels | Rejection]:
        ahead: deque[Future[Pixels | Rejection]] = deque()
        for image in images:
            ahead.append(pool.submit(self._decode, image))
            if len(ahead) > 2 * self.batch_rows:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()

    def _infer(self, rows: list[Pixels | Rejection]) -> ScoredRows:
        errors = [str(row) if isinstance(row, Rejection) else None for row in rows]
        scores = np.full(len(rows), np.nan, dtype=np.float32)
        embeddings = np.full((len(rows), self.head.dimension), np.nan, dtype=np.float32)
        good = [number for number, error in enumerate(errors) if error is None]
        while good:
            at = good[: self._fitting_rows]
            encoded = self._encoded(np.stack([cast("Pixels", rows[number]) for number in at]))
            if encoded is None and len(at) > 1:
                self._fitting_rows = len(at) // 2
                continue
            good = good[len(at) :]
            if encoded is None:
                errors[at[0]] = OUT_OF_MEMORY
                continue
            # float16 overflows beyond 65,504, and damaged weights hold anything.
            with np.errstate(over="ignore", invalid="ignore"):
                scored = self.head(encoded)
            finite = np.isfinite(encoded).all(axis=1) & np.isfinite(scored)
            for row, number in enumerate(at):
                if finite[row]:
                    embeddings[number], scores[number] = encoded[row], scored[row]
                else:
                    errors[number] = NOT_FINITE
        return ScoredRows(scores, embeddings, errors)

    def _encoded(self, pixels: Pixels) -> npt.NDArray[np.float32] | None:
        """Embeddings, or None where they do not fit the device's memory."""
        try:
            return self.encoder(pixels)
        except torch.cuda.OutOfMemoryError:  # its name before torch 2.5 too
            # The tensors of the attempt live as long as its traceback, so the next one is made outside of here.
            return None
