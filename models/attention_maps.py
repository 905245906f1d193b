"""Read the attention of any model while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from models.attention.block import AttentionMap
from models.interfaces import Output, Prompts, Segmenter
from models.layers import resize


@contextmanager
def recorded_attention(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Within the context, every forward pass fills the yielded dict: name of a block -> its weights.

    Weights have the block's own shape, ``(B, C, 1, ...)`` or ``(B, 1, *S)``. Outside the context nothing is
    kept and nothing is computed.
    """
    maps: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
            maps[name] = output.detach()

        return hook

    handles = [
        module.register_forward_hook(keep(name.removesuffix(".map")))
        for name, module in model.named_modules()
        if isinstance(module, AttentionMap)
    ]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()


def with_attention(model: Segmenter, image: Tensor, prompts: Prompts | None = None) -> Output:
    """Run ``model`` and fill ``Output.attention`` with its maps at the image's size."""
    with recorded_attention(model) as maps:
        output = model(image, prompts)
    output.attention = {name: resize(weights, image.shape[2:]) for name, weights in maps.items()}
    return output
