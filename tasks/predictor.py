"""A trained model, or several that answer as one, ready for images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datamodules.background import Background
from datamodules.classes import Classes
from datamodules.errors import DataError
from datamodules.image import Crop, Image, Window
from datamodules.open import open_image, open_map_writer, open_mask_writer
from datamodules.streamed import held, network_view
from datamodules.tiler import Block, PatchFunction
from models.fast import FastNetwork
from models.memory_format import channels_last, channels_last_weights
from tasks.attention_pictures import AttentionOfImage, AttentionRecorder
from tasks.ensemble import SideBySide, check_alike, preparations
from tasks.logits import check_threshold, decided, joined, probabilities_of, unseen_logits
from tasks.maps import MAPS
from tasks.model_file import Description, ModelFileError
from tasks.networks import is_exported, load_network
from tasks.prompting.answers import is_promptable_network
from tasks.segmented import Prediction
from tasks.windows import Windows


class Predictor:
    """Prepares an image as in training, runs the network in windows, and brings the result back to its grid.

    Args:
        network: a segmenter in evaluation mode.
        description: what its model file says.
        device: where to run; a GPU where there is one, when not given.
        windows: how windows are laid, where that is not as the description says.
        others: more networks with their descriptions, of the same classes, windows and channels. Each sees the image
            as its own description prepares it. Its probabilities are by its own temperature, and the mean of all
            counts, window by window: one pass over the image.
        fast: run the networks as :class:`~models.fast.FastNetwork` does: answers are nearly the same.
        threshold: the (calibrated) probability from which on foreground is drawn, as
            :func:`tasks.logits.masks_at` does it; the strongest class is drawn when not given.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        description: Description,
        device: str | None = None,
        windows: Windows | None = None,
        others: Sequence[tuple[torch.nn.Module, Description]] = (),
        fast: bool = False,
        threshold: float | None = None,
    ) -> None:
        if threshold is not None:
            check_threshold((threshold,), description.classes)
        self.threshold = threshold
        self.description = description
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.windows = windows or Windows()
        self.tiler = self.windows.tiler(description)
        members = [(network, description), *others]
        for member, _ in members:
            channels_last_weights(member)
        self.networks = [member.to(self.device).eval() for member, _ in members]
        self._running = [FastNetwork(member) if fast else member for member in self.networks]
        self.preparations, self._prepared = preparations([said for _, said in members])
        temperatures = [(said.calibration or {}).get("temperature", 1.0) for _, said in members]
        # One network's windows are blended first, since its temperature was fitted to what is blended. Of several,
        # one that is too sure of itself would outvote the others: theirs come before the mean.
        self._temperatures = temperatures if others else [1.0]
        self._temperature = 1.0 if others else temperatures[0]

    @property
    def network(self) -> torch.nn.Module:
        """The network; of several the first."""
        return self.networks[0]

    @property
    def notes(self) -> list[str]:
        """What ``fast`` made use of and what it left out, known after the first window; empty without it."""
        return [
            note
            for network in self._running
            if isinstance(network, FastNetwork)
            for note in (*network.used, *network.notes)
        ]

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
            DataError: the image cannot be read, its channels are not the model's, or the region is not inside it.
        """
        opened = image if isinstance(image, Image) else open_image(image)
        seen = opened if region is None else Crop(opened, tuple(region))
        size, maps = seen.geometry.shape, (len(self.classes),)
        mask = np.zeros(
            size if self.classes.exclusive else (*maps, *size),
            dtype=decided(np.zeros((*maps, 1)), self.classes).dtype,
        )
        kept = np.zeros((*maps, *size), dtype=np.float32) if probabilities else None
        for place, scores in self._placed(opened, progress, region):
            here: tuple[Any, ...] = (Ellipsis, *place)
            mask[here] = self._decided(scores)
            if kept is not None:
                kept[here] = self._calibrated(scores)
        return Prediction(mask, self.classes, seen.geometry, seen, kept)

    def draw(
        self,
        image: str | Path | Sequence[str | Path] | Image,
        path: str | Path,
        progress: Callable[[float], None] | None = None,
        *,
        region: Sequence[slice] | None = None,
        maps: Mapping[str, str | Path] | None = None,
        scaled: bool = False,
    ) -> Image:
        """Segment one image into files, block by block: for GeoTIFF nothing is ever whole in memory.

        Mask and maps are drawn from the same scores: the network sees the image once.

        Args:
            image: as for :meth:`predict`.
            path: the mask; the suffix chooses the format. It appears whole or not at all, after the maps.
            progress: called with the share done, from 0 to 1.
            region: as for :meth:`predict`; the files are of this part, where it lies.
            maps: name of :data:`tasks.maps.MAPS` -> its file.
            scaled: maps as whole numbers of 8 bits with a scale, a quarter of the size.

        Returns:
            The image, opened, or the part of it.

        Raises:
            DataError: the image cannot be read, its channels are not the model's, the region is not inside it, or a
                file cannot be written.
        """
        opened = image if isinstance(image, Image) else open_image(image)
        seen = opened if region is None else Crop(opened, tuple(region))
        with ExitStack() as files:
            mask = files.enter_context(open_mask_writer(path, seen, self.classes))
            writers = [
                (
                    MAPS[name],
                    files.enter_context(open_map_writer(file, seen, MAPS[name].bands(self.classes), scaled)),
                )
                for name, file in (maps or {}).items()
            ]
            for place, scores in self._placed(opened, progress, region):
                mask.write(place, self._decided(scores))
                if writers:
                    calibrated = self._calibrated(scores)
                for kind, writer in writers:
                    writer.write(place, kind.values(calibrated, self.classes.exclusive))
        return seen

    def _placed(
        self, image: Image, progress: Callable[[float], None] | None, region: Sequence[slice] | None
    ) -> Iterator[Block]:
        """The scores at places that count from the corner of the region."""
        corner = (
            [0] * image.geometry.ndim
            if region is None
            else [part.start for part in image.checked(tuple(region))]
        )
        for place, scores in self._scores(image, progress, region):
            yield tuple(slice(p.start - c, p.stop - c) for p, c in zip(place, corner, strict=True)), scores

    def _scores(
        self, image: Image, progress: Callable[[float], None] | None, region: Sequence[slice] | None = None
    ) -> Iterator[Block]:
        """Places on the image's own grid with the scores there, ``(K, *place)``."""
        present = torch.from_numpy(self.description.preprocessing.present(image))
        function = partial(self._logits, present=present)
        yield from self._blocks(function, image, progress, region, unseen_logits(self.classes))

    def _blocks(
        self,
        function: PatchFunction,
        image: Image,
        progress: Callable[[float], None] | None = None,
        region: Sequence[slice] | None = None,
        unseen: Sequence[float] | None = None,
    ) -> Iterator[Block]:
        """Places on the image's own grid with what ``function`` says of windows there, blended."""
        preprocessing, grid = self.description.preprocessing, image.geometry
        source = held(image, preprocessing)  # once, however many preparations there are
        views = [network_view(source, way) for way in self.preparations]
        view = views[0] if len(views) == 1 else SideBySide(views)
        skip = self._skipped(image, views[0])
        wanted = image.checked(None if region is None else tuple(region))
        if not preprocessing.resamples(grid):
            asked = None if region is None else preprocessing.turned(wanted, grid)
            for place, scores in self.tiler.stream(
                function, view, progress, region=asked, skip=skip, unseen=unseen
            ):
                yield preprocessing.restore_block(place, scores, grid)
            return
        # On a grid of the network's own the scores are whole, and are brought back whole.
        scores = preprocessing.restore(self.tiler.run(function, view, progress, skip, unseen), grid)
        yield wanted, scores[(slice(None), *wanted)]

    def _skipped(self, image: Image, view: Any) -> Callable[[Window], bool] | None:
        """Says of which windows nothing is to be seen; None where all are looked at."""
        preprocessing, share = self.description.preprocessing, self.windows.skip_background
        tests: list[Callable[[Window], bool]] = []
        if image.may_lack and preprocessing.keeps_grid(image.geometry):
            tests.append(lambda place: not image.valid(place).any())
        if share is not None:
            tests.append(Background(view, share, len(preprocessing.channels)))
        return (lambda place: any(test(place) for test in tests)) if tests else None

    def attention(
        self, image: str | Path | Sequence[str | Path] | Image, region: Sequence[slice] | None = None
    ) -> AttentionOfImage:
        """What each attention block and gate of the network weights in one image.

        The windows' maps are blended as masks are. Holds a map of the image's size per block.

        Args:
            image: as for :meth:`predict`.
            region: as for :meth:`predict`.

        Raises:
            DataError: the image cannot be read, its channels are not the model's, or there are several networks.
        """
        if len(self.networks) > 1:
            raise DataError("attention is that of one network; give one model")
        opened = image if isinstance(image, Image) else open_image(image)
        seen = opened if region is None else Crop(opened, tuple(region))
        wanted = opened.checked(None if region is None else tuple(region))
        present = torch.from_numpy(self.description.preprocessing.present(opened))

        @torch.inference_mode()
        def run(patches: torch.Tensor) -> None:
            for _ in self._each(patches, present, self.networks):  # as they are: faster ones show no weights
                pass

        look = AttentionRecorder(self.network, run)
        whole = np.zeros((0, *seen.geometry.shape), np.float32)
        for place, block in self._blocks(look, opened, None, region):
            if len(block) != len(whole):
                whole = np.zeros((len(block), *seen.geometry.shape), np.float32)
            inside = (slice(p.start - w.start, p.stop - w.start) for p, w in zip(place, wanted, strict=True))
            whole[(slice(None), *inside)] = block
        return AttentionOfImage(
            names=look.names,
            maps=whole,
            channels=look.channels,
            geometry=seen.geometry,
            image=seen,
        )

    def _logits(self, patches: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """``(B, C, *patch)``, the channels of all preparations -> what the networks say together, ``(B, K, *patch)``."""
        with torch.inference_mode():
            said = [
                logits if temperature == 1 else logits / temperature
                for logits, temperature in zip(self._each(patches, present), self._temperatures, strict=True)
            ]
            return joined(said, self.classes.exclusive)

    def _each(
        self, patches: torch.Tensor, present: torch.Tensor, networks: Sequence[torch.nn.Module] | None = None
    ) -> Iterator[torch.Tensor]:
        inputs = self.description.patch.inputs(present).to(self.device).expand(len(patches), -1)
        # Nothing is said where nothing is missing: masks cost time.
        told = None if present.all() else inputs
        views = [channels_last(part) for part in patches.to(self.device).chunk(len(self.preparations), dim=1)]
        for network, way in zip(networks or self._running, self._prepared, strict=True):
            yield network(views[way], present=told).logits

    def _decided(self, scores: np.ndarray) -> np.ndarray:
        return decided(scores, self.classes, self.threshold, self._temperature)

    def _calibrated(self, scores: np.ndarray) -> np.ndarray:
        # The temperature changes probabilities, never which class is drawn.
        return probabilities_of(scores, self.classes.exclusive, self._temperature)


def load(
    path: str | Path | Sequence[str | Path],
    device: str | None = None,
    trust: bool = False,
    windows: Windows | None = None,
    fast: bool = False,
    threshold: float | None = None,
) -> Predictor:
    """Load a ``model.safetensors`` and return a ready predictor: ``load(path).predict("scan.nii.gz").mask``.

    Args:
        path: the file; or several, such as those of folds, whose probabilities are averaged.
        device: as for :class:`Predictor`.
        trust: also run the code of a model whose class is not ours.
        windows: as for :class:`Predictor`.
        fast: as for :class:`Predictor`.
        threshold: as for :class:`Predictor`.

    Raises:
        ModelFileError: a file cannot be used, or several do not fit each other, or an exported one is to be fast.
    """
    files = [path] if isinstance(path, str | Path) else list(path)
    if not files:
        raise ModelFileError("no model is given; give the model.safetensors that `delineate fit` wrote")
    exported = [file for file in files if is_exported(file)]
    if fast and exported:
        raise ModelFileError(
            f"{exported[0]}: --fast is for networks that torch runs; give the model.safetensors, or leave --fast out"
        )
    loaded = [load_network(file, device, trust) for file in files]
    for file, (network, _) in zip(files, loaded, strict=True):
        if is_promptable_network(network):
            raise ModelFileError(
                f"{file}: draws one object at a time, as it is asked; ask it in the viewer, or for everything at once "
                "with `delineate masks`"
            )
    check_alike(files, [description for _, description in loaded], windows or Windows())
    return Predictor(*loaded[0], device, windows, loaded[1:], fast, threshold)
