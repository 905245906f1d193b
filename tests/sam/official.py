"""segment-anything's own network, and files with its weights as they are published."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor, nn

TINY = {"size": "tiny", "image_size": 128}


def awake(network: nn.Module, seed: int = 0) -> Any:
    """Every parameter at random: positions begin at 0 there, and what is 0 cannot be wrong."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise * (0.2 if parameter.ndim < 3 else 0.05))
    return network.eval()


def official_tiny(image_size: int = 128, masks: int = 3, dim: int = 48, depth: int = 4) -> Any:
    """The package's classes with our tiny numbers, written out once more."""
    side = image_size // 16
    encoder = ImageEncoderViT(
        img_size=image_size,
        patch_size=16,
        embed_dim=dim,
        depth=depth,
        num_heads=3,
        mlp_ratio=4,
        qkv_bias=True,
        use_rel_pos=True,
        global_attn_indexes=(1, 3),
        window_size=4,
        out_chans=64,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )
    prompt_encoder = PromptEncoder(64, (side, side), (image_size, image_size), mask_in_chans=16)
    transformer = TwoWayTransformer(depth=2, embedding_dim=64, mlp_dim=128, num_heads=4)
    decoder = MaskDecoder(
        transformer_dim=64,
        transformer=transformer,
        num_multimask_outputs=masks,
        iou_head_depth=3,
        iou_head_hidden_dim=64,
    )
    return awake(Sam(encoder, prompt_encoder, decoder))


def checkpoint(folder: Path, sam: nn.Module | None = None, name: str = "sam_tiny.pth") -> Path:
    """A file as it is published: the state dict, pickled by torch."""
    torch.save((sam or official_tiny()).state_dict(), folder / name)
    return folder / name


def one_by_one(sam: Any, embedding: Tensor, asked: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
    """The package's coarse masks and qualities, image by image, all four of each."""
    masks, quality = [], []
    for one, prompts in zip(embedding, asked, strict=True):
        sparse, dense = sam.prompt_encoder(**({"points": None, "boxes": None, "masks": None} | prompts))
        found = sam.mask_decoder.predict_masks(one[None], sam.prompt_encoder.get_dense_pe(), sparse, dense)
        masks.append(found[0])
        quality.append(found[1])
    return torch.cat(masks), torch.cat(quality)
