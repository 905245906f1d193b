"""Charts of the report, each as a data address. They are transparent; a dark page inverts them."""

from __future__ import annotations

import base64
import io

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tasks.calibration import BINS, Reliability
from tasks.confusion import row_shares
from tasks.scores import Evaluation

_INK = "#333b47"
_ACCENT = "#0072b2"


def distribution(evaluation: Evaluation) -> str:
    """Dice of every case: a row of points and a box per class, as a data address."""
    names = evaluation.names
    figure = Figure(figsize=(9, 0.9 + 0.55 * len(names)), dpi=144, layout="constrained")
    axes = figure.add_subplot()
    rng = np.random.default_rng(0)
    for row, (index, scores) in enumerate(zip(evaluation.classes.foreground, evaluation.dice.T, strict=True)):
        there = scores[~np.isnan(scores)]
        line = {"color": _INK, "linewidth": 1.1}
        axes.boxplot(
            there, positions=[row], orientation="horizontal", widths=0.5, showfliers=False,
            boxprops=line, whiskerprops=line, capprops=line, medianprops={"color": _INK, "linewidth": 2.2},
        )  # fmt: skip
        colour = evaluation.classes[index].colour
        jitter = row + rng.uniform(-0.16, 0.16, there.size)
        axes.scatter(there, jitter, s=20, color=colour, edgecolors=_INK, linewidths=0.5, alpha=0.85, zorder=3)
    labels = [_label(name, 28) for name in names]
    axes.set_yticks(range(len(names)), labels, color=_INK)
    axes.set(xlim=(-0.02, 1.02), ylim=(len(names) - 0.5, -0.5))
    axes.set_xlabel("Dice", color=_INK)
    axes.tick_params(colors=_INK, length=0)
    axes.grid(axis="x", color=_INK, alpha=0.18)
    axes.spines[:].set_visible(False)
    return png(figure, transparent=True)


def confusion_picture(evaluation: Evaluation) -> str:
    """Of each reference class, how much was drawn as each: ``(K, K)`` shares, as a data address."""
    shares = row_shares(evaluation.confusion)
    names = [_label(name, 18) for name in evaluation.classes.names]
    size = len(names)
    figure = Figure(figsize=(2.4 + 0.62 * size, 1.7 + 0.5 * size), dpi=144, layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(np.nan_to_num(shares), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), share in np.ndenumerate(shares):
        if size <= 12 and not np.isnan(share):
            text = f"{share:.0%}" if share >= 0.01 or share == 0 else "<1%"
            axes.text(
                column,
                row,
                text,
                ha="center",
                va="center",
                size=8,
                color="white" if share > 0.55 else "#1b2430",
            )
    axes.set_xticks(range(size), names, color=_INK, rotation=35, ha="right", size=9)
    axes.set_yticks(range(size), names, color=_INK, size=9)
    axes.set_xlabel("prediction", color=_INK)
    axes.set_ylabel("reference", color=_INK)
    axes.tick_params(colors=_INK, length=0)
    axes.spines[:].set_visible(False)
    return png(figure, transparent=True)


def reliability_picture(reliability: Reliability) -> str:
    """Accuracy over confidence, and where the positions lie, as a data address."""
    confidence, accuracy = reliability.curve
    there = ~np.isnan(confidence)
    figure = Figure(figsize=(4.6, 4.6), dpi=144, layout="constrained")
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    axes.plot((0, 1), (0, 1), color=_INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.plot(confidence[there], accuracy[there], color=_ACCENT, marker="o", markersize=5, linewidth=1.6)
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    axes.set_ylabel("share that is right", color=_INK)
    middles = (np.arange(BINS) + 0.5) / BINS
    below.bar(middles, reliability.number / max(1, reliability.number.sum()), 0.9 / BINS, color=_ACCENT)
    below.set_xlabel("confidence", color=_INK)
    below.set_ylabel("share", color=_INK)
    for part in (axes, below):
        part.tick_params(colors=_INK, length=0)
        part.grid(color=_INK, alpha=0.18)
        part.set_axisbelow(True)
        part.spines[:].set_visible(False)
    return png(figure, transparent=True)


def png(figure: Figure, transparent: bool = False) -> str:
    """The figure as a data address."""
    FigureCanvasAgg(
        figure
    )  # its own canvas: pyplot keeps figures alive and picks a backend for the whole process
    stream = io.BytesIO()
    figure.savefig(stream, format="png", transparent=transparent, metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _label(name: str, most: int) -> str:
    """A name that fits; a dollar would start a formula."""
    return (name if len(name) <= most else f"{name[: most - 1]}…").replace("$", r"\$")
