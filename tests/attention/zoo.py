"""What the tests of all attention blocks share."""

import numpy as np
import pytest
import torch

from models.attention import ATTENTION

# Options worth running through the whole contract besides the defaults of every block.
VARIANTS = {
    "gpsa": [{"heads": 4, "local": False}],
    "flow": [{"heads": 8}],
    "l2_linear": [{"concentration": True, "clamp": 1.0}],
    "vsa": [{"window": 3, "heads": 4}],
    "polyline": [{"heads": 8}],
    "lsda": [{"kind": "short", "group": 4}, {"kind": "long", "interval": 2, "group": 3}],
    "aggregated": [{"window": 5, "pooled": 3, "width": 64}],
    "conv_glu": [{"ratio": 1.5}],
    "wave_block": [{"axis": 1, "height": 0.5}],
    "ulsam": [{"groups": 1, "rescale": True}],
    "medusa": [{"widths": [8], "hidden": 4}],
    "ela": [{"variant": "T"}, {"variant": "L", "shared": False}],
    "dfc": [{"kernel": 3, "upsampling": "linear"}],
    "coord_se": [{"alpha": 0.622}],
    "coord": [{"reduction": 8, "minimum": 1, "bias": False, "activation": "relu"}],
    "cbam": [{"kernel": 3, "bias": False, "reduction": 4}, {"spatial_norm": False}],
    "double_window": [{"window": 4, "heads": 4}],
    "craft_window": [{"window": [2, 4], "shift": True}],
    "rgt": [{"times": 2, "qkv_bias": False}, {"official": True}],
    "ocab": [{"window": 4, "overlap": 1.0, "heads": 4}],
    "cab": [{"compress": 2, "squeeze": 8, "scale": 0.5}],
    "region": [{"square": 4, "official": True}],
    "raft_mlp": [{"official": True, "side": 8}],
    "wavelet": [{"levels": 2, "state": 2, "kernel": 3}],
    "wavemix": [{"levels": 2, "mult": 1, "hidden": 24}],
    "atconv": [{"kernel": 5, "pooling": "grid"}],
    "token_aggregation": [{"centres": 5, "qk_channels": 32, "heads": 4}],
    "pat_channel": [{"per_channel": True}],
    "mixture_of_head": [{"heads": 8, "shared": 2, "active": 3}],
    "head_tokens": [{"heads": 4, "qkv_bias": False}],
    "pyramid_sparse": [{"topk": 3}],
    "contmix": [{"kernel": 3, "small_kernel": 5, "regions": 3}],
    "probing": [{"queries": 4}],
    "strip": [{"reduction": 4, "heads": 4, "score_channels": 8}],
    "shsa": [{"part": 32, "width": 8}],
    "gaussian": [{"axis": 2, "heads": 2, "gaussians": 3}],
    "focal": [{"levels": 3, "kernel": 5, "normalize": True, "post_norm": True}],
    "dual": [{"branches": "position"}, {"branches": "channel", "plain": True}],
    "domain_channel": [{"reduction": 4}],
    "dla": [{"outer_gate": False}],
    "channel_group": [{"scale": "positions", "qkv_bias": False}],
    "eca": [{"kernel": 5}],
    "lka": [{"projections": True}],
    "agent": [{"agents": 64, "window": 3, "heads": 8, "qkv_bias": False}],
    "bra": [{"regions": 3, "topk": 2, "soft": True, "head_scale": True, "lepe": 0}, {"region_size": 2}],
    "halo": [{"block": 2, "halo": 2, "heads": 4}],
    "hilo": [{"heads": 4, "window": 3, "alpha": 0.75, "qkv_bias": True}, {"alpha": 0.0}, {"window": 1}],
    "maxvit": [{"window": 3, "mlp": True}, {"axes": "grid"}],
    "neighborhood": [
        {"kernel": 3, "dilation": "largest", "relative_bias": True},
        {"kernel": 3, "dilation": 2, "border": "zero"},
    ],
    "psa": [
        {"layout": "sequential"},
        {"layout": "parallel", "official": True},
        {"layout": "sequential", "official": True},
    ],
    "se": [{"bias": False, "reduction": 4}],
}
CHANNELS = 64
SIZES = {2: [(9, 13), (1, 1), (16, 1)], 3: [(5, 6, 7), (1, 1, 1), (1, 4, 9)]}


def block_id(key, options, ndim):
    return "-".join([key, *(f"{k}={v}" for k, v in options.items()), f"{ndim}D"])


EVERY = [
    pytest.param(key, options, ndim, id=block_id(key, options, ndim))
    for key, cls in ATTENTION.items()
    for options in [{}, *VARIANTS.get(key, [])]
    for ndim in sorted(cls.ndims)
]
every_block = pytest.mark.parametrize(("key", "options", "ndim"), EVERY)
# What takes seconds is run with the default options, and on volumes only among the slow tests.
every_default = pytest.mark.parametrize(
    ("key", "options", "ndim"),
    [
        pytest.param(*case.values, id=case.id, marks=[pytest.mark.slow] if case.values[2] == 3 else [])
        for case in EVERY
        if not case.values[1]
    ],
)
# Options in 2D, and in 3D only among the slow tests; defaults in both.
every_block_once = pytest.mark.parametrize(
    ("key", "options", "ndim"),
    [
        pytest.param(
            *case.values,
            id=case.id,
            marks=[pytest.mark.slow] if case.values[1] and case.values[2] == 3 else [],
        )
        for case in EVERY
    ],
)
every_key = pytest.mark.parametrize("key", ATTENTION)


def make(key, options, ndim, seed=0, channels=CHANNELS):
    """A block none of whose parameters is zero: zero-initialised scales would switch the attention off."""
    torch.manual_seed(seed)
    return awake(ATTENTION[key](channels, ndim=ndim, **options))


def awake(module):
    """Give parameters that are all zero (scales, last norms) random values, in place."""
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    return module


def maps(ndim, batch=2, size=None, seed=1, channels=CHANNELS):
    """Maps whose channels differ in mean, as they do inside a network."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, channels, *(size or SIZES[ndim][0]), generator=generator)
    return x + torch.randn(batch, channels, *(1,) * ndim, generator=generator)


def count(module):
    return sum(p.numel() for p in module.parameters())


def by_hand_case(block, ndim, seed=3, size=None, channels=CHANNELS):
    """For an independent computation: the block in double precision with all parameters moved away from
    their first values, an input, and its parameters as numpy arrays by name.
    """
    torch.manual_seed(seed)
    block = block.double().eval()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
        for name, buffer in block.named_buffers():  # Running statistics of batch norms.
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(torch.rand_like(buffer), alpha=0.3)
    x = maps(ndim, size=size, channels=channels).double()
    state = {name: t.detach().numpy() for name, t in [*block.named_parameters(), *block.named_buffers()]}
    return block, x, state


# Formulas in numpy and double precision, with no code shared with the blocks.


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def softmax(a, axis):
    e = np.exp(a - a.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def layer_norm(a, weight, bias):
    mean, variance = a.mean(-1, keepdims=True), a.var(-1, keepdims=True)
    return (a - mean) / np.sqrt(variance + 1e-5) * weight + bias


def depthwise(x, weight, bias=None, dilation=1):
    """Depth-wise convolution of ``(B, C, *S)`` with ``(C, 1, *odd)``, zeros outside, tap by tap."""
    kernel = weight.shape[2:]
    reach = [k // 2 * dilation for k in kernel]
    padded = np.pad(x, [(0, 0), (0, 0), *((r, r) for r in reach)])
    y = np.zeros_like(x)
    for tap in np.ndindex(*kernel):
        shifted = tuple(slice(t * dilation, t * dilation + n) for t, n in zip(tap, x.shape[2:], strict=True))
        w = weight[(slice(None), 0, *tap)].reshape(-1, *(1,) * len(kernel))
        y += padded[(slice(None), slice(None), *shifted)] * w
    return y if bias is None else y + bias.reshape(-1, *(1,) * len(kernel))
