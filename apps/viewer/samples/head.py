"""A head as a T1-weighted scan shows it after the skull was removed, made on the spot."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

from apps.viewer.samples.noise import field
from datamodules.classes import Classes

CLASSES = Classes(
    {
        "background": 0,
        "csf": {"value": 1, "colour": "#56b4e9"},
        "grey matter": {"value": 2, "colour": "#e69f00"},
        "white matter": {"value": 3, "colour": "#009e73"},
    }
)
# Brightness of each class, as in T1: CSF dark, white matter bright.
_BRIGHTNESS = np.array([0.0, 72.0, 148.0, 206.0], dtype=np.float32)


def head(
    seed: int, shape: tuple[int, int, int] = (120, 144, 112), spacing: float = 1.5
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A brain with folds and ventricles.

    Args:
        seed: another one gives another brain.
        shape: voxels towards right, anterior and superior.
        spacing: millimetres.

    Returns:
        The image ``(*S)`` uint8, its labels ``(*S)`` uint8, and the affine to RAS+ mm.
    """
    random = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n, dtype=np.float32) for n in shape], indexing="ij")
    wide = 0.80 + random.uniform(-0.03, 0.03)
    # Flat below, and with a gap between the halves.
    radius = np.sqrt((x / wide) ** 2 + (y / 0.86) ** 2 + (z / np.where(z < 0, 0.66, 0.82)) ** 2)
    radius += 0.035 * field(random, shape, 40)
    folds = field(random, shape, 6)
    fine = field(random, shape, 3.5)
    gap = np.exp(-((x / 0.018) ** 2)) * (radius > 0.45) * (z > -0.2)
    brain = radius < 1
    depth = radius + 0.075 * folds + 0.025 * fine
    labels = np.where(brain, 2, 0).astype(np.uint8)
    labels[brain & (depth < 0.78)] = 3
    labels[brain & ((radius > 0.93) | ((radius > 0.74) & (folds > 1.15)) | (gap > 0.5))] = 1
    for side in (-1, 1):
        lobe = ((x - side * 0.10) / 0.07) ** 2 + ((y + 0.02) / 0.34) ** 2 + ((z - 0.12) / 0.13) ** 2
        labels[(lobe + 0.1 * folds) < 1] = 1
        nucleus = ((x - side * 0.22) / 0.10) ** 2 + ((y - 0.05) / 0.22) ** 2 + ((z - 0.02) / 0.14) ** 2
        labels[((nucleus + 0.08 * fine) < 1) & (labels != 1)] = 2
    image = _BRIGHTNESS[labels]
    image = gaussian_filter(image, 0.7)
    image *= 1 + 0.04 * field(random, shape, 70)
    image += np.where(labels > 0, 5.0, 1.5) * random.standard_normal(shape).astype(np.float32)
    image[labels == 0] *= 0.6
    affine = np.diag([spacing] * 3 + [1.0])
    affine[:3, 3] = -spacing * (np.array(shape) - 1) / 2
    return image.clip(0, 255).astype(np.uint8), labels, affine
