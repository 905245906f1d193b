"""SAM's mask decoder made light, without prompts and without predicted quality: HER-Seg's decoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.attention.mechanics.options import at_least, odd
from models.errors import ModelError
from models.layers import transposed_conv
from models.precision import full_precision
from models.sam.image_encoder import LayerNorm2d
from models.sam.package import make_perceptron, make_position_encoding, make_two_way_transformer


class LightMaskDecoder(nn.Module):
    """An embedding of an image -> a map of logits per mask, at four times its grid.

    Tokens, one shared and one per mask, and the embedding attend to each other (SAM's two-way transformer); a
    perceptron per mask makes a token into weights over the channels of the up-scaled embedding. Parameters with
    ``C = channels``, h = hidden, M masks: of the transformer those of segment-anything's; ``C + (1 + M) C`` of the
    tokens; ``C^2 + C / 2 + C + (C / 4) (C / 2) + C / 8`` of the up-scaling; ``M (2 C^2 + 2 C + C^2 / 8 + C / 8)``.

    Args:
        channels: C of the embedding, a multiple of 8 and of twice the heads.
        masks: M.
        depth: two-way blocks.
        heads: of their attention.
        hidden: middle of their perceptrons; SAM has 2048.
        own_tokens: each mask is made from its own token, as in SAM; otherwise all are made from the shared one.
        pooling: odd sides k of means that are added to the embedding before it is up-scaled, as
            ``sum_k (mean_k(x) - x)``; none for none.

    Raises:
        ModelError: numbers that do not fit, or the package segment-anything is not installed.
    """

    def __init__(
        self,
        channels: int,
        masks: int,
        depth: int,
        heads: int,
        hidden: int,
        own_tokens: bool,
        pooling: Sequence[int],
    ) -> None:
        super().__init__()
        at_least("LightMaskDecoder", "masks", masks)
        if heads < 1 or channels % (2 * heads) or channels % 8:
            raise ModelError(
                f"the decoder has {channels} channels and {heads} heads; channels must be a multiple of 8 and of twice "
                f"the heads: try {-(-channels // 8) * 8} channels and 4 heads"
            )
        self.own_tokens = own_tokens
        self.pooling = tuple(odd("LightMaskDecoder", "pooling", k) for k in pooling)
        self.positions = make_position_encoding(channels)
        self.no_prompt = nn.Parameter(torch.randn(channels))
        self.tokens = nn.Parameter(torch.randn(1 + masks, channels))
        self.transformer = make_two_way_transformer(channels, depth, heads, hidden)
        self.upscale = nn.Sequential(
            transposed_conv(2, channels, channels // 4, (2, 2)),
            LayerNorm2d(channels // 4),
            nn.GELU(),
            transposed_conv(2, channels // 4, channels // 8, (2, 2)),
            nn.GELU(),
        )
        self.weights = nn.ModuleList(make_perceptron(channels, channels, channels // 8) for _ in range(masks))

    def forward(self, embedding: Tensor) -> Tensor:
        """``(B, C, h, w) -> (B, M, 4 h, 4 w)``."""
        # A length would fix the batch of an exported graph.
        batch, size = embedding.shape[0], embedding.shape[2:]
        # It is little work, and positions need it.
        with full_precision(embedding):
            positions = self.positions(tuple(size)).unsqueeze(0).expand(batch, -1, -1, -1)
        source = embedding + self.no_prompt[:, None, None]
        tokens = self.tokens.expand(batch, -1, -1)
        tokens, source = self.transformer(source, positions, tokens)
        maps = self.upscale(self._pooled(source.transpose(1, 2).unflatten(2, size)))
        own = int(self.own_tokens)
        weights = torch.stack([make(tokens[:, own * (1 + i)]) for i, make in enumerate(self.weights)], dim=1)
        return (weights @ maps.flatten(2)).unflatten(2, maps.shape[2:])

    def _pooled(self, x: Tensor) -> Tensor:
        means = [F.avg_pool2d(x, k, 1, k // 2, count_include_pad=False) - x for k in self.pooling]
        return x if not means else x + torch.stack(means).sum(0)
