"""Multi-scale self-guided attention: parts, counts and terms of the loss against the paper's formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules import Classes
from datamodules.geometry import Geometry
from datamodules.patch import Patch
from datamodules.sample import Batch
from models.errors import ModelError
from models.interfaces import Output
from models.systems.msa import MultiScaleGuidedAttention
from models.systems.parts.guided_attention import GuidedAttention, SemanticAutoEncoder
from tasks.guided_terms import GuidedTerm, ReconstructionTerm
from tasks.losses import DiceCE
from tasks.segmentation import SegmentationTask
from tests.attention.zoo import awake

# Strides 2, 4, 8.
SMALL = {"name": "residual", "widths": [4, 6, 8], "strides": [2, 2, 2], "blocks": 1, "norm": "batch"}


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def small(classes: int = 3, **more: object) -> MultiScaleGuidedAttention:
    torch.manual_seed(0)
    network = MultiScaleGuidedAttention(2, classes, encoder=SMALL, width=8, **more)  # type: ignore[arg-type]
    return awake(network)


def batch(size: tuple[int, int] = (32, 24)) -> Batch:
    image = noise(2, 2, *size).float()
    told, plane = torch.ones(2, 2, dtype=torch.bool), Geometry.identity(size)
    return Batch(
        image,
        noise(2, 3, *size, seed=1).argmax(1),
        [plane] * 2,
        ["a", "b"],
        ["a", "b"],
        torch.ones(2, 3, dtype=torch.bool),
        told,
    )


# Counts ------------------------------------------------------------------------------------------------------------


def test_parameters_of_the_paper() -> None:
    with torch.device("meta"):
        network = MultiScaleGuidedAttention.preset("paper", in_channels=1, num_classes=5)
    assert isinstance(network, MultiScaleGuidedAttention)
    assert count(network.encoder) == 86_736_064  # 86.7 million
    first = network.passes[0]
    assert isinstance(first, GuidedAttention)
    assert first.auto_encoder is not None
    assert count(first.auto_encoder) / 1e6 == pytest.approx(7.0, abs=0.05)
    position, channel = first.branches[0]  # type: ignore[misc]
    # The biases of two convolutions are not here, see below.
    assert (count(position) + 128) / 1e6 == pytest.approx(0.116, abs=0.0005)
    assert count(position) - count(channel) == 2 * (64 * 8 + 8) + 64 * 64 + 64
    # 104.5 million in the released code, with what it never calls ...
    convolutions = 8 * (64 * 64 + 64)
    multi = (128 * 64 * 9 + 64) + (64 * 64 * 9 + 64) + (64 * 64 + 64) + 3 * 2 * 64
    slopes = 4 * 2 + 4 * 3
    never_called = convolutions + 8 * multi + slopes
    # ... and a bias in front of each batch norm.
    biases = 4 * 64 + 3 * 64 + 16 * 2 * 64 + 2 * (2 * 256 + 2 * 512 + 2 * 256 + 2 * 128)
    assert (count(network) + never_called + biases) / 1e6 == pytest.approx(104.5, abs=0.05)
    assert never_called + biases < 0.01 * 104.5e6


def test_parameters_of_the_auto_encoder() -> None:
    c = 6
    kernels = 18 + 36 + 72 + 144 + 72 + 36 + 16 + 18 + 9 + 4
    assert count(SemanticAutoEncoder(c)) == kernels * c**2 + 39 * c


def test_tiny_is_small_and_its_parts_add_up() -> None:
    with torch.device("meta"):
        network = MultiScaleGuidedAttention.preset("tiny", in_channels=1, num_classes=3)
    assert isinstance(network, MultiScaleGuidedAttention)
    assert count(network) < 1e6
    w, scales = network.reduce[0][0][0].out_channels, 4  # type: ignore[index]
    narrow = w // 8
    block = 9 * 2 * w * w + 2 * w + 1 + 9 * w * w + 2 * w + 1
    position = block + 2 * (w * narrow + narrow) + w * w + w + 1
    per_scale = position + (block + 1) + (w * w + w) + (9 * 2 * w * w + w)
    one_pass = scales * per_scale + 425 * (2 * w) ** 2 + 39 * 2 * w
    reduce = sum(c * w + 2 * w + 1 for c in network.encoder.out_channels)
    fuse = (9 * scales * w * w + 2 * w + 1) + (9 * w * w + 2 * w + 1) + (w * w + 2 * w + 1)
    heads = 2 * scales * (w * 3 + 3)
    assert count(network) - count(network.encoder) == 2 * one_pass + reduce + fuse + heads


# The network -------------------------------------------------------------------------------------------------------


def test_one_pass_by_hand() -> None:
    torch.manual_seed(0)
    block = awake(GuidedAttention(8, 2)).double().eval()
    assert isinstance(block, GuidedAttention)
    assert block.auto_encoder is not None
    inputs = [noise(2, 16, 6, 5), noise(2, 16, 6, 5, seed=1)]
    found = block(inputs)
    for scale, z in enumerate(inputs):
        total = torch.zeros(2, 8, 6, 5, dtype=torch.float64)
        for kind, layers in zip(("position", "channel"), block.branches[scale], strict=True):  # type: ignore[arg-type]
            x = layers[0](z)
            flat = x.detach().flatten(2).numpy()
            part = getattr(layers[1], kind)
            if kind == "position":
                q, k, v = (
                    layer(x).detach().flatten(2).numpy() for layer in (part.query, part.key, part.value)
                )
                energy = np.einsum("bci,bcj->bij", q, k)
                weights = np.exp(energy - energy.max(-1, keepdims=True))
                mixed = np.einsum("bij,bcj->bci", weights / weights.sum(-1, keepdims=True), v)
            else:
                energy = np.einsum("bci,bdi->bcd", flat, flat)
                energy = energy.max(-1, keepdims=True) - energy
                weights = np.exp(energy - energy.max(-1, keepdims=True))
                mixed = np.einsum("bcd,bdi->bci", weights / weights.sum(-1, keepdims=True), flat)
            attended = torch.from_numpy(flat + part.gamma.item() * mixed).view_as(x)
            total = total + layers[2](attended)
        code, reconstruction = block.auto_encoder(z)
        torch.testing.assert_close(found.codes[scale], code)
        torch.testing.assert_close(found.reconstructions[scale], reconstruction)
        guide = block.guides[scale]
        wanted = block.out[scale](total * F.conv2d(reconstruction, guide.weight, guide.bias, padding=1))
        torch.testing.assert_close(found.maps[scale], wanted)


@pytest.mark.parametrize(("size", "code"), [((8, 12), (2, 3)), ((7, 10), (2, 3))])
def test_the_auto_encoder_keeps_any_size(size: tuple[int, int], code: tuple[int, int]) -> None:
    encoded, back = SemanticAutoEncoder(4)(torch.zeros(2, 4, *size))
    assert encoded.shape == (2, 16, *code)
    assert back.shape == (2, 4, *size)


def test_flow_of_both_passes() -> None:
    network = small(attention_stride=4).double().eval()
    image = noise(2, 2, 32, 24)
    features = network.encode(image)
    grid = (8, 6)
    scales = [
        F.interpolate(reduce(x), grid, mode="bilinear", align_corners=False)
        for reduce, x in zip(network.reduce, features, strict=True)
    ]
    together = network.fuse(torch.cat(scales, 1))
    first = network.passes[0]([torch.cat([f, together], 1) for f in scales])
    second_in = [torch.cat([f, a * together], 1) for f, a in zip(scales, first.maps, strict=True)]
    second = network.passes[1](second_in)

    def large(x: Tensor) -> Tensor:
        return F.interpolate(x, (32, 24), mode="bilinear", align_corners=False)

    refined = [large(head(r)) for head, r in zip(network.heads, second.maps, strict=True)]
    early = [large(head(f)) for head, f in zip(network.early_heads, scales, strict=True)]
    output = network(image)
    torch.testing.assert_close(output.logits, sum(refined) / 3)
    assert not output.aux
    assert not output.extra
    # As in inference, but told to say what it says in training.
    network.training = True
    output = network(image)
    for found, wanted in zip([output.logits, *output.aux], [*refined, *early], strict=True):
        torch.testing.assert_close(found, wanted)
    codes = torch.stack([torch.stack(first.codes), torch.stack(second.codes)])
    torch.testing.assert_close(output.extra["semantic_codes"], codes)
    torch.testing.assert_close(output.extra["semantic_inputs"][3:], torch.stack(second_in))
    wanted = torch.stack([*first.reconstructions, *second.reconstructions])
    torch.testing.assert_close(output.extra["semantic_reconstructions"], wanted)


@pytest.mark.parametrize(("stride", "grid"), [(2, (32, 24)), (8, (8, 6))])
def test_the_grid_of_attention_is_a_choice(stride: int, grid: tuple[int, int]) -> None:
    output = small(attention_stride=stride).train()(noise(2, 2, 64, 48).float())
    assert output.extra["semantic_inputs"].shape == (6, 2, 16, *grid)
    assert {tuple(level.shape) for level in (output.logits, *output.aux)} == {(2, 3, 64, 48)}


def test_odd_images_are_padded_by_their_edge_and_cropped() -> None:
    network = small(attention_stride=3).eval()
    image = noise(1, 2, 35, 47).float()
    padded = F.pad(image, (0, 1, 0, 13), mode="replicate")  # to a multiple of 8 and 3
    with torch.no_grad():
        torch.testing.assert_close(network(image).logits, network(padded).logits[..., :35, :47])


def test_gammas_of_zero_leave_convolutions_alone() -> None:
    torch.manual_seed(0)
    block = GuidedAttention(8, 1).eval()
    z = noise(1, 16, 6, 5).float()
    position = block.branches[0][0]  # type: ignore[index]
    torch.testing.assert_close(position(z), position[2](position[0](z)))


def test_switches_of_an_ablation() -> None:
    image = noise(2, 2, 32, 24).float()
    whole = count(small())
    for branches in ("position", "channel"):
        network = small(branches=branches)
        assert count(network) < whole
        assert network.eval()(image).logits.shape == (2, 3, 32, 24)
    unguided = small(semantic=False).train()(image)
    assert not unguided.extra
    once = small(passes=1).train()(image)
    assert set(once.extra) == {"semantic_inputs", "semantic_reconstructions"}
    assert len(once.aux) == 5


def test_what_cannot_be_built() -> None:
    for wrong, message in (
        ({"ndim": 3}, "ndim is 3; MultiScaleGuidedAttention exists in 2D"),
        ({"attention_stride": 0}, "attention_stride is 0"),
        ({"passes": 3}, "passes is 3; choose 1 or 2"),
        ({"branches": "none"}, "branches 'none' is not known; choose from both, position, channel"),
    ):
        with pytest.raises(ModelError, match=message):
            MultiScaleGuidedAttention(1, 2, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"\(16, 9\) is a single position .* give at least \(17, 17\)"):
        small()(torch.zeros(1, 2, 16, 9))


# The loss ----------------------------------------------------------------------------------------------------------


def test_the_loss_is_an_eighth_of_the_published_sum() -> None:
    """With four scales: eight cross entropies, 0.25 times the guided and 0.10 times the reconstruction terms."""
    torch.manual_seed(0)
    four = {"name": "residual", "widths": [4, 6, 8, 8], "strides": [2, 2, 2, 2], "blocks": 1, "norm": "batch"}
    network = awake(MultiScaleGuidedAttention(2, 3, encoder=four, width=8))
    task = SegmentationTask(
        network,
        Classes(["background", "a", "b"]),
        Patch((32, 24)),
        loss=DiceCE(dice=0.0),
        shrink=1.0,
        terms=[GuidedTerm(), ReconstructionTerm()],
    ).train()
    known = batch()
    output = network(known.image)
    levels = [output.logits, *output.aux]
    assert len(levels) == 8
    entropies = sum(F.cross_entropy(level, known.mask) for level in levels)
    first, second = output.extra["semantic_codes"]
    guided = sum(F.mse_loss(first[s], second[s]) for s in range(4))
    pairs = zip(output.extra["semantic_inputs"], output.extra["semantic_reconstructions"], strict=True)
    reconstructed = sum(F.mse_loss(z, back) for z, back in pairs)
    published = entropies + 0.25 * guided + 0.10 * reconstructed
    assert task.compute_loss(known).item() == pytest.approx(published.item() / 8, rel=1e-4)


@pytest.mark.parametrize("detach", [False, True])
def test_the_first_pass_may_teach_and_not_learn(detach: bool) -> None:
    codes = noise(2, 4, 2, 3, 2, 2).requires_grad_()
    GuidedTerm(detach_first=detach)(
        Output(torch.zeros(1), extra={"semantic_codes": codes}), batch()
    ).backward()
    assert codes.grad is not None
    assert codes.grad[1].any()
    assert bool(codes.grad[0].any()) != detach


def test_terms_refuse_a_network_that_is_not_guided() -> None:
    unguided = small(semantic=False).train()(noise(2, 2, 32, 24).float())
    for term in (GuidedTerm(), ReconstructionTerm()):
        with pytest.raises(ModelError, match="of the network, which gives nothing"):
            term(unguided, batch())


def test_terms_of_halves_do_not_overflow() -> None:
    far = torch.full((2, 1, 1, 4, 2, 2), 300.0, dtype=torch.float16)
    far[1] = -300
    extra = {"semantic_codes": far, "semantic_inputs": far[0], "semantic_reconstructions": far[1]}
    for term in (GuidedTerm(), ReconstructionTerm()):
        assert term(Output(torch.zeros(1), extra=extra), batch()).item() == 600**2
