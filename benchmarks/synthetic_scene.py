"""A scene that compresses like a photograph, and a U-Net that draws every class in it."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from models import EncoderDecoder
from models.interfaces import Output
from models.memory_format import channels_last_weights

_BLOCK = 512
_PERIOD = 1024


@lru_cache(maxsize=1)
def _pattern() -> np.ndarray:
    """``(3, 1024, 1024)`` bytes that continue on the other side: waves of several lengths, and noise."""
    turn = 2 * np.pi * np.arange(_PERIOD, dtype=np.float32) / _PERIOD
    y, x = turn[:, None], turn[None]
    noise = np.random.default_rng(0).normal(0, 2, (3, _PERIOD, _PERIOD)).astype(np.float32)
    bands = [
        sum(np.cos(n * (x * (band + 2) + y * 3)) + np.sin(n * (x * 2 - y * (band + 1))) for n in (1, 2, 4, 9))
        for band in range(3)
    ]
    return (127 + 18 * np.stack(bands) + noise).clip(0, 255).astype(np.uint8)


def _block(row: int, column: int, height: int, width: int) -> np.ndarray:
    """``(3, height, width)`` bytes of an endless scene."""
    rows = np.arange(row, row + height) % _PERIOD
    return _pattern()[:, rows][:, :, np.arange(column, column + width) % _PERIOD]


def scene(folder: Path, side: int) -> Path:
    """A tiled RGB GeoTIFF of bytes."""
    import rasterio

    path = folder / f"scene_{side}.tif"
    profile = {
        "driver": "GTiff", "width": side, "height": side, "count": 3, "dtype": "uint8", "tiled": True,
        "blockxsize": _BLOCK, "blockysize": _BLOCK, "crs": "EPSG:32633", "photometric": "RGB", "compress": "deflate",
        "transform": rasterio.Affine(0.5, 0, 500000, 0, -0.5, 5300000),
    }  # fmt: skip
    with rasterio.open(path, "w", **profile) as file:
        for row in range(0, side, _BLOCK):
            for column in range(0, side, _BLOCK):
                height, width = min(_BLOCK, side - row), min(_BLOCK, side - column)
                window = rasterio.windows.Window(column, row, width, height)
                file.write(_block(row, column, height, width), window=window)
    return path


class OneByOne(torch.nn.Module):
    """A linear function of each pixel: every window says the same of it, so all masks must be equal."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.heads = torch.nn.ModuleList([torch.nn.Conv2d(3, classes, 1)])

    def forward(self, image: torch.Tensor, present: torch.Tensor | None = None) -> Output:
        """``(B, 3, h, w)`` -> logits ``(B, K, h, w)``."""
        return Output(self.heads[0](image))


@torch.inference_mode()
def scene_network(classes: int, null: bool = False) -> torch.nn.Module:
    """A network that is not trained but decides: statistics and the last layer are fitted to the scene.

    Random weights alone give nearly the same logits everywhere, and masks that differ by rounding.

    Args:
        classes: K.
        null: next to nothing to compute, so that all else shows.
    """
    torch.manual_seed(0)
    network: torch.nn.Module
    if null:
        network = OneByOne(classes)
    else:
        encoder = {"name": "timm", "backbone": "resnet18"}
        network = EncoderDecoder(3, classes, 2, encoder=encoder, decoder={"name": "unet", "norm": "batch"})
    places = [(0, 0), (512, 700), (300, 512), (800, 900)]
    images = torch.from_numpy(np.stack([_block(*place, 256, 256) for place in places])).float() / 255
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None  # the mean of all that was seen
    network.train()(images)
    logits = network.eval()(images).logits
    head = network.heads[0][0] if isinstance(network.heads[0], torch.nn.Sequential) else network.heads[0]
    mean, spread = logits.mean((0, 2, 3)), logits.std((0, 2, 3))
    head.weight.mul_((4 / spread)[:, None, None, None])
    head.bias.copy_((head.bias - mean) * 4 / spread)
    channels_last_weights(network)
    return network
