"""SAM's image encoder: the same numbers as segment-anything's, in less time and memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.errors import ModelError
from models.sam.block import Block
from models.sam.sizes import SamSize


class Branch(nn.Module, ABC):
    """Something that runs beside the blocks, from the image on, and speaks with them."""

    @abstractmethod
    def begin(self, image: Tensor) -> Any:
        """The branch's own state for an image ``(N, in_channels, S, S)``."""

    @abstractmethod
    def after(self, index: int, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Tokens ``(N, H, W, C)`` behind block ``index``, and the state -> both, changed or not."""

    @abstractmethod
    def end(self, tokens: Tensor, state: Any) -> Tensor:
        """Tokens for the neck, ``(N, H, W, C)``."""


class PatchEmbed(nn.Module):
    """Image to tokens."""

    def __init__(self, in_channels: int, dim: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, kernel_size=patch, stride=patch)

    def forward(self, image: Tensor) -> Tensor:
        """``(N, in_channels, S, S) -> (N, S / patch, S / patch, C)``."""
        return self.proj(image).permute(0, 2, 3, 1)


class LayerNorm2d(nn.Module):
    """Layer norm over the channels of a map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, C, H, W)``."""
        channels_last = x.permute(0, 2, 3, 1)
        return nn.functional.layer_norm(
            channels_last, self.weight.shape, self.weight, self.bias, 1e-6
        ).permute(0, 3, 1, 2)


class ImageEncoder(nn.Module):
    """A plain vision transformer (ViTDet) with attention in windows, some blocks global, and a neck.

    Parameters have the names of segment-anything's.

    Args:
        in_channels: channels of the image, any number.
        image_size: side of the square image, a multiple of the patch.
        size: its numbers.
        checkpointing: in training, compute each block again on the way back and keep none of its insides.
    """

    def __init__(self, in_channels: int, image_size: int, size: SamSize, checkpointing: bool = False) -> None:
        super().__init__()
        if image_size < size.patch_size or image_size % size.patch_size:
            raise ModelError(
                f"image_size is {image_size}; it must be a multiple of the patch, {size.patch_size}"
            )
        side = image_size // size.patch_size
        self.image_size = image_size
        self.checkpointing = checkpointing
        self.patch_embed = PatchEmbed(in_channels, size.embed_dim, size.patch_size)
        self.pos_embed = nn.Parameter(torch.zeros(1, side, side, size.embed_dim))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.blocks = nn.ModuleList(
            Block(
                size.embed_dim,
                size.num_heads,
                size.mlp_ratio,
                side,
                0 if index in size.global_attn_indexes else size.window_size,
            )
            for index in range(size.depth)
        )
        self.neck = nn.Sequential(
            nn.Conv2d(size.embed_dim, size.out_chans, 1, bias=False),
            LayerNorm2d(size.out_chans),
            nn.Conv2d(size.out_chans, size.out_chans, 3, padding=1, bias=False),
            LayerNorm2d(size.out_chans),
        )
        self.branch: Branch | None = None

    def forward(self, image: Tensor, slices: int = 1) -> Tensor:
        """``(N, in_channels, image_size, image_size) -> (N, out_chans, side, side)``.

        Args:
            image: the slices of each volume one after the other.
            slices: how many each volume has.
        """
        tokens = self.patch_embed(image) + self.pos_embed
        state = self.branch.begin(image) if self.branch is not None else None
        again = self.checkpointing and self.training and torch.is_grad_enabled()
        for index, block in enumerate(self.blocks):
            tokens = (
                checkpoint(block, tokens, slices, use_reentrant=False) if again else block(tokens, slices)
            )
            if self.branch is not None:
                tokens, state = self.branch.after(index, tokens, state)
        if self.branch is not None:
            tokens = self.branch.end(tokens, state)
        return self.neck(tokens.permute(0, 3, 1, 2))
