"""Options that cannot be: refused when a block is made, by name and with a number that would do."""

import inspect

import pytest

from models.attention import ATTENTION
from models.attention.mechanics.options import at_least, checked_heads, narrowed, odd
from models.errors import ModelError
from tests.attention.zoo import maps

# key -> options that count something, and so are at least 1.
COUNTS = {
    "agent": ["agents", "window"],
    "bra": ["regions", "topk", "region_size"],
    "cbam": ["reduction"],
    "coord": ["reduction"],
    "coord_se": ["reduction", "se_reduction"],
    "dual": ["reduction"],
    "focal": ["levels"],
    "halo": ["block"],
    "hilo": ["window"],
    "lka": ["kernel", "dilation"],
    "maxvit": ["window"],
    "medusa": ["hidden"],
    "neighborhood": ["dilation"],
    "se": ["reduction"],
    "shsa": ["part", "width"],
    "strip": ["reduction", "score_channels"],
    "ulsam": ["groups"],
}
KERNELS = {
    "cbam": "kernel",
    "bra": "lepe",
    "dfc": "kernel",
    "eca": "kernel",
    "focal": "kernel",
    "neighborhood": "kernel",
}
# The heads of "gaussian" split nothing.
WITH_HEADS = [
    key
    for key, cls in ATTENTION.items()
    if "heads" in inspect.signature(cls).parameters and key != "gaussian"
]


@pytest.mark.parametrize("number", [0, -1, -2])
@pytest.mark.parametrize(("key", "option"), [(key, option) for key in COUNTS for option in COUNTS[key]])
def test_numbers_below_one(key, option, number):
    with pytest.raises(ModelError, match=f" {option}") as error:
        ATTENTION[key](16, **{option: number})
    assert f" {number}" in str(error.value)


@pytest.mark.parametrize("number", [-1, 4])
@pytest.mark.parametrize("key", KERNELS)
def test_kernels_without_a_middle(key, number):
    with pytest.raises(
        ModelError, match=rf"odd {KERNELS[key]}.*got \[?{number}.*try \[?{5 if number == 4 else 1}"
    ):
        ATTENTION[key](16, **{KERNELS[key]: number})


@pytest.mark.parametrize("heads", [0, -2, 7, 128])
@pytest.mark.parametrize("key", WITH_HEADS)
def test_heads_that_do_not_divide(key, heads):
    with pytest.raises(ModelError, match=f"heads.*{heads}|{heads} heads"):
        ATTENTION[key](64, heads=heads)


@pytest.mark.parametrize(
    ("key", "ndim"), [(key, ndim) for key, cls in ATTENTION.items() for ndim in sorted(cls.ndims)]
)
def test_defaults_suit_few_channels_and_positions(key, ndim):
    """The narrow and coarse levels of small networks, in training with a batch of one."""
    for channels in (8, 12, 24, 48) if ndim == 2 else (12,):
        block = ATTENTION[key](channels, ndim=ndim)
        for size in [(1, 1, 1), (3, 2, 2)]:
            x = maps(ndim, batch=1, size=size[:ndim], channels=channels)
            y = block.train()(x)
            assert y.shape == x.shape
            assert y.isfinite().all()
            assert block.eval()(x).isfinite().all()


def test_heads_and_their_default():
    assert checked_heads("X", 96, None) == 3
    assert checked_heads("X", 96, None, default=8) == 8
    assert checked_heads("X", 96, 4) == 4
    with pytest.raises(ModelError, match="X wants heads that divide its 96 channels, got 5; try 3"):
        checked_heads("X", 96, 5)


def test_bottleneck():
    assert narrowed("X", 64, 16) == 4
    assert narrowed("X", 8, 16) == 1
    assert narrowed("X", 8, 16, least=4) == 4
    with pytest.raises(ModelError, match="X wants squeeze of at least 1, got 0; try 1"):
        narrowed("X", 8, 0, "squeeze")


def test_numbers_that_will_do_are_returned():
    assert at_least("X", "halo", 0, least=0) == 0
    assert odd("X", "kernel", 7) == 7
