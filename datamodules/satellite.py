"""Satellite and aerial scenes."""

from __future__ import annotations

from typing import Any

from datamodules.segmentation import SegmentationData


class Satellite(SegmentationData):
    """Scenes and tiles of any size (GeoTIFF, or a file per band): windows are read from them as they are needed.

    Nothing is cut to disk. Bands are chosen and ordered by name, whatever the sensor calls them (``sensor``);
    intensities are scaled by the training scenes together, so that a tile looks the same wherever it lies.

    All arguments of :class:`SegmentationData`; only these defaults differ: ``patch`` 256 x 256,
    ``normalization`` dataset.
    """

    def __init__(
        self, root: str, patch: list[int] | None = None, normalization: str = "dataset", **kwargs: Any
    ) -> None:
        super().__init__(root, patch=patch or [256, 256], normalization=normalization, **kwargs)
