"""The selective scan of state space models, in plain torch."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def selective_scan(x: Tensor, step: Tensor, decay: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """A linear recurrence whose memory depends on the input (Mamba, Gu and Dao, arXiv 2312.00752).

    For every channel, with a state h of n numbers::

        h_t = exp(step_t * decay) * h_{t-1} + step_t * b_t * x_t
        y_t = c_t . h_t

    The sequence is cut into about sqrt(L) blocks. All blocks are run side by side from an empty state; then what each
    block hands on is carried along; then what a position still remembers of it is added. That is 2 sqrt(L) steps and
    memory in proportion to L, without any kernel of its own. Runs in at least single precision.

    Args:
        x: ``(..., d, L)``.
        step: ``(..., d, L)``, positive.
        decay: ``(d, n)``, negative; leading axes broadcast.
        b: ``(..., n, L)``.
        c: ``(..., n, L)``.

    Returns:
        ``(..., d, L)`` in the precision of the scan.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    x, step, decay, b, c = (t.to(dtype) for t in (x, step, decay, b, c))
    length = x.shape[-1]
    block = math.isqrt(length - 1) + 1
    count = -(-length // block)
    # A step of zero keeps the state as it is: what is padded changes nothing.
    x, step, b, c = (
        F.pad(t, (0, count * block - length)).unflatten(-1, (count, block)) for t in (x, step, b, c)
    )
    # (..., d, n, count, block). Taken apart once: to index step by step would cost a whole gradient for each.
    log_decay = step.unsqueeze(-3) * decay[..., None, None]
    fresh = (step * x).unsqueeze(-3) * b.unsqueeze(-4)
    inside: list[Tensor] = []
    for kept, new in zip(log_decay.exp().unbind(-1), fresh.unbind(-1), strict=True):
        inside.append(kept * inside[-1] + new if inside else new)
    through = log_decay.sum(-1).exp()  # What a whole block leaves of the state before it.
    before = [torch.zeros_like(through[..., 0])]
    for kept, new in list(zip(through.unbind(-1), inside[-1].unbind(-1), strict=True))[:-1]:
        before.append(kept * before[-1] + new)
    carried = torch.stack(before, -1).unsqueeze(-1) * log_decay.cumsum(-1).exp()
    state = torch.stack(inside, -1) + carried
    return (state * c.unsqueeze(-4)).sum(-3).flatten(-2)[..., :length]
