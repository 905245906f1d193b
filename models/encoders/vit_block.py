"""The transformer block of the encoders that work on tokens."""

from __future__ import annotations

from torch import Tensor, nn

from models.attention.mechanics.attend import attend
from models.attention.mechanics.tokens import merge_heads, split_heads
from models.errors import ModelError


class TokenAttention(nn.Module):
    """Softmax attention of tokens to themselves or to others, its normalisation in front of it.

    ``out(softmax(q k^T / sqrt(d) + bias) v)`` with q of ``norm(x)``, k and v of ``norm(context)``, the same norm.
    Parameters: ``4 dim^2 + 3 dim``, and ``3 dim`` more with the biases of q, k and v.

    Args:
        dim: channels of a token.
        heads: number of heads; divides dim.
        bias: whether q, k and v have biases.

    Raises:
        ValueError: dim is not a multiple of heads.
    """

    def __init__(self, dim: int, heads: int, bias: bool = True) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise ModelError(f"dim {dim} is not a multiple of heads {heads}; give heads that divide it")
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.q = nn.Linear(dim, dim, bias=bias)
        self.k = nn.Linear(dim, dim, bias=bias)
        self.v = nn.Linear(dim, dim, bias=bias)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """``(B, N, dim), (B, M, dim) -> (B, N, dim)``; ``bias`` as in :func:`attend`, for ``(B, heads, N, M)``."""
        x = self.norm(x)
        context = x if context is None else self.norm(context)
        q, k, v = (
            split_heads(project(y), self.heads)
            for project, y in ((self.q, x), (self.k, context), (self.v, context))
        )
        return self.out(merge_heads(attend(q, k, v, bias)))


class ViTBlock(nn.Module):
    """``x + attention(x)``, then ``x + cross(x, context)`` where asked for, then ``x + feed_forward(x)``.

    The block of the vision transformer (Dosovitskiy et al., ICLR 2021, arXiv 2010.11929), normalised in front
    of each part; with ``cross`` the decoder block of the transformer (Vaswani et al., arXiv 1706.03762) without
    a causal mask. Parameters: ``(1 + cross)`` times those of :class:`TokenAttention`, and ``2 dim hidden +
    hidden + 3 dim``.

    Args:
        dim: channels of a token.
        heads: number of heads; divides dim.
        hidden: channels inside the feed-forward part; ``4 dim`` when not given.
        bias: whether q, k and v have biases.
        cross: whether the tokens also attend to a context.
        dropout: probability at which, in training, values inside the feed-forward part and values that any part adds
            are set to 0.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden: int | None = None,
        bias: bool = True,
        cross: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        hidden = 4 * dim if hidden is None else hidden
        self.dropout = nn.Dropout(dropout)
        self.attention = TokenAttention(dim, heads, bias)
        self.cross = TokenAttention(dim, heads, bias) if cross else None
        # GELU and dropout in one place, so that names of weights do not depend on it.
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, hidden),
            nn.Sequential(nn.GELU(), nn.Dropout(dropout)),
            nn.Linear(hidden, dim),
        )

    def forward(self, x: Tensor, bias: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        """``(B, N, dim) -> (B, N, dim)``; ``bias`` is added to the logits of both attentions."""
        x = x + self.dropout(self.attention(x, bias=bias))
        if self.cross is not None:
            x = x + self.dropout(self.cross(x, context, bias))
        return x + self.dropout(self.feed_forward(x))


def init_tokens(module: nn.Module) -> None:
    """First weights as in the vision transformer: truncated normal of deviation 0.02, biases 0. For ``apply``."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
