"""What a network costs: parameters, operations, memory of a training step, time in terms of another's."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models.interfaces import Segmenter

ROUNDS = 15


@dataclass(frozen=True)
class Cost:
    """Four costs of a network.

    Attributes:
        parameters: trainable numbers.
        flops: floating point operations of convolutions and matrix products for one patch; other operations
            (pooling, softmax, norms) are not counted.
        activations: bytes that a training step on one patch keeps for the backward pass.
        latency: time of one forward pass in inference, divided by the reference network's.
        seconds: that time itself; None where it was not kept.
    """

    parameters: int
    flops: int
    activations: int
    latency: float
    seconds: float | None = None


def measure(networks: Mapping[str, Segmenter], reference: str, size: Sequence[int]) -> dict[str, Cost]:
    """Costs of several networks on a patch.

    Times are taken in turns, each of ``ROUNDS`` rounds over all networks, and the median ratio is given: what
    else the machine does falls on all of them.

    Args:
        networks: by name; in inference mode afterwards.
        reference: name of the network that times are divided by.
        size: the patch, an extent per spatial axis.
    """
    first = networks[reference]
    image = torch.randn(1, first.in_channels, *size, generator=torch.Generator().manual_seed(0))
    static = {
        name: (_parameters(n), _flops(n, image), _activations(n, image)) for name, n in networks.items()
    }
    times = _latencies(networks, reference, image)
    return {name: Cost(*static[name], *times[name]) for name in networks}


def _parameters(network: Segmenter) -> int:
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def _flops(network: Segmenter, image: Tensor) -> int:
    counter = FlopCounterMode(display=False)
    # The counter asks tensors that want a gradient where they come from, which parameters cannot say here.
    frozen = copy.deepcopy(network).eval().requires_grad_(False)
    # The plain kernel consists of matrix products, which are counted on every device.
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), counter:
        frozen(image)
    return int(counter.get_total_flops())


def _activations(network: Segmenter, image: Tensor) -> int:
    kept: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    network.train()
    # Two images: what normalises over the batch refuses one at a single position.
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = network(image.expand(2, *image.shape[1:]).clone())
        loss = output.logits.sum() + sum(aux.sum() for aux in output.aux)
    del loss, output
    network.eval()
    return sum(kept.values()) // 2


@torch.inference_mode()
def _latencies(
    networks: Mapping[str, Segmenter], reference: str, image: Tensor
) -> dict[str, tuple[float, float]]:
    """Name -> (time in terms of the reference's, seconds)."""
    ratios: dict[str, list[float]] = {name: [] for name in networks}
    taken: dict[str, list[float]] = {name: [] for name in networks}
    for round_ in range(ROUNDS + 2):
        times = {}
        for name, network in networks.items():
            start = time.perf_counter()
            network(image)
            times[name] = time.perf_counter() - start
        if round_ >= 2:  # The first ones allocate.
            for name, seconds in times.items():
                ratios[name].append(seconds / times[reference])
                taken[name].append(seconds)
    return {name: (statistics.median(ratios[name]), statistics.median(taken[name])) for name in networks}
