"""Which class stands where, of maps of scores."""

from __future__ import annotations

import numpy as np

# Positions at a time: what is compared stays in the processor's cache.
_POSITIONS = 2**15


def strongest(scores: np.ndarray) -> np.ndarray:
    """The index of the largest of K maps at each position; the first of equals.

    One pass of comparisons over whole rows: many times faster than argmax over the first axis, whose inner loop runs
    across memory.

    Args:
        scores: ``(K, *S)``, no NaN, K up to 255.

    Returns:
        ``(*S)`` uint8.
    """
    count = len(scores)
    if not 1 <= count <= 255:
        raise ValueError(f"{count} maps; 1 to 255 can be told apart")
    if count == 2:
        return np.asarray(np.greater(scores[1], scores[0])).view(np.uint8)
    index = np.zeros(scores.shape[1:], np.uint8)
    if index.ndim == 0:
        return np.asarray(scores.argmax(0), np.uint8)
    step = max(1, _POSITIONS // max(1, index[:1].size))
    for start in range(0, len(index), step):
        part, found = scores[:, start : start + step], index[start : start + step]
        best = part[0].copy()
        higher = np.empty(best.shape, bool)
        marked = np.empty(best.shape, np.uint8)
        for number in range(1, count):
            np.greater(part[number], best, out=higher)
            np.maximum(best, part[number], out=best)
            # Numbers rise, so the larger of two is the later one: no branch, no gather.
            np.multiply(higher.view(np.uint8), np.uint8(number), out=marked)
            np.maximum(found, marked, out=found)
    return index
