"""The demo in one picture: image, reference and prediction of a held-out slice, with the legend."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch as Swatch

from datamodules.atomic import atomic_path
from datamodules.classes import Classes
from datamodules.open import open_image

_PAPER, _INK, _QUIET = "#0f1115", "#f2f2f2", "#a8adb8"
_LETTERS = ((0.02, 0.5, "R"), (0.98, 0.5, "L"), (0.5, 0.97, "A"), (0.5, 0.03, "P"))


def draw(image: Path, reference: Path, prediction: Path, classes: Classes, axial: int, target: Path) -> None:
    """Write a PNG of one axial slice in the radiological convention (the patient's right on the left).

    Args:
        image: volume in RAS orientation.
        reference: label map on its grid.
        prediction: label map on its grid.
        classes: names and colours of the label values.
        axial: index of the slice.
        target: the PNG to write.
    """
    cuts = [open_image(file).read()[0, :, :, axial] for file in (image, reference, prediction)]
    rows, columns = np.nonzero(cuts[0])
    box = np.s_[max(0, rows.min() - 6) : rows.max() + 7, max(0, columns.min() - 6) : columns.max() + 7]
    # RAS index -> picture: anterior up, the patient's right on the left.
    gray, truth, found = (cut[box].T[::-1, ::-1] for cut in cuts)
    figure = Figure(figsize=(10.5, 4.9), facecolor=_PAPER)
    FigureCanvasAgg(figure)
    titles = ("T1-weighted MRI", "Reference", "Delineate, slice never trained on")
    colours = ListedColormap([c.colour for c in classes])
    for axes, title, labels in zip(figure.subplots(1, 3), titles, (None, truth, found), strict=True):
        axes.imshow(gray, cmap="gray", interpolation="bilinear")
        if labels is not None:
            layer = np.ma.masked_equal(labels, 0)
            axes.imshow(
                layer, cmap=colours, vmin=0, vmax=len(classes) - 1, alpha=0.6, interpolation="nearest"
            )
        axes.set_title(title, color=_INK, fontsize=12, pad=8)
        axes.set_axis_off()
        for x, y, letter in _LETTERS:
            axes.text(
                x, y, letter, transform=axes.transAxes, color=_QUIET, ha="center", va="center", fontsize=10
            )
    names = {"csf": "CSF", "grey": "grey matter", "white": "white matter"}
    swatches = [
        Swatch(color=classes[i].colour, label=names.get(classes[i].name, classes[i].name))
        for i in classes.foreground
    ]
    figure.legend(
        handles=swatches, loc="lower center", ncols=len(swatches), frameon=False, labelcolor=_INK, fontsize=11
    )
    figure.subplots_adjust(left=0.01, right=0.99, top=0.9, bottom=0.1, wspace=0.03)
    with atomic_path(target) as temporary:
        figure.savefig(temporary, dpi=110, facecolor=_PAPER, metadata={"Software": None})
