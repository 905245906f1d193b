"""What is put into a SAM to train it with few parameters, and what is frozen.

    adapters: [lora, decoder, prompt_encoder]                                  SAMed
    adapters: [bottleneck, decoder]                                            Medical SAM Adapter
    adapters: [dual_branch, neck, decoder]                                     DB-SAM
    adapters: [{name: lora, rank: 8}, {name: attention, block: eca}, decoder]  any mixture

The list is all that learns. Everything else is frozen once and for all; without a list everything learns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from torch import nn

from models.errors import ModelError
from models.parts import Part, place_learning
from models.sam.adapters.behind import put_attention
from models.sam.adapters.bottleneck import put_bottlenecks
from models.sam.adapters.dual_branch import put_dual_branch
from models.sam.adapters.lora import merge_lora, put_lora, unmerge_lora
from models.sam.adapters.tuned import tune_all, tune_decoder, tune_neck, tune_prompt_encoder

if TYPE_CHECKING:
    from models.sam.segmenter import SamSegmenter

# Each is called with the network and its options, puts in what is new, and returns the parameters that learn.
ADAPTERS: dict[str, Callable[..., Iterable[nn.Parameter]]] = {
    # New parameters.
    "lora": put_lora,
    "bottleneck": put_bottlenecks,
    "attention": put_attention,
    "dual_branch": put_dual_branch,
    # Parameters that are there.
    "decoder": tune_decoder,
    "prompt_encoder": tune_prompt_encoder,
    "neck": tune_neck,
    "all": tune_all,
}

__all__ = ["ADAPTERS", "merge_lora", "place_adapters", "unmerge_lora"]


def place_adapters(adapters: Sequence[Part] | None, network: SamSegmenter) -> None:
    """Put adapters into ``network`` and freeze what they leave as it is; nothing is frozen where there are none.

    Runs after weights were loaded. Parameters of the network must keep their names: what adapts a layer adds to its
    names and changes none.

    Raises:
        ModelError: an unknown adapter or option; or a mask per class whose heads, which are new, would not learn.
    """
    if not adapters:
        return
    place_learning(ADAPTERS, adapters, "adapter", network)
    if not network.prompts and not network.mask_decoder.mask_tokens.weight.requires_grad:
        raise ModelError(
            "adapters: the mask decoder is frozen, but its masks for your classes are new and must learn; add decoder "
            "(or all) to the list"
        )
