"""How a batch is predicted."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from datamodules.errors import DataError
from tasks.batch.engines import ENGINES
from tasks.windows import Windows

LAYOUTS = ("mirror", "bids")


@dataclass(frozen=True)
class Shard:
    """One of several equal parts of the inputs: ``2/4`` is the second of four."""

    number: int = 1
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read ``i/n``.

        Raises:
            DataError: not of that form, or not from 1 to n.
        """
        match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise DataError(f"shard {text!r} is not usable; write i/n with i from 1 to n, such as 1/4")
        return cls(int(match[1]), int(match[2]))

    @property
    def suffix(self) -> str:
        """What tells this shard's table from those of the others: ``.2-of-4``, or nothing."""
        return f".{self.number}-of-{self.of}" if self.of > 1 else ""


@dataclass(frozen=True)
class Settings:
    """Everything about a batch but the model, its inputs and where they go.

    Attributes:
        device: e.g. ``cuda``; a GPU where there is one, when not given.
        overlap: as for :class:`~tasks.windows.Windows`, and so the next five; the model file's when not given.
        blend: see there.
        mirror: see there.
        rotate: see there.
        window_batch: see there (``batch``).
        skip_background: see there.
        threshold: the probability from which on foreground is drawn; the strongest class is drawn when not given.
        fast: run the network faster; its answers are nearly the same. See :class:`~models.fast.FastNetwork`.
        region: only this part of each image, a slice per axis; masks are of it, where it lies. See :func:`parse_region`.
        probabilities: also write the probabilities.
        entropy: also write how undecided each position is.
        scaled: write these maps as whole numbers of 8 bits with a scale, a quarter of the size; not beside pictures.
        attention: also write what each attention block weights.
        allow_gaps: take the slices of a DICOM series as equally far apart where they are not.
        trust: load a model whose class is not ours.
        overwrite: do again what is done.
        shard: which part of the inputs.
        layout: ``mirror`` keeps the tree of the inputs; ``bids`` names masks as BIDS derivatives.
        engine: ``local``: in this process; ``ray``: in worker processes.
        workers: how many of them; by the number of GPUs or cores when not given.
        address: of a Ray cluster that runs already; one is started on this machine when not given.
        products: what else is made of each mask: name -> its options, plain data.
    """

    device: str | None = None
    overlap: float | None = None
    blend: str | None = None
    mirror: Sequence[int] | Literal["all"] | None = None
    rotate: bool | None = None
    window_batch: int | None = None
    skip_background: float | None = None
    threshold: float | None = None
    fast: bool = False
    region: tuple[slice, ...] | None = None
    probabilities: bool = False
    entropy: bool = False
    scaled: bool = False
    attention: bool = False
    allow_gaps: bool = False
    trust: bool = False
    overwrite: bool = False
    shard: Shard = Shard()
    layout: str = "mirror"
    engine: str = "local"
    workers: int | None = None
    address: str | None = None
    products: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise DataError(f"layout {self.layout!r} is not known; choose from {', '.join(LAYOUTS)}")
        if self.engine not in ENGINES:
            raise DataError(f"engine {self.engine!r} is not known; choose from {', '.join(ENGINES)}")
        if self.engine == "local" and (self.workers is not None or self.address is not None):
            raise DataError("workers and address are for --engine ray; add it, or leave them out")
        if self.workers is not None and self.workers < 1:
            raise DataError(f"workers must be 1 or more, got {self.workers}")

    @property
    def windows(self) -> Windows:
        """How windows are laid."""
        return Windows(
            self.overlap, self.blend, self.mirror, self.rotate, self.window_batch, self.skip_background
        )

    @property
    def maps(self) -> dict[str, dict[str, Any]]:
        """The maps that are drawn with the mask: name -> options."""
        options = {"scaled": True} if self.scaled else {}
        asked = {"probabilities": self.probabilities, "entropy": self.entropy}
        return {name: dict(options) for name, wanted in asked.items() if wanted}


def parse_region(text: str) -> tuple[slice, ...]:
    """Read ``first:end,first:end``, rows before columns, end not included; nothing before or behind ``:`` is the edge.

    Raises:
        DataError: not of that form, or empty.
    """
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d*):(\d*)", part.strip())
        start, stop = (int(n) if n else None for n in match.groups()) if match else (0, 0)
        if stop is not None and (start or 0) >= stop:
            raise DataError(
                f"region {text!r} is not usable; write first:end per axis, such as 0:512,1024:1536 (rows, columns)"
            )
        found.append(slice(start, stop))
    return tuple(found)


def region_text(region: Sequence[slice]) -> str:
    """The inverse of :func:`parse_region`."""
    return ",".join(
        f"{'' if r.start is None else r.start}:{'' if r.stop is None else r.stop}" for r in region
    )
