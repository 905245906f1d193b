"""The fast guided filter, with a weight for each position: a map drawn coarsely takes over the edges of a fine one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from models.errors import ModelError
from models.layers import moving_mean, resize

NORMALISERS = ("image", "batch", "window")
# Weights are at least this, so that a box of zeros has a mean to divide by.
_LEAST = 1e-12


def box_means(x: Tensor, radius: int) -> tuple[Tensor, Tensor]:
    """Means over boxes of ``2 radius + 1`` positions per axis around each, cut at the border.

    Args:
        x: ``(B, C, *S)``.
        radius: r.

    Returns:
        ``(B, C, *S)``, and ``(1, 1, *S)``: how many positions each box has.
    """
    window = (2 * radius + 1,) * (x.ndim - 2)
    # Zeros around, made here: runtimes of ONNX disagree on what pooling itself pads.
    around = [radius] * (2 * len(window))
    inside = moving_mean(F.pad(torch.ones_like(x[:1, :1]), around), window)
    elements = float((2 * radius + 1) ** len(window))
    return moving_mean(F.pad(x, around), window) / inside, inside * elements


def weighted_guided_filter(
    guide: Tensor,
    y: Tensor,
    fine_guide: Tensor,
    weights: Tensor,
    radius: int = 2,
    eps: float = 1e-2,
    normaliser: str = "image",
) -> Tensor:
    """``resize(A) * fine_guide + resize(b)``, where A and b say y as a linear function of the guide around each position.

    The attention guided filter (Zhang et al., Attention Guided Network for Retinal Image Segmentation, MICCAI 2019,
    arXiv 1907.12930; the fast guided filter: He and Sun, arXiv 1505.00996), as FSG-Net has it. With the weights a, the
    number N of positions in a box, E the mean over a box, and ``t = a / sum(a)``::

        A = (E[a^2 x y] - N E[t a x] E[a y]) / (|E[a^2 x^2] - N E[t a x] E[a x]| + eps)
        b = (E[a y] - A E[a x]) / E[a]

    A and b are then averaged over boxes. The sum in t is where versions differ:

    ``image``: over each image. ``batch``: over the whole batch, as the released code of FSG-Net has it, so that what an
    image gives depends on its neighbours in the batch. Both make t tiny and the subtracted terms nearly vanish.
    ``window``: over each box. This is what follows where the squared error ``sum a^2 (A x + b - y)^2`` is least in A and
    the first moment ``sum a (A x + b - y)`` is 0.

    Computed in float32 at least, under mixed precision too.

    Args:
        guide: ``(B, C, *S)``, x.
        y: ``(B, C, *S)``.
        fine_guide: ``(B, C, *T)``, the guide at the size that is wanted.
        weights: ``(B, 1 or C, *S)``, a, not negative.
        radius: of the boxes.
        eps: smooths: the larger, the flatter A.
        normaliser: image, batch or window.

    Returns:
        ``(B, C, *T)``, of the dtype of ``fine_guide``.

    Raises:
        ModelError: an unknown normaliser.
    """
    if normaliser not in NORMALISERS:
        raise ModelError(f"normaliser {normaliser!r} is not known; choose from {', '.join(NORMALISERS)}")
    dtype = torch.promote_types(fine_guide.dtype, torch.float32)
    x, y, a = guide.to(dtype), y.to(dtype), weights.to(dtype).abs() + _LEAST
    mean_a, n = box_means(a, radius)
    mean_ax, mean_ay = (box_means(a * m, radius)[0] for m in (x, y))
    if normaliser == "window":
        # N E[a^2 x / (N E[a])]: each box is divided by its own sum.
        mean_tax = box_means(a * a * x, radius)[0] / mean_a
    else:
        axes = tuple(range(0 if normaliser == "batch" else 1, a.ndim))
        mean_tax = n * box_means(a * a * x, radius)[0] / a.sum(axes, keepdim=True)
    covariance = box_means(a * a * x * y, radius)[0] - mean_tax * mean_ay
    variance = box_means(a * a * x * x, radius)[0] - mean_tax * mean_ax
    slope = covariance / (variance.abs() + eps)
    offset = (mean_ay - slope * mean_ax) / mean_a
    size: Sequence[int] = fine_guide.shape[2:]
    slope, offset = (resize(box_means(m, radius)[0], size) for m in (slope, offset))
    return (slope * fine_guide.to(dtype) + offset).to(fine_guide.dtype)
