"""The U-Net's decoder: up-sample, fuse with the skip, convolve (arXiv 1505.04597)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from models.errors import ModelError
from models.fusion import FUSION
from models.interfaces import Decoder, Encoder, Prompts
from models.layers import ConvBlock, conv, crop, resize, transposed_conv
from models.parts import Part, make_part

UPSAMPLING = ("transposed", "linear")


class Upsample(nn.Module):
    """Bring a coarse map to the grid of the next finer level, whatever its exact size.

    ``transposed``: transposed convolution with kernel = stride, then a crop to the finer map (sizes are
    rounded up on the way down). ``linear``: a 1x1 convolution, then interpolation to the finer map's size.
    """

    def __init__(
        self, ndim: int, in_channels: int, out_channels: int, stride: tuple[int, ...], mode: str
    ) -> None:
        super().__init__()
        if mode not in UPSAMPLING:
            raise ModelError(f"upsampling {mode!r} is not known; choose from {', '.join(UPSAMPLING)}")
        self.transposed = mode == "transposed"
        self.project = (
            transposed_conv(ndim, in_channels, out_channels, stride)
            if self.transposed
            else conv(ndim, in_channels, out_channels, kernel=1)
        )

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """``(B, in_channels, *S) -> (B, out_channels, *size)``."""
        if self.transposed:
            return crop(self.project(x), size)
        return resize(self.project(x), size)


class UNetDecoder(Decoder):
    """One stage per encoder level but the coarsest; encoders that start below the image's grid get a last
    stage without skip, which ends at the image's size.

    Args:
        encoder: the encoder it serves.
        fusion: concat, add, attention_gate, skff, or a mapping with its name and options.
        widths: channels of each stage, finest first; the encoder's own when not given.
        blocks: convolutions per stage.
        upsampling: transposed or linear.
        norm: instance, batch, group or none.
        activation: leaky_relu, relu, gelu or silu.

    A subclass may change ``block``, of which stages are made, and how a map comes to the next finer grid.
    """

    block: ClassVar[type[nn.Module]] = ConvBlock

    def __init__(
        self,
        encoder: Encoder,
        fusion: Part = "concat",
        widths: Sequence[int] | None = None,
        blocks: int = 2,
        upsampling: str = "transposed",
        norm: str = "instance",
        activation: str = "leaky_relu",
    ) -> None:
        super().__init__()
        ndim = encoder.ndim
        skips = len(encoder.out_channels) - 1
        stem = any(s > 1 for s in encoder.strides[0])
        stages = skips + stem
        if stages == 0:
            raise ModelError(
                "the encoder has one level, at the image's grid: nothing to decode; give it two or more"
            )
        if widths is None:
            first = [max(8, encoder.out_channels[0] // 2)] if stem else []
            widths = [*first, *encoder.out_channels[:-1]]
        if len(widths) != stages:
            raise ModelError(f"decoder widths has {len(widths)} entries; this encoder wants {stages}")
        self.out_channels = tuple(widths)
        self.stem = stem
        self.upsamples = nn.ModuleList()
        self.fusions = nn.ModuleList()
        self.skips = nn.ModuleList()
        self.stages = nn.ModuleList()
        # Grids from fine to coarse: the image's where there is a stem stage, then the encoder's levels.
        strides = [(1,) * ndim, *encoder.strides] if stem else list(encoder.strides)
        for stage, width in enumerate(widths):
            below = encoder.out_channels[-1] if stage == stages - 1 else widths[stage + 1]
            step = tuple(c // f for c, f in zip(strides[stage + 1], strides[stage], strict=True))
            self.upsamples.append(Upsample(ndim, below, width, step, upsampling))
            channels = width
            if not (stem and stage == 0):
                skip_channels = encoder.out_channels[stage - stem]
                joined = make_part(FUSION, fusion, "fusion", width, skip_channels, ndim=ndim)
                self.fusions.append(joined)
                self.skips.append(nn.Sequential())
                channels = joined.out_channels
            first_block = self.block(ndim, channels, width, 3, 1, norm, activation)
            rest = (self.block(ndim, width, width, 3, 1, norm, activation) for _ in range(blocks - 1))
            self.stages.append(nn.Sequential(first_block, *rest))

    def append(self, level: int, block: nn.Module) -> None:
        """Put ``block`` behind the stage that returns map ``level``."""
        stage = self.stages[level]
        assert isinstance(stage, nn.Sequential)
        stage.append(block)

    def append_to_skip(self, level: int, block: nn.Module) -> None:
        """Put ``block`` on the skip of encoder level ``level``."""
        skip = self.skips[level]
        assert isinstance(skip, nn.Sequential)
        skip.append(block)

    def _upsample(self, stage: int, x: Tensor, skip: Tensor) -> Tensor:
        """``x`` at the grid of the skip that it is fused with: ``(B, widths[stage], *S)``."""
        return self.upsamples[stage](x, skip.shape[2:])

    def forward(
        self, features: Sequence[Tensor], size: Sequence[int], prompts: Prompts | None = None
    ) -> list[Tensor]:
        """Maps of all stages, finest first: ``[(B, widths[i], *S_i)]``; ``prompts`` are not used."""
        x = features[-1]
        maps: list[Tensor] = []
        for stage in reversed(range(len(self.stages))):
            level = stage - self.stem
            if level < 0:
                x = self.upsamples[stage](x, size)
            else:
                skip = self.skips[level](features[level])
                x = self.fusions[level](self._upsample(stage, x, skip), skip)
            x = self.stages[stage](x)
            maps.insert(0, x)
        return maps
