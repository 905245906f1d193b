"""DAUNet and DAGUNet: a 3D U-Net with attention over positions and channels at its bottleneck."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.attention.dual import DualAttention
from models.decoders.unet import Upsample
from models.errors import ModelError
from models.layers import activation, channel_dropout, conv
from models.layers import norm as make_norm
from models.systems.parts.multi_scale_unet import MultiScaleUNet, Rise, conv_pair

GUIDES = ("none", "transposed", "linear")
# At the bottleneck, behind each branch and behind their sum; the released number.
_DROPPED = 0.5


class _Bottleneck(nn.Module):
    """A branch per kind of attention, each with two convolutions, added."""

    def __init__(self, ndim: int, width: int, branches: Sequence[nn.Module], norm: str) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(
                attention,
                conv(ndim, width, width, bias=norm == "none"),
                make_norm(norm, ndim, width),
                activation("relu"),
                channel_dropout(ndim, _DROPPED),
                conv(ndim, width, width),
            )
            for attention in branches
        )
        self.out = nn.Sequential(
            channel_dropout(ndim, _DROPPED),
            conv(ndim, width, width, kernel=1, bias=norm == "none"),
            make_norm(norm, ndim, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, width, *S) -> (B, width, *S)``."""
        return self.out(torch.stack([branch(x) for branch in self.branches]).sum(0))


class _Stage(nn.Module):
    """Rises, joins the skip and what the bottleneck says, normalises and convolves."""

    def __init__(
        self, ndim: int, below: int, width: int, guide: nn.Module | None, norm: str, dropout: float
    ) -> None:
        super().__init__()
        joined = width * (2 if guide is None else 3)
        self.rise = Rise(ndim, below, width)
        self.guide = guide
        self.entry = nn.Sequential(make_norm(norm, ndim, joined), activation("relu"))
        self.pair = conv_pair(ndim, joined, width, norm, dropout)

    def forward(self, x: Tensor, skip: Tensor, bottom: Tensor) -> Tensor:
        """``(B, below, *S), (B, width, *T)`` and the bottleneck -> ``(B, width, *T)``."""
        size = skip.shape[2:]
        parts = [skip, self.rise(x, size)]
        if self.guide is not None:
            parts.insert(0, self.guide(bottom, size))
        return self.pair(self.entry(torch.cat(parts, dim=1)))


class DAUNet(MultiScaleUNet):
    """Bouget et al., Meningioma Segmentation in T1-Weighted MRI Leveraging Global Context and Attention Mechanisms,
    Frontiers in Radiology 2021, arXiv 2101.07715: the dual-attention U-Net, in 2D too. With ``guide`` it is the
    attention-guided one, DAGUNet.

    Encoder as that of :class:`~models.systems.agunet.AGUNet`. At the bottleneck, with x of C channels::

        P = x + gamma_p * softmax(q k^T) v         # over positions; q and k with C / 8 channels; 1x1 without bias
        Q = x + gamma_c * softmax(x x^T) x         # over channels
        x = norm(conv1(drop(branch(P) + branch(Q))))       branch = conv3, norm, relu, drop, conv3

    Both gammas begin at 0; ``drop`` drops half of the channels in training. Decoder level of width f::

        x = pair(relu(norm(concat(guide, skip, transposed_conv(x)))))          # guide where there is one

    The guide is the bottleneck, brought to each level by a transposed convolution of 3 with stride 2^i. From stride 4 on
    a kernel of 3 leaves gaps: of the finest of five levels 0.7 % of the positions (in 3D) are reached, all others
    hold the bias. ``guide: transposed`` is that; ``guide: linear`` is a 1x1 convolution and linear interpolation, which
    reaches all. At the coarsest decoder level the guide and the rising map come from the same map, as published.

    The released channel attention mixes by columns of the softmax where its paper (DANet, arXiv 1809.02983) mixes by
    rows: the weights of a channel then do not sum to 1. Rows are the default, ``columns: true`` is the released code.
    The released position attention makes its convolutions anew at each call, so that they are never saved; here they
    are part of the network. Positions attend without their matrix in memory; time grows with the square of their number.

    Sizes and biases as :class:`~models.systems.agunet.AGUNet`; at the bottleneck, too, nothing has a bias that a norm
    takes away.

    Args:
        in_channels: channels of the image.
        num_classes: K, logits per position.
        ndim: number of spatial axes.
        widths: channels of each level, finest first; not verified against the paper, as AGUNet's.
        position: attention over positions at the bottleneck.
        channel: attention over channels at the bottleneck; without either there is no such bottleneck.
        guide: none (DAUNet), transposed (DAGUNet as published) or linear.
        columns: channel attention as the released code has it.
        multi_scale: each level between the first and the last also sees the averaged image.
        deep_supervision: in training, also return logits of every coarser decoder map, each at its own grid.
        norm: instance, batch (as published), group or none.
        dropout: probability with which a channel is dropped behind each convolution of encoder and decoder.

    Raises:
        ModelError: fewer than two levels, an unknown guide or norm, or an image of a single position at the coarsest
            level.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        ndim: int = 3,
        widths: Sequence[int] = (16, 32, 128, 256, 256),
        position: bool = True,
        channel: bool = True,
        guide: str = "none",
        columns: bool = False,
        multi_scale: bool = True,
        deep_supervision: bool = True,
        norm: str = "batch",
        dropout: float = 0.0,
    ) -> None:
        if guide not in GUIDES:
            raise ModelError(f"DAUNet guide {guide!r} is not known; choose from {', '.join(GUIDES)}")

        def stage(level: int) -> nn.Module:
            step, width = 2 ** (len(widths) - 1 - level), widths[level]
            guiding: nn.Module | None = None
            if guide == "transposed":
                guiding = Rise(ndim, widths[-1], width, step)
            elif guide == "linear":
                guiding = Upsample(ndim, widths[-1], width, (step,) * ndim, "linear")
            return _Stage(ndim, widths[level + 1], width, guiding, norm, dropout)

        super().__init__(
            in_channels, num_classes, ndim, widths, multi_scale, deep_supervision, norm, dropout, stage
        )
        branches = []
        if position:
            branches.append(DualAttention(widths[-1], ndim, "position", bias=False))
        if channel:
            branches.append(DualAttention(widths[-1], ndim, "channel", plain=True, columns=columns))
        if branches:
            self.bottleneck = _Bottleneck(ndim, widths[-1], branches, norm)
