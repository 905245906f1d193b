"""Which of an image's channels a network gets: by name, and by position only where there are no names to go by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from datamodules.errors import DataError
from datamodules.image import Image
from datamodules.sensors import Sensor

# A channel of the network as a weighted sum of the image's channels; empty where the image does not have it.
Mix = tuple[tuple[int, float], ...]

_RGB = ("red", "green", "blue")
# Luma of ITU-R BT.601, as Pillow's conversion to "L".
_LUMA = (0.299, 0.587, 0.114)


def match_channels(
    wanted: Sequence[str], image: Image, sensor: Sensor, may_miss: Sequence[str] = ()
) -> tuple[Mix, ...]:
    """Find each wanted channel in ``image``.

    In this order: all names are there (letter case and the sensor's own band names do not matter); one gray
    channel is wanted of a colour picture, or colours of a gray one; names of ``may_miss`` alone are not there;
    no name agrees at all, but the numbers of channels do (position decides).

    Raises:
        DataError: none of these; names what came and what is wanted.
    """
    here = [sensor.common(name) for name in image.channels]
    names = [sensor.common(name) for name in wanted]
    missing = [name for name in names if name not in here]
    unseen = [name for name, common in zip(wanted, names, strict=True) if common not in here]
    if not missing:
        return tuple(((here.index(name), 1.0),) for name in names)
    if names in (["gray"], ["image"]) and set(_RGB) <= set(here) and len(here) <= 4:
        return (tuple((here.index(name), weight) for name, weight in zip(_RGB, _LUMA, strict=True)),)
    if set(names) == set(_RGB) and here[0] == "gray" and len(here) <= 2:
        return tuple(((0, 1.0),) for _ in names)
    optional = {sensor.common(name) for name in may_miss}
    if set(missing) <= optional and len(missing) < len(names):
        return tuple(((here.index(name), 1.0),) if name in here else () for name in names)
    if len(here) == len(names) and len(missing) == len(names):
        return tuple(((i, 1.0),) for i in range(len(names)))
    raise DataError(
        f"{image.path}: has {len(here)} channel(s) ({', '.join(image.channels)}); wanted are {len(names)} "
        f"({', '.join(wanted)}), of which {', '.join(unseen)} is missing. Give the file that has them, or name the "
        "channels as the network knows them"
    )


def mixed(block: np.ndarray, mixes: Sequence[Mix]) -> np.ndarray:
    """``(C, *S)`` of the image -> ``(len(mixes), *S)`` float32; missing channels are 0."""
    out = np.empty((len(mixes), *block.shape[1:]), dtype=np.float32)
    for channel, mix in zip(out, mixes, strict=True):
        if len(mix) == 1 and mix[0][1] == 1:
            channel[...] = block[mix[0][0]]
            continue
        channel.fill(0)
        for source, weight in mix:
            channel += block[source] if weight == 1 else np.float32(weight) * block[source]
    return out
