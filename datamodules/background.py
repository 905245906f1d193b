"""Windows that show nothing but background, which the network need not see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from datamodules.errors import DataError
from datamodules.streamed import StreamedImage

# Background that was resampled differs in its last digits from background that was not.
_SAME = 1e-4


class Background:
    """Knows a prepared image's background, and which windows hold nothing else: ``skip=Background(view)``.

    Background is, in each channel, the smallest value that the image has there: the zeros around a skull-stripped
    brain, the black collar of a scene, the air of a radiograph. A window is empty where in every channel all
    positions hold it, but for a ``share`` of them, which allows for specks. Air with noise in it is no background:
    its values differ.

    Args:
        view: ``(C, *S)`` as the network sees it: an array, or a :class:`StreamedImage`.
        share: of a window's positions, per channel, that may hold something else; from 0 to below 1.
        channels: how many of the channels count, the first ones: what is made of others (an index) has no background
            of its own. All when not given.

    Raises:
        DataError: the share is none.
    """

    def __init__(self, view: Any, share: float = 0.0, channels: int | None = None) -> None:
        if not 0 <= share < 1:
            raise DataError(f"share is {share}; it must be at least 0 and below 1")
        self.view = view
        self.share = share
        found = view.lowest() if isinstance(view, StreamedImage) else [channel.min() for channel in view]
        lowest = np.asarray(found[:channels], np.float32)
        self._above = lowest + _SAME * np.maximum(1, np.abs(lowest))

    def __call__(self, place: Sequence[slice]) -> bool:
        """Whether the window at ``place``, a slice per axis inside the image, is empty."""
        block = self.view[(slice(None), *place)]
        # Channel by channel: the first one that shows something answers for all.
        return all(
            np.count_nonzero(channel > above) <= self.share * channel.size
            for channel, above in zip(block[: len(self._above)], self._above, strict=True)
        )
