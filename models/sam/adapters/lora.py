"""Low-rank updates of the fused projection to queries, keys and values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.errors import ModelError
from models.sam.adapters.chosen import chosen_blocks

if TYPE_CHECKING:
    from models.sam.segmenter import SamSegmenter

# Their order in the fused projection.
PARTS = ("q", "k", "v")


class LoraQkv(nn.Linear):
    """A fused projection ``x W' + b`` to which ``scale * x A' B'`` is added, for some of queries, keys and values.

    LoRA (Hu et al. 2021, arXiv 2106.09685) as SAMed has it: A at random, B 0, no biases, so that it begins as the
    projection itself. Weight and bias keep their names. Its state is the unmerged one, merged or not.

    Args:
        plain: the projection, whose parameters it takes over.
        rank: of the updates.
        at: which of q, k and v.
        scale: factor of the updates.
    """

    plain: Tensor | None

    def __init__(self, plain: nn.Linear, rank: int, at: Sequence[str], scale: float) -> None:
        # Without memory of its own: the parameters are replaced at once.
        super().__init__(plain.in_features, plain.out_features, device="meta")
        self.weight, self.bias = plain.weight, plain.bias
        self.scale = scale
        like = plain.weight
        self.a = nn.ParameterDict({part: like.new_empty(rank, self.in_features) for part in at})
        self.b = nn.ParameterDict({part: like.new_zeros(self.out_features // 3, rank) for part in at})
        for part in at:
            nn.init.kaiming_uniform_(self.a[part], a=math.sqrt(5))
        # The projection's own weight while updates are merged into it.
        self.register_buffer("plain", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., C) -> (..., 3 C)``."""
        out = super().forward(x)
        if self.plain is not None:
            return out
        parts = list(out.chunk(3, dim=-1))
        for part in self.a:
            place = PARTS.index(part)
            parts[place] = parts[place] + self.scale * F.linear(F.linear(x, self.a[part]), self.b[part])
        return torch.cat(parts, dim=-1)

    @torch.no_grad()
    def merge(self) -> None:
        """Add the updates to the weight: no more time than without them. Training takes them out again."""
        if self.plain is not None:
            return
        self.plain = self.weight.detach().clone()
        for part in self.a:
            rows = self.weight.chunk(3)[PARTS.index(part)]
            rows += self.scale * (self.b[part] @ self.a[part])

    @torch.no_grad()
    def unmerge(self) -> None:
        """The weight again as it was, bit for bit."""
        if self.plain is not None:
            self.weight.copy_(self.plain)
            self.plain = None

    def train(self, mode: bool = True) -> LoraQkv:
        """Updates that are to learn are taken out of the weight."""
        if mode:
            self.unmerge()
        return super().train(mode)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.plain is not None:
            destination[prefix + "weight"] = self.plain

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.unmerge()
        super()._load_from_state_dict(*args, **kwargs)


def put_lora(
    network: SamSegmenter,
    rank: int = 4,
    alpha: float | None = None,
    at: list[str] | str = "qv",
    blocks: list[int] | None = None,
) -> Iterable[nn.Parameter]:
    """SAMed's adaptation of the image encoder (Zhang and Liu 2023, arXiv 2304.13785).

    Args:
        network: the SAM.
        rank: of the updates.
        alpha: updates are multiplied by alpha / rank; by 1 without, as in SAMed.
        at: which of q, k and v.
        blocks: numbers of the blocks; all when not given.

    Raises:
        ModelError: an option that does not fit, or a second LoRA.
    """
    parts = list(dict.fromkeys(at))
    if not parts or not set(parts) <= set(PARTS):
        raise ModelError(f"adapter 'lora': at is {at!r}; give one or more of: {', '.join(PARTS)}")
    if rank < 1:
        raise ModelError(f"adapter 'lora': rank is {rank}; it must be 1 or more")
    learning: list[nn.Parameter] = []
    for block in chosen_blocks(network, blocks, "lora"):
        if isinstance(block.attn.qkv, LoraQkv):
            raise ModelError("adapter 'lora' stands twice at a block; give it once, or other blocks")
        lora = LoraQkv(block.attn.qkv, rank, parts, 1.0 if alpha is None else alpha / rank)
        block.attn.qkv = lora
        learning += [*lora.a.values(), *lora.b.values()]
    return learning


def merge_lora(network: nn.Module) -> None:
    """Merge all low-rank updates of ``network`` into its weights, for prediction. Its model file stays the same."""
    for module in network.modules():
        if isinstance(module, LoraQkv):
            module.merge()


def unmerge_lora(network: nn.Module) -> None:
    """Take them out again."""
    for module in network.modules():
        if isinstance(module, LoraQkv):
            module.unmerge()
