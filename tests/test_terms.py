"""Terms of a loss that want more of a network than logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from datamodules import Classes
from datamodules.geometry import Geometry
from datamodules.patch import Patch
from datamodules.sample import Batch
from models import EncoderDecoder
from models.errors import ModelError
from models.interfaces import Output
from tasks.losses import DiceCE
from tasks.segmentation import SegmentationTask
from tasks.terms import Term


class Telling(EncoderDecoder):
    """Also says how large its logits are."""

    def decode(self, features, size, prompts=None):  # type: ignore[no-untyped-def]
        output = super().decode(features, size, prompts)
        output.extra["size"] = output.logits.abs().mean()
        return output


class Size(Term):
    def forward(self, output: Output, batch: Batch) -> Tensor:
        return self.wanted(output, "size")


def task(network: type[EncoderDecoder], *terms: Term) -> SegmentationTask:
    torch.manual_seed(0)
    tiny = network(1, 2, encoder={"name": "plain", "widths": [4, 8]})
    return SegmentationTask(tiny, Classes(["background", "a"]), Patch((16, 16)), terms=list(terms))


def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 1, 16, 16, generator=generator)
    told = torch.ones(2, 1, dtype=torch.bool)
    plane = Geometry.identity((16, 16))
    known = torch.ones(2, 2, dtype=torch.bool)
    return Batch(image, (image[:, 0] > 0).long(), [plane] * 2, ["a", "b"], ["a", "b"], known, told)


def test_terms_are_weighted_and_added() -> None:
    known = batch()
    one = task(Telling, Size(0.25), Size(2.0))
    output = one.network(known.image)
    wanted = DiceCE()(output.logits, known.mask) + 2.25 * output.logits.abs().mean()
    assert one.compute_loss(known).item() == pytest.approx(wanted.item(), rel=1e-5)


def test_a_network_that_says_nothing_is_named() -> None:
    with pytest.raises(
        ModelError, match="Size wants 'size' of the network, which gives nothing; leave the term"
    ):
        task(EncoderDecoder, Size()).compute_loss(batch())
