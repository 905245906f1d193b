"""Every channel of an image is cut into tokens of its own: what ChannelViT and ChAda-ViT share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.attention.mechanics.tokens import to_map, to_tokens
from models.encoders.simple_pyramid import SimplePyramid
from models.encoders.vit_block import ViTBlock, init_tokens
from models.interfaces import Encoder
from models.layers import patchify, per_axis, resize
from models.sizes import pad_to_multiple


class ChannelTokens(Encoder):
    """A vision transformer over channels x patches tokens.

    The token of channel c and patch i is ``P x_ci + e_c + p_i``: one projection P for all channels, a learnt
    vector per channel, a learnt vector per position (a table that is interpolated to the grid at hand). Each
    token may attend to all tokens of all channels, so that a block costs time and memory in
    ``(channels * patches)^2``. Behind the blocks and a LayerNorm, the mean over a patch's channels is one map;
    the simple pyramid makes the levels of it. There is no class token: nothing here would read it.

    A channel that an image lacks has no tokens: where all images of a batch lack it none are made, where some
    do they are hidden from the attention and left out of the mean. So what stands in its place does not matter.
    An image that lacks all of its channels is taken as all zeros.

    Parameters, with d = dim, h = hidden, n = ndim, besides the pyramid's: ``patch^n d + d + in_channels d +
    prod(grid) d + depth (4 d^2 + 2 d h + 9 d + h) + 2 d``.

    Args:
        in_channels: channels of the image.
        ndim: number of spatial axes.
        patch: side of a patch, one number per axis where a list.
        dim: channels of a token.
        depth: number of blocks.
        heads: of the attention; divides dim.
        hidden: channels inside the feed-forward parts; ``4 dim`` where None.
        grid: positions that are learnt, per axis where a list: the grid of patches of the training patch.
        widths: channels of each level, finest first; one number for all of them.
        ups: how often each level doubles the patches' grid (negative: halves it), finest first.
        zeros_are_absent: where nobody says which channels an image has (``present``), take
            those that are 0 everywhere as missing. A real channel that happens to be 0 in a window then is
            missing too: black borders, radar without data.

    Raises:
        ValueError: dim is not a multiple of heads, or the finest level would lie between pixels.
    """

    def __init__(
        self,
        in_channels: int,
        ndim: int,
        patch: int | Sequence[int],
        dim: int,
        depth: int,
        heads: int,
        hidden: int | None,
        grid: int | Sequence[int],
        widths: int | Sequence[int],
        ups: Sequence[int],
        zeros_are_absent: bool,
    ) -> None:
        super().__init__()
        self.patch = per_axis(patch, ndim)
        self.zeros_are_absent = zeros_are_absent
        self.project = patchify(ndim, 1, dim, self.patch)
        self.channel = nn.Parameter(torch.empty(in_channels, dim))
        self.position = nn.Parameter(torch.empty(1, dim, *per_axis(grid, ndim)))
        nn.init.trunc_normal_(self.channel, std=0.02)
        nn.init.trunc_normal_(self.position, std=0.02)
        self.blocks = nn.ModuleList(ViTBlock(dim, heads, hidden) for _ in range(depth))
        self.blocks.apply(init_tokens)
        self.norm = nn.LayerNorm(dim)
        self.pyramid = SimplePyramid(dim, self.patch, ndim, widths, ups)
        self.ndim = ndim
        self.in_channels = in_channels
        self.out_channels = self.pyramid.out_channels
        self.strides = self.pyramid.strides

    def append(self, level: int, block: nn.Module) -> None:
        """Put ``block`` behind level ``level``. The levels are parallel: the skip alone sees its output."""
        self.pyramid.append(level, block)

    def forward(self, image: Tensor, present: Tensor | None = None) -> list[Tensor]:
        """``(B, in_channels, *S) -> [(B, out_channels[i], *ceil(S / strides[i]))]``.

        Args:
            image: any size.
            present: ``(B, in_channels)`` booleans, which channels each image has; all when not given.
        """
        if present is None and self.zeros_are_absent:
            present = image.flatten(2).ne(0).any(-1)
        if present is not None:
            image = image.masked_fill(~present.reshape(*present.shape, *(1,) * self.ndim), 0)
            # Where nothing is there, zeros are all that is known.
            present = present | ~present.any(1, keepdim=True)
        chosen = self.chosen(present)
        tokens, grid = self.tokens(image, chosen)
        here = None if present is None else present[:, chosen]
        here = None if here is None or here.all() else here
        mean = self.mixed(tokens, here)
        return self.pyramid(to_map(mean, grid), image.shape[2:])

    def forward_lacking(self, image: Tensor, present: Tensor) -> list[Tensor]:
        """:meth:`forward`, told which channels each image has."""
        return self(image, present)

    def chosen(self, present: Tensor | None) -> list[int]:
        """The channels of which tokens are made: those that any image of the batch has."""
        if present is None:
            return list(range(self.in_channels))
        return present.any(0).nonzero().flatten().tolist()

    def tokens(self, image: Tensor, chosen: Sequence[int]) -> tuple[Tensor, tuple[int, ...]]:
        """``(B, in_channels, *S) -> (B, len(chosen), N, dim)``, and the patches' grid, whose product is N."""
        if len(chosen) < self.in_channels:
            image = image[:, chosen]
        image = pad_to_multiple(image, self.patch)
        batch, channels = image.shape[:2]
        patches = self.project(image.reshape(batch * channels, 1, *image.shape[2:]))
        grid = tuple(patches.shape[2:])
        patches = patches + resize(self.position, grid)
        tokens = to_tokens(patches).unflatten(0, (batch, channels))
        return tokens + self.channel[chosen].unsqueeze(1), grid

    def mixed(self, tokens: Tensor, here: Tensor | None) -> Tensor:
        """Run the blocks: ``(B, C, N, dim)``, and ``(B, C)`` which of them are there, all when not given
        ``-> (B, N, dim)``, the mean over those channels.
        """
        count = tokens.shape[2]
        mask = None if here is None else here.repeat_interleave(count, 1)[:, None, None]
        x = tokens.flatten(1, 2)
        for block in self.blocks:
            x = block(x, mask)
        x = self.norm(x).unflatten(1, (-1, count))
        if here is None:
            return x.mean(1)
        weight = here.to(x.dtype) / here.sum(1, keepdim=True)
        return (x * weight[:, :, None, None]).sum(1)
