"""MEDUSA: the body's map reaches every scale, the switches, and the term that asks which classes are there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from datamodules.classes import IGNORE
from datamodules.geometry import Geometry
from datamodules.sample import Batch
from models import EncoderDecoder
from models.errors import ModelError
from models.interfaces import Output
from models.systems.medusa import MedusaSegmenter
from tasks.presence import Presence, presence

PLAIN = {"name": "plain", "widths": [4, 6, 8], "blocks": 1, "norm": "group"}


def small(seed: int = 0, **more: object) -> MedusaSegmenter:
    torch.manual_seed(seed)
    options = {"in_channels": 2, "num_classes": 3, "encoder": PLAIN, "body": [4, 8], "hidden": 4}
    return MedusaSegmenter(**(options | more))  # type: ignore[arg-type]


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def image(seed: int = 1, size: tuple[int, int] = (17, 22)) -> Tensor:
    return torch.randn(2, 2, *size, generator=torch.Generator().manual_seed(seed))


def test_parameters_are_those_of_an_encoder_decoder_the_body_the_heads_and_the_classifier() -> None:
    bare = EncoderDecoder(2, 3, encoder=PLAIN)
    body = 9 * 2 * 4 + 9 * 4 * 8 + 9 * (4 + 8) * 4 + 2 * 8 + 4 * 4 + 5
    heads = sum(9 * 4 + 4 + 4 * c + c for c in (4, 6, 8))
    classifier = 8 * 3 + 3
    assert count(small()) == count(bare) + body + heads + classifier
    assert count(small(heads=False, presence=False)) == count(bare)


def test_published_size_is_a_resnet_50_a_body_and_heads() -> None:
    with torch.device("meta"):
        network = MedusaSegmenter.preset("paper", in_channels=1, num_classes=2)
    assert isinstance(network, MedusaSegmenter)
    assert network.body is not None
    fine, coarse = np.array([16, 32, 64]), np.array([32, 64, 128])
    body = 9 * 16 + 9 * (fine * coarse).sum() + 9 * ((fine + coarse) * fine).sum()
    assert count(network.body) == body + 2 * 128 + 4 * fine.sum() + 17
    heads = sum(9 * 16 + 16 + 16 * c + c for c in (256, 512, 1024, 2048))
    # torchvision's ResNet-50 has 25,557,032: without ImageNet's classifier, and with one channel instead of three.
    assert count(network.encoder) == 25_557_032 - 2_049_000 - 2 * 64 * 49 + heads


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("gate_image", [True, False])
def test_levels_are_weighted_one_after_the_other(residual: bool, gate_image: bool) -> None:
    network = small(residual=residual, gate_image=gate_image).eval()
    assert network.body is not None
    x = image()
    with torch.no_grad():
        attention = network.body(x)
        assert torch.equal(network.attention(x), attention)
        seen = x * attention if gate_image else x
        for stage, found in zip(network.encoder.stages, network.encode(x), strict=True):
            block, scale = stage
            seen = block(seen)
            head = scale.head
            resized = F.interpolate(attention, seen.shape[2:], mode="bilinear", align_corners=False)
            weights = head.expand(head.local(resized).relu()).sigmoid()
            seen = seen * (weights + residual)
            torch.testing.assert_close(found, seen, rtol=1e-5, atol=1e-5)


def test_without_heads_it_is_an_encoder_decoder() -> None:
    torch.manual_seed(0)
    bare = EncoderDecoder(2, 3, encoder=PLAIN).eval()
    network = small(heads=False).eval()
    network.load_state_dict(bare.state_dict(), strict=False)
    assert torch.equal(network(image()).logits, bare(image()).logits)
    with pytest.raises(ModelError, match="heads: true"):
        network.attention(image())


def test_nothing_of_an_image_is_kept_even_where_the_encoder_fails() -> None:
    network = small().eval()
    network(image())
    assert network._seen.attention is None
    network.encoder.stages[1] = torch.nn.Linear(1, 1)
    with pytest.raises(RuntimeError):
        network(image())
    assert network._seen.attention is None


def test_missing_channels_are_told_to_the_encoder() -> None:
    network = small().eval()
    x = image()
    x[:, 1] = 0
    told = torch.tensor([[True, False]] * 2)
    torch.testing.assert_close(network(x, present=told).logits, network(x).logits)


def test_heads_stand_in_a_backbone_of_timm() -> None:
    network = small(encoder={"name": "timm", "backbone": "resnet10t", "levels": [1, 2, 3, 4]}).eval()
    x = image(size=(64, 64))
    with torch.no_grad():
        weighted = network.encode(x)
        plain = network.encoder(x)
    # Without the body's map heads hand on what they get: each level differs, by what it and finer ones have.
    assert all(not torch.allclose(a, b) for a, b in zip(weighted, plain, strict=True))


# Which classes are there ------------------------------------------------------------------------------------------


def test_presence_is_said_in_training_and_told_on_request() -> None:
    network = small()
    output = network.train()(image())
    assert output.extra["presence"].shape == (2, 3)
    features = network.eval().encode(image())
    assert network.classifier is not None
    wanted = network.classifier(features[-1].flatten(2).mean(-1))
    torch.testing.assert_close(network.classify(features), wanted)
    assert not small(presence=False).train()(image()).extra
    with pytest.raises(ModelError, match="presence: true"):
        small(presence=False).classify(features)


def test_what_a_mask_shows_of_each_class() -> None:
    mask = torch.zeros(4, 3, 3, dtype=torch.long)
    mask[1, 0, 0] = 2
    mask[2] = IGNORE
    mask[2, 1, 1] = 1
    annotated = torch.ones(4, 3, dtype=torch.bool)
    annotated[3, 2] = False
    there, known = presence(mask, annotated, exclusive=True)
    assert there.int().tolist() == [[1, 0, 0], [1, 0, 1], [0, 1, 0], [1, 0, 0]]
    # What is drawn is there, however little of the rest is known.
    assert known.int().tolist() == [[1, 1, 1], [1, 1, 1], [0, 1, 0], [1, 1, 0]]
    overlapping = F.one_hot(mask.where(mask != IGNORE, 0), 3).movedim(-1, 1)
    overlapping[0, 1, 0, 0] = IGNORE
    there, known = presence(overlapping[:2], annotated[:2], exclusive=False)
    assert there.int().tolist() == [[1, 0, 0], [1, 0, 1]]
    assert known.int().tolist() == [[1, 0, 1], [1, 1, 1]]


@pytest.mark.parametrize("exclusive", [True, False])
def test_term_is_the_cross_entropy_over_what_is_known(exclusive: bool) -> None:
    x = image()
    mask = torch.zeros(2, 17, 22, dtype=torch.long)
    mask[0, 3, 3] = 1
    mask[1, 5] = IGNORE
    annotated = torch.tensor([[True, True, False], [True, True, True]])
    if not exclusive:
        mask = torch.stack([(mask == k).long() for k in range(3)], 1)
        mask[1, :, 5] = IGNORE
    batch = Batch(
        x,
        mask,
        [Geometry.identity((17, 22))] * 2,
        ["a", "b"],
        ["a", "b"],
        annotated,
        torch.ones(2, 2, dtype=torch.bool),
    )
    logits = torch.tensor([[0.3, -1.0, 2.0], [0.5, 0.1, -0.2]], requires_grad=True)
    output = Output(torch.zeros(2, 3, 17, 22), extra={"presence": logits})
    p = 1 / (1 + np.exp(-logits.detach().numpy().astype(np.float64)))
    # Of the second image only the background is drawn, and the rest might be where nothing is known.
    wanted = -(np.log(p[0, 0]) + np.log(p[0, 1]) + np.log(p[1, 0])) / 3
    found = Presence()(output, batch)
    assert found.item() == pytest.approx(wanted, rel=1e-5)
    found.backward()
    assert logits.grad is not None
    assert (logits.grad != 0).int().tolist() == [[1, 1, 0], [1, 0, 0]]
    batch.annotated = torch.zeros_like(annotated)
    assert Presence()(output, batch).item() == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [({"ndim": 3}, "2D"), ({"heads": False, "gate_image": True}, "gate_image needs the body")],
)
def test_what_does_not_fit_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        small(**change)
