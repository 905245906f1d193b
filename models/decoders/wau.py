"""Window attention upsample: the skip asks the coarser map, within windows (WAU)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.attention.block import AttentionMap
from models.attention.mechanics.attend import attend, received
from models.attention.mechanics.masks import masked_bias
from models.attention.mechanics.options import at_least, checked_heads
from models.attention.mechanics.positions import RelativeBias
from models.attention.mechanics.tokens import ChannelNorm, merge_heads, split_heads
from models.attention.mechanics.windows import Windows
from models.decoders.unet import UNetDecoder
from models.errors import ModelError
from models.interfaces import Encoder
from models.layers import conv, per_axis
from models.parts import Part


class WindowAttentionDecoder(nn.Module):
    """A layer of a transformer's decoder whose queries are a fine map and whose keys and values a coarser one.

    The same windows are laid over both maps: where the coarser one has ``window`` positions per axis, the finer has
    ``step * window``::

        q     = W_q norm(skip),  k, v = W_kv norm(x)
        y     = W_s skip + W_o softmax(q k^T d^-1/2 + bias) v        within each window
        out   = y + W_2 gelu(W_1 norm(y))

    Padding of the coarser map is not attended to. With C, D and w the channels of x, skip and out, h heads and ratio r,
    it has ``2 C + 2 D + 2 w`` parameters in norms, ``(D w + w) + (2 C w + 2 w) + (w^2 + w)`` in the attention, as many
    as ``h prod(2 step window - step)`` in the bias, ``D w + w`` in W_s and ``2 r w^2 + r w + w`` in the perceptron.

    Args:
        channels: C.
        skip_channels: D.
        width: w.
        ndim: number of spatial axes.
        step: how many times finer the skip is, per axis.
        window: positions of x per window and axis; None: all of them (and then there is no bias, which is learnt for
            one size).
        heads: number of heads, which divides w; about one for each 32 channels when not given.
        ratio: r.

    Raises:
        ValueError: heads that do not divide, a window below 1.
    """

    def __init__(
        self,
        channels: int,
        skip_channels: int,
        width: int,
        ndim: int,
        step: Sequence[int],
        window: Sequence[int] | None,
        heads: int | None,
        ratio: int,
    ) -> None:
        super().__init__()
        self.heads = checked_heads("wau", width, heads)
        self.step = tuple(step)
        self.window = None if window is None else tuple(window)
        self.norm_skip, self.norm_x = ChannelNorm(skip_channels), ChannelNorm(channels)
        self.query = conv(ndim, skip_channels, width, kernel=1)
        self.keys_values = conv(ndim, channels, 2 * width, kernel=1)
        self.bias: RelativeBias | None = None
        if self.window is not None:
            finer = [w * s for w, s in zip(self.window, self.step, strict=True)]
            self.bias = RelativeBias(self.heads, finer, self.window, self.step)
        self.proj = conv(ndim, width, width, kernel=1)
        self.project_skip = conv(ndim, skip_channels, width, kernel=1)
        self.mlp = nn.Sequential(
            ChannelNorm(width),
            conv(ndim, width, ratio * width, kernel=1),
            nn.GELU(),
            conv(ndim, ratio * width, width, kernel=1),
        )
        self.map = AttentionMap()

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """``(B, C, *ceil(S / step)), (B, D, *S) -> (B, w, *S)``."""
        coarse, fine = x.shape[2:], skip.shape[2:]
        window = tuple(coarse) if self.window is None else self.window
        keys = Windows(window)
        queries = Windows(tuple(w * s for w, s in zip(window, self.step, strict=True)))
        k, v = self.keys_values(self.norm_x(x)).chunk(2, 1)
        q, k, v = (
            split_heads(windows.split(t), self.heads)
            for windows, t in ((queries, self.query(self.norm_skip(skip))), (keys, k), (keys, v))
        )
        # Sizes are rounded up on the way down, so that both maps have the same windows, and each a key that is real.
        real = keys.real(coarse, x.device)
        seen = None if real is None else real[:, None, None, :]
        bias = seen if self.bias is None else masked_bias(self.bias(), seen)
        if self.map.wanted:
            self.map(self._received(q, k, bias, queries, keys, skip, coarse))
        y = queries.join(merge_heads(attend(q, k, v, bias)), fine)
        y = self.project_skip(skip) + self.proj(y)
        return y + self.mlp(y)

    def _received(
        self,
        q: Tensor,
        k: Tensor,
        bias: Tensor | None,
        queries: Windows,
        keys: Windows,
        skip: Tensor,
        coarse: Sequence[int],
    ) -> Tensor:
        """How much each position of the coarser map is looked at, 1 on average of a full window."""
        real = queries.real(skip.shape[2:], skip.device)
        if real is not None:
            real = real.expand(len(q), *real.shape)
        return keys.join(received(q, k, bias, counted=real).unsqueeze(-1), coarse)


class WAUDecoder(UNetDecoder):
    """The U-Net's decoder with window attention upsample, for any encoder, in 2D and 3D.

    Li et al., More than Encoder: Introducing Transformer Decoder to Upsample, BIBM 2022, arXiv 2106.10637::

        upsampled = resize(W x) + attention decoder(x, skip)

    and then fusion with the skip and convolutions, as in a U-Net. What of this is the paper's own words is the sum of a
    transformer's decoder, conditioned on the skip within windows, and linear interpolation. That the skip asks and the
    coarser map answers, one layer per stage, windows that are not shifted, the relative bias and the sizes are ours:
    there is no public code. A stage without skip (encoders that begin below the image's grid) interpolates only.

    Args:
        encoder: the encoder it serves.
        fusion: concat, add, attention_gate, skff, or a mapping with its name and options.
        widths: channels of each stage, finest first; the encoder's own when not given.
        blocks: convolutions per stage.
        window: positions of the coarser map per window and axis, one number or one per axis; 0: the whole map, the
            paper's attention upsample without windows, whose cost is the product of both maps' sizes.
        heads: heads of each attention; about one for each 32 channels when not given.
        ratio: how many times wider the perceptron is.
        norm: of the convolutions: instance, batch, group or none.
        activation: of the convolutions: leaky_relu, relu, gelu or silu.
    """

    def __init__(
        self,
        encoder: Encoder,
        fusion: Part = "concat",
        widths: Sequence[int] | None = None,
        blocks: int = 2,
        window: int | Sequence[int] = 4,
        heads: int | None = None,
        ratio: int = 4,
        norm: str = "instance",
        activation: str = "leaky_relu",
    ) -> None:
        super().__init__(encoder, fusion, widths, blocks, "linear", norm, activation)
        ndim = encoder.ndim
        sizes = per_axis(window, ndim)
        if min(sizes) < 0 or (0 in sizes and any(sizes)):
            raise ModelError(
                f"wau window is {window}; it wants at least 1 for each axis, or 0 alone for the whole map"
            )
        at_least("wau", "ratio", ratio)
        self.attentions = nn.ModuleList()
        for level in range(len(encoder.out_channels) - 1):
            stage = level + self.stem
            last = stage == len(self.out_channels) - 1
            step = [c // f for c, f in zip(encoder.strides[level + 1], encoder.strides[level], strict=True)]
            self.attentions.append(
                WindowAttentionDecoder(
                    encoder.out_channels[-1] if last else self.out_channels[stage + 1],
                    encoder.out_channels[level],
                    self.out_channels[stage],
                    ndim,
                    step,
                    sizes if all(sizes) else None,
                    heads,
                    ratio,
                )
            )

    def _upsample(self, stage: int, x: Tensor, skip: Tensor) -> Tensor:
        """Interpolation, and what the skip finds in ``x``."""
        attention: nn.Module = self.attentions[stage - self.stem]
        found: torch.Tensor = attention(x, skip)
        return super()._upsample(stage, x, skip) + found
