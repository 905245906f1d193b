"""PraNet: its parts and the structure loss against few lines written from the paper, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules.classes import IGNORE
from models.errors import ModelError
from models.layers import mean_filter
from models.sizes import pad_to_multiple
from models.systems.parts.partial_decoder import PartialDecoder
from models.systems.parts.receptive_field import ReceptiveFieldBlock
from models.systems.parts.reverse_attention import ReverseAttention
from models.systems.pranet import PraNet
from tasks.losses import Structure, deep_supervision, one_against_all

SMALL = {"name": "residual", "widths": [4, 6, 8, 10], "strides": [2, 2, 2, 2], "blocks": 1, "norm": "batch"}


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def lively(module: nn.Module) -> nn.Module:
    """In float64 and inference mode, with statistics and scales of norms that are not 0 and 1."""
    generator = torch.Generator().manual_seed(3)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor in (norm.running_var, norm.weight):
                tensor.data = 0.5 + torch.rand(tensor.shape, generator=generator)
            for tensor in (norm.running_mean, norm.bias):
                tensor.data = torch.randn(tensor.shape, generator=generator)
    return module.double().eval()


def small(num_classes: int = 2, **more: object) -> PraNet:
    torch.manual_seed(0)
    return PraNet(2, num_classes, encoder=SMALL, channels=4, widths=[4, 4, 8], **more)  # type: ignore[arg-type]


# The network -------------------------------------------------------------------------------------------------------


def test_parameters_of_the_paper() -> None:
    with torch.device("meta"):
        network = PraNet.preset("paper", in_channels=3, num_classes=2)
    assert isinstance(network, PraNet)
    encoder = count(network.encoder)
    assert count(network) - encoder == 6_828_967  # 6.83 million
    # The released network also holds the classifier of ImageNet behind its encoder, and never calls it.
    classifier = 2048 * 1000 + 1000
    assert (count(network) + classifier) / 1e6 == pytest.approx(32.55, abs=0.005)
    assert network.encoder.strides[-3:] == ((8, 8), (16, 16), (32, 32))


@pytest.mark.parametrize(("before", "after"), [(12, 4), (512, 32)])
def test_parameters_of_the_receptive_field_block(before: int, after: int) -> None:
    n, c = 3, after
    wanted = c * before * (n + 2) + sum(2 * k + 9 for k in (3, 5, 7)) * c**2 + 9 * (n + 1) * c**2
    assert count(ReceptiveFieldBlock(before, after)) == wanted + 2 * c * (4 * n + 3)


def test_parameters_of_the_partial_decoder() -> None:
    c, m = 6, 2
    wanted = 4 * (9 * c**2 + 2 * c) + 2 * (36 * c**2 + 4 * c) + 2 * (81 * c**2 + 6 * c) + 3 * c * m + m
    assert count(PartialDecoder(c, m)) == wanted


def test_receptive_fields() -> None:
    torch.manual_seed(0)
    block = lively(ReceptiveFieldBlock(3, 2))
    assert isinstance(block, ReceptiveFieldBlock)
    x = noise(1, 3, 31, 31).requires_grad_()
    # Kernels of k along each axis and one of 3 with dilation k, joined by one of 3: for k = 7 that reaches 3 + 7 + 1.
    block.join(torch.cat([branch(x) for branch in block.branches], 1))[0, 0, 15, 15].backward()
    assert x.grad is not None
    rows = x.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    columns = x.grad.abs().sum((0, 1, 2)).nonzero().flatten()
    for seen in (rows, columns):
        assert (seen[0].item(), seen[-1].item()) == (15 - 11, 15 + 11)


def test_receptive_field_block_by_hand() -> None:
    block = lively(ReceptiveFieldBlock(3, 2))
    assert isinstance(block, ReceptiveFieldBlock)
    x = noise(2, 3, 9, 8)
    found = [block.branches[0](x)]
    for branch, k in zip(list(block.branches)[1:], (3, 5, 7), strict=True):
        one, across, down, wide = (layer[0].weight for layer in branch)
        norms = [layer[1] for layer in branch]
        assert across.shape[2:] == (1, k)
        assert down.shape[2:] == (k, 1)
        y = norms[0](F.conv2d(x, one))
        y = norms[1](F.conv2d(y, across, padding=(0, k // 2)))
        y = norms[2](F.conv2d(y, down, padding=(k // 2, 0)))
        found.append(norms[3](F.conv2d(y, wide, padding=k, dilation=k)))
    wanted = (block.join(torch.cat(found, 1)) + block.shortcut(x)).clamp(min=0)
    torch.testing.assert_close(block(x), wanted)


def test_partial_decoder_by_hand() -> None:
    torch.manual_seed(0)
    decoder = lively(PartialDecoder(3, 1))
    assert isinstance(decoder, PartialDecoder)
    x3, x2, x1 = noise(2, 3, 16, 12), noise(2, 3, 8, 6, seed=1), noise(2, 3, 4, 3, seed=2)
    up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
    a2 = decoder.coarse_to_middle(up(x1)) * x2
    a3 = decoder.coarse_to_fine(up(up(x1))) * decoder.middle_to_fine(up(x2)) * x3
    b2 = decoder.join_middle(torch.cat([a2, decoder.beside_middle(up(x1))], 1))
    b3 = decoder.join_fine(torch.cat([a3, decoder.beside_fine(up(b2))], 1))
    torch.testing.assert_close(decoder(x3, x2, x1), decoder.head(decoder.before_head(b3)))


@pytest.mark.parametrize("maps", [1, 3])
def test_reverse_attention_by_hand(maps: int) -> None:
    torch.manual_seed(0)
    block = lively(ReverseAttention(5, maps, width=4, depth=2))
    assert isinstance(block, ReverseAttention)
    x, logits = noise(2, 5, 6, 7), 3 * noise(2, maps, 6, 7, seed=1)
    unclaimed = torch.ones(2, 1, 6, 7, dtype=torch.float64)
    for k in range(maps):
        unclaimed = unclaimed * (1 - 1 / (1 + torch.exp(-logits[:, k : k + 1])))
    y = block.project(unclaimed * x)
    for convolution in (block.body[0], block.body[2]):
        y = convolution(y).clamp(min=0)
    torch.testing.assert_close(block(x, logits), logits + block.last(y))


def test_what_is_claimed_is_not_looked_at_again() -> None:
    block = lively(ReverseAttention(5, 1, width=4))
    sure = torch.full((1, 1, 6, 7), 60.0, dtype=torch.float64)
    torch.testing.assert_close(block(noise(1, 5, 6, 7), sure), block(noise(1, 5, 6, 7, seed=1), sure))
    assert not torch.allclose(block(noise(1, 5, 6, 7), -sure), block(noise(1, 5, 6, 7, seed=1), -sure))


def test_predictions_from_coarse_to_fine() -> None:
    network = small()
    lively(network)
    image = noise(2, 2, 64, 32)
    x2, x3, x4 = network.encode(image)
    assert [x.shape[2:] for x in (x2, x3, x4)] == [(16, 8), (8, 4), (4, 2)]

    def scale(x: Tensor, by: float) -> Tensor:
        return F.interpolate(x, scale_factor=by, mode="bilinear", align_corners=False)

    s5 = network.decoder(network.fields[0](x2), network.fields[1](x3), network.fields[2](x4))
    s4 = network.reverse[2](x4, scale(s5, 0.25))
    s3 = network.reverse[1](x3, scale(s4, 2))
    s2 = network.reverse[0](x2, scale(s3, 2))
    output = network(image)
    assert not output.aux
    torch.testing.assert_close(output.logits[:, 1:], scale(s2, 4))
    # As in inference, but told to say what it says in training.
    network.training = True
    output = network(image)
    for found, (prediction, by) in zip(
        [output.logits, *output.aux], [(s2, 4), (s3, 8), (s4, 16), (s5, 4)], strict=True
    ):
        torch.testing.assert_close(found[:, 1:], scale(prediction, by))
        assert not found[:, 0].any()


def test_two_classes_are_one_sigmoid() -> None:
    logits = small().eval()(noise(1, 2, 48, 48).float()).logits
    torch.testing.assert_close(logits.softmax(1)[:, 1], logits[:, 1].sigmoid())


def test_odd_images_are_padded_by_their_edge_and_cropped() -> None:
    network = small().eval()
    image = noise(1, 2, 35, 50).float()
    padded = F.pad(image, (0, 14, 0, 13), mode="replicate")
    torch.testing.assert_close(pad_to_multiple(image, (16, 16), repeat=True), padded)
    with torch.no_grad():
        torch.testing.assert_close(network(image).logits, network(padded).logits[..., :35, :50])


@pytest.mark.parametrize("backbone", ["test_efficientnet", "test_resnet"])
def test_any_encoder_of_timm(backbone: str) -> None:
    # All five levels are there; the coarsest three are used.
    network = PraNet(3, 3, encoder={"name": "timm", "backbone": backbone}, channels=4, widths=[4, 4, 4])
    assert network.encoder.strides[-3:] == ((8, 8), (16, 16), (32, 32))
    assert network.eval()(torch.zeros(1, 3, 64, 70)).logits.shape == (1, 3, 64, 70)


def test_what_cannot_be_built() -> None:
    with pytest.raises(ModelError, match="ndim is 3; PraNet exists in 2D"):
        PraNet(1, 2, ndim=3)
    with pytest.raises(ModelError, match="wants three levels, finest first, and this one has 2"):
        PraNet(1, 2, encoder={"name": "plain", "widths": [4, 8]})
    with pytest.raises(ModelError, match=r"widths are \[4, 4\]"):
        PraNet(1, 2, widths=[4, 4])
    with pytest.raises(ModelError, match="with one class set background: false"):
        PraNet(1, 1)
    with pytest.raises(ModelError, match=r"\(16, 16\) is a single position .* give at least \(17, 17\)"):
        small()(torch.zeros(1, 2, 16, 16))


# The loss ----------------------------------------------------------------------------------------------------------


def structure_by_hand(p: np.ndarray, mask: np.ndarray, window: int, legacy: bool = False) -> float:
    """One image, one class: probabilities and zeros and ones ``(H, W)``."""
    reach, (height, width) = window // 2, mask.shape
    padded = np.pad(mask, reach)
    near = np.array(
        [[padded[i : i + window, j : j + window].mean() for j in range(width)] for i in range(height)]
    )
    w = 1 + 5 * abs(near - mask)
    bce = -(mask * np.log(p) + (1 - mask) * np.log(1 - p))
    ce = bce.mean() if legacy else (w * bce).sum() / w.sum()
    both = (w * p * mask).sum()
    return float(ce + 1 - (both + 1) / ((w * (p + mask)).sum() - both + 1))


def blob(height: int = 21, width: int = 26) -> Tensor:
    mask = torch.zeros(2, height, width, dtype=torch.long)
    mask[0, 4:13, 6:17] = 1
    mask[1, :5, 20:] = 1
    return mask


@pytest.mark.parametrize("window", [5, 31])
def test_structure_loss_by_hand(window: int) -> None:
    mask, logit = blob(), noise(2, 1, 21, 26).float()
    logits = torch.cat([torch.zeros_like(logit), logit], 1)
    p = logit.double().sigmoid()[:, 0].numpy()
    wanted = [structure_by_hand(p[i], mask[i].numpy(), window) for i in (0, 1)]
    assert Structure(window)(logits, mask).item() == pytest.approx(np.mean(wanted), rel=1e-5)
    # One map and a mask of overlapping classes are the same thing.
    assert Structure(window)(logit, mask[:, None]).item() == pytest.approx(np.mean(wanted), rel=1e-5)


def test_legacy_cross_entropy_is_not_weighted() -> None:
    mask, logit = blob(), noise(2, 1, 21, 26).float()
    p = logit.double().sigmoid()[:, 0].numpy()
    wanted = np.mean([structure_by_hand(p[i], mask[i].numpy(), 31, legacy=True) for i in (0, 1)])
    legacy = Structure(legacy_bce=True)(logit, mask[:, None]).item()
    assert legacy == pytest.approx(wanted, rel=1e-5)
    assert legacy != pytest.approx(Structure()(logit, mask[:, None]).item(), rel=1e-3)


def test_three_exclusive_classes_count_one_against_all() -> None:
    logits = noise(2, 3, 9, 8)
    torch.testing.assert_close(one_against_all(logits).sigmoid(), logits.softmax(1))
    mask = noise(2, 3, 9, 8, seed=1).argmax(1)
    p = logits.softmax(1).numpy()
    by_class = [
        [structure_by_hand(p[i, k], (mask[i] == k).double().numpy(), 5) for i in (0, 1)] for k in (0, 1, 2)
    ]
    assert Structure(5)(logits, mask).item() == pytest.approx(np.mean(by_class[1:]), rel=1e-5)
    assert Structure(5, background=True)(logits, mask).item() == pytest.approx(np.mean(by_class), rel=1e-5)


def test_borders_weigh_more() -> None:
    mask = blob()[:1]
    logits = torch.zeros(1, 2, 21, 26, requires_grad=True)
    Structure(5)(logits, mask).backward()
    assert logits.grad is not None
    pull = logits.grad[0, 1].abs()
    assert pull[4, 11] > 2 * pull[8, 11]  # upper border and middle of the block


@pytest.mark.parametrize("legacy", [False, True])
def test_unknown_positions_have_no_value_and_no_gradient(legacy: bool) -> None:
    loss, mask = Structure(5, legacy_bce=legacy), blob()
    mask[0, 10:, :] = IGNORE
    logits = noise(2, 2, 21, 26).float().requires_grad_()
    value = loss(logits, mask)
    value.backward()
    assert logits.grad is not None
    assert not logits.grad[0, :, 10:].any()
    assert logits.grad[0, :, :10].any()
    other = logits.detach().clone()
    other[0, :, 10:] += 7
    assert loss(other, mask).item() == pytest.approx(value.item(), rel=1e-6)
    nothing = torch.full_like(mask, IGNORE)
    assert loss(logits, nothing).item() == pytest.approx(0, abs=1e-6)
    assert math.isfinite(deep_supervision(loss, [logits, logits[..., ::2, ::2]], nothing).item())


def test_unknown_neighbours_do_not_count_as_background() -> None:
    mask = torch.ones(1, 1, 40, 40, dtype=torch.long)
    mask[..., 20:] = IGNORE
    # All that is known of the neighbourhood is the class: the borders of what is known are no borders of the class.
    logits = torch.zeros(1, 1, 40, 40, requires_grad=True)
    Structure(5)(logits, mask).backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad[0, 0, 20, 19], logits.grad[0, 0, 20, 10])


def test_an_even_window_is_refused() -> None:
    with pytest.raises(ValueError, match="window is 30; it wants an odd number, such as 31"):
        Structure(30)


@pytest.mark.parametrize("size", [(7, 5), (5, 6, 4)])
def test_mean_filter(size: tuple[int, ...]) -> None:
    x = noise(1, 1, *size)
    padded = np.pad(x[0, 0].numpy(), 1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3,) * len(size))
    wanted = windows.mean(tuple(range(len(size), 2 * len(size))))
    torch.testing.assert_close(mean_filter(x, 3)[0, 0], torch.from_numpy(wanted))
