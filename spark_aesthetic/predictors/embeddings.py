"""Score embeddings in NumPy, with a reason for each row without a score.

`spark_aesthetic.functions.columns` has the same rules as a Spark expression, and tests compare the two.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from spark_aesthetic.predictors.head import Head

NULL = "null"
WRONG_LENGTH = "embedding: wrong length"
NOT_FINITE = "embedding: not finite"
ZERO_NORM = "embedding: zero norm"


def score_embeddings(
    head: Head, vectors: Sequence[npt.ArrayLike | None], *, normalize: bool
) -> tuple[npt.NDArray[np.float32], list[str | None]]:
    """Score embeddings that may be null or damaged.

    Args:
        head: The head.
        vectors: For each row a vector of floats, or None.
        normalize: Divide by the L2 norm first. If False, embeddings must have unit length already.

    Returns:
        Scores, float32 of shape (n,), NaN where there is an error; and for each row None or a reason: it is null, has
        the wrong length, contains a NaN, infinity or null, or (with `normalize`) its norm is zero.

    Examples:
        >>> from spark_aesthetic.predictors.head import untrained
        >>> score_embeddings(untrained(0, 2), [None, [1.0], [0.0, 0.0], [np.nan, 1.0]], normalize=True)[1]
        ['null', 'embedding: wrong length', 'embedding: zero norm', 'embedding: not finite']
    """
    matrix = np.zeros((len(vectors), head.dimension), dtype=np.float32)
    errors: list[str | None] = []
    # A number too large for float32 becomes infinite, as in Spark, and _size_error reports it.
    with np.errstate(over="ignore"):
        for row, vector in enumerate(vectors):
            if vector is None:
                errors.append(NULL)
                continue
            # A null inside an array arrives as None, which float32 turns into NaN.
            values = np.asarray(vector, dtype=np.float32)
            if values.shape != (head.dimension,):
                errors.append(WRONG_LENGTH)
                continue
            errors.append(None)
            matrix[row] = values
        norms = np.linalg.norm(matrix, axis=1)
    sizes = norms if normalize else np.abs(matrix).max(axis=1)
    errors = [error or _size_error(size, normalize) for error, size in zip(errors, sizes, strict=True)]
    good = np.array([error is None for error in errors], dtype=bool)
    unit = matrix[good] / norms[good, None] if normalize else matrix[good]
    scores = np.full(len(vectors), np.nan, dtype=np.float32)
    scores[good] = head(unit)
    return scores, errors


def _size_error(size: float, normalize: bool) -> str | None:
    if not np.isfinite(size):
        return NOT_FINITE
    return ZERO_NORM if normalize and size == 0 else None
