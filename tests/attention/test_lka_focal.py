"""Large kernel attention and focal modulation against their formulas and against timm."""

import numpy as np
import pytest
import torch
from scipy.special import erf
from timm.models.focalnet import FocalModulation as TimmFocalModulation

from models.attention.focal import FocalModulation
from models.attention.lka import LKA
from tests.attention.zoo import by_hand_case, count, depthwise, layer_norm, maps

SIZE = {2: (5, 7), 3: (3, 5, 4)}


def gelu(a):
    return a * (1 + erf(a / np.sqrt(2))) / 2


def pointwise(x, p, name):
    weight = p[f"{name}.weight"]
    bias = p[f"{name}.bias"].reshape(-1, *(1,) * (x.ndim - 2))
    return np.einsum("oc,bc...->bo...", weight.reshape(weight.shape[:2]), x) + bias


def lka_by_hand(x, p, projections=False, dilation=3, **_):
    u = gelu(pointwise(x, p, "enter")) if projections else x
    near = depthwise(u, p["near.weight"], p["near.bias"])
    weighted = u * pointwise(depthwise(near, p["far.weight"], p["far.bias"], dilation), p, "mix")
    return x + pointwise(weighted, p, "leave") if projections else weighted


def focal_by_hand(x, p, levels=2, normalize=False, post_norm=False, **_):
    channels = x.shape[1]
    entered = pointwise(x, p, "enter")
    query, context = entered[:, :channels], entered[:, channels : 2 * channels]
    gates = entered[:, 2 * channels :]
    total = 0
    for level in range(levels):
        context = gelu(depthwise(context, p[f"widen.{level}.weight"]))
        total = total + context * gates[:, [level]]
    total = total + gelu(context.mean(tuple(range(2, x.ndim)), keepdims=True)) * gates[:, [levels]]
    if normalize:
        total = total / (levels + 1)
    y = query * pointwise(total, p, "modulator")
    if post_norm:
        y = np.moveaxis(layer_norm(np.moveaxis(y, 1, -1), p["norm.weight"], p["norm.bias"]), -1, 1)
    return pointwise(y, p, "proj")


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize(
    ("cls", "by_hand", "options"),
    [
        (LKA, lka_by_hand, {}),
        (LKA, lka_by_hand, {"projections": True}),
        (LKA, lka_by_hand, {"kernel": 6, "dilation": 2}),
        (FocalModulation, focal_by_hand, {}),
        (FocalModulation, focal_by_hand, {"levels": 3, "kernel": 5, "factor": 4}),
        (FocalModulation, focal_by_hand, {"normalize": True, "post_norm": True}),
    ],
)
def test_block_against_its_formulas(cls, by_hand, options, ndim):
    block, x, p = by_hand_case(cls(8, ndim, **options), ndim, size=SIZE[ndim], channels=8)
    expected = by_hand(x.numpy(), p, **options)
    np.testing.assert_allclose(block(x).detach().numpy(), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("kernel", "dilation", "reach"), [(21, 3, 11), (35, 5, 4 + 15), (7, 1, 3), (9, 3, 2 + 3)]
)
def test_how_far_lka_sees(kernel, dilation, reach):
    block = LKA(1, kernel=kernel, dilation=dilation)
    for parameter in block.parameters():
        parameter.data.fill_(1.0)
    x = torch.ones(1, 1, 1, 61, requires_grad=True)
    block.far(block.near(x))[..., 30].sum().backward()
    (seen,) = torch.nonzero(x.grad.flatten(), as_tuple=True)
    assert seen.tolist() == list(range(30 - reach, 31 + reach))


@pytest.mark.parametrize(("ndim", "kernel", "dilation"), [(2, 21, 3), (3, 10, 2), (3, 5, 1)])
def test_parameters_of_lka_by_the_formula_of_its_docstring(ndim, kernel, dilation):
    a, b, c = (2 * dilation - 1) ** ndim, (-(-kernel // dilation)) ** ndim, 12
    assert count(LKA(c, ndim, kernel=kernel, dilation=dilation)) == c * (a + b) + c**2 + 3 * c
    with_projections = LKA(c, ndim, projections=True, kernel=kernel, dilation=dilation)
    assert count(with_projections) == c * (a + b) + 3 * c**2 + 5 * c


@pytest.mark.parametrize(
    "options",
    [{}, {"levels": 3, "kernel": 9, "normalize": True}, {"factor": 0, "levels": 1, "post_norm": True}],
)
def test_focal_is_that_of_timm(options):
    ours = FocalModulation(16, **options)
    theirs = TimmFocalModulation(
        16,
        focal_window=options.get("kernel", 3),
        focal_level=options.get("levels", 2),
        focal_factor=options.get("factor", 2),
        normalize_modulator=options.get("normalize", False),
        use_post_norm=options.get("post_norm", False),
    )
    names = {"enter": "f", "modulator": "h", "proj": "proj", "norm": "norm"}
    for mine, its in names.items():
        getattr(theirs, its).load_state_dict(getattr(ours, mine).state_dict())
    for mine, its in zip(ours.widen, theirs.focal_layers, strict=True):
        its[0].load_state_dict(mine.state_dict())
    x = maps(2, channels=16)
    theirs.norm.eps = 1e-5  # timm's layer norm takes another.
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-6)


class TestRefusals:
    @pytest.mark.parametrize(("kernel", "dilation", "better"), [(24, 3, 21), (5, 3, 3), (8, 2, 6)])
    def test_lka_that_cannot_be_taken_apart(self, kernel, dilation, better):
        with pytest.raises(ValueError, match=f"kernel {kernel} .* try kernel {better}"):
            LKA(8, kernel=kernel, dilation=dilation)
        LKA(8, kernel=better, dilation=dilation)

    def test_lka_without_dilation(self):
        with pytest.raises(ValueError, match="dilation of at least 1, got 0"):
            LKA(8, dilation=0)

    def test_focal_without_levels_or_with_even_kernels(self):
        with pytest.raises(ValueError, match="levels of at least 1, got 0"):
            FocalModulation(8, levels=0)
        with pytest.raises(ValueError, match="even factor, as kernels are odd, got 1; try 2"):
            FocalModulation(8, factor=1)
        with pytest.raises(ValueError, match="odd kernel, got 2; try 3"):
            FocalModulation(8, kernel=2)
