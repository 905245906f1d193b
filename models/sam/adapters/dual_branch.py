"""A branch of convolutions beside the frozen blocks, which speaks with them and is fused with them at the end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.attention import SE
from models.errors import ModelError
from models.sam.adapters.chosen import chosen_blocks, stand_at
from models.sam.adapters.deformable import DeformableAttention, centres
from models.sam.image_encoder import Branch, LayerNorm2d

if TYPE_CHECKING:
    from models.sam.segmenter import SamSegmenter


class Pyramid(nn.Module):
    """Three convolutions of 3 with batch norm and ReLU, and one of 1: an image to a map of the tokens' grid.

    Args:
        in_channels: of the image.
        widths: channels behind each of the three.
        dim: channels of the map.
        halvings: how many of the three have stride 2, the first ones.
    """

    def __init__(self, in_channels: int, widths: Sequence[int], dim: int, halvings: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for number, (before, behind) in enumerate(zip([in_channels, *widths], widths, strict=False)):
            stride = 2 if number < halvings else 1
            layers += [
                nn.Conv2d(before, behind, 3, stride, padding=1, bias=False),
                nn.BatchNorm2d(behind),
                nn.ReLU(inplace=True),
            ]
        self.body = nn.Sequential(*layers, nn.Conv2d(widths[-1], dim, 1), LayerNorm2d(dim))
        self.level = nn.Parameter(torch.zeros(dim))
        nn.init.trunc_normal_(self.level, std=0.02)

    def forward(self, image: Tensor) -> Tensor:
        """``(N, in_channels, S, S) -> (N, S', S', C)``."""
        return self.body(image).permute(0, 2, 3, 1) + self.level


class ChannelAttention(nn.Module):
    """``x + conv1(SE(depthwise3(norm(x))))`` behind a frozen block; ``conv1`` begins at 0.

    Args:
        dim: channels.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.spread = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.weigh = SE(dim)
        self.proj = nn.Conv2d(dim, dim, 1)
        nn.init.zeros_(self.proj.weight)
        assert self.proj.bias is not None
        nn.init.zeros_(self.proj.bias)

    def forward(self, x: Tensor, slices: int) -> Tensor:
        """``(N, H, W, C) -> (N, H, W, C)``."""
        maps = self.norm(x).permute(0, 3, 1, 2)
        return x + self.proj(self.weigh(self.spread(maps))).permute(0, 2, 3, 1)


class Exchange(nn.Module):
    """Bilateral cross-attention: tokens look at the maps of the convolutions, then these at the tokens.

    Args:
        dim: channels.
        maps: of the convolutions.
        heads: of both attentions.
        points: places that a head looks at in a map.
    """

    def __init__(self, dim: int, maps: int, heads: int, points: int) -> None:
        super().__init__()
        self.norm_tokens = nn.LayerNorm(dim, eps=1e-6)
        self.norm_maps = nn.LayerNorm(dim, eps=1e-6)
        self.to_tokens = DeformableAttention(dim, heads, maps, points)
        self.to_maps = DeformableAttention(dim, heads, 1, points)
        # As in ViT-Adapter (Chen et al. 2022, arXiv 2205.08534): the tokens begin as they are.
        self.share = nn.Parameter(torch.zeros(dim))

    def forward(self, tokens: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
        """``(N, H, W, C)`` and ``(N, M, H, W, C)`` -> both."""
        height, width = tokens.shape[1:3]
        at = centres(height, width, tokens)
        looked = self.to_tokens(self.norm_tokens(tokens).flatten(1, 2), at, self.norm_maps(maps))
        tokens = tokens + self.share * looked.unflatten(1, (height, width))
        queries = self.norm_maps(maps).flatten(1, 3)
        looked = self.to_maps(queries, at.repeat(maps.shape[1], 1), self.norm_tokens(tokens)[:, None])
        maps = maps + looked.unflatten(1, maps.shape[1:4])
        return tokens, maps


class Fusion(nn.Module):
    """Tokens and maps compete for every channel of every position, with a perceptron behind.

    Args:
        dim: channels.
        branches: tokens and maps together.
        hidden: channels inside the gates.
    """

    def __init__(self, dim: int, branches: int, hidden: int) -> None:
        super().__init__()
        self.gates = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, hidden), nn.SiLU(), nn.Linear(hidden, dim), nn.LayerNorm(dim))
            for _ in range(branches)
        )
        self.mlp = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim)
        )
        self.norm = nn.LayerNorm(dim)
        self.share = nn.Parameter(torch.zeros(dim))

    def forward(self, tokens: Tensor, maps: Tensor) -> Tensor:
        """``(N, H, W, C)`` and ``(N, M, H, W, C)`` -> tokens."""
        branches = [tokens, *maps.unbind(1)]
        weights = torch.stack([gate(x) for gate, x in zip(self.gates, branches, strict=True)]).softmax(0)
        fused = (weights * torch.stack(branches)).sum(0)
        return tokens + self.share * self.norm(fused + self.mlp(fused))


class DualBranch(Branch):
    """The convolution branch of DB-SAM (Qin et al., MICCAI 2024, arXiv 2410.04172), made from its description.

    Pyramids of convolutions bring the image, at several sizes, to the grid of the tokens. Behind some blocks tokens
    and maps look at each other; behind the last one they are fused. Here it begins as SAM: what reaches the tokens
    begins at 0. Stochastic depth is left out. The other half of DB-SAM is :class:`ChannelAttention` behind each block.

    Args:
        in_channels: of the image.
        patch: side of a token in pixels.
        dim: channels of the tokens.
        after: numbers of the blocks behind which they exchange.
        pyramids: how many sizes of the image; the largest is half of it.
        heads: of deformable attention.
        points: places per head and map.
        widths: channels of the pyramids' three convolutions.
        hidden: channels inside the gates of the fusion.
    """

    def __init__(
        self,
        in_channels: int,
        patch: int,
        dim: int,
        after: Sequence[int],
        pyramids: int,
        heads: int,
        points: int,
        widths: Sequence[int],
        hidden: int,
    ) -> None:
        super().__init__()
        self.patch = patch
        # The first pyramid sees the image at half its size and halves it until the tokens' grid; the next begin later.
        most = (patch // 2).bit_length() - 1
        self.pyramids = nn.ModuleList(
            Pyramid(in_channels, widths, dim, most - number) for number in range(pyramids)
        )
        self.exchanges = nn.ModuleDict(
            {str(index): Exchange(dim, pyramids, heads, points) for index in after}
        )
        self.fusion = Fusion(dim, 1 + pyramids, hidden)

    def begin(self, image: Tensor) -> Tensor:
        """``(N, in_channels, S, S)`` -> maps ``(N, M, S / patch, S / patch, C)``."""
        maps = []
        for number, pyramid in enumerate(self.pyramids):
            side = image.shape[-1] // 2 ** (number + 1)
            maps.append(pyramid(F.interpolate(image, (side, side), mode="bilinear", antialias=True)))
        return torch.stack(maps, dim=1)

    def after(self, index: int, tokens: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """An exchange where there is one behind this block."""
        if str(index) not in self.exchanges:
            return tokens, state
        return self.exchanges[str(index)](tokens, state)

    def end(self, tokens: Tensor, state: Tensor) -> Tensor:
        """The fusion."""
        return self.fusion(tokens, state)


def put_dual_branch(
    network: SamSegmenter,
    blocks: list[int] | None = None,
    pyramids: int = 4,
    heads: int | None = None,
    points: int = 4,
    widths: list[int] | None = None,
    hidden: int | None = None,
) -> Iterable[nn.Parameter]:
    """Both halves of DB-SAM: channel attention behind each block of the image encoder, and a branch beside it.

    Args:
        network: the SAM.
        blocks: behind which blocks tokens and convolutions exchange; behind the global ones when not given, which are
            DB-SAM's in ViT-B.
        pyramids: 1 to 4 sizes of the image.
        heads: of deformable attention; those of the image encoder when not given.
        points: places that a head looks at in a map.
        widths: channels of the pyramids' three convolutions; 1/6, 1/3 and 2/3 of the tokens' (128, 256, 512 in ViT-B).
        hidden: channels in the gates of the fusion; a 12th of the tokens' (64 in ViT-B).

    Raises:
        ModelError: an option that does not fit, or a second branch.
    """
    size = network.size
    dim, patch = size.embed_dim, size.patch_size
    if network.image_encoder.branch is not None:
        raise ModelError("adapter 'dual_branch' is there twice; there is one branch beside the image encoder")
    most = patch.bit_length() - 1
    if patch != 2**most or not 1 <= pyramids <= min(4, most) or most > 4:
        raise ModelError(
            f"adapter 'dual_branch': pyramids is {pyramids} with tokens of {patch} pixels; tokens must have 2, 4, 8 or 16, "
            f"and there can be as many pyramids as halvings: 1 to {min(4, most)}"
        )
    widths = [max(1, dim // 6), max(1, dim // 3), max(1, 2 * dim // 3)] if widths is None else widths
    if len(widths) != 3 or min(widths) < 1:
        raise ModelError(f"adapter 'dual_branch': widths is {widths}; give three numbers above 0")
    if points < 1:
        raise ModelError(f"adapter 'dual_branch': points is {points}; it must be 1 or more")
    after = list(size.global_attn_indexes) if blocks is None else sorted(set(blocks))
    chosen_blocks(network, after, "dual_branch")
    branch = DualBranch(
        network.in_channels,
        patch,
        dim,
        after,
        pyramids,
        size.num_heads if heads is None else heads,
        points,
        widths,
        max(1, dim // 12) if hidden is None else hidden,
    )
    network.image_encoder.branch = branch
    learning = list(branch.parameters())
    for block in chosen_blocks(network, None, "dual_branch"):
        attention = ChannelAttention(dim)
        stand_at(block, "behind", attention)
        learning += attention.parameters()
    return learning
