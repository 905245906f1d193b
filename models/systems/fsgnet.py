"""FSG-Net: a decoder whose every step is a guided filter, guided by all scales of the encoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.attention.cbam import SpatialGate
from models.dropblock import DropBlock
from models.encoders.convnext import NextBlock, PatchMap
from models.encoders.residual import PreactivationBlock
from models.errors import ModelError
from models.fusion.attention_gate import AttentionGate
from models.interfaces import Output, Prompts, Segmenter
from models.layers import ConvBlock, ConvNorm, conv, crop, norm, resize
from models.sizes import pad_to_multiple, refuse_single_position
from models.systems.background import foreground_maps, with_background
from models.systems.parts.guided_filter import NORMALISERS, weighted_guided_filter

# The coarsest of the four maps.
STRIDE = 8


class _Refine(PreactivationBlock):
    """A residual block with norm and activation first, whose shortcut is a convolution of 3 and a norm."""

    def _shortcut(
        self, ndim: int, in_channels: int, out_channels: int, stride: int | Sequence[int]
    ) -> nn.Module:
        return ConvNorm(ndim, in_channels, out_channels, stride=stride)


class _PlainStep(nn.Module):
    """A step of the decoder without a guide: y is resized and refined, and the skip is not looked at."""

    def __init__(self, ndim: int, channels: int) -> None:
        super().__init__()
        self.refine = _Refine(ndim, channels, channels // 2)

    def forward(self, skip: Tensor, before: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """As of :class:`_GuidedStep`."""
        return self.refine(resize(y, skip.shape[2:])), before


class _GuidedStep(nn.Module):
    """A step of the decoder: the map y is filtered to the skip's size, guided by the skip and the guide before."""

    def __init__(
        self, ndim: int, channels: int, guide_channels: int, radius: int, eps: float, normaliser: str
    ) -> None:
        super().__init__()
        self.guide = ConvBlock(ndim, channels + guide_channels, channels, 1, 1, "batch", "relu")
        self.gate = AttentionGate(channels, channels, ndim, "batch", inter_channels=channels)
        self.refine = _Refine(ndim, channels, channels // 2)
        self.radius, self.eps, self.normaliser = radius, eps, normaliser

    def forward(self, skip: Tensor, before: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The skip, the guide before and y at half the size -> a map of half the channels, and this step's guide."""
        guide = self.guide(torch.cat([skip, resize(before, skip.shape[2:])], 1))
        small = resize(guide, y.shape[2:])
        weights = self.gate.weights(y, small)
        y = weighted_guided_filter(small, y, guide, weights, self.radius, self.eps, self.normaliser)
        return self.refine(y), guide


class FSGNet(Segmenter):
    """Vessels: an encoder that sees the image at three scales, and guided filters that carry its edges into the mask.

    Full-Scale Representation Guided Network for Retinal Vessel Segmentation, 2025, arXiv 2501.18921. With c channels, the
    image I and its halves I2 and I4, blocks as ConvNeXt's (depth-wise convolution, batch norm, Conv1 to 4 times the
    width, ReLU, Conv1, layer scale, DropBlock), ``|`` joining channels::

        d1 = conv(I)  | blocks(conv(I)) + conv(I)          2c at stride 1
        d2 = conv(I2) | blocks(halved(d1))                 4c at 2
        d3 = conv(I4) | blocks(halved(d2))                 8c at 4
        x4 = g * blocks(halved(d3))                        8c at 8, g = sigmoid(conv7([mean, max over channels]))

    and at strides 4, 2, 1, from y = G = x4::

        G = conv1(d | up(G))                               the full-scale guide
        a = sigmoid(BN(conv1(relu(BN(conv1(G_half)) + BN(conv1(y))))))
        y = refine(guided_filter(guide G, map y, weights a))       half the channels

    The filter is :func:`models.systems.parts.guided_filter.weighted_guided_filter`. The released code divides its weights
    by their sum over the whole batch, so that an image's mask depends on its batch: ``normaliser: batch``. Here the sum
    is over each image. The code filters in float64, here it is float32.

    Each of the three y has a head of one map per class (one sigmoid map for vessels, see ``background``). The two coarser
    ones are ``Output.aux`` in training, at the image's size; the published loss is the mean of three, which is
    ``shrink: 1`` in the task. The code resizes those maps before their heads; a head is a 1x1 convolution, so that
    resizing its output is the same and takes less.

    The released configuration trains a variant without filters, skips and g: ``y = refine(up(y))``, which is
    ``guided: false`` here. Resizing here aligns pixels' areas (``align_corners=False``), there corners. Convolutions in
    front of a batch norm have no bias here.

    Images of any size: their edges are repeated to multiples of 8, and the logits are cropped. (The released code wants
    multiples of 8 and at least 48 x 48.)

    Args:
        in_channels: channels of the image.
        num_classes: K, logits per position.
        ndim: 2.
        width: c.
        depths: blocks at each of the four strides.
        kernel: of the blocks and of the first convolutions, odd.
        layer_scale: first value of the blocks' scales.
        drop: probability of the blocks' DropBlock, of 7 x 7.
        guided: False leaves out the filters, the skips and g, for ablation.
        normaliser: of the filters' weights: image, batch or window.
        radius: of the filters' boxes.
        eps: of the filters.
        background: the first class is the background and has no map of its own.

    Raises:
        ModelError: another number of axes, numbers that make no network, an unknown normaliser, or (at the call) an
            image that is a single position at stride 8.
    """

    ndims = frozenset({2})

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        ndim: int = 2,
        width: int = 64,
        depths: Sequence[int] = (3, 3, 9, 3),
        kernel: int = 3,
        layer_scale: float = 1e-6,
        drop: float = 0.5,
        guided: bool = True,
        normaliser: str = "image",
        radius: int = 2,
        eps: float = 1e-2,
        background: bool = True,
    ) -> None:
        super().__init__()
        self._serve(in_channels, num_classes, ndim)
        if len(depths) != 4:
            raise ModelError(
                f"depths {list(depths)} has {len(depths)} numbers; give one per stride: [3, 3, 9, 3]"
            )
        if radius < 1 or eps <= 0:
            raise ModelError(
                f"radius is {radius}, eps {eps}; the filter wants a radius of 1 or more and eps above 0"
            )
        if normaliser not in NORMALISERS:
            raise ModelError(f"normaliser {normaliser!r} is not known; choose from {', '.join(NORMALISERS)}")
        self.background = background
        c = width

        def seen(channels: int, kernel: int) -> nn.Module:
            return ConvBlock(ndim, in_channels, channels, kernel, 1, "batch", "relu")

        def blocks(channels: int, depth: int) -> list[nn.Module]:
            return [
                NextBlock(
                    *(ndim, channels, channels, kernel, 1, norm("batch", ndim, channels), 4, layer_scale),
                    grn=False,
                    activation_name="relu",
                    drop=DropBlock(drop),
                )
                for _ in range(depth)
            ]

        def halving(channels: int, depth: int) -> nn.Module:
            return nn.Sequential(PatchMap(ndim, channels, channels, (2,) * ndim), *blocks(channels, depth))

        self.first = nn.Sequential(seen(c, kernel), *blocks(c, depths[0]))
        self.first_shortcut = seen(c, kernel)
        self.down = nn.ModuleList(halving(2**i * c, depths[i]) for i in (1, 2, 3))
        self.scales = nn.ModuleList(seen(2**i * c, 3) for i in range(3))
        self.gate = SpatialGate(ndim, 7, norm=False) if guided else None
        # Channels of skip and y, and of the guide before, coarse to fine.
        widths = [(8 * c, 8 * c), (4 * c, 8 * c), (2 * c, 4 * c)]
        self.steps = nn.ModuleList(
            _GuidedStep(ndim, channels, before, radius, eps, normaliser)
            if guided
            else _PlainStep(ndim, channels)
            for channels, before in widths
        )
        maps = foreground_maps(num_classes, background)
        self.heads = nn.ModuleList(conv(ndim, channels, maps, kernel=1) for channels in (c, 2 * c, 4 * c))

    def encode(self, image: Tensor) -> list[Tensor]:
        """``(B, in_channels, *S)`` -> maps at strides 1, 2, 4, 8 of the image completed to a multiple of 8."""
        refuse_single_position(image, (STRIDE,) * self.ndim)
        image = pad_to_multiple(image, (STRIDE,) * self.ndim, repeat=True)
        maps = []
        x = self.first(image) + self.first_shortcut(image)
        for level, (scale, down) in enumerate(zip(self.scales, self.down, strict=True)):
            seen = resize(image, [n // 2**level for n in image.shape[2:]])
            maps.append(torch.cat([scale(seen), x], 1))
            x = down(maps[-1])
        return [*maps, x if self.gate is None else x * self.gate(x)]

    def decode(self, features: list[Tensor], size: Sequence[int], prompts: Prompts | None = None) -> Output:
        """Maps of an image of ``size`` -> logits; in training also those of the two coarser steps, at that size."""
        *skips, y = features
        guide = y
        made: list[Tensor] = []
        for step, skip in zip(self.steps, reversed(skips), strict=True):
            y, guide = step(skip, guide, y)
            made.insert(0, y)
        full = skips[0].shape[2:]
        logits = [
            with_background(crop(resize(head(m), full), size), self.background)
            for head, m in zip(self.heads, made if self.training else made[:1], strict=False)
        ]
        return Output(logits[0], aux=logits[1:])
