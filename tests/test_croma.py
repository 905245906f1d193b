"""CROMA's encoders: numbers by an independent computation from a checkpoint in the published format."""

import math
import pathlib
import pickle

import numpy as np
import pytest
import torch

from models.encoders import CromaEncoder
from models.encoders.croma import SIZES

DIM, DEPTH, HEADS = SIZES["tiny"]
OPTICAL, RADAR = 12, 2


# A checkpoint as it is published: names and shapes written out, values at random -----------------------------------


def normal(*shape):
    return torch.randn(*shape) * 0.2


def pair(name, *shape):
    return {f"{name}.weight": normal(*shape), f"{name}.bias": normal(shape[0])}


def norm(name):
    return {f"{name}.weight": 1 + normal(DIM), f"{name}.bias": normal(DIM)}


def self_attention(name):
    return {
        f"{name}.to_qkv.weight": normal(3 * DIM, DIM),
        **pair(f"{name}.to_out", DIM, DIM),
        **norm(f"{name}.input_norm"),
    }


def cross_attention(name):
    return {
        **{f"{name}.to_{letter}.weight": normal(DIM, DIM) for letter in "qkv"},
        **pair(f"{name}.to_out", DIM, DIM),
        **norm(f"{name}.input_norm"),
    }


def feed_forward(name):
    return {
        **pair(f"{name}.net.0", 4 * DIM, DIM),
        **pair(f"{name}.net.3", DIM, 4 * DIM),
        **norm(f"{name}.input_norm"),
    }


def transformer(channels, depth):
    state = pair("linear_input", DIM, channels * 64)
    for i in range(depth):
        layer = f"transformer.layers.{i}"
        state |= self_attention(f"{layer}.0") | feed_forward(f"{layer}.1")
    return state | norm("transformer.norm_out")


def head():
    return {**norm("0"), **pair("1", 4 * DIM, DIM), **pair("3", DIM, 4 * DIM)}


def checkpoint(seed=0):
    torch.manual_seed(seed)
    joint = norm("norm_out")
    for i in range(DEPTH // 2):
        layer = f"layers.{i}"
        joint |= self_attention(f"{layer}.0") | cross_attention(f"{layer}.1") | feed_forward(f"{layer}.2")
    return {
        "s1_encoder": transformer(RADAR, DEPTH // 2),
        "s1_GAP_FFN": head(),
        "s2_encoder": transformer(OPTICAL, DEPTH),
        "s2_GAP_FFN": head(),
        "joint_encoder": joint,
    }


def written(content, folder):
    file = folder / "CROMA_tiny.pt"
    torch.save(content, file)
    return str(file)


def make(weights=None, in_channels=OPTICAL + RADAR, **options):
    torch.manual_seed(1)
    return CromaEncoder(in_channels, size="tiny", weights=weights, widths=8, **options).eval()


def image(rows, columns, channels=OPTICAL + RADAR, batch=2):
    return torch.rand(batch, channels, rows, columns, generator=torch.Generator().manual_seed(2))


# The same computation from the checkpoint's own names, in numpy, one image and one head at a time --------------------


def linear(x, p, name):
    return x @ p[f"{name}.weight"].T + p.get(f"{name}.bias", 0)


def layer_norm(x, p, name):
    centred = x - x.mean(-1, keepdims=True)
    scale = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return centred / scale * p[f"{name}.weight"] + p[f"{name}.bias"]


def bias_by_hand(rows, columns):
    """``-2^(-8 k / 4)`` times the distance for head k = 1 ... 4, which is what tiny has."""
    points = [(r, c) for r in range(rows) for c in range(columns)]
    bias = np.empty((HEADS, len(points), len(points)))
    for head_number in range(HEADS):
        for i, a in enumerate(points):
            for j, b in enumerate(points):
                bias[head_number, i, j] = -(2 ** (-8 * (head_number + 1) / HEADS)) * math.dist(a, b)
    return bias


def attention(q, k, v, bias):
    width = DIM // HEADS
    heads = []
    for number in range(HEADS):
        part = slice(number * width, (number + 1) * width)
        logits = q[:, part] @ k[:, part].T / math.sqrt(width) + bias[number]
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        heads.append(weights / weights.sum(-1, keepdims=True) @ v[:, part])
    return np.concatenate(heads, -1)


def add_self(x, p, name, bias):
    q, k, v = np.split(layer_norm(x, p, f"{name}.input_norm") @ p[f"{name}.to_qkv.weight"].T, 3, axis=-1)
    return x + linear(attention(q, k, v, bias), p, f"{name}.to_out")


def add_cross(x, context, p, name, bias):
    x_normed, context = (layer_norm(y, p, f"{name}.input_norm") for y in (x, context))
    q = linear(x_normed, p, f"{name}.to_q")
    k, v = (linear(context, p, f"{name}.to_{letter}") for letter in "kv")
    return x + linear(attention(q, k, v, bias), p, f"{name}.to_out")


def add_feed_forward(x, p, name):
    inner = linear(layer_norm(x, p, f"{name}.input_norm"), p, f"{name}.net.0")
    inner = inner * 0.5 * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
    return x + linear(inner, p, f"{name}.net.3")


def tower_by_hand(x, p, depth, bias):
    channels, rows, columns = x.shape
    patches = [
        x[:, r : r + 8, c : c + 8].reshape(channels * 64)
        for r in range(0, rows, 8)
        for c in range(0, columns, 8)
    ]
    t = linear(np.stack(patches), p, "linear_input")
    for i in range(depth):
        layer = f"transformer.layers.{i}"
        t = add_feed_forward(add_self(t, p, f"{layer}.0", bias), p, f"{layer}.1")
    return layer_norm(t, p, "transformer.norm_out")


def by_hand(x, content):
    """Optical, radar and joint features of one image whose sides are multiples of 8."""
    p = {s: {k: t.double().numpy() for k, t in state.items()} for s, state in content.items()}
    bias = bias_by_hand(x.shape[1] // 8, x.shape[2] // 8)
    optical = tower_by_hand(x[:OPTICAL], p["s2_encoder"], DEPTH, bias)
    radar = tower_by_hand(x[OPTICAL:], p["s1_encoder"], DEPTH // 2, bias)
    joint = radar
    for i in range(DEPTH // 2):
        layer = f"layers.{i}"
        joint = add_self(joint, p["joint_encoder"], f"{layer}.0", bias)
        joint = add_cross(joint, optical, p["joint_encoder"], f"{layer}.1", bias)
        joint = add_feed_forward(joint, p["joint_encoder"], f"{layer}.2")
    return optical, radar, layer_norm(joint, p["joint_encoder"], "norm_out")


def features(encoder, x, present=None):
    """What goes into the pyramid, ``(B, N, dim)``."""
    seen = []
    handle = encoder.pyramid.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        encoder(x, present)
    handle.remove()
    return seen[0].flatten(2).transpose(1, 2)


@pytest.fixture(scope="module")
def content():
    return checkpoint()


@pytest.fixture(scope="module")
def file(content, tmp_path_factory):
    return written(content, tmp_path_factory.mktemp("weights"))


class TestNumbers:
    @pytest.mark.parametrize(("rows", "columns"), [(24, 40), (8, 8), (19, 33)])
    def test_joint_features(self, content, file, rows, columns):
        x = image(rows, columns).double()
        padded = np.zeros((OPTICAL + RADAR, -(-rows // 8) * 8, -(-columns // 8) * 8))
        padded[:, :rows, :columns] = x[1].numpy()
        ours = features(make(file).double(), x)[1].numpy()
        np.testing.assert_allclose(ours, by_hand(padded, content)[2], rtol=1e-6, atol=1e-6)

    def test_one_alone(self, content, file):
        x = image(24, 40).double()
        optical, radar, _ = by_hand(x[0].numpy(), content)
        alone = make(file, OPTICAL).double()
        np.testing.assert_allclose(features(alone, x[:, :OPTICAL])[0], optical, rtol=1e-6, atol=1e-6)
        alone = make(file, RADAR, optical_channels=0).double()
        np.testing.assert_allclose(features(alone, x[:, OPTICAL:])[0], radar, rtol=1e-6, atol=1e-6)

    def test_the_bias_matters_and_follows_the_grid(self, file):
        encoder = make(file).double()
        for rows, columns in ((3, 5), (1, 1), (2, 7)):
            bias = encoder.bias((rows, columns), torch.zeros(1).double())
            np.testing.assert_allclose(bias[0], bias_by_hand(rows, columns), rtol=1e-6)
        with_bias = features(encoder, image(24, 40).double())
        encoder.bias = lambda grid, like: like.new_zeros(1, 1, 1, 1)
        assert not torch.allclose(features(encoder, image(24, 40).double()), with_bias, atol=1e-3)

    @pytest.mark.parametrize(("gone", "stands_in"), [((12, 13), 0), (tuple(range(12)), 1)])
    def test_the_other_one_stands_in(self, content, file, gone, stands_in):
        x = image(16, 24).double()
        expected = by_hand(x[1].numpy(), content)[stands_in]
        whole = by_hand(x[0].numpy(), content)[2]
        present = torch.ones(2, OPTICAL + RADAR, dtype=torch.bool)
        present[1, list(gone)] = False
        x[1, list(gone)] = math.nan
        ours = features(make(file).double(), x, present)
        np.testing.assert_allclose(ours[1], expected, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(ours[0], whole, rtol=1e-6, atol=1e-6)

    def test_single_missing_channels_are_zeros(self, content, file):
        x = image(16, 24).double()
        present = torch.ones(2, OPTICAL + RADAR, dtype=torch.bool)
        present[:, [3, 12]] = False
        zeroed = x.clone()
        zeroed[:, [3, 12]] = 0
        ours = features(make(file).double(), x, present)[0]
        np.testing.assert_allclose(ours, by_hand(zeroed[0].numpy(), content)[2], rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize(("optical", "radar"), [(12, 2), (5, 1), (12, 0), (0, 2)])
    def test_parameters(self, size, optical, radar):
        d, depth, _ = SIZES[size]
        with torch.device("meta"):
            encoder = CromaEncoder(optical + radar, size=size, optical_channels=optical, widths=8)
        found = sum(p.numel() for n, p in encoder.named_parameters() if not n.startswith("pyramid."))
        towers = [(c, layers) for c, layers in ((optical, depth), (radar, depth // 2)) if c]
        expected = sum(64 * c * d + d + n * (12 * d * d + 10 * d) + 2 * d for c, n in towers)
        if len(towers) == 2:
            expected += depth // 2 * (16 * d * d + 13 * d) + 2 * d
        assert found == expected


class TestWeights:
    def keys(self, content, *sections):
        return {f"{section}.{key}" for section in sections for key in content[section]}

    def test_every_key_is_accounted_for(self, content, file):
        loaded = make(file).loaded
        assert set(loaded.used) == self.keys(content, "s1_encoder", "s2_encoder", "joint_encoder")
        assert set(loaded.unused) == self.keys(content, "s1_GAP_FFN", "s2_GAP_FFN")
        assert make().loaded is None

    @pytest.mark.parametrize(
        ("channels", "optical", "section"), [(12, 12, "s2_encoder"), (2, 0, "s1_encoder")]
    )
    def test_of_one_alone(self, content, file, channels, optical, section):
        loaded = make(file, channels, optical_channels=optical).loaded
        assert set(loaded.used) == self.keys(content, section)
        assert set(loaded.unused) == self.keys(content, *(s for s in content if s != section))

    def test_every_parameter_but_the_pyramid_comes_from_the_file(self, file):
        fresh, filled = make().state_dict(), make(file).state_dict()
        same = {name for name in fresh if torch.equal(fresh[name], filled[name])}
        assert same == {name for name in fresh if name.startswith("pyramid.")}

    def test_more_than_was_published_is_said(self, tmp_path):
        content = checkpoint() | {"decoder": {"a": torch.zeros(1)}}
        with pytest.warns(UserWarning, match="also holds decoder, not used"):
            loaded = make(written(content, tmp_path)).loaded
        assert "decoder.a" in loaded.unused

    def test_missing_and_foreign_keys_are_listed(self, tmp_path):
        content = checkpoint()
        content["joint_encoder"]["layers.0.1.to_x.weight"] = content["joint_encoder"].pop(
            "layers.0.1.to_q.weight"
        )
        with pytest.raises(
            ValueError,
            match=r"missing: joint_encoder\.layers\.0\.1\.to_q\.weight; not known: joint_encoder\.layers\.0\.1\.to_x",
        ):
            make(written(content, tmp_path))

    def test_another_size(self, tmp_path):
        content = checkpoint()
        content["s2_encoder"] = transformer(OPTICAL, DEPTH + 1)
        with pytest.raises(ValueError, match=r"not known: s2_encoder\.transformer\.layers\.4.* and 3 more"):
            make(written(content, tmp_path))

    def test_a_section_that_is_missing(self, tmp_path):
        content = checkpoint()
        del content["s1_encoder"]
        with pytest.raises(ValueError, match=r"missing: s1_encoder\..* and \d+ more"):
            make(written(content, tmp_path))

    @pytest.mark.parametrize(
        ("section", "key", "shape"),
        [
            ("s2_encoder", "linear_input.weight", (OPTICAL * 64, DIM)),
            ("s1_encoder", "transformer.layers.0.0.to_qkv.weight", (DIM, 3 * DIM)),
            ("joint_encoder", "layers.1.2.net.0.bias", (1,)),
        ],
    )
    def test_shapes_are_compared(self, tmp_path, section, key, shape):
        content = checkpoint()
        content[section][key] = torch.zeros(shape)
        with pytest.raises(
            ValueError, match=rf"does not fit in shape: {section}\.{key} \({shape[0]},.*, not \("
        ):
            make(written(content, tmp_path))

    def test_other_channels_than_those_of_the_sensors(self, file):
        with pytest.raises(ValueError, match="there are 12 optical and 2 radar channels"):
            make(file, 6, optical_channels=4)

    def test_code_is_not_run(self, tmp_path):
        class Touching:
            def __reduce__(self):
                return pathlib.Path.touch, (tmp_path / "ran",)

        for content in (Touching(), checkpoint() | {"note": Touching()}):
            with pytest.raises(
                ValueError, match="cannot be read as tensors alone, and code in it is not run"
            ):
                make(written(content, tmp_path))
        (tmp_path / "CROMA_tiny.pt").write_bytes(pickle.dumps(Touching(), protocol=2))
        with pytest.raises(ValueError, match="cannot be read as tensors alone"):
            make(str(tmp_path / "CROMA_tiny.pt"))
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize("other", [{"a": torch.zeros(1)}, [1, 2], {"s1_encoder": {"a": 3}}])
    def test_other_files(self, tmp_path, other):
        with pytest.raises(ValueError, match="is not a checkpoint of CROMA, which is a dict with s1_encoder"):
            make(written(other, tmp_path))
        with pytest.raises(ValueError, match=r"nothing\.pt is not a file"):
            make("nothing.pt")


class TestRefusals:
    def test_volumes_sizes_and_channels(self):
        with pytest.raises(ValueError, match="croma is 2D; for 3D use"):
            CromaEncoder(14, ndim=3)
        with pytest.raises(ValueError, match="size 'huge' is not known; choose from tiny, base, large"):
            CromaEncoder(14, size="huge")
        with pytest.raises(
            ValueError, match=r"optical_channels is 12, of 2 channel\(s\).* 0 where all are radar"
        ):
            CromaEncoder(2, size="tiny")
