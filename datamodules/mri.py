"""MRI volumes."""

from __future__ import annotations

from typing import Any

from datamodules.segmentation import SegmentationData


class MRI(SegmentationData):
    """Magnetic resonance volumes: turned to RAS, intensities (which have no unit) normalised per volume.

    All arguments of :class:`SegmentationData`; only these defaults differ: ``patch`` 64 x 64 x 64,
    ``orientation`` RAS.
    """

    def __init__(
        self, root: str, patch: list[int] | None = None, orientation: str | None = "RAS", **kwargs: Any
    ) -> None:
        super().__init__(root, patch=patch or [64, 64, 64], orientation=orientation, **kwargs)
