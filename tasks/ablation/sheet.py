"""What the pages of comparisons share: text with a chart beside it, and how its axes look."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from matplotlib.axes import Axes

from datamodules.atomic import atomic_path, write_text

INK, ACCENT, QUIET = "#333b47", "#0072b2", "#9aa3ad"


def write_sheet(path: str | Path, text: Callable[[str], str], draw: Callable[[Path], None]) -> None:
    """Write the chart (the name of ``path``, as ``.png``), then the text, whole or not at all.

    Args:
        path: of the text.
        text: makes it of the chart's file name.
        draw: draws the chart to a file.
    """
    path = Path(path)
    chart = path.with_suffix(".png")
    with atomic_path(chart) as temporary:
        draw(temporary)
    write_text(path, text(chart.name))


def times_beside(axes: Axes, ratios: Iterable[Sequence[float]], reference: str, words: str = "") -> None:
    """A bar per row: the mean of its times, each divided by the reference's."""
    for row, of_row in enumerate(ratios):
        axes.barh(row, sum(of_row) / len(of_row), height=0.6, color=QUIET)
    axes.axvline(1, color=INK, linewidth=0.8)
    axes.set_title(f"time / {reference}{words}", fontsize=9, color=INK)


def label_rows(all_axes: Sequence[Axes], labels: Sequence[str]) -> None:
    """Rows from the top down, named at the first axes only, and nothing drawn that says nothing."""
    all_axes[0].set_yticks(range(len(labels)), list(labels), fontsize=8, color=INK)
    all_axes[0].set_ylim(len(labels) - 0.5, -0.5)
    for axes in all_axes:
        axes.tick_params(colors=INK, labelsize=8, length=2)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.grid(axis="x", color=INK, alpha=0.12)
