"""HER-Seg against its formulas and published counts, its switches, and its loss by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from datamodules.classes import IGNORE
from models.errors import ModelError
from models.systems.herseg import HerSeg
from models.systems.parts.drop_path import DropPath
from models.systems.parts.light_mask_decoder import LightMaskDecoder
from models.systems.parts.linear_vit import LinearViT
from tasks.losses import DiceFocal
from tests.systems.by_formula import Weights, batch_normed, convolved, weights_of

pytest.importorskip("segment_anything")

SMALL = {
    "patch": 4,
    "dim": 8,
    "depths": [1, 1, 1],
    "heads": [2, 4],
    "width": 16,
    "decoder_heads": 2,
    "decoder_hidden": 12,
}


def small(seed: int = 0, **more: object) -> HerSeg:
    torch.manual_seed(seed)
    return HerSeg(**{"in_channels": 2, "num_classes": 3, **SMALL, **more})  # type: ignore[arg-type]


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# Counts ----------------------------------------------------------------------------------------------------------


def published(classes: int = 4) -> HerSeg:
    """Four classes are three maps, as many as the released decoder makes."""
    with torch.device("meta"):
        network = HerSeg.preset("paper", in_channels=3, num_classes=classes)
    assert isinstance(network, HerSeg)
    return network


def test_parameters_are_the_published_ones_part_by_part() -> None:
    network = published()
    assert count(network.encoder) == pytest.approx(0.958e6, rel=0.001)
    assert count(network.neck) == pytest.approx(0.615e6, rel=0.001)
    # The released count of the prompt encoder, 0.006 million, is of prompts; here one vector of it is in the decoder.
    assert count(network.decoder) - 256 == pytest.approx(1.947e6, rel=0.001)
    assert count(network) == pytest.approx(3.53e6, rel=0.005)


def test_one_map_leaves_out_two_perceptrons_and_tokens_that_the_released_code_has_for_nothing() -> None:
    perceptron = 2 * (256 * 256 + 256) + 256 * 32 + 32
    assert count(published(4)) - count(published(2)) == 2 * (perceptron + 256)


def test_multiplications_are_the_published_ones_part_by_part() -> None:
    network = published().eval().requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, 1024, 1024, device="meta"))
    found = {name: sum(n.values()) / 2e9 for name, n in counter.get_flop_counts().items()}
    assert found["HerSeg"] == pytest.approx(8.23, abs=0.005)
    assert found["HerSeg.encoder"] == pytest.approx(3.94, abs=0.005)
    assert found["HerSeg.neck"] == pytest.approx(2.52, abs=0.005)
    assert found["HerSeg.decoder"] == pytest.approx(1.78, abs=0.005)


def test_small_parameters_are_those_of_a_closed_form() -> None:
    c, h, n, w, hidden, maps = 8, 16, 2, 16, 12, 2
    network = small()
    bottleneck = 2 * c * h + 9 * h + 4 * h + 2 * c
    attention = 2 * c * c + 2 * c + (n * c + n) + (n * c + c) + 10 * c + 2 * (c * c + c)
    block = attention + 2 * c * h + h + 5 * c
    assert count(network.encoder) == (2 * 16 * c + c) + bottleneck + 2 * block
    assert count(network.neck) == c * w + 9 * w * w + 4 * w
    half = w // 2  # SAM's cross attention works in half of the channels
    among = 4 * (w * w + w)
    across = 3 * (w * half + half) + half * w + w
    transformer = 2 * (among + 2 * across + 2 * w * hidden + hidden + w + 8 * w) + across + 2 * w
    rising = w * w + w // 4 + w // 2 + 4 * (w // 4) * (w // 8) + w // 8
    heads = maps * (2 * (w * w + w) + w * (w // 8) + w // 8)
    assert count(network.decoder) == transformer + rising + heads + w + (1 + maps) * w


# Formulas --------------------------------------------------------------------------------------------------------


def normed(x: Tensor, w: Weights, name: str, eps: float = 1e-5) -> Tensor:
    """Layer norm over the last axis."""
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(x: Tensor, w: Weights, name: str) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def turned(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Pairs of channels as complex numbers, the first half turned by rows and the second by columns."""
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in size), indexing="ij")
    count = x.shape[-1] // 4
    speed = 10000.0 ** (-torch.arange(count, dtype=torch.float64) / count)
    angle = torch.cat([rows.reshape(-1, 1) * speed, columns.reshape(-1, 1) * speed], 1)
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten(-2)


def attended(u: Tensor, size: tuple[int, int], heads: int, w: Weights, name: str) -> Tensor:
    """All pairs of tokens, one head after the other; linear attention never makes this matrix."""
    q, k = (F.elu(linear(u, w, f"{name}.qk")) + 1).chunk(2, -1)
    v = linear(F.silu(linear(u, w, f"{name}.value.0")), w, f"{name}.value.2")
    parts = []
    for mine in np.split(np.arange(u.shape[-1]), heads):
        upper = turned(q, size)[..., mine] @ turned(k, size)[..., mine].transpose(1, 2)
        lower = (q[..., mine] @ k[..., mine].transpose(1, 2)).mean(-1, keepdim=True) + 1e-6
        parts.append(upper @ v[..., mine] / lower / u.shape[1])
    channels = u.shape[-1]
    near = F.conv2d(
        v.transpose(1, 2).unflatten(2, size),
        w[f"{name}.local.weight"],
        w[f"{name}.local.bias"],
        padding=1,
        groups=channels,
    )
    y = torch.cat(parts, -1) + near.flatten(2).transpose(1, 2)
    return linear(y * F.silu(linear(u, w, f"{name}.gate")), w, f"{name}.proj")


def encoded(image: Tensor, w: Weights, heads: list[int], patch: int) -> Tensor:
    x = F.conv2d(image, w["embed.weight"], w["embed.bias"], stride=patch)
    y = F.gelu(batch_normed(convolved(x, w, "stages.0.0.branch.0"), w, "stages.0.0.branch.1"))
    y = F.conv2d(y, w["stages.0.0.branch.3.weight"], padding=1, groups=y.shape[1])
    y = F.gelu(batch_normed(y, w, "stages.0.0.branch.4"))
    y = batch_normed(convolved(y, w, "stages.0.0.branch.6"), w, "stages.0.0.branch.7")
    x = F.gelu(x + y)
    size = (x.shape[2], x.shape[3])
    tokens = x.flatten(2).transpose(1, 2)
    for i, number in enumerate(heads):
        name = f"stages.{i + 1}.0"
        tokens = tokens + attended(normed(tokens, w, f"{name}.norm1"), size, number, w, f"{name}.attention")
        u = F.gelu(linear(normed(tokens, w, f"{name}.norm2"), w, f"{name}.mlp.0"))
        tokens = tokens + linear(u, w, f"{name}.mlp.2")
    return tokens.transpose(1, 2).unflatten(2, size)


def test_encoder_is_its_formula() -> None:
    network = LinearViT(2, 2, 4, 8, [1, 1, 1], [2, 4], 2, 0.1)
    w = weights_of(network)
    image = torch.randn(2, 2, 12, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    wanted = encoded(image, w, [2, 4], 4)
    torch.testing.assert_close(network(image), wanted, rtol=1e-6, atol=1e-6)


def test_drop_path_grows_in_a_line() -> None:
    network = LinearViT(1, 2, 4, 8, [2, 1, 2], [2, 4], 2, 0.2)
    rates = [m.probability for m in network.modules() if isinstance(m, DropPath)]
    np.testing.assert_allclose(rates, [0.0, 0.05, 0.1, 0.15, 0.2], atol=1e-7)


def test_drop_path_leaves_whole_samples_out_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    layer = DropPath(0.25).train()
    x = torch.ones(4000, 2, 3)
    y = layer(x)
    np.testing.assert_allclose(y.unique(), [0, 4 / 3], rtol=1e-6)
    assert torch.equal(y.amax((1, 2)), y.amin((1, 2)))
    assert y.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(layer.eval()(x), x)


def decoder(maps: int = 2, own: bool = False, pooling: tuple[int, ...] = ()) -> LightMaskDecoder:
    torch.manual_seed(0)
    return LightMaskDecoder(16, maps, 2, 2, 12, own, pooling)


@pytest.mark.parametrize(("own", "pooling"), [(False, ()), (True, ()), (False, (3, 5))])
def test_decoder_is_its_formula_behind_the_transformer(own: bool, pooling: tuple[int, ...]) -> None:
    network = decoder(own=own, pooling=pooling)
    w = weights_of(network)
    embedding = torch.randn(2, 16, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    # Sines and cosines of random directions, of positions between -1 and 1, x before y.
    y, x = torch.meshgrid(*(2 * (torch.arange(n).double() + 0.5) / n - 1 for n in (5, 7)), indexing="ij")
    angle = 2 * np.pi * (torch.stack([x, y], -1) @ w["positions.positional_encoding_gaussian_matrix"])
    positions = torch.cat([angle.sin(), angle.cos()], -1).movedim(-1, 0).expand(2, -1, -1, -1)
    source = embedding + w["no_prompt"].reshape(1, -1, 1, 1)
    # segment-anything's own, as it is.
    tokens, source = network.transformer(source, positions, w["tokens"].expand(2, -1, -1))
    x = source.transpose(1, 2).unflatten(2, (5, 7))
    far = x
    for k in pooling:
        total, number = torch.zeros_like(x), torch.zeros(5, 7, dtype=torch.float64)
        for row in range(5):
            for column in range(7):
                box = (
                    slice(max(0, row - k // 2), row + k // 2 + 1),
                    slice(max(0, column - k // 2), column + k // 2 + 1),
                )
                total[..., row, column] = x[(..., *box)].sum((-1, -2))
                number[row, column] = x[(0, 0, *box)].numel()
        far = far + total / number - x
    y = F.conv_transpose2d(far, w["upscale.0.weight"], w["upscale.0.bias"], stride=2)
    y = F.gelu(normed(y.movedim(1, -1), w, "upscale.1", 1e-6).movedim(-1, 1))
    y = F.gelu(F.conv_transpose2d(y, w["upscale.3.weight"], w["upscale.3.bias"], stride=2))
    masks = []
    for i in range(2):
        h = tokens[:, 1 + i] if own else tokens[:, 0]
        h = linear(h, w, f"weights.{i}.layers.0").relu()
        h = linear(h, w, f"weights.{i}.layers.1").relu()
        masks.append(torch.einsum("bc,bchw->bhw", linear(h, w, f"weights.{i}.layers.2"), y))
    # The package makes positions in single precision.
    found = network.float()(embedding.float()).double()
    wanted = torch.stack(masks, 1)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-3 * wanted.abs().max().item())


def test_as_released_all_maps_come_from_one_token() -> None:
    for own in (False, True):
        network = decoder(own=own).eval()
        network.weights[1].load_state_dict(network.weights[0].state_dict())
        first, second = network(torch.randn(1, 16, 4, 4))[0]
        assert torch.equal(first, second) is not own


# Behaviour -------------------------------------------------------------------------------------------------------


def test_any_size_is_filled_up_by_its_edge_and_cut_again() -> None:
    network = small().eval()
    image = torch.randn(1, 2, 13, 18)
    filled = F.pad(image, (0, 2, 0, 3), mode="replicate")
    with torch.no_grad():
        torch.testing.assert_close(network(image).logits, network(filled).logits[..., :13, :18])


def test_first_class_has_no_map() -> None:
    x = torch.randn(1, 2, 16, 16)
    assert not small().eval()(x).logits[:, 0].any()
    assert small(background=False).eval()(x).logits[:, 0].any()
    assert len(small(background=False).decoder.weights) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ndim": 3}, "2D"),
        ({"heads": [2]}, "give 2 heads"),
        ({"heads": [3, 4]}, "heads that divide its 8 channels"),
        ({"width": 20}, "multiple of 8"),
        ({"pooling": [4]}, "odd pooling"),
        ({"drop_path": 1.0}, "less than 1"),
        ({"num_classes": 1}, "set background: false"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        small(**change)


# Loss ------------------------------------------------------------------------------------------------------------


def by_hand(p: np.ndarray, t: np.ndarray, per_position: bool) -> float:
    """Probabilities and targets of one map."""
    dice = (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
    ce = -(t * np.log(p) + (1 - t) * np.log(1 - p))
    mean = ce.mean()
    focal = ((1 - np.exp(-ce)) ** 2 * ce).mean() if per_position else (1 - np.exp(-mean)) ** 2 * mean
    return float(0.8 * (1 - dice) + 0.2 * 0.8 * focal)


def case(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 1, 6, 5, generator=generator)
    return logits, (torch.rand(2, 6, 5, generator=generator) > 0.6).long()


@pytest.mark.parametrize("per_position", [False, True])
def test_loss_of_one_map_is_the_published_formula(per_position: bool) -> None:
    logits, mask = case()
    p = 1 / (1 + np.exp(-logits.numpy().astype(np.float64)[:, 0]))
    wanted = by_hand(p, mask.numpy(), per_position)
    loss = DiceFocal(per_position=per_position)
    two = torch.cat([torch.zeros_like(logits), logits], 1)
    assert loss(two, mask).item() == pytest.approx(wanted, rel=1e-5)
    assert loss(logits, mask[:, None]).item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("per_position", [False, True])
def test_unknown_positions_have_neither_value_nor_gradient(per_position: bool) -> None:
    logits, mask = case()
    loss = DiceFocal(per_position=per_position)
    two = torch.cat([torch.zeros_like(logits), logits], 1)
    unknown = mask.clone()
    unknown[:, :, 3:] = IGNORE
    seen = two.clone().requires_grad_()
    found = loss(seen, unknown)
    assert found.item() == pytest.approx(loss(two[..., :3], mask[..., :3]).item(), rel=1e-5)
    found.backward()
    assert seen.grad is not None
    assert not seen.grad[..., 3:].any()
    assert seen.grad[..., :3].any()
    assert loss(two, torch.full_like(mask, IGNORE)).item() == 0
