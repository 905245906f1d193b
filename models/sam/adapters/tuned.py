"""Parts of SAM that are trained as they are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from models.sam.segmenter import SamSegmenter

# What nothing depends on where nobody is asked: it would never learn, and training in several processes waits for it.
_OF_PROMPTS = (
    "prompt_encoder.point_embeddings.",
    "prompt_encoder.not_a_point_embed.",
    "prompt_encoder.mask_downscaling.",
    "mask_decoder.output_hypernetworks_mlps.0.",
    "mask_decoder.iou_prediction_head.",
)


def tune_decoder(network: SamSegmenter) -> Iterable[nn.Parameter]:
    """The mask decoder."""
    return _below(network, "mask_decoder.")


def tune_prompt_encoder(network: SamSegmenter) -> Iterable[nn.Parameter]:
    """The prompt encoder; without prompts that is what it says of there being none."""
    return _below(network, "prompt_encoder.")


def tune_neck(network: SamSegmenter) -> Iterable[nn.Parameter]:
    """The neck of the image encoder."""
    return _below(network, "image_encoder.neck.")


def tune_all(network: SamSegmenter) -> Iterable[nn.Parameter]:
    """Everything that is there so far: put it before adapters or behind them."""
    return _below(network, "")


def _below(network: SamSegmenter, prefix: str) -> list[nn.Parameter]:
    return [
        parameter
        for name, parameter in network.named_parameters()
        if name.startswith(prefix) and (network.prompts or not name.startswith(_OF_PROMPTS))
    ]
