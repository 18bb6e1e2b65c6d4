"""Fit ridge regressions from sums, so that one pass over the rows serves all folds and penalties. Needs only NumPy.

For a row with embedding x (d numbers) and rating y, let z = (x, 1, y). Least squares needs only S, the sum of the outer
products of z with itself, a square matrix of d + 2 rows: the squared error of v = (weights, bias, -1) is v' S v.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class CrossValidated:
    """A ridge regression with a penalty chosen by cross-validation.

    Attributes:
        reg_param: The penalty with the lowest squared error on held-out rows.
        solution: Weights and bias fitted to all rows, float64 of shape (d + 1,).
        by_fold: For each fold, the solution fitted to the other folds, float64 of shape (folds, d + 1).
    """

    reg_param: float
    solution: Doubles
    by_fold: Doubles


def squares(embeddings: Doubles, ratings: Doubles) -> Doubles:
    """Return the sum S of the outer products of the rows (see the module).

    Args:
        embeddings: float64 of shape (n, d).
        ratings: float64 of shape (n,).

    Returns:
        float64 of shape (d + 2, d + 2). Its cell (d, d) is the number of rows.
    """
    z = np.column_stack([embeddings, np.ones(len(ratings)), ratings])
    sums: Doubles = z.T @ z
    return sums


def solve(sums: Doubles, reg_params: Sequence[float]) -> Doubles:
    """Minimise the mean of (y - w . x - b)^2 plus a penalty times w . w; the bias has no penalty.

    The result is that of Spark's LinearRegression with this regParam and without standardization, and of
    scikit-learn's Ridge with alpha = reg_param * rows.

    Args:
        sums: Sums from `squares`, of at least one row.
        reg_params: Penalties above zero.

    Returns:
        Weights and bias for each penalty, float64 of shape (penalties, d + 1).

    Examples:
        >>> x = np.array([[0.0], [1.0], [2.0]])
        >>> solve(squares(x, np.array([1.0, 3.0, 5.0])), [1e-12]).round(6)
        array([[2., 1.]])
    """
    d, rows = len(sums) - 2, sums[-2, -2]
    mean, mean_rating = sums[:d, d] / rows, sums[d + 1, d] / rows
    # One eigendecomposition serves all penalties.
    spread, directions = np.linalg.eigh(sums[:d, :d] / rows - np.outer(mean, mean))
    along = directions.T @ (sums[:d, d + 1] / rows - mean * mean_rating)
    # Rounding can make the eigenvalues of a singular matrix slightly negative.
    weights = (along / (np.maximum(spread, 0) + np.asarray(reg_params)[:, None])) @ directions.T
    return np.column_stack([weights, mean_rating - weights @ mean])


def squared_error(sums: Doubles, solutions: Doubles) -> Doubles:
    """Return the sum of squared errors of each solution on the rows behind `sums`, float64 of shape (solutions,)."""
    v = np.column_stack([solutions, np.full(len(solutions), -1.0)])
    errors: Doubles = np.einsum("si,si->s", v @ sums, v)
    return errors


def cross_validate(folds: Doubles, reg_params: Sequence[float]) -> CrossValidated:
    """Choose a penalty by cross-validation from the sums of the folds.

    Args:
        folds: Sums from `squares` for each fold, float64 of shape (folds, d + 2, d + 2); every fold has rows.
        reg_params: Penalties above zero.
    """
    whole = folds.sum(axis=0)
    by_fold = np.stack([solve(whole - fold, reg_params) for fold in folds])
    errors = sum(squared_error(fold, tried) for fold, tried in zip(folds, by_fold, strict=True))
    best = int(np.argmin(errors))
    return CrossValidated(
        reg_param=reg_params[best], solution=solve(whole, reg_params[best : best + 1])[0], by_fold=by_fold[:, best]
    )
