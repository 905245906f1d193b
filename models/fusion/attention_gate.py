"""The additive attention gate on a skip."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.attention.block import AttentionMap
from models.errors import ModelError
from models.interfaces import Fusion
from models.layers import conv, patchify, per_axis, resize
from models.layers import norm as make_norm

FORMS = ("light", "grid", "concat")


class AttentionGate(Fusion):
    """Weights each position of the skip by what the decoder already knows, then concatenates.

    Oktay et al., Attention U-Net, arXiv 1804.03999, in three forms. ``light`` is the widely used one: everything
    at the skip's grid, 1x1 convolutions with a norm N::

        a = sigmoid(N(psi(relu(N(W_g x) + N(W_x skip)))))
        out = concat(x, a * skip)

    ``concat`` lays the two signals side by side where ``light`` adds them (AGUNet, Bouget et al., arXiv 2101.07715)::

        a = sigmoid(N(psi(relu(concat(N(W_g x), N(W_x skip))))))

    ``grid`` is that of the authors' code: weights on a grid that is ``stride`` times coarser than the skip, and a
    convolution of what passed the gate. theta has kernel = stride and no bias, nothing else is strided::

        a = resize(sigmoid(psi(relu(theta skip + resize(phi x)))))
        out = concat(x, N(W (a * skip)))

    There x comes from the coarser level; here a decoder has brought it to the skip's grid before. phi x is
    resized to theta's grid whatever its size.

    Parameters of the gate with ``h = inter_channels``, stride s and batch norm: light
    ``(C_x + 3) h + (C_s + 3) h + h + 3``, concat h more, grid ``C_s h s^ndim + (C_x + 1) h + h + 1 + C_s^2 + 3 C_s``.

    Args:
        x_channels: channels of the decoder map.
        skip_channels: channels of the skip.
        ndim: number of spatial axes.
        norm: normalisation behind each convolution of the light and concat forms, and behind W of the grid form.
        form: light, concat or grid.
        inter_channels: h; ``max(1, skip_channels // 2)`` when not given. The authors' networks have
            ``skip_channels``.
        stride: of the grid form, one number or one per axis; 2 when not given.
    """

    def __init__(
        self,
        x_channels: int,
        skip_channels: int,
        ndim: int = 2,
        norm: str = "batch",
        form: str = "light",
        inter_channels: int | None = None,
        stride: int | Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if form not in FORMS:
            raise ModelError(f"attention gate form {form!r} is not known; choose from {', '.join(FORMS)}")
        if form != "grid" and stride is not None:
            raise ModelError("attention gate: stride belongs to form grid; add form: grid, or leave it out")
        if stride is not None and min(per_axis(stride, ndim)) < 1:
            raise ModelError(f"attention gate stride is {stride}; it wants at least 1, and 2 is usual")
        hidden = max(1, skip_channels // 2) if inter_channels is None else inter_channels
        if hidden < 1:
            raise ModelError(f"attention gate inter_channels is {hidden}; it wants at least 1")
        self.out_channels = x_channels + skip_channels
        self.stride = per_axis(1 if form != "grid" else 2 if stride is None else stride, ndim)
        self.from_x: nn.Module
        self.from_skip: nn.Module
        self.psi: nn.Module
        self.project: nn.Module
        self.joined = form == "concat"
        if form != "grid":
            self.from_x = _normed(ndim, x_channels, hidden, norm)
            self.from_skip = _normed(ndim, skip_channels, hidden, norm)
            self.psi = _normed(ndim, 2 * hidden if self.joined else hidden, 1, norm)
            self.project = nn.Identity()
        else:
            self.from_x = conv(ndim, x_channels, hidden, kernel=1)
            self.from_skip = patchify(ndim, skip_channels, hidden, self.stride, bias=False)
            self.psi = conv(ndim, hidden, 1, kernel=1)
            self.project = _normed(ndim, skip_channels, skip_channels, norm)
            for parameter in self.parameters():
                if parameter.ndim > 1:  # Weights of convolutions, drawn as the authors draw them.
                    nn.init.kaiming_normal_(parameter)
        self.map = AttentionMap()

    def weights(self, x: Tensor, skip: Tensor) -> Tensor:
        """The gate itself: ``(B, 1, *S)`` at the size of the skip, between 0 and 1. x may have any size."""
        size = skip.shape[2:]
        short = [max(0, s - n) for n, s in zip(size, self.stride, strict=True)]
        if any(short):  # Less than one step of the grid: zeros complete it.
            skip = F.pad(skip, [amount for m in reversed(short) for amount in (0, m)])
        inside = self.from_skip(skip)
        signal = resize(self.from_x(x), inside.shape[2:])
        inside = (torch.cat([signal, inside], dim=1) if self.joined else signal + inside).relu()
        return self.map(resize(self.psi(inside).sigmoid(), size))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """``(B, x_channels, *S), (B, skip_channels, *S) -> (B, x_channels + skip_channels, *S)``."""
        return torch.cat([x, self.project(skip * self.weights(x, skip))], dim=1)


def _normed(ndim: int, in_channels: int, out_channels: int, norm: str) -> nn.Module:
    """A 1x1 convolution with its norm."""
    return nn.Sequential(conv(ndim, in_channels, out_channels, kernel=1), make_norm(norm, ndim, out_channels))
