"""Whether a model fits an image; where it does not, in words."""

from __future__ import annotations

from apps.viewer.session.opened import KIND_NAMES, Opened
from datamodules.errors import DataError
from tasks.model_file import Description


def misfit(description: Description, opened: Opened) -> str:
    """Why this model cannot draw on this image, and what to do; empty where it can."""
    axes, here = len(description.patch.size), opened.image.geometry.ndim
    if axes != here:
        wants = "volumes" if axes == 3 else "pictures and maps"
        return (
            f"This model draws on {wants}, and {opened.name} is a {KIND_NAMES[opened.kind]}. Choose another model, or "
            f"open a {'volume' if axes == 3 else 'picture or map'}."
        )
    how = description.preprocessing
    try:
        how.present(opened.image)
        how.grid(opened.image.geometry)
    except DataError as error:
        wanted, given = how.channels, opened.image.channels
        if len(wanted) == len(given) and set(wanted) == set(given):
            return str(error)
        lacking = [name for name in wanted if name not in given and name not in how.may_miss]
        return (
            f"{_count(len(wanted))} wanted ({_listed(wanted)}), {len(given)} given ({_listed(given)}); not found: "
            f"{_listed(lacking)}. Choose another model, or open a file that has them."
        )
    return ""


def _count(number: int) -> str:
    return "1 channel is" if number == 1 else f"{number} channels are"


def _listed(names: tuple[str, ...] | list[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (" ..." if len(names) > most else "")
