"""A chest as a radiograph shows it, made on the spot."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

from apps.viewer.samples.noise import field
from datamodules.classes import Classes

CLASSES = Classes(
    {
        "background": 0,
        "lungs": {"value": 1, "colour": "#56b4e9"},
        "heart": {"value": 2, "colour": "#d55e00"},
    }
)


def chest(seed: int, side: int = 512) -> tuple[np.ndarray, np.ndarray]:
    """Lungs, heart, ribs and spine, from the front: the patient's left is on the viewer's right.

    Args:
        seed: another one gives another chest.
        side: rows and columns.

    Returns:
        The image ``(side, side)`` uint8, bright where much is absorbed, and its labels ``(side, side)`` uint8.
    """
    random = np.random.default_rng(seed)
    down, across = np.meshgrid(*[np.linspace(-1, 1, side, dtype=np.float32)] * 2, indexing="ij")
    x = across + random.uniform(-0.04, 0.04) + 0.02 * field(random, across.shape, side / 3)
    y = down + random.uniform(-0.04, 0.04) + 0.02 * field(random, down.shape, side / 3)
    lungs = np.zeros(x.shape, dtype=bool)
    dome = random.uniform(0.44, 0.54)
    for at, bottom in ((-0.40, dome - 0.05), (0.40, dome)):
        # Narrow at the top, wide above the dome of the diaphragm.
        width = 0.29 * np.sqrt(np.clip((y + 0.80) / 0.75, 0, 1)) + 0.01
        floor = bottom - 0.55 * (x - at) ** 2 + 0.14 * np.abs(x) - 0.05
        lungs |= (np.abs(x - at * (0.93 + 0.12 * y)) < width) & (y > -0.78) & (y < floor)
    size = random.uniform(0.92, 1.1)
    turned = (x - 0.11) * 0.86 + (y - 0.24) * 0.5, (y - 0.24) * 0.86 - (x - 0.11) * 0.5
    heart = (turned[0] / (0.33 * size)) ** 2 + (turned[1] / (0.25 * size)) ** 2 < 1
    heart &= y < dome + 0.04
    labels = np.where(lungs, 1, 0).astype(np.uint8)
    labels[heart] = 2
    body = gaussian_filter(
        ((np.abs(x) / 0.95) ** 4 + (np.clip(y, -9, 0.0) / 1.25) ** 4 < 1).astype(np.float32), side / 80
    )
    air = gaussian_filter(lungs.astype(np.float32), side / 110)
    absorbed = 0.60 * body - 0.36 * air + 0.15 * heart + 0.10 * body * (y > dome)
    absorbed += 0.13 * (np.abs(x) < 0.075 + 0.01 * np.cos(y * 55)) * (0.75 + 0.25 * np.cos(y * 55))
    absorbed += 0.24 * np.exp(-(((y + 0.95) / 0.18) ** 2)) * np.clip((np.abs(x) - 0.3) / 0.3, 0, 1) * body
    for rib in range(9):
        middle = -0.72 + 0.155 * rib
        curve = y - middle - 0.42 * (np.abs(x) - 0.42) ** 2 * (1 if rib < 6 else 0.6) + 0.20 * np.abs(x)
        absorbed += 0.075 * np.exp(-((curve / 0.021) ** 2)) * (np.abs(x) > 0.08) * (np.abs(x) < 0.80)
    for clavicle in (-1, 1):
        line = y + 0.72 - 0.16 * (x * clavicle - 0.1)
        absorbed += 0.10 * np.exp(-((line / 0.024) ** 2)) * (x * clavicle > 0.06) * (x * clavicle < 0.72)
    vessels = np.abs(field(random, x.shape, side / 28))
    absorbed += 0.05 * lungs * np.exp(-vessels * 2.2) * np.exp(-(((np.abs(x) - 0.15) / 0.3) ** 2))
    absorbed = gaussian_filter(absorbed, side / 200) * (1 + 0.05 * field(random, x.shape, side / 2))
    absorbed += 0.018 * random.standard_normal(x.shape)
    gain = random.uniform(0.9, 1.1)
    return (absorbed * 255 * gain + 18).clip(0, 255).astype(np.uint8), labels
