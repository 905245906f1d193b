"""What all attention blocks share: the check of the number of axes, and a place to read the map from."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor, nn

from models.errors import ModelError


class AttentionMap(nn.Identity):
    """Marks the tensor of attention weights inside a block, so that it can be read with a forward hook.

    It is an identity: nothing is computed or kept when nobody asks. Where the weights are not at hand anyway
    (self-attention never holds them), a block asks first::

        if self.map.wanted:
            self.map(to_map(received(q, k).unsqueeze(-1), size))

    A map is ``(B, C, 1, ...)``, ``(B, 1, *S)`` or ``(B, C, *S)``, where S may be coarser than the map that goes in.
    """

    @property
    def wanted(self) -> bool:
        """Whether somebody listens."""
        return bool(self._forward_hooks)


class AttentionBlock(nn.Module):
    """Base of the blocks in :data:`models.attention.ATTENTION`.

    Args:
        channels: C of the maps that go in and come out.
        ndim: number of spatial axes.

    Raises:
        ValueError: the block does not exist for ``ndim`` axes.

    What a class declares of itself below is tested both ways.
    """

    # Number of spatial axes it exists for.
    ndims: ClassVar[frozenset[int]] = frozenset({2, 3})
    # How time grows with the number of positions N. "windowed" is linear in N, for a fixed window.
    cost: ClassVar[Literal["linear", "windowed", "quadratic"]] = "linear"
    # False: returns its input, re-weighted or with something added (a gate, or a block with its own residual).
    # True: returns new values (a mixer such as self-attention); placed in a network as x + block(norm(x)).
    mixes: ClassVar[bool] = False
    # Whether it has weights to show: an AttentionMap.
    shows: ClassVar[bool] = True
    # Whether torch.compile traces it as one graph, and whether torch.onnx.export takes it.
    compiles: ClassVar[bool] = True
    exports: ClassVar[bool] = True

    def __init__(self, channels: int, ndim: int = 2) -> None:
        super().__init__()
        if ndim not in self.ndims:
            accepted = " or ".join(f"{n}D" for n in sorted(self.ndims))
            raise ModelError(f"{type(self).__name__} exists in {accepted} only; it was asked for {ndim}D")
        if channels < 1:
            raise ModelError(f"{type(self).__name__} wants at least one channel, got {channels}")
        self.channels = channels
        self.ndim = ndim


def global_mean(x: Tensor) -> Tensor:
    """Mean over all spatial axes: ``(B, C, *S) -> (B, C)``."""
    return x.mean(dim=tuple(range(2, x.ndim)))


def over_space(weights: Tensor, x: Tensor) -> Tensor:
    """Shape ``(B, C)`` weights so that they multiply the map ``x``: ``(B, C, 1, ...)``."""
    return weights.reshape(*weights.shape, *(1,) * (x.ndim - 2))
