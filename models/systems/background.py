"""One map per foreground class, and the background is what is left."""

from __future__ import annotations

import torch
from torch import Tensor

from models.errors import ModelError


def foreground_maps(num_classes: int, background: bool) -> int:
    """How many maps a network makes for ``num_classes`` classes.

    Raises:
        ModelError: it would make none.
    """
    if not background:
        return num_classes
    if num_classes < 2:
        raise ModelError(
            f"num_classes is {num_classes}, and one of them is the background; with one class set background: false"
        )
    return num_classes - 1


def with_background(logits: Tensor, background: bool) -> Tensor:
    """Logits of foreground classes ``(B, K - 1, *S)`` -> of all ``(B, K, *S)``, the background's being 0.

    With two classes softmax then is the sigmoid of the one map that many papers have. Where classes overlap there is
    no background, and what comes in goes out.
    """
    if not background:
        return logits
    return torch.cat([torch.zeros_like(logits[:, :1]), logits], dim=1)
