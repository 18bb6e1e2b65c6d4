"""The image pipeline: bytes are decoded on threads ahead of inference, and leave in order. Knows no Spark."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import numpy.typing as npt
import torch

from spark_aesthetic import prepare, weights
from spark_aesthetic.clip import ImageEncoder
from spark_aesthetic.decode import Pixels, Rejection, decode
from spark_aesthetic.head import Head
from spark_aesthetic.options import Options
from spark_aesthetic.predictors import Predictor

# Enough rows to keep the arithmetic units busy; more only holds decoded pixels (150 kB a row) longer.
_BATCH_ROWS_CPU = 16
_BATCH_ROWS_GPU = 256


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
    """
    prepared = prepare.prepared_tower(predictor, dtype=dtype, model_path=model_path)
    encoder = ImageEncoder(predictor.backbone, prepared, device=device, dtype=dtype)
    return encoder, weights.load_head(predictor, model_path)


class ImageScorer:
    """Scores images with one predictor on one device.

    Args:
        predictor: Pinned (see `spark_aesthetic.weights.pin`).
        options: With a device and a number of threads that are not left open.
    """

    def __init__(self, predictor: Predictor, options: Options) -> None:
        on_gpu = options.device != "cpu"
        dtype = options.dtype if options.dtype != "auto" else ("float16" if on_gpu else "float32")
        self.encoder, self.head = load_model(
            predictor, device=options.device, dtype=dtype, model_path=options.model_path
        )
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
        most two batches of pixels are decoded ahead.
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
        good = [at for at, error in enumerate(errors) if error is None]
        scores = np.full(len(rows), np.nan, dtype=np.float32)
        embeddings = np.full((len(rows), self.head.dimension), np.nan, dtype=np.float32)
        if good:
            embeddings[good] = self.encoder(np.stack([row for row in rows if not isinstance(row, Rejection)]))
            scores[good] = self.head(embeddings[good])
        return ScoredRows(scores, embeddings, errors)
