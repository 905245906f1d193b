"""The numbers of each size of SAM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from models.errors import ModelError


@dataclass(frozen=True)
class SamSize:
    """Everything about a SAM but its channels, classes and image size.

    Attributes:
        embed_dim: channels of the image encoder's tokens.
        depth: its blocks.
        num_heads: its heads.
        global_attn_indexes: the blocks that attend to the whole image; the others attend within windows.
        window_size: side of a window, in tokens.
        patch_size: side of a token, in pixels.
        mlp_ratio: hidden channels of its perceptrons over ``embed_dim``.
        out_chans: channels of the embedding, of prompts, and of the mask decoder.
        mask_in_chans: hidden channels where an earlier mask is read.
        decoder_depth: two-way blocks of the mask decoder.
        decoder_heads: its heads.
        decoder_mlp_dim: hidden channels of its perceptrons.
        iou_hidden_dim: hidden channels of the head that predicts quality.
    """

    embed_dim: int
    depth: int
    num_heads: int
    global_attn_indexes: tuple[int, ...]
    window_size: int = 14
    patch_size: int = 16
    mlp_ratio: float = 4.0
    out_chans: int = 256
    mask_in_chans: int = 16
    decoder_depth: int = 2
    decoder_heads: int = 8
    decoder_mlp_dim: int = 2048
    iou_hidden_dim: int = 256

    def __post_init__(self) -> None:
        if self.embed_dim % self.num_heads:
            raise ModelError(
                f"size: embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}"
            )
        if self.out_chans % (2 * self.decoder_heads) or self.out_chans % 8:
            raise ModelError(
                f"size: out_chans {self.out_chans} is not a multiple of 8 and of twice decoder_heads ({self.decoder_heads})"
            )
        if any(not 0 <= i < self.depth for i in self.global_attn_indexes):
            raise ModelError(
                f"size: global_attn_indexes {list(self.global_attn_indexes)} are not all below the depth of {self.depth}"
            )


# Kirillov et al. 2023, arXiv 2304.02643; tiny is ours, for tests and CPUs.
SIZES: dict[str, SamSize] = {
    "vit_b": SamSize(768, 12, 12, (2, 5, 8, 11)),
    "vit_l": SamSize(1024, 24, 16, (5, 11, 17, 23)),
    "vit_h": SamSize(1280, 32, 16, (7, 15, 23, 31)),
    "tiny": SamSize(
        48, 4, 3, (1, 3), window_size=4, out_chans=64, decoder_heads=4, decoder_mlp_dim=128, iou_hidden_dim=64
    ),
}


def read_size(size: str | Mapping[str, Any]) -> SamSize:
    """A name of :data:`SIZES`, or a mapping with the numbers of :class:`SamSize`.

    Raises:
        ModelError: an unknown name or number, or one that is missing or does not fit.
    """
    if isinstance(size, str):
        if size not in SIZES:
            raise ModelError(
                f"size is {size!r}; choose from: {', '.join(SIZES)}, or give the numbers of another as a mapping"
            )
        return SIZES[size]
    known = [f.name for f in fields(SamSize)]
    unknown = [name for name in size if name not in known]
    if unknown:
        raise ModelError(
            f"size has no number {', '.join(map(repr, unknown))}; it accepts: {', '.join(known)}"
        )
    numbers = dict(size)
    missing = [n for n in ("embed_dim", "depth", "num_heads", "global_attn_indexes") if n not in numbers]
    if missing:
        raise ModelError(
            f"size lacks {', '.join(missing)}; give these numbers, or a name: {', '.join(SIZES)}"
        )
    return SamSize(**(numbers | {"global_attn_indexes": tuple(numbers["global_attn_indexes"])}))
