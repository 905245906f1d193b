"""A network as a graph of torch.export, for images of any size where the network allows it."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from datamodules.patch import Patch
from models.interfaces import Encoder, Segmenter
from tasks.export.errors import ExportError

# The names of the graph's one input and one output.
INPUT, OUTPUT = "image", "logits"
# What sizes a graph takes: any, or those of the patch alone. The batch may be of any size in both.
Sizes = Literal["any", "patch"]


class Logits(nn.Module):
    """``image -> logits``: a graph has tensors, and no :class:`Output`."""

    def __init__(self, network: Segmenter) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, K, *S)``."""
        return self.network(image).logits


def check_exportable(network: nn.Module) -> None:
    """Refuse a network that says of itself, or of one of its blocks, that it cannot be exported.

    Raises:
        ExportError: names the blocks and their places.
    """
    # Its own `exports`, and that of each block; what says nothing of it is taken to be exportable.
    blocks = [
        f"{type(module).__name__} ({name})" if name else type(module).__name__
        for name, module in network.named_modules()
        if getattr(type(module), "exports", True) is False
    ]
    if blocks:
        raise ExportError(
            f"cannot be exported because of {', '.join(blocks)}; predict with the model file itself, or train with "
            "other blocks"
        )


def heeds_missing(network: Segmenter) -> bool:
    """Whether it makes a difference to the network to be told which channels an image lacks."""
    encoder = getattr(network, "encoder", None)
    if isinstance(encoder, Encoder):
        return type(encoder).forward_lacking is not Encoder.forward_lacking
    return type(network).encode_lacking is not Segmenter.encode_lacking


def window_size(patch: Patch) -> tuple[int, ...]:
    """The spatial size of what the network sees."""
    return tuple(patch.size[axis] for axis in patch.axes)


def trace(network: Segmenter, size: tuple[int, ...], sizes: Sizes) -> torch.export.ExportedProgram:
    """Trace a network.

    Args:
        network: in evaluation mode, on the CPU.
        size: of its windows.
        sizes: what sizes the graph shall take.

    Raises:
        ExportError: torch cannot trace it so.
    """
    dynamic = torch.export.Dim.DYNAMIC
    dims: dict[int, object] = {0: dynamic}
    if sizes == "any":
        dims |= {axis + 2: dynamic for axis in range(len(size))}
        # Odd, and no two alike: where an example is a multiple of the strides, or square, torch may take it as given
        # that all images are.
        size = tuple((n | 1) + 2 * axis for axis, n in enumerate(size))
    example = torch.zeros(2, network.in_channels, *size)
    try:
        with quiet(), _unguarded(), torch.no_grad():
            program = torch.export.export(Logits(network), (example,), dynamic_shapes=(dims,))
    except Exception as error:  # torch names no kind of error for this
        raise ExportError(f"torch cannot trace the network ({first_line(error)})") from error
    # They name files of the machine on which it was exported.
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)
    return program


def _unguarded() -> contextlib.AbstractContextManager[Any]:
    """Without it a graph refuses images where maps of two levels are of one size by chance, since torch asks which of
    them is faster to read. A torch that has no such setting traces as it does; what does not fit is found by the checks.
    """
    config: Any = importlib.import_module("torch.fx.experimental._config")
    if not hasattr(config, "backed_size_oblivious"):
        return contextlib.nullcontext()
    return config.patch(backed_size_oblivious=True)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Exporters print progress, advice and warnings that are not for users; what goes wrong is raised all the same."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def first_line(error: BaseException) -> str:
    """What an error says, short."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
