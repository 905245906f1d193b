"""Grad-CAM: where a network's coarsest maps speak for a class (Selvaraju et al. 2017, arXiv 1610.02391)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.errors import DataError
from models.layers import resize
from tasks.interactive.planes import Planes, View
from tasks.predictor import Predictor


class GradCam:
    """The encoder's last map, each channel weighted by how much the class gains with it.

    The score of a class is the sum of its logits where it is drawn; everywhere, where it is not.

    Args:
        network: encodes and decodes, as :class:`models.interfaces.Segmenter`.
        index: of the class.
        exclusive: each position has one class.
        device: where the network is.
    """

    def __init__(
        self, network: torch.nn.Module, index: int, exclusive: bool, device: torch.device | str = "cpu"
    ) -> None:
        if not hasattr(network, "encode") or not hasattr(network, "decode"):
            raise DataError(
                "Grad-CAM wants a network that torch runs, not an exported one; choose another model"
            )
        self._network: Any = network
        self._index, self._exclusive, self._device = index, exclusive, device

    def __call__(self, patches: Tensor) -> Tensor:
        """``(B, C, *S)`` -> ``(B, 1, *S)``, 0 and more; in units of the class's logit."""
        with torch.inference_mode(False), torch.enable_grad():
            size = patches.shape[2:]
            with torch.no_grad():
                maps = self._network.encode(patches.to(self._device).clone())
            last = maps[-1].detach().requires_grad_()
            logits = self._network.decode([*maps[:-1], last], size).logits
            own = logits[:, self._index]
            drawn = logits.argmax(1) == self._index if self._exclusive else own > 0
            empty = ~drawn.flatten(1).any(1)
            drawn[empty] = True
            (gradient,) = torch.autograd.grad((own * drawn).sum(), last)
            weights = gradient.flatten(2).mean(2).reshape(*gradient.shape[:2], *[1] * (gradient.ndim - 2))
            found = torch.relu((weights * last.detach()).sum(1, keepdim=True))
            return resize(found, size).detach().float().cpu()


def gradcam(predictor: Predictor, planes: Planes, index: int, position: Sequence[int]) -> np.ndarray:
    """Grad-CAM of an image, blended from windows as masks are.

    Of volumes that the network sees slice by slice it is that of one slice; elsewhere it is 0.

    Args:
        predictor: of one network.
        planes: the image, as the network sees it.
        index: of the class.
        position: array index of the image that the slice holds.

    Returns:
        ``(*S)`` float32 on the image's grid.

    Raises:
        DataError: the network cannot be asked, or the image is damaged.
    """
    look = GradCam(predictor.network, index, predictor.classes.exclusive, predictor.device)
    grid, patch = planes.image.geometry, planes.patch
    whole = tuple(slice(0, n) for n in grid.shape)
    if planes.axis is not None and patch.ndim == 3:
        cam = predictor.tiler.run(look, planes.prepared)
        return np.maximum(planes.preprocessing.restore(cam, grid)[0], 0)
    view = planes.at(position) if planes.axis is not None else View(tuple((0, n) for n in planes.grid.shape))
    pixels = planes.pixels(view)
    if patch.context:
        seen = look(torch.from_numpy(pixels)[None])[0].numpy()
    else:
        block = pixels.reshape(len(pixels), *[stop - start for start, stop in view.window])
        seen = predictor.tiler.run(look, block)
    return np.maximum(planes.onto_image({view: seen.reshape(view.size)}, whole), 0)
