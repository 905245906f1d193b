"""Radiographs."""

from __future__ import annotations

from typing import Any

from datamodules.segmentation import SegmentationData


class XRay(SegmentationData):
    """Radiographs (DICOM, PNG, JPEG, TIFF; 8 to 16 bits, colour pictures of gray ones): seen whole and gray.

    Films differ in size and exposure, so each is scaled to one size and its intensities to 0..1 by percentiles.

    All arguments of :class:`SegmentationData`; only these defaults differ: ``channels`` gray, ``long_side`` and
    ``patch`` 256, ``normalization`` percentile, ``foreground`` 0.
    """

    def __init__(
        self,
        root: str,
        channels: list[str] | None = None,
        patch: list[int] | None = None,
        long_side: int | None = 256,
        normalization: str = "percentile",
        foreground: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            root,
            channels=channels or ["gray"],
            patch=patch or [256, 256],
            long_side=long_side,
            normalization=normalization,
            foreground=foreground,
            **kwargs,
        )
