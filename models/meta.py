"""Networks of shapes alone: built without memory for their weights, and without drawing any."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# Both change a tensor in place, and return it; the second one hides the first from modes.
_DRAW = (Tensor.normal_, nn.init.normal_)


@contextmanager
def without_memory() -> Iterator[None]:
    """What is built inside the block has shapes and no values, as under ``torch.device("meta")``."""
    with torch.device("meta"), _NothingDrawn():
        yield


class _NothingDrawn(TorchFunctionMode):
    """torch draws normal numbers for tensors without values by code that imports its compiler: seconds, for nothing."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        if func in _DRAW:
            filled = args[0] if args else named["tensor"]
            if filled.is_meta:
                return filled
        return func(*args, **named)
