"""The parts that are taken from segment-anything as they are: prompt encoder, mask decoder, and what is inside."""

from __future__ import annotations

from typing import Any

from models.errors import ModelError
from models.sam.sizes import SamSize


def make_prompt_encoder(size: SamSize, image_size: int) -> Any:
    """segment-anything's PromptEncoder.

    Raises:
        ModelError: the package is not installed.
    """
    side = image_size // size.patch_size
    return _modeling().PromptEncoder(
        embed_dim=size.out_chans,
        image_embedding_size=(side, side),
        input_image_size=(image_size, image_size),
        mask_in_chans=size.mask_in_chans,
    )


def make_mask_decoder(size: SamSize, masks: int) -> Any:
    """segment-anything's MaskDecoder with ``masks`` masks besides the first, for batches of images.

    Raises:
        ModelError: the package is not installed.
    """
    modeling = _modeling()
    from models.sam.mask_decoder import BatchedMaskDecoder

    return BatchedMaskDecoder(
        num_multimask_outputs=masks,
        transformer=modeling.TwoWayTransformer(
            depth=size.decoder_depth,
            embedding_dim=size.out_chans,
            mlp_dim=size.decoder_mlp_dim,
            num_heads=size.decoder_heads,
        ),
        transformer_dim=size.out_chans,
        iou_head_depth=3,
        iou_head_hidden_dim=size.iou_hidden_dim,
    )


def make_two_way_transformer(channels: int, depth: int, heads: int, hidden: int) -> Any:
    """segment-anything's TwoWayTransformer: ``(B, C, h, w)``, its positions and tokens ``(B, T, C)`` -> tokens and
    ``(B, h w, C)``.

    Raises:
        ModelError: the package is not installed.
    """
    return _modeling().TwoWayTransformer(depth=depth, embedding_dim=channels, num_heads=heads, mlp_dim=hidden)


def make_position_encoding(channels: int) -> Any:
    """segment-anything's random Fourier features of positions: a size -> ``(C, h, w)``.

    Raises:
        ModelError: the package is not installed.
    """
    return _modeling().prompt_encoder.PositionEmbeddingRandom(channels // 2)


def make_perceptron(before: int, hidden: int, after: int) -> Any:
    """segment-anything's perceptron of three layers, as its mask decoder has them.

    Raises:
        ModelError: the package is not installed.
    """
    return _modeling().mask_decoder.MLP(before, hidden, after, 3)


def _modeling() -> Any:
    try:
        from segment_anything import modeling
    except ImportError as error:
        raise ModelError(
            f"this network needs the package segment-anything ({error}); install it: pip install 'delineate[sam]'"
        ) from error
    return modeling
