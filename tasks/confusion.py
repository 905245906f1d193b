"""Which class was taken for which."""

from __future__ import annotations

import numpy as np

from datamodules.classes import IGNORE

_PIECE = 2**22


def confusion(
    prediction: np.ndarray, reference: np.ndarray, num_classes: int, exclusive: bool = True
) -> np.ndarray:
    """Count the elements of one case; positions where the reference is ``IGNORE`` are left out.

    Args:
        prediction: ``(*S)`` class indices; ``(K, *S)`` of 0 and 1 where classes overlap.
        reference: the same shape.
        num_classes: K.
        exclusive: each position has one class.

    Returns:
        ``(K, K)`` int64, a row per reference class, a column per predicted one. Where classes overlap,
        ``(K, 2, 2)``: for each class absent and present, rows and columns as before.
    """
    if exclusive:
        return _square(prediction, reference, num_classes)
    return np.stack([_square(p, r, 2) for p, r in zip(prediction, reference, strict=True)])


def row_shares(matrix: np.ndarray) -> np.ndarray:
    """Each row divided by its sum: of the reference class, how much was drawn as each. NaN in empty rows."""
    total = matrix.sum(axis=-1, keepdims=True)
    return np.divide(matrix, total, out=np.full(matrix.shape, np.nan), where=total > 0)


def _square(prediction: np.ndarray, reference: np.ndarray, size: int) -> np.ndarray:
    drawn, true = prediction.ravel(), reference.ravel()
    found = np.zeros(size * size, dtype=np.int64)
    # In pieces: the cell of every element of a large scene at once would take many times its memory.
    for start in range(0, true.size, _PIECE):
        p, r = drawn[start : start + _PIECE], true[start : start + _PIECE]
        known = r != IGNORE
        found += np.bincount(r[known].astype(np.int64) * size + p[known], minlength=size * size)
    return found.reshape(size, size)
