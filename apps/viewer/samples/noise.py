"""Smooth random fields: what makes generated images look grown rather than drawn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import gaussian_filter, zoom


def field(random: np.random.Generator, shape: Sequence[int], length: float) -> np.ndarray:
    """``(*S)`` float32 of mean 0 and deviation 1 that changes over about ``length`` elements."""
    # Long waves are made small and enlarged: a wide filter on a whole volume takes seconds.
    step = max(1, int(length // 3))
    small = [-(-n // step) + 2 for n in shape]
    values = gaussian_filter(random.standard_normal(small).astype(np.float32), length / step / 2)
    if step > 1:
        values = zoom(values, step, order=1)
    values = values[tuple(slice(0, n) for n in shape)]
    return np.asarray((values - values.mean()) / max(float(values.std()), 1e-6), dtype=np.float32)
