"""How the network's windows are laid over an image, where that is not as the model file says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from datamodules.errors import DataError
from datamodules.tiler import Tiler
from tasks.model_file import Description


@dataclass(frozen=True)
class Windows:
    """What is None is as the model file says it, or as the tiler has it.

    Attributes:
        overlap: share by which windows overlap, from 0 to below 1.
        blend: ``constant``, ``gaussian`` or ``hann``.
        mirror: axes of the network's input to flip in all combinations, or ``all``; empty for none.
        rotate: also turn windows by right angles.
        batch: windows per forward pass; changes speed and memory, not the result.
        skip_background: leave windows out that show only background, or less than this share of anything else; the
            first class is drawn there. All windows are looked at when not given.
    """

    overlap: float | None = None
    blend: str | None = None
    mirror: Sequence[int] | Literal["all"] | None = None
    rotate: bool | None = None
    batch: int | None = None
    skip_background: float | None = None

    def __post_init__(self) -> None:
        if self.batch is not None and self.batch < 1:
            raise DataError(f"window batch {self.batch} is not usable; give 1 or more")
        if self.skip_background is not None and not 0 <= self.skip_background < 1:
            raise DataError(
                f"skip_background {self.skip_background} is not usable; give a share from 0 to below 1"
            )

    def tiler(self, description: Description) -> Tiler:
        """The tiler for a model.

        Raises:
            DataError: a value is none, or does not fit the model's windows.
        """
        axes = range(description.patch.ndim)
        said: dict[str, Any] = {
            "overlap": self.overlap,
            "blend": self.blend,
            "mirror": tuple(axes) if self.mirror == "all" else self.mirror,
            "rotate": self.rotate,
        }
        known = {name: value for name, value in said.items() if value is not None}
        return Tiler(description.patch, batch_size=self.batch, **{**description.tiling, **known})


def parse_mirror(text: str) -> tuple[int, ...] | Literal["all"]:
    """Read ``all``, ``none``, or axes with commas, such as ``0,1``.

    Raises:
        DataError: none of these.
    """
    word = text.strip()
    if word in ("all", "none"):
        return "all" if word == "all" else ()
    axes = word.split(",")
    if not all(axis.strip().isdecimal() for axis in axes):
        raise DataError(f"mirror {text!r} is not usable; give all, none, or axes such as 0,1")
    return tuple(sorted({int(axis) for axis in axes}))
