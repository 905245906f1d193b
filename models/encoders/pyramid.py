"""Pyramids of attention: four stages (or any number) of a mixer and a feed-forward part, put together by options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from models.attention import ATTENTION
from models.encoders.convnext import LayerScale
from models.encoders.entries import make_entry, make_norm
from models.encoders.staged import Axes, ChainedEncoder, one_per_level
from models.errors import ModelError
from models.layers import conv
from models.parts import Part, make_part
from models.presets import read_preset


def _mlp(width: int, ndim: int, ratio: float) -> nn.Module:
    hidden = int(ratio * width)
    return nn.Sequential(conv(ndim, width, hidden, 1), nn.GELU(), conv(ndim, hidden, width, 1))


def _dw_mlp(width: int, ndim: int, ratio: float) -> nn.Module:
    hidden = int(ratio * width)
    return nn.Sequential(
        conv(ndim, width, hidden, 1),
        conv(ndim, hidden, hidden, 3, groups=hidden),
        nn.GELU(),
        conv(ndim, hidden, width, 1),
    )


def _conv_glu(width: int, ndim: int, ratio: float) -> nn.Module:
    return ATTENTION["conv_glu"](width, ndim=ndim, ratio=ratio)  # type: ignore[call-arg]


FEED_FORWARD: dict[str, Callable[[int, int, float], nn.Module]] = {
    "conv_glu": _conv_glu,
    "dw_mlp": _dw_mlp,
    "mlp": _mlp,
}


class PyramidBlock(nn.Module):
    """``x + position(x)``, then ``x + scale mixer(norm(x))``, then ``x + scale feed_forward(norm(x))``.

    The block that MetaFormer (Yu et al., CVPR 2022, arXiv 2111.11418) finds in all transformers; the position
    encoding is a depth-wise convolution (CPVT, Chu et al., arXiv 2102.10882). Attention that is put into residual
    branches goes behind the mixer.

    Args:
        width: channels.
        ndim: number of spatial axes.
        mixer: what mixes positions, ``(B, C, *S) -> (B, C, *S)``; none without.
        feed_forward: what works on each position.
        norm: of both parts, see :func:`make_norm`.
        scale: first value of the layer scales; 0 for none.
        position: kernel of the position encoding; 0 for none.
    """

    def __init__(
        self,
        width: int,
        ndim: int,
        mixer: nn.Module | None,
        feed_forward: nn.Module,
        norm: str,
        scale: float,
        position: int,
    ) -> None:
        super().__init__()
        self.position = conv(ndim, width, width, position, groups=width) if position else None
        self.branch = None if mixer is None else nn.Sequential(make_norm(norm, ndim, width), mixer)
        self.scale = LayerScale(width, ndim, scale) if scale and mixer is not None else nn.Identity()
        self.feed_forward = nn.Sequential(make_norm(norm, ndim, width), feed_forward)
        self.feed_scale = LayerScale(width, ndim, scale) if scale else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, C, *S)``."""
        if self.position is not None:
            x = x + self.position(x)
        if self.branch is not None:
            x = x + self.scale(self.branch(x))
        return x + self.feed_scale(self.feed_forward(x))


class PyramidEncoder(ChainedEncoder):
    """A hierarchical encoder whose mixers are blocks of :data:`models.attention.ATTENTION`.

    What is not given comes from the preset; the presets and their sources are in ``models/presets``. Stochastic depth,
    which several of the published networks train with, is not there.

    "One per stage" below: a list with an entry for each stage; anything else stands for all of them.

    Args:
        in_channels: channels of the image.
        ndim: number of spatial axes.
        preset: name of a set of numbers: default, van_b0, van_b1, van_b2, litv2_s, biformer_t, nat_mini, nat_tiny,
            dinat_mini, dinat_tiny.
        widths: channels of each stage, finest first.
        depths: blocks of each stage; one per stage.
        strides: step into each stage, per axis where a list.
        stem: how the first stage begins: ``conv``, ``conv_linear``, ``cross_scale``, ``overlapping`` or ``patch``;
            see :func:`make_entry`.
        downsampling: how the others begin; the same kinds.
        entry_norm: norm there, ``layer``, ``batch``, ``instance``, ``group`` or ``none``; one per stage.
        entry_bias: whether convolutions there have a bias; one per stage.
        entry_gelu: whether GELU follows there; one per stage.
        mixer: a block of attention with its options, or ``none``; one per stage.
        every_second: the mixer of the second, fourth ... block of a stage, where it is another; one per stage.
        feed_forward: ``mlp``, ``dw_mlp`` (a depth-wise convolution of 3 in the middle) or ``conv_glu``; one per stage.
        ratio: how many times wider the middle of the feed-forward part is; one per stage.
        block_norm: norm in front of mixer and feed-forward part, as for ``entry_norm``; one per stage.
        layer_scale: first value of the layer scale; 0 for none; one per stage.
        position: kernel of a depth-wise convolution that is added in front of each block; 0 for none; one per stage.
        end_norm: norm behind each stage; one per stage.

    Raises:
        ValueError: an unknown preset, part or option, or a list with another number of entries than ``widths``.
    """

    def __init__(
        self,
        in_channels: int,
        ndim: int = 2,
        preset: str = "default",
        widths: Sequence[int] | None = None,
        depths: int | Sequence[int] | None = None,
        strides: Sequence[Axes] | None = None,
        stem: str | None = None,
        downsampling: str | None = None,
        entry_norm: str | Sequence[str] | None = None,
        entry_bias: bool | Sequence[bool] | None = None,
        entry_gelu: bool | Sequence[bool] | None = None,
        mixer: Part | Sequence[Part] | None = None,
        every_second: Part | Sequence[Part] | None = None,
        feed_forward: str | Sequence[str] | None = None,
        ratio: float | Sequence[float] | None = None,
        block_norm: str | Sequence[str] | None = None,
        layer_scale: float | Sequence[float] | None = None,
        position: int | Sequence[int] | None = None,
        end_norm: str | Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        given: dict[str, Any] = {
            "widths": widths,
            "depths": depths,
            "strides": strides,
            "stem": stem,
            "downsampling": downsampling,
            "entry_norm": entry_norm,
            "entry_bias": entry_bias,
            "entry_gelu": entry_gelu,
            "mixer": mixer,
            "every_second": every_second,
            "feed_forward": feed_forward,
            "ratio": ratio,
            "block_norm": block_norm,
            "layer_scale": layer_scale,
            "position": position,
            "end_norm": end_norm,
        }
        chosen = _of_preset(preset)
        chosen |= {name: value for name, value in given.items() if value is not None}
        levels = len(chosen["widths"])
        if mixer is not None and every_second is None:
            chosen["every_second"] = None  # The preset's belongs to the preset's mixer.
        if chosen["every_second"] is None:
            chosen["every_second"] = chosen["mixer"]
        kinds = [chosen["stem"], *[chosen["downsampling"]] * (levels - 1)]
        single = ("widths", "stem", "downsampling")
        per = {
            name: one_per_level(name, value, levels) for name, value in chosen.items() if name not in single
        }

        def block(level: int, index: int, width: int) -> nn.Module:
            part = per["every_second" if index % 2 else "mixer"][level]
            kind = per["feed_forward"][level]
            if kind not in FEED_FORWARD:
                raise ModelError(f"feed_forward {kind!r} is not known; choose from {', '.join(FEED_FORWARD)}")
            return PyramidBlock(
                width,
                ndim,
                None if part == "none" else make_part(ATTENTION, part, "mixer", width, ndim=ndim),
                FEED_FORWARD[kind](width, ndim, per["ratio"][level]),
                per["block_norm"][level],
                per["layer_scale"][level],
                per["position"][level],
            )

        def stage(level: int, before: int, width: int, stride: tuple[int, ...]) -> nn.Sequential:
            bias, name = per["entry_bias"][level], per["entry_norm"][level]
            entry = make_entry(kinds[level], ndim, before, width, stride, name, level == 0, bias)
            blocks = [block(level, index, width) for index in range(per["depths"][level])]
            gelu = [nn.GELU()] if per["entry_gelu"][level] else []
            last = per["end_norm"][level]
            end = [] if last == "none" else [make_norm(last, ndim, width)]
            return nn.Sequential(*entry, *gelu, *blocks, *end)

        self._chain(in_channels, ndim, chosen["widths"], per["strides"], stage)


def _of_preset(name: str) -> dict[str, Any]:
    """The numbers of a preset, over those of ``default``."""
    try:
        return read_preset("PyramidEncoder", "default") | read_preset("PyramidEncoder", name)
    except KeyError as error:
        raise ModelError(str(error.args[0])) from error
