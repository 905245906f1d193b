"""Which values are shown from black to white."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Window:
    """Values from ``level - width / 2`` (black) to ``level + width / 2`` (white), in units of the image."""

    width: float
    level: float

    @property
    def low(self) -> float:
        """The highest value that is black."""
        return self.level - self.width / 2

    @property
    def high(self) -> float:
        """The lowest value that is white."""
        return self.level + self.width / 2


# In HU. Used by eye in every reading room; vendors differ by a little.
CT_PRESETS = {
    "CT abdomen": Window(400, 40),
    "CT lung": Window(1500, -600),
    "CT bone": Window(1800, 400),
    "CT brain": Window(80, 40),
}


def auto_window(values: np.ndarray, low: float = 1, high: float = 99) -> Window:
    """From the first to the 99th percentile of ``values``, any shape; NaN and infinities do not count."""
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    if not finite.size:
        return Window(1.0, 0.5)
    bottom, top = (float(p) for p in np.percentile(finite, (low, high)))
    if top <= bottom:  # nearly everything is one value: what differs from it is worth seeing
        bottom, top = float(finite.min()), float(finite.max())
    return Window(top - bottom, (top + bottom) / 2) if top > bottom else Window(1.0, bottom)


def looks_like_ct(values: np.ndarray) -> bool:
    """Whether values are probably HU: air near -1000 is common, and soft tissue lies just above 0."""
    if values.dtype.kind == "u" or not values.size:
        return False
    air = np.mean((values <= -800) & (values >= -4096))
    tissue = np.mean((values > -200) & (values < 200))
    return bool(air > 0.02 and tissue > 0.02 and values.max() < 32000)


def to_gray(values: np.ndarray, window: Window) -> np.ndarray:
    """Any shape -> the same shape of uint8; NaN is black."""
    width = max(window.width, 1e-12)
    scaled = (values.astype(np.float64) - window.low) * (255.0 / width)
    return np.nan_to_num(scaled, nan=0.0, posinf=255.0, neginf=0.0).clip(0, 255).round().astype(np.uint8)
