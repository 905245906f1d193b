"""How a batch is predicted."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from datamodules.errors import DataError
from tasks.batch.engines import ENGINES

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
        overlap: share by which windows overlap; the model file's when not given.
        probabilities: also write the probabilities.
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
    probabilities: bool = False
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
