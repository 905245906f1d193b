"""Linear attention: sums over keys are made once, before any query is looked at."""

from __future__ import annotations

from torch import Tensor


def linear_attend(
    q: Tensor, k: Tensor, v: Tensor, turned: tuple[Tensor, Tensor] | None = None, eps: float = 1e-6
) -> Tensor:
    """``sum_j (q_i . k_j) v_j / (sum_j q_i . k_j + N eps)``, in time linear in the number of keys N.

    Katharopoulos et al., Transformers are RNNs, ICML 2020, arXiv 2006.16236.

    Args:
        q: ``(..., Nq, d)``, features that are not negative.
        k: ``(..., N, d)``, features that are not negative.
        v: ``(..., N, e)``.
        turned: other q and k for the upper sum, such as rotated ones, which may be negative. The lower sum, which
            must not be near zero, keeps ``q`` and ``k``.
        eps: keeps the quotient finite where a query meets no key.

    Returns:
        ``(..., Nq, e)``.
    """
    upper_q, upper_k = (q, k) if turned is None else turned
    # Means instead of sums on both sides: half precision holds them for any N.
    root = k.shape[-2] ** -0.5
    context = (upper_k.transpose(-1, -2) * root) @ (v * root)
    total = q @ k.mean(-2).unsqueeze(-1)
    return upper_q @ context / (total + eps)
