"""Inputs with the names of their outputs: what is to be done, and what cannot be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datamodules.errors import DataError
from tasks.batch import bids
from tasks.batch.records import printable
from tasks.inputs import Input


@dataclass(frozen=True)
class Job:
    """One input, and where its mask goes.

    Attributes:
        item: the input.
        target: the mask's path below the output folder.
        problem: why it cannot be done, where that is known beforehand.
    """

    item: Input
    target: str
    problem: str = ""

    @property
    def name(self) -> str:
        """How tables call it."""
        return printable(self.item.name)


def jobs_of(items: Sequence[Input], folder: Path, layout: str, exclusive: bool) -> list[Job]:
    """Name the outputs; two of one name, or one that is itself an input, are refused.

    Args:
        items: all inputs, whichever of them this run does: what collides must not depend on that.
        folder: the output folder.
        layout: ``mirror`` or ``bids``.
        exclusive: whether one map holds all classes.
    """
    images = {file.resolve() for item in items for file in item.files}
    taken: dict[str, str] = {}
    jobs = []
    for item in items:
        # A PNG holds one map; overlapping classes want one each.
        overlapping = not exclusive and item.output.suffix == ".png"
        target = str(item.output.with_suffix(".tif") if overlapping else item.output)
        problem = ""
        try:
            if layout == "bids":
                target = str(bids.derivative_of(item.files[0], item.output))
            if (folder / target).resolve() in images:
                raise DataError(
                    f"its mask would take the place of the image {folder / target}; give another folder"
                )
            if target in taken:
                raise DataError(
                    f"its mask would have the name of that of {taken[target]} ({target}); rename one, or give "
                    "the folder above both"
                )
            taken[target] = item.name
        except DataError as error:
            problem = printable(str(error))
        jobs.append(Job(item, target, problem))
    return jobs
