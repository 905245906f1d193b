"""A trained model, ready for images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datamodules.classes import Classes
from datamodules.geometry import Geometry
from datamodules.image import Crop, Image
from datamodules.open import open_image, open_mask_writer, save_mask
from datamodules.streamed import network_view
from datamodules.tiler import Block, Tiler
from models.attention_maps import recorded_attention
from models.layers import resize
from models.memory_format import channels_last, channels_last_weights
from tasks.attention_pictures import AttentionOfImage
from tasks.calibration import apply_temperature
from tasks.model_file import Description, load_model


@dataclass(frozen=True)
class Prediction:
    """What a model says about one image, on the image's own grid.

    Attributes:
        mask: ``(*S)`` class values as they stand in mask files; ``(K, *S)`` of 0 and 1 where classes overlap.
        classes: what the values mean.
        geometry: where the mask lies; the image's own.
        image: the image that was segmented.
        probabilities: ``(K, *S)`` float32, where they were asked for.
    """

    mask: np.ndarray
    classes: Classes
    geometry: Geometry
    image: Image
    probabilities: np.ndarray | None = None

    def save(self, path: str | Path) -> None:
        """Write the mask in the image's geometry; the suffix chooses the format."""
        save_mask(path, self.mask, self.image, self.classes)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.mask, dtype=dtype)


class Predictor:
    """Prepares an image as in training, runs the network in tiles, and brings the result back to its grid.

    Args:
        network: a segmenter in evaluation mode.
        description: what its model file says.
        device: where to run; a GPU where there is one, when not given.
        overlap: share by which windows overlap; the model file's when not given.
        window_batch: windows per forward pass; by their size when not given.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        description: Description,
        device: str | None = None,
        overlap: float | None = None,
        window_batch: int | None = None,
    ) -> None:
        self.description = description
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        channels_last_weights(network)
        self.network = network.to(self.device).eval()
        tiling = dict(description.tiling)
        if overlap is not None:
            tiling["overlap"] = overlap
        self.tiler = Tiler(description.patch, batch_size=window_batch, **tiling)

    @property
    def classes(self) -> Classes:
        """What the values of masks mean."""
        return self.description.classes

    def predict(
        self,
        image: str | Path | Sequence[str | Path] | Image,
        probabilities: bool = False,
        progress: Callable[[float], None] | None = None,
        region: Sequence[slice] | None = None,
    ) -> Prediction:
        """Segment one image.

        Args:
            image: a path, several paths (one per channel), or an opened image; any size, any orientation.
            probabilities: also return them, on the image's grid, calibrated where the model file has a temperature.
                They are whole in memory.
            progress: called with the share done, from 0 to 1.
            region: only this part of the image's grid, a slice per axis; as the whole image has it there.

        Raises:
            DataError: the image cannot be read, or its channels are not the model's.
        """
        opened = image if isinstance(image, Image) else open_image(image)
        wanted = _bounds(region, opened.geometry.shape)
        size = [w.stop - w.start for w in wanted]
        maps = (len(self.classes),)
        mask = np.zeros(
            size if self.classes.exclusive else (*maps, *size), dtype=self._decide(np.zeros((*maps, 1))).dtype
        )
        kept = np.zeros((*maps, *size), dtype=np.float32) if probabilities else None
        for place, scores in self._scores(opened, progress, region):
            inside: tuple[Any, ...] = tuple(
                slice(p.start - w.start, p.stop - w.start) for p, w in zip(place, wanted, strict=True)
            )
            mask[(Ellipsis, *inside)] = self._decide(scores)
            if kept is not None:
                kept[(Ellipsis, *inside)] = self._calibrated(scores)
        where = opened.geometry if region is None else opened.geometry.crop([w.start for w in wanted], size)
        seen = opened if region is None else Crop(opened, wanted)
        return Prediction(mask, self.classes, where, seen, kept)

    def draw(
        self,
        image: str | Path | Sequence[str | Path] | Image,
        path: str | Path,
        progress: Callable[[float], None] | None = None,
    ) -> Image:
        """Segment one image into a file, block by block: for GeoTIFF nothing is ever whole in memory.

        Args:
            image: as for :meth:`predict`.
            path: the mask; the suffix chooses the format. It appears whole or not at all.
            progress: called with the share done, from 0 to 1.

        Returns:
            The image, opened.

        Raises:
            DataError: the image cannot be read, its channels are not the model's, or the mask cannot be written.
        """
        opened = image if isinstance(image, Image) else open_image(image)
        with open_mask_writer(path, opened, self.classes) as writer:
            for place, scores in self._scores(opened, progress):
                writer.write(place, self._decide(scores))
        return opened

    def _scores(
        self, image: Image, progress: Callable[[float], None] | None, region: Sequence[slice] | None = None
    ) -> Iterator[Block]:
        """Places on the image's own grid with the scores there, ``(K, *place)``."""
        preprocessing = self.description.preprocessing
        function = partial(self._probabilities, present=torch.from_numpy(preprocessing.present(image)))
        view = network_view(image, preprocessing)
        if not preprocessing.resamples(image.geometry):
            grid, straight = image.geometry, preprocessing.keeps_grid(image.geometry)
            # Where the image holds nothing there is nothing to look at.
            skip = (lambda place: not image.valid(place).any()) if image.may_lack and straight else None
            asked = None if region is None else preprocessing.turned(_bounds(region, grid.shape), grid)
            for place, scores in self.tiler.stream(function, view, progress, region=asked, skip=skip):
                yield preprocessing.restore_block(place, scores, grid)
            return
        # On a grid of the network's own the scores are whole, and are brought back whole.
        scores = preprocessing.restore(self.tiler.run(function, view, progress), image.geometry)
        place = _bounds(region, scores.shape[1:])
        yield place, scores[(slice(None), *place)]

    def attention(self, image: str | Path | Sequence[str | Path] | Image) -> AttentionOfImage:
        """What each attention block and gate of the network weights in one image.

        The windows' maps are blended as masks are. Holds a map of the image's size per block.

        Args:
            image: as for :meth:`predict`.

        Raises:
            DataError: the image cannot be read, or its channels are not the model's.
        """
        opened = image if isinstance(image, Image) else open_image(image)
        preprocessing = self.description.preprocessing
        present = torch.from_numpy(preprocessing.present(opened))
        names: list[str] = []
        channels: dict[str, list[torch.Tensor]] = {}

        def look(patches: torch.Tensor) -> torch.Tensor:
            with recorded_attention(self.network) as maps:
                self._probabilities(patches, present)
            spatial = {n: m.float().mean(1, keepdim=True) for n, m in maps.items() if m[0, 0].numel() > 1}
            for name, weights in maps.items():
                if name not in spatial and weights.shape[1] > 1:
                    channels.setdefault(name, []).extend(weights.flatten(1).float().cpu())
            names[:] = spatial
            size = patches.shape[2:]
            return torch.cat([resize(m, size) for m in spatial.values()] or [patches[:, :0]], dim=1)

        maps = self.tiler.run(look, network_view(opened, preprocessing))
        return AttentionOfImage(
            names=tuple(names),
            maps=preprocessing.restore(maps, opened.geometry) if names else maps,
            channels={name: torch.stack(rows).mean(0).numpy() for name, rows in channels.items()},
            geometry=opened.geometry,
            image=opened,
        )

    @torch.inference_mode()
    def _probabilities(self, patches: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        inputs = self.description.patch.inputs(present).to(self.device).expand(len(patches), -1)
        # Nothing is said where nothing is missing: masks cost time.
        told = None if present.all() else inputs
        logits = self.network(channels_last(patches.to(self.device)), present=told).logits
        return logits.softmax(1) if self.classes.exclusive else logits.sigmoid()

    def _decide(self, scores: np.ndarray) -> np.ndarray:
        """Probabilities to values: the most probable class; of overlapping classes, each one over one half."""
        if not self.classes.exclusive:
            return (scores > 0.5).astype(np.uint8)
        if len(scores) == 2:
            return self.classes.to_value((scores[1] > scores[0]).view(np.uint8))
        # max returns indices ten times faster than argmax does here.
        return self.classes.to_value(torch.from_numpy(scores).max(0).indices.numpy())

    def _calibrated(self, scores: np.ndarray) -> np.ndarray:
        # The mask is decided before: a temperature changes probabilities, never which class is drawn.
        calibration = self.description.calibration or {}
        return apply_temperature(scores, calibration.get("temperature", 1.0), self.classes.exclusive)


def _bounds(region: Sequence[slice] | None, shape: Sequence[int]) -> tuple[slice, ...]:
    """A region's bounds as numbers; the whole image where none is given."""
    return tuple(
        slice(*s.indices(n)) for s, n in zip(region or [slice(None)] * len(shape), shape, strict=True)
    )


def load(
    path: str | Path, device: str | None = None, trust: bool = False, overlap: float | None = None
) -> Predictor:
    """Load a ``model.safetensors`` and return a ready predictor: ``load(path).predict("scan.nii.gz").mask``.

    Raises:
        ModelFileError: the file cannot be used.
    """
    network, description = load_model(path, trust)
    return Predictor(network, description, device, overlap)
