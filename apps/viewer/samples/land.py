"""A piece of land as a satellite shows it in four bands, made on the spot."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import binary_dilation, gaussian_filter
from scipy.spatial import cKDTree

from apps.viewer.samples.noise import field
from datamodules.classes import Classes

CLASSES = Classes(
    {
        "open land": 0,
        "water": {"value": 1, "colour": "#56b4e9"},
        "forest": {"value": 2, "colour": "#009e73"},
        "buildings": {"value": 3, "colour": "#d55e00"},
    }
)
# Sentinel-2's names; reflectance is a ten-thousandth of the number.
BANDS = ("B02", "B03", "B04", "B08")
SPACING = 10.0
NODATA = 0
_WATER, _FOREST, _ROOF, _ROAD = (
    np.array(v, np.float32)
    for v in ((560, 520, 330, 180), (330, 470, 300, 2700), (1750, 1850, 2000, 2350), (1150, 1200, 1250, 1500))
)
# From bare soil to a dense crop.
_FIELDS = np.array(
    [(980, 1230, 1560, 2250), (620, 900, 720, 3600), (520, 860, 480, 4300), (860, 1120, 1250, 2700)],
    np.float32,
)


def land(seed: int, side: int = 640, edge: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Fields, woods, a river and a village.

    Args:
        seed: another one gives another land.
        side: rows and columns of 10 m.
        edge: cut a corner off, as the edge of a swath does.

    Returns:
        The bands ``(4, side, side)`` uint16, and labels ``(side, side)`` uint8.
    """
    random = np.random.default_rng(seed)
    shape = (side, side)
    y, x = np.meshgrid(*[np.arange(side, dtype=np.float32)] * 2, indexing="ij")
    # Parcels: the nearest of many points, in coordinates that are turned and stretched, as fields are.
    turn = random.uniform(0, np.pi)
    along, across = x * np.cos(turn) + y * np.sin(turn), (y * np.cos(turn) - x * np.sin(turn)) * 2.2
    count = max(20, side * side // 1500)
    points = random.uniform(-2.4 * side, 2.4 * side, (count * 12, 2))
    parcel = cKDTree(points).query(np.stack([along, across], -1).reshape(-1, 2))[1].reshape(shape)
    mixes = random.dirichlet(np.full(len(_FIELDS), 0.35), len(points)).astype(np.float32)
    bands = (mixes @ _FIELDS)[parcel]
    bands *= (1 + 0.05 * np.sin(across * 2.1) * random.uniform(0.3, 1, len(points))[parcel])[..., None]
    labels = np.zeros(shape, np.uint8)
    woods = field(random, shape, 60) + 0.35 * field(random, shape, 12)
    labels[woods > 0.95] = 2
    middle = side * random.uniform(0.3, 0.7) + 0.13 * side * np.sin(x / side * 6 + random.uniform(0, 6))
    river = np.abs(y - middle - 8 * field(random, shape, 50)) < 5 + 2 * field(random, shape, 90)
    lake = field(random, shape, 90) > 2.1
    # A village where two roads cross.
    centre = random.uniform(0.25, 0.75, 2) * side
    roads = (np.abs((y - centre[0]) - 0.35 * (x - centre[1])) < 1.6) | (
        np.abs((x - centre[1]) + 0.5 * (y - centre[0])) < 1.6
    )
    roofs = np.zeros(shape, bool)
    for _ in range(90):
        row, column = (random.normal(centre, side * 0.07)).astype(int)
        height, width = random.integers(3, 9, 2)
        roofs[max(0, row) : max(0, row + height), max(0, column) : max(0, column + width)] = True
    roofs &= ~binary_dilation(roads, iterations=1)
    labels[roads & (labels == 2)] = 0
    bands[roads] = _ROAD
    labels[roofs] = 3
    labels[river | lake] = 1
    for value, spectrum in ((2, _FOREST), (3, _ROOF), (1, _WATER)):
        bands[labels == value] = spectrum
    texture = np.where(labels == 2, 0.16, np.where(labels == 1, 0.03, 0.05))
    bands *= (1 + texture * field(random, shape, 2.5))[..., None]
    bands *= (1 + np.where(labels == 3, 0.22, 0.0) * field(random, shape, 4))[..., None]
    bands = gaussian_filter(bands, (0.6, 0.6, 0)) + 18 * random.standard_normal(bands.shape)
    found = np.moveaxis(bands, -1, 0).clip(1, 10000).astype(np.uint16)
    if edge:
        beyond = x - 0.22 * y > 0.93 * side
        found[:, beyond] = NODATA
        labels[beyond] = 0
    return found, labels
