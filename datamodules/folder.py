"""Pictures with masks."""

from __future__ import annotations

from typing import Any

from datamodules.segmentation import SegmentationData


class Folder(SegmentationData):
    """Any folder of pictures and masks (PNG, JPEG, TIFF), intensities from 0 to 1 by percentiles.

    All arguments of :class:`SegmentationData`; only these defaults differ: ``patch`` 256 x 256,
    ``normalization`` percentile.
    """

    def __init__(
        self, root: str, patch: list[int] | None = None, normalization: str = "percentile", **kwargs: Any
    ) -> None:
        super().__init__(root, patch=patch or [256, 256], normalization=normalization, **kwargs)
