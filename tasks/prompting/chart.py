"""Dice against the number of clicks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from datamodules.atomic import atomic_path
from tasks.prompting.scores import THRESHOLDS, ClickScores

_INK = "#333b47"
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def save_chart(path: Path, scores: ClickScores) -> None:
    """A line per class, the mean of all in bold, and where half of all objects lie."""
    figure = Figure(figsize=(6.4, 4.2), dpi=144, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    clicks = np.arange(1, scores.clicks + 1)
    everything = np.array([row.dice for row in scores.rows])
    low, high = np.quantile(everything, [0.25, 0.75], axis=0)
    axes.fill_between(clicks, low, high, color=_INK, alpha=0.12, linewidth=0, label="half of all objects")
    names = sorted({row.name for row in scores.rows})
    for name, colour in zip(names[: len(_COLOURS)] if len(names) > 1 else [], _COLOURS, strict=False):
        axes.plot(
            clicks,
            scores.dice(name),
            color=colour,
            marker="o",
            markersize=4,
            linewidth=1.4,
            label=name.replace("$", r"\$"),
        )
    axes.plot(
        clicks,
        scores.dice(),
        color=_INK,
        marker="o",
        markersize=5,
        linewidth=2.4,
        label=f"all {len(everything)}",
    )
    for threshold in THRESHOLDS:
        axes.axhline(threshold, color=_INK, linewidth=0.8, linestyle=(0, (4, 3)), alpha=0.6)
    axes.set(xlim=(0.8, scores.clicks + 0.2), ylim=(0, 1.02), xticks=clicks)
    axes.set_xlabel("clicks", color=_INK)
    axes.set_ylabel("Dice", color=_INK)
    axes.tick_params(colors=_INK, length=0)
    axes.grid(color=_INK, alpha=0.18)
    axes.spines[:].set_visible(False)
    axes.legend(frameon=False, labelcolor=_INK, loc="lower right")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
