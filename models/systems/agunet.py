"""AGUNet: a 3D U-Net with attention gates, the image at every scale, and deep supervision."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from models.fusion import AttentionGate, Concat
from models.layers import activation
from models.layers import norm as make_norm
from models.systems.parts.multi_scale_unet import MultiScaleUNet, Rise, conv_pair


class _Stage(nn.Module):
    """Rises, gates the skip by what has risen, and convolves both."""

    def __init__(self, ndim: int, below: int, width: int, gates: bool, norm: str, dropout: float) -> None:
        super().__init__()
        self.rise = Rise(ndim, below, width)
        self.entry = nn.Sequential(make_norm(norm, ndim, width), activation("relu"))
        self.fusion: nn.Module = (
            AttentionGate(width, width, ndim, norm, form="concat") if gates else Concat(width, width, ndim)
        )
        self.pair = conv_pair(ndim, 2 * width, width, norm, dropout)

    def forward(self, x: Tensor, skip: Tensor, bottom: Tensor) -> Tensor:
        """``(B, below, *S), (B, width, *T) -> (B, width, *T)``; the bottleneck is not asked."""
        risen = self.entry(self.rise(x, skip.shape[2:]))
        return self.pair(self.fusion(risen, skip))


class AGUNet(MultiScaleUNet):
    """Bouget et al., Meningioma Segmentation in T1-Weighted MRI Leveraging Global Context and Attention Mechanisms,
    Frontiers in Radiology 2021, arXiv 2101.07715: the attention-gated U-Net, in 2D too.

    Encoder: per level two times convolution of 3, norm, ReLU; largest of two per axis between levels. Decoder level
    of width f, from coarse to fine::

        up   = relu(norm(transposed_conv(x)))                            # kernel 3, stride 2, f channels
        a    = sigmoid(norm(conv(relu(concat(norm(conv(up)), norm(conv(skip)))))))    # f / 2 + f / 2 channels -> 1
        x    = pair(concat(up, a * skip))

    The two signals of the gate are laid side by side, not added as in Attention U-Net, and the decoder's signal comes
    from the skip's own grid. Every decoder level has a 1x1 convolution to logits (deep supervision; the mask is brought
    to each grid by the task).

    Maps have ``ceil(S / 2^i)`` positions per axis, so any size goes in that is not a single position at the coarsest
    level. (The released encoder stops halving axes of 4 or less and its decoder does not, so that small sizes fail
    there.) The pairs' convolutions have no bias, which the norm behind them takes away: a network with those biases has
    2 f more parameters for each pair of width f, and says the same.

    Args:
        in_channels: channels of the image.
        num_classes: K, logits per position.
        ndim: number of spatial axes.
        widths: channels of each level, finest first. Those of the default are not verified against the paper: the
            released code leaves them to its caller.
        gates: attention gates on the skips; without them skips are concatenated as they are.
        multi_scale: each level between the first and the last also sees the averaged image.
        deep_supervision: in training, also return logits of every coarser decoder map, each at its own grid.
        norm: instance, batch (as published), group or none. Batches are small in 3D: group does not mind.
        dropout: probability with which a channel is dropped behind each convolution; none as published.

    Raises:
        ModelError: fewer than two levels, an unknown norm, or an image of a single position at the coarsest level.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        ndim: int = 3,
        widths: Sequence[int] = (16, 32, 128, 256, 256),
        gates: bool = True,
        multi_scale: bool = True,
        deep_supervision: bool = True,
        norm: str = "batch",
        dropout: float = 0.0,
    ) -> None:
        def stage(level: int) -> nn.Module:
            return _Stage(ndim, widths[level + 1], widths[level], gates, norm, dropout)

        super().__init__(
            in_channels, num_classes, ndim, widths, multi_scale, deep_supervision, norm, dropout, stage
        )
