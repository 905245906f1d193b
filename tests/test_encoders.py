"""Encoders: what they declare is what they return; timm's backbones and their weight files."""

import copy
import itertools
import math
import pathlib
import pickle

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from models.encoders import ENCODERS, PlainEncoder, ResidualEncoder, TimmEncoder
from models.interfaces import Encoder

STAGED = {"plain": PlainEncoder, "residual": ResidualEncoder}
every_staged = pytest.mark.parametrize("cls", STAGED.values(), ids=STAGED)

# Of each kind of extractor that timm has: a rewritten list of modules, a class of its own, dotted names.
BACKBONES = ["resnet18", "mobilenetv3_small_050", "convnext_atto"]
ANISOTROPIC = {
    "widths": [4, 6, 8],
    "strides": [1, [1, 2, 2], [2, 2, 3]],
    "kernels": [[1, 3, 3], [1, 3, 3], [3, 5, 3]],
}


def assert_maps_are_as_declared(encoder, image):
    maps = encoder(image)
    assert len(maps) == len(encoder.out_channels) == len(encoder.strides)
    for level, channels, strides in zip(maps, encoder.out_channels, encoder.strides, strict=True):
        size = tuple(math.ceil(n / s) for n, s in zip(image.shape[2:], strides, strict=True))
        assert level.shape == (image.shape[0], channels, *size)
        assert level.isfinite().all()
    return maps


class Constant(nn.Module):
    """A block that forgets what it is given."""

    def forward(self, x):
        return torch.full_like(x, -2.0)


def assert_block_is_seen_from(encoder, level, image):
    """A block that overwrites the map of its level changes all coarser maps, and no finer one."""
    encoder.eval()
    with torch.no_grad():
        before = encoder(image)
        encoder.append(level, Constant())
        after = encoder(image)
    for i, (b, a) in enumerate(zip(before, after, strict=True)):
        assert torch.equal(a, b) == (i < level), f"level {i}"
    assert (after[level] == -2).all()


def test_table_holds_encoders():
    assert all(issubclass(cls, Encoder) for cls in ENCODERS.values())
    assert set(STAGED) | {"timm"} <= set(ENCODERS)


class TestStaged:
    @every_staged
    @pytest.mark.parametrize("in_channels", [1, 4])
    @pytest.mark.parametrize("size", [(37, 45), (17, 22, 19), (16, 16)], ids=str)
    def test_defaults(self, cls, in_channels, size):
        encoder = cls(in_channels, ndim=len(size), widths=[4, 6, 8, 10])
        assert encoder.ndim == len(size)
        assert encoder.in_channels == in_channels
        assert encoder.out_channels == (4, 6, 8, 10)
        assert encoder.strides == tuple((s,) * len(size) for s in (1, 2, 4, 8))
        assert_maps_are_as_declared(encoder, torch.randn(2, in_channels, *size))

    @every_staged
    @pytest.mark.parametrize("size", [(5, 23, 31), (4, 24, 24), (3, 7, 7)], ids=str)
    def test_anisotropic_strides_and_kernels(self, cls, size):
        encoder = cls(2, ndim=3, **ANISOTROPIC)
        assert encoder.strides == ((1, 1, 1), (1, 2, 2), (2, 4, 6))
        assert_maps_are_as_declared(encoder, torch.randn(1, 2, *size))
        first = next(m for m in encoder.modules() if isinstance(m, nn.Conv3d))
        assert first.kernel_size == (1, 3, 3)

    @every_staged
    def test_first_stage_may_be_strided(self, cls):
        encoder = cls(1, widths=[4, 6], strides=[2, [3, 1]])
        assert encoder.strides == ((2, 2), (6, 2))
        assert_maps_are_as_declared(encoder, torch.randn(1, 1, 19, 13))

    @every_staged
    @pytest.mark.parametrize("norm", ["instance", "batch", "group", "none"])
    @pytest.mark.parametrize("activation", ["relu", "leaky_relu", "gelu", "silu"])
    def test_gradient_reaches_every_parameter(self, cls, norm, activation):
        torch.manual_seed(0)
        encoder = cls(1, widths=[8, 16], norm=norm, activation=activation)
        maps = encoder(torch.randn(2, 1, 11, 9))
        sum((m * torch.randn_like(m)).sum() for m in maps).backward()
        for name, parameter in encoder.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name

    @every_staged
    def test_blocks_per_stage(self, cls):
        encoder = cls(1, widths=[4, 4, 4], blocks=[1, 2, 3])
        assert [len(stage) for stage in encoder.stages] == [1, 2, 3]

    @every_staged
    @pytest.mark.parametrize("level", [0, 1, 2])
    def test_appended_block_is_seen_by_the_skip_and_all_below(self, cls, level):
        torch.manual_seed(0)
        encoder = cls(1, widths=[4, 6, 8], norm="batch")
        assert_block_is_seen_from(encoder, level, torch.randn(1, 1, 21, 18))

    @every_staged
    @pytest.mark.parametrize("name", ["strides", "kernels", "blocks"])
    def test_lists_of_the_wrong_length(self, cls, name):
        with pytest.raises(ValueError, match=f"{name} has 2 entries; widths has 3: give one per level"):
            cls(1, widths=[4, 6, 8], **{name: [1, 1]})

    @every_staged
    @pytest.mark.parametrize("name", ["strides", "kernels"])
    def test_entries_of_the_wrong_length(self, cls, name):
        with pytest.raises(ValueError, match=r"\[1, 1\] has 2 number\(s\); 3 spatial axes want 3"):
            cls(1, ndim=3, widths=[4, 6], **{name: [1, [1, 1]]})

    @every_staged
    def test_even_kernels(self, cls):
        with pytest.raises(ValueError, match=r"kernel \[2, 2\] has an even number"):
            cls(1, widths=[4, 6], kernels=[3, 2])

    @every_staged
    def test_unknown_norm_and_activation(self, cls):
        with pytest.raises(
            ValueError, match="norm 'layer' is not known; choose from instance, batch, group, none"
        ):
            cls(1, norm="layer")
        with pytest.raises(
            ValueError, match="activation 'tanh' is not known; choose from relu, leaky_relu, gelu"
        ):
            cls(1, activation="tanh")

    @every_staged
    def test_volume_with_flat_kernels_is_the_plane_slice_by_slice(self, cls):
        torch.manual_seed(0)
        flat = cls(2, ndim=2, widths=[4, 6, 8], norm="batch")
        deep = cls(
            2,
            ndim=3,
            widths=[4, 6, 8],
            norm="batch",
            strides=[1, [1, 2, 2], [1, 2, 2]],
            kernels=[[1, 3, 3]] * 3,
        )
        with torch.no_grad():
            for tensor in flat.state_dict().values():
                if tensor.ndim == 1:  # Norms with statistics of their own, as after training.
                    tensor.uniform_(0.5, 1.5)
        into = deep.state_dict()
        deep.load_state_dict({name: t.reshape(into[name].shape) for name, t in flat.state_dict().items()})
        volume = torch.randn(2, 2, 5, 19, 14)
        with torch.no_grad():
            together = deep.eval()(volume)
            sliced = [flat.eval()(volume[:, :, i]) for i in range(5)]
        for level, whole in enumerate(together):
            expected = torch.stack([maps[level] for maps in sliced], dim=2)
            torch.testing.assert_close(whole, expected, rtol=1e-4, atol=1e-5)

    def test_residual_adds_its_input(self):
        """With a branch whose last norm scales to zero, a block is its activation alone."""
        encoder = ResidualEncoder(4, widths=[4], blocks=1, norm="batch", activation="relu").eval()
        block = encoder.stages[0][0]
        nn.init.zeros_(block.branch[-1].weight)
        x = torch.randn(2, 4, 7, 5)
        torch.testing.assert_close(encoder(x)[0], x.relu())


@pytest.fixture(scope="module")
def backbones():
    """Each backbone once, in eval mode; tests that change one take a copy."""
    torch.manual_seed(0)
    return {name: TimmEncoder(3, backbone=name).eval() for name in BACKBONES}


class TestTimm:
    @pytest.mark.parametrize("backbone", BACKBONES)
    @pytest.mark.parametrize("size", [(37, 45), (64, 96), (5, 130)], ids=str)
    def test_maps_are_as_declared(self, backbones, backbone, size):
        with torch.no_grad():
            maps = assert_maps_are_as_declared(backbones[backbone], torch.randn(1, 3, *size))
        assert all(m.std() > 0 for m in maps if m.numel() > 1)

    @pytest.mark.parametrize("backbone", BACKBONES)
    @pytest.mark.parametrize("in_channels", [1, 7])
    def test_any_number_of_channels(self, backbone, in_channels):
        encoder = TimmEncoder(in_channels, backbone=backbone).eval()
        assert encoder.in_channels == in_channels
        with torch.no_grad():
            assert_maps_are_as_declared(encoder, torch.randn(1, in_channels, 33, 40))

    @pytest.mark.parametrize("backbone", BACKBONES)
    def test_padding_changes_nothing_where_it_is_not_needed(self, backbones, backbone):
        encoder = backbones[backbone]
        image = torch.randn(1, 3, 64, 32)
        with torch.no_grad():
            for ours, theirs in zip(encoder(image), encoder.body(image), strict=True):
                assert torch.equal(ours, theirs)

    def test_some_levels(self):
        encoder = TimmEncoder(3, backbone="resnet18", levels=[1, 3]).eval()
        assert encoder.out_channels == (64, 256)
        assert encoder.strides == ((4, 4), (16, 16))
        with torch.no_grad():
            assert_maps_are_as_declared(encoder, torch.randn(1, 3, 37, 45))

    def test_backbone_with_channels_last(self):
        encoder = TimmEncoder(3, backbone="mambaout_femto", levels=[0, 1]).eval()
        with torch.no_grad():
            assert_maps_are_as_declared(encoder, torch.randn(1, 3, 37, 45))
        with pytest.raises(ValueError, match="place attention at 'skips' or 'decoder'"):
            encoder.append(0, nn.Identity())

    @pytest.mark.parametrize(("backbone", "level"), [*itertools.product(BACKBONES, [0, 1]), ("resnet18", 4)])
    def test_appended_block_is_seen_by_the_skip_and_all_below(self, backbones, backbone, level):
        encoder = copy.deepcopy(backbones[backbone])
        assert_block_is_seen_from(encoder, level, torch.randn(1, 3, 64, 64))

    @pytest.mark.parametrize("backbone", BACKBONES)
    def test_blocks_append_in_order_and_leave_the_encoder_as_it_was(self, backbones, backbone):
        class Plus(nn.Module):
            def forward(self, x):
                return x + 1

        encoder = copy.deepcopy(backbones[backbone]).train()
        buffers = {name: b.clone() for name, b in encoder.named_buffers()}
        encoder.append(1, Constant())
        encoder.append(1, Plus())
        encoder.append(1, Plus())
        assert encoder.training
        assert encoder.body.training
        assert all(not m._forward_hooks for m in encoder.modules())
        assert all(any(torch.equal(b, kept) for kept in buffers.values()) for b in encoder.buffers())
        with torch.no_grad():
            assert (encoder.eval()(torch.randn(1, 3, 64, 64))[1] == 0).all()

    def test_block_goes_behind_an_in_place_activation_and_not_behind_a_later_identity(self):
        """mobilenetv3's level 0 is its stem's in-place activation; efficientvit has Identity shortcuts."""
        for backbone, level in (("mobilenetv3_small_050", 0), ("efficientvit_b0", 1)):
            encoder = TimmEncoder(3, backbone=backbone)
            assert_block_is_seen_from(encoder, level, torch.randn(1, 3, 64, 64))

    @pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
    @pytest.mark.parametrize("backbone", BACKBONES)
    def test_weights_of_a_file(self, backbone, suffix, tmp_path):
        whole = timm.create_model(backbone, num_classes=3)
        file = str(tmp_path / f"weights{suffix}")
        state = {name: tensor.contiguous() for name, tensor in whole.state_dict().items()}
        save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
        encoder = TimmEncoder(3, backbone=backbone, weights=file).eval()
        image = torch.randn(1, 3, 64, 64)
        wanted = timm.create_model(backbone, features_only=True).eval()
        given = {name.replace(".", "_"): tensor for name, tensor in state.items()}
        theirs = wanted.state_dict()
        wanted.load_state_dict({name: given[name.replace(".", "_")] for name in theirs})
        with torch.no_grad():
            for ours, expected in zip(encoder(image), wanted(image), strict=True):
                assert torch.equal(ours, expected)

    @pytest.mark.parametrize("backbone", BACKBONES)
    def test_weights_of_a_file_adapt_to_other_channels(self, backbone, tmp_path):
        whole = timm.create_model(backbone)
        file = str(tmp_path / "weights.pth")
        torch.save({"state_dict": whole.state_dict(), "epoch": 3}, file)
        encoder = TimmEncoder(5, backbone=backbone, weights=file)
        ours = next(m for m in encoder.modules() if isinstance(m, nn.Conv2d)).weight
        theirs = next(m for m in whole.modules() if isinstance(m, nn.Conv2d)).weight
        assert ours.shape[1] == 5
        # timm repeats the channels and keeps the response to a constant image: r g b r g, times 3 / 5.
        torch.testing.assert_close(ours, theirs[:, [0, 1, 2, 0, 1]] * 3 / 5)

    @pytest.mark.parametrize(
        ("other", "message"),
        [
            ("convnext_atto", r"holds 0 of the 20 weight tensors of resnet18"),
            ("mobilenetv3_small_050", r"does not fit resnet18: .*size mismatch for bn1"),
        ],
    )
    def test_weights_of_another_network_are_refused(self, other, message, tmp_path):
        file = str(tmp_path / "other.safetensors")
        save_file(timm.create_model(other).state_dict(), file)
        with pytest.raises(ValueError, match=rf"(?s)other\.safetensors {message}"):
            TimmEncoder(3, backbone="resnet18", weights=file)

    def test_weights_with_a_prefix_are_refused(self, tmp_path):
        """timm would leave the backbone random without an error."""
        file = str(tmp_path / "lightning.safetensors")
        state = timm.create_model("resnet18").state_dict()
        save_file({f"model.encoder.{name}": tensor for name, tensor in state.items()}, file)
        with pytest.raises(ValueError, match="not in timm's naming"):
            TimmEncoder(3, backbone="resnet18", weights=file)

    @pytest.mark.parametrize("nested", [True, False])
    def test_code_in_a_pickle_is_not_run(self, nested, tmp_path):
        marker = tmp_path / "ran"
        file = tmp_path / "evil.pth"
        state = dict(timm.create_model("resnet18").state_dict())
        if nested:
            torch.save({"state_dict": state, "note": Touching(marker)}, file)
        else:
            file.write_bytes(pickle.dumps(Touching(marker), protocol=2))
        with pytest.raises(ValueError, match=r"evil\.pth cannot be read as tensors alone"):
            TimmEncoder(3, backbone="resnet18", weights=str(file))
        assert not marker.exists()
        if not nested:
            pickle.loads(file.read_bytes())
            assert marker.exists(), "the payload of this test does nothing"

    def test_damaged_file(self, tmp_path):
        file = tmp_path / "cut.safetensors"
        file.write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}")
        with pytest.raises(ValueError, match=r"cut\.safetensors cannot be read"):
            TimmEncoder(3, backbone="resnet18", weights=str(file))

    def test_missing_file_is_named(self, tmp_path):
        file = str(tmp_path / "nothing.safetensors")
        with pytest.raises(ValueError, match=r"nothing\.safetensors is not a file; give a path"):
            TimmEncoder(3, weights=file)

    @pytest.mark.parametrize(("typed", "meant"), [("resnet81", "resnet18"), ("resnt50", "resnet50")])
    def test_unknown_backbone_suggests(self, typed, meant):
        with pytest.raises(ValueError, match=rf"no backbone '{typed}'; did you mean one of: .*\b{meant}\b"):
            TimmEncoder(3, backbone=typed)

    def test_nothing_like_it(self):
        with pytest.raises(ValueError, match=r"see timm\.list_models"):
            TimmEncoder(3, backbone="#####")

    def test_volumes_are_refused(self):
        with pytest.raises(ValueError, match="timm backbones are 2D; for 3D use encoder: plain or residual"):
            TimmEncoder(1, ndim=3)


class Touching:
    """An object whose unpickling creates a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path(self.marker),)
