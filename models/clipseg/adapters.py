"""Adapters of CLIPSeg, after VLSM-Adapter (Dhakal et al., MICCAI 2024, arXiv 2405.06196).

    adapters: [dense]                                        in every layer, of vision and text
    adapters: [{name: shallow, hidden: 64}]                  on what the decoder reads alone
    adapters: [{name: dense, at: [vision]}, decoder]         any mixture

The list is all that learns; without a list everything learns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn import functional as F

from models.errors import ModelError
from models.parts import Part, place_learning

if TYPE_CHECKING:
    from models.clipseg.segmenter import ClipSegSegmenter

PLACES = ("vision", "text")


class Adapter(nn.Module):
    """``x + ReLU(up(ReLU(down(x))))``. Weights begin small and biases at 0, so that it begins near to x: with all of
    them 0 the outer ReLU would let no gradient through.

    Args:
        dim: channels.
        hidden: channels inside.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.down = nn.Linear(dim, hidden)
        self.up = nn.Linear(hidden, dim)
        for layer in (self.down, self.up):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., C) -> (..., C)``."""
        return x + F.relu(self.up(F.relu(self.down(x))))


def _adapted(module: nn.Module, _: Any, output: Any) -> Any:
    """Forward hook: what ``module`` returns goes through its own adapter. It asks the module, so that copies of a
    network have theirs.
    """
    adapter = module.adapter
    assert isinstance(adapter, Adapter)
    if isinstance(output, tuple):
        return (adapter(output[0]), *output[1:])
    return adapter(output)


def _stand_behind(module: nn.Module, dim: int, hidden: int) -> list[nn.Parameter]:
    module.adapter = Adapter(dim, hidden)
    module.register_forward_hook(_adapted)
    return list(module.adapter.parameters())


def _places(at: Sequence[str] | str | None, name: str) -> list[str]:
    wanted = list(PLACES) if at is None else [at] if isinstance(at, str) else list(dict.fromkeys(at))
    if not wanted or not set(wanted) <= set(PLACES):
        raise ModelError(f"adapter {name!r}: at is {at!r}; give one or more of: {', '.join(PLACES)}")
    return wanted


def put_dense(
    network: ClipSegSegmenter, hidden: int = 64, at: list[str] | str | None = None
) -> Iterable[nn.Parameter]:
    """Two adapters in each layer, behind attention and behind the perceptron, before each is added.

    Args:
        network: the CLIPSeg.
        hidden: channels inside.
        at: vision, text, or both, which is what it is when not given.
    """
    places = _places(at, "dense")
    layers: list[nn.Module] = []
    if "vision" in places:
        layers += network.vision_model.encoder.layers
    if "text" in places:
        layers += network.text_model.encoder.layers
    learning: list[nn.Parameter] = []
    for layer in layers:
        for part in (layer.self_attn, layer.mlp):
            assert isinstance(part, nn.Module)
            if hasattr(part, "adapter"):
                raise ModelError("adapter 'dense' stands twice at a layer; give it once, or other places")
            dim = layer.embed_dim
            assert isinstance(dim, int)
            learning += _stand_behind(part, dim, hidden)
    return learning


def put_shallow(
    network: ClipSegSegmenter, hidden: int = 64, at: list[str] | str | None = None
) -> Iterable[nn.Parameter]:
    """An adapter behind each layer that the decoder reads, and one on what each text means.

    Args:
        network: the CLIPSeg.
        hidden: channels inside.
        at: vision, text, or both, which is what it is when not given.
    """
    places = _places(at, "shallow")
    learning: list[nn.Parameter] = []
    if "vision" in places:
        # Where the decoder takes it from: the layers behind go on without.
        for reduce in network.decoder.reduces:
            reduce.adapter = Adapter(reduce.in_features, hidden)
            reduce.register_forward_pre_hook(_adapted_before)
            learning += reduce.adapter.parameters()
    if "text" in places:
        projection = network.text_projection
        projection.adapter = Adapter(projection.in_features, hidden)
        projection.register_forward_pre_hook(_adapted_before)
        learning += projection.adapter.parameters()
    return learning


def _adapted_before(module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Forward hook: what goes into ``module`` goes through its adapter first."""
    adapter = module.adapter
    assert isinstance(adapter, Adapter)
    return (adapter(arguments[0]), *arguments[1:])


def tune_decoder(network: ClipSegSegmenter) -> Iterable[nn.Parameter]:
    """CLIPSeg's decoder."""
    return network.decoder.parameters()


# Each is called with the network and its options, puts in what is new, and returns the parameters that learn.
ADAPTERS: dict[str, Callable[..., Iterable[nn.Parameter]]] = {
    "dense": put_dense,
    "shallow": put_shallow,
    "decoder": tune_decoder,
}


def place_adapters(adapters: Sequence[Part] | None, network: ClipSegSegmenter) -> None:
    """Put adapters into ``network`` and freeze everything else; nothing is frozen where there are none.

    Raises:
        ModelError: an unknown adapter or option.
    """
    if adapters:
        place_learning(ADAPTERS, adapters, "adapter", network)
