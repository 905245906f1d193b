"""Terms of the loss of multi-scale self-guided attention (Sinha and Dolz 2020, arXiv 1906.02849).

They compare what :class:`models.systems.msa.MultiScaleGuidedAttention` leaves in ``Output.extra``. The paper adds them to the
*sum* of eight cross entropies; here the loss of several grids is their *mean*, so the published weights 0.25 and 0.10 are
an eighth of that, which are the defaults.
"""

from __future__ import annotations

from torch import Tensor

from datamodules.sample import Batch
from models.interfaces import Output
from tasks.terms import Term

CROSS_ENTROPIES = 8


def _squares(first: Tensor, second: Tensor) -> Tensor:
    """Mean squared difference of each ``(n, ...)`` entry, summed over n; in single precision: halves overflow at 256."""
    return (first.float() - second.float()).square().flatten(1).mean(1).sum()


class GuidedTerm(Term):
    """Both passes of attention must encode the same meaning: squared difference of their codes, summed over scales.

    Args:
        weight: it is multiplied by this.
        detach_first: the second pass learns from the first, and not the first from the second. The text describes the
            second pass as guided by the first, the released code lets both learn.
    """

    def __init__(self, weight: float = 0.25 / CROSS_ENTROPIES, detach_first: bool = False) -> None:
        super().__init__(weight)
        self.detach_first = detach_first

    def forward(self, output: Output, batch: Batch) -> Tensor:
        """The term, not yet weighted."""
        first, second = self.wanted(output, "semantic_codes")
        return _squares(first.detach() if self.detach_first else first, second)


class ReconstructionTerm(Term):
    """Auto-encoders must give what they got: squared difference, summed over scales and passes.

    Args:
        weight: it is multiplied by this.
    """

    def __init__(self, weight: float = 0.10 / CROSS_ENTROPIES) -> None:
        super().__init__(weight)

    def forward(self, output: Output, batch: Batch) -> Tensor:
        """The term, not yet weighted."""
        return _squares(
            self.wanted(output, "semantic_reconstructions"), self.wanted(output, "semantic_inputs")
        )
