"""What a network's attention looks at in a whole image: maps on the image's grid, and a picture of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor, nn

from datamodules.atomic import atomic_path
from datamodules.geometry import Geometry, reorient_array
from datamodules.image import Image
from models.attention_maps import recorded_attention
from models.layers import resize

_COLUMNS = 4
_COLOUR = ("red", "green", "blue")


class AttentionRecorder:
    """Runs a network on windows, and gives out what its blocks weight there: called as ``(B, C, *S) -> (B, M, *S)``.

    Args:
        network: the one that is run.
        run: runs it on windows; what it returns is not looked at.
    """

    def __init__(self, network: nn.Module, run: Callable[[Tensor], object]) -> None:
        self.names: tuple[str, ...] = ()
        self._network = network
        self._run = run
        self._channels: dict[str, list[Tensor]] = {}

    def __call__(self, patches: Tensor) -> Tensor:
        """The maps of the blocks in ``names``, at the windows' size."""
        with recorded_attention(self._network) as maps:
            self._run(patches)
        spatial = {n: m.float().mean(1, keepdim=True) for n, m in maps.items() if m[0, 0].numel() > 1}
        for name, weights in maps.items():
            if name not in spatial and weights.shape[1] > 1:
                self._channels.setdefault(name, []).extend(weights.flatten(1).float().cpu())
        self.names = tuple(spatial)
        size = patches.shape[2:]
        return torch.cat([resize(m, size) for m in spatial.values()] or [patches[:, :0]], dim=1)

    @property
    def channels(self) -> dict[str, np.ndarray]:
        """Name of a block that weights channels -> its weights ``(C,)``, averaged over the windows so far."""
        return {name: torch.stack(rows).mean(0).numpy() for name, rows in self._channels.items()}


@dataclass(frozen=True)
class AttentionOfImage:
    """The attention of a network over one image.

    Attributes:
        names: of the blocks that weight positions, as ``maps`` holds them.
        maps: ``(M, *S)`` float32, on the image's grid; weights per channel and position are averaged over channels.
        channels: name of a block that weights channels ``->`` its weights ``(C,)``, averaged over windows.
        geometry: the image's.
        image: what was looked at.
    """

    names: tuple[str, ...]
    maps: np.ndarray
    channels: dict[str, np.ndarray]
    geometry: Geometry
    image: Image

    def save(self, path: str | Path) -> None:
        """Write ``.npz`` with ``names``, ``maps`` (float16) and ``channels/NAME``, atomically."""
        arrays: dict[str, Any] = {f"channels/{name}": weights for name, weights in self.channels.items()}
        with atomic_path(path) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(
                stream, names=np.array(self.names), maps=self.maps.astype(np.float16), **arrays
            )

    def save_picture(self, path: str | Path, mask: np.ndarray | None = None) -> None:
        """Write a PNG: the image, each map over it, and bars for blocks that weight channels.

        Volumes are shown in the axial slice with most of ``mask``, radiologically, in true proportions.

        Args:
            path: the file.
            mask: ``(*S)`` or ``(K, *S)``, what the network drew; the middle is shown without it.
        """
        with atomic_path(path) as temporary:
            FigureCanvasAgg(self._figure(mask)).print_png(str(temporary))

    def _figure(self, mask: np.ndarray | None) -> Figure:
        image, maps, aspect, where = self._slice(mask)
        panels = 1 + len(self.names) + len(self.channels)
        rows, columns = math.ceil(panels / _COLUMNS), min(panels, _COLUMNS)
        height = 3.0 * min(1.6, max(0.6, image.shape[0] * aspect / image.shape[1]))
        figure = Figure(figsize=(3.0 * columns, (height + 0.5) * rows), dpi=120, layout="constrained")
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for spare in axes:
            spare.axis("off")
        axes[0].imshow(image, cmap="gray", aspect=aspect)
        axes[0].set_title(f"image{where}", fontsize=8)
        for axis, name, weights in zip(axes[1:], self.names, maps, strict=False):
            low, high = np.percentile(weights, (1, 99))
            axis.imshow(image, cmap="gray", aspect=aspect)
            axis.imshow(
                weights, cmap="inferno", aspect=aspect, alpha=0.6, vmin=low, vmax=max(high, low + 1e-6)
            )
            axis.set_title(f"{name}\n{low:.3g} (dark) to {high:.3g} (bright)", fontsize=8)
        for axis, (name, weights) in zip(axes[1 + len(self.names) :], self.channels.items(), strict=False):
            axis.axis("on")
            axis.bar(range(len(weights)), weights, width=1.0, color="#0072b2")
            axis.set_title(f"{name}\nweight of each channel", fontsize=8)
            axis.tick_params(labelsize=7)
            axis.spines[["top", "right"]].set_visible(False)
        return figure

    def _slice(self, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, float, str]:
        """``(rows, columns)`` or RGB, ``(M, rows, columns)``, the height of an element over its width, and where."""
        bands = self.image.channels
        colour = set(_COLOUR) <= set(bands)
        image = self.image.read()[[bands.index(name) for name in _COLOUR] if colour else [0]].astype(
            np.float32
        )
        low, high = np.nanpercentile(image[:, :: max(1, image.shape[1] // 512)], (1, 99))
        image = np.nan_to_num(np.clip((image - low) / max(high - low, 1e-6), 0, 1))
        maps, grid, where = self.maps, self.geometry, ""
        if grid.ndim == 3:
            turn = grid.orientation_to("RAS")
            drawn = np.zeros((1, *grid.shape), bool) if mask is None else mask.reshape(-1, *grid.shape) > 0
            area = reorient_array(drawn, turn).any(0).sum((0, 1))
            index = int(area.argmax()) if area.any() else len(area) // 2
            image, maps = (
                np.flip(reorient_array(a, turn)[..., index].swapaxes(1, 2), (1, 2)) for a in (image, maps)
            )
            grid = grid.reorient(turn)
            spacing, where = (grid.spacing[1], grid.spacing[0]), f", axial slice {index} (from below)"
        else:
            spacing = (grid.spacing[0], grid.spacing[1])
        shown = np.moveaxis(image, 0, -1) if colour else image[0]
        return shown, maps, spacing[0] / spacing[1], where
