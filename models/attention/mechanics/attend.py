"""Softmax attention: the one place that calls torch's fused kernel, and what can be read of it on request."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

QUERIES_AT_A_TIME = 1024
# On CPUs the fused kernel takes longer for narrower heads than for this width.
NARROWEST = 16


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, scale: float | None = None) -> Tensor:
    """``softmax(scale * q k^T + bias) v`` without the matrix of all pairs in memory.

    Args:
        q: ``(..., heads, Nq, d)``.
        k: ``(..., heads, Nk, d)``.
        v: ``(..., heads, Nk, e)``; e may differ from d.
        bias: added to the logits, or a mask that is True where a key may be seen; broadcast to
            ``(..., heads, Nq, Nk)``.
        scale: ``d ** -0.5`` when not given.

    Returns:
        ``(..., heads, Nq, e)``.
    """
    d, e = q.shape[-1], v.shape[-1]
    scale = d**-0.5 if scale is None else scale
    # The fused kernels want equal widths. Zeros change neither the products nor the sums.
    width = max(d, e, NARROWEST if q.device.type == "cpu" else 0)
    if d < width:
        q, k = F.pad(q, (0, width - d)), F.pad(k, (0, width - d))
    if e < width:
        v = F.pad(v, (0, width - e))
    if bias is not None and bias.dtype not in (torch.bool, q.dtype):
        bias = bias.to(q.dtype)
    leading = q.shape[:-3]
    if len(leading) < 2 or not leading == k.shape[:-3] == v.shape[:-3]:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)[..., :e]
    # With one leading axis torch has fused kernels, and an export to ONNX; with more it has neither.
    if bias is not None and bias.ndim > 3:
        bias = bias.expand(*leading, *bias.shape[-3:]).flatten(0, -4)
    q, k, v = (t.flatten(0, -4) for t in (q, k, v))
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    return y.unflatten(0, leading)[..., :e]


@torch.no_grad()
def received(
    q: Tensor,
    k: Tensor,
    bias: Tensor | None = None,
    scale: float | None = None,
    counted: Tensor | None = None,
) -> Tensor:
    """How much each key is looked at: the mean weight it gets, over heads and queries, times the number of keys.

    1 everywhere means that nothing is preferred. This is what self-attention shows as its map. Weights are
    made for some queries at a time, so that memory stays linear.

    Args:
        q: ``(..., heads, Nq, d)``.
        k: ``(..., heads, Nk, d)``.
        bias: as in :func:`attend`.
        scale: as in :func:`attend`.
        counted: ``(..., Nq)`` bool, False for queries that are only there to fill up; all count when not given.

    Returns:
        ``(..., Nk)``.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    total = k.new_zeros(*k.shape[:-3], k.shape[-2])
    for start in range(0, q.shape[-2], QUERIES_AT_A_TIME):
        chosen = slice(start, start + QUERIES_AT_A_TIME)
        logits = scale * q[..., chosen, :] @ k.transpose(-1, -2)
        if bias is not None:
            part = bias if bias.shape[-2] == 1 else bias[..., chosen, :]
            logits = logits.masked_fill(~part, -torch.inf) if part.dtype == torch.bool else logits + part
        weights = logits.softmax(-1).mean(-3)
        if counted is not None:
            weights = weights * counted[..., chosen].unsqueeze(-1)
        total = total + weights.sum(-2)
    if counted is not None:
        return total * k.shape[-2] / counted.sum(-1, keepdim=True).clamp_min(1)
    return total * (k.shape[-2] / q.shape[-2])


@torch.no_grad()
def received_linear(q: Tensor, k: Tensor) -> Tensor:
    """The same for linear attention, whose weights are ``q_i . k_j / sum_j q_i . k_j`` with positive features.

    Args:
        q: ``(..., heads, N, d)``, not negative.
        k: ``(..., heads, N, d)``, not negative.

    Returns:
        ``(..., N)``.
    """
    sums = (q @ k.sum(-2).unsqueeze(-1)).clamp_min(1e-12)
    share = (q / sums).mean(-2).unsqueeze(-1)
    return (k @ share).squeeze(-1).mean(-2) * k.shape[-2]
