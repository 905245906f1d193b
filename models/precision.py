"""Parts of a network that want full precision, also under autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """``with full_precision(x):`` switches autocast off on the device of ``x``; tensors keep the dtype that they have.

    On the meta device there is nothing to switch off: torch refuses to ask it for autocast.
    """
    # By its name: what torch.export traces has the device of its example, and is a tensor without memory too.
    return nullcontext() if x.device.type == "meta" else torch.autocast(x.device.type, enabled=False)
