"""timm's families at sizes that they were not built for; attention inside the residual blocks of its ResNets."""

import pytest
import timm
import torch
from torch import nn

from models import EncoderDecoder
from models.attention.eca import eca_kernel
from models.encoders import TimmEncoder
from tests.attention.zoo import count
from tests.test_encoders import assert_maps_are_as_declared

# The smallest of each family; a plain ViT has maps of one stride.
FAMILIES = {
    "vit_tiny_patch16_224": {},
    "deit_tiny_patch16_224": {},
    "swin_tiny_patch4_window7_224": {"levels": [0, 1]},
    "swinv2_cr_tiny_224": {"levels": [0, 1]},
    "maxvit_pico_rw_256": {"image_size": 64},
    "davit_tiny": {"levels": [0, 1]},
    "focalnet_tiny_srf": {"levels": [0, 1]},
    "shvit_s1": {},
    "convnext_atto": {},
    "efficientnet_lite0": {},
    "resnet18": {},
    "mambaout_femto": {},
}


@pytest.mark.parametrize("backbone", FAMILIES)
def test_sizes_that_change_and_many_channels(backbone):
    torch.manual_seed(0)
    encoder = TimmEncoder(6, backbone=backbone, **FAMILIES[backbone]).eval()
    with torch.no_grad():
        for size in ((37, 70), (64, 33), (9, 130)):
            maps = assert_maps_are_as_declared(encoder, torch.randn(1, 6, *size))
            assert all(m.std() > 0 for m in maps if m.numel() > 1)


@pytest.mark.parametrize("backbone", ["swin_tiny_patch4_window7_224", "vit_tiny_patch16_224"])
def test_at_its_own_size_a_backbone_computes_what_it_computes_without_the_options(backbone):
    ours = TimmEncoder(3, backbone=backbone, levels=[0, 1]).eval()
    theirs = timm.create_model(backbone, features_only=True, out_indices=(0, 1)).eval()
    theirs.load_state_dict(ours.body.state_dict(), strict=False)  # Masks of windows are kept or made.
    assert theirs.state_dict().keys() >= ours.body.state_dict().keys()
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        for own, other in zip(ours(image), theirs(image), strict=True):
            torch.testing.assert_close(own, other.permute(0, 3, 1, 2) if ours.channels_last else other)


def test_maxvit_is_padded_to_its_windows():
    encoder = TimmEncoder(3, backbone="maxvit_pico_rw_256").eval()
    assert encoder.multiple == 256
    assert TimmEncoder(3, backbone="maxvit_pico_rw_256", image_size=64).multiple == 64
    with torch.no_grad():
        assert_maps_are_as_declared(encoder, torch.randn(1, 3, 40, 100))


def test_position_tables_of_a_file_follow_the_size(tmp_path):
    whole = timm.create_model("maxvit_pico_rw_256")
    torch.save(whole.state_dict(), tmp_path / "a.pth")
    encoder = TimmEncoder(3, backbone="maxvit_pico_rw_256", image_size=64, weights=str(tmp_path / "a.pth"))
    tables = [t for name, t in encoder.body.state_dict().items() if name.endswith("bias_table")]
    given = [t for name, t in whole.state_dict().items() if name.endswith("bias_table")]
    assert {t.shape[0] for t in tables} == {9}
    assert {t.shape[0] for t in given} == {225}


def test_backbone_of_one_size_says_so():
    encoder = TimmEncoder(3, backbone="cait_xxs24_224").eval()
    with pytest.raises(ValueError, match=r"builds cait_xxs24_224 for images of \(224, 224\), not \(64, 48\)"):
        encoder(torch.randn(1, 3, 64, 48))
    encoder = TimmEncoder(3, backbone="cait_xxs24_224", image_size=[64, 48]).eval()
    with torch.no_grad():
        assert_maps_are_as_declared(encoder, torch.randn(1, 3, 64, 48))
    with pytest.raises(ValueError, match="resnet18 does not take one of the options"):
        TimmEncoder(3, backbone="resnet18", image_size=64)


class TestResidual:
    """A ResNet's blocks are where ECA-Net has its attention."""

    def test_resnet_50_with_eca(self):
        encoder = {"name": "timm", "backbone": "resnet50"}
        with torch.device("meta"):
            plain = EncoderDecoder(3, 2, encoder=encoder)
            model = EncoderDecoder(3, 2, encoder=encoder, attention={"name": "eca", "at": "residual"})
        widths = [256] * 3 + [512] * 4 + [1024] * 6 + [2048] * 3
        blocks = [m.se for m in model.encoder.modules() if type(m).__name__ == "Bottleneck"]
        assert [b.channels for b in blocks] == widths
        assert count(model) - count(plain) == sum(eca_kernel(c) for c in widths)

    @pytest.mark.parametrize("levels", [None, [1, 3], [4]])
    def test_levels(self, levels):
        encoder = TimmEncoder(3, backbone="resnet18", levels=levels)
        found = [[slot.channels for slot in encoder.branches(i)] for i in range(len(encoder.strides))]
        whole = [[], [64] * 2, [128] * 2, [256] * 2, [512] * 2]
        assert (
            found
            == {
                None: whole,
                1: [whole[1], whole[2] + whole[3]],
                4: [[*whole[1], *whole[2], *whole[3], *whole[4]]],
            }[levels and levels[0]]
        )

    def test_block_gets_what_the_last_norm_gives_and_goes_behind_what_is_there(self):
        class Zero(nn.Module):
            def forward(self, x):
                self.seen = x
                return x * 0

        torch.manual_seed(0)
        encoder = TimmEncoder(3, backbone="resnet18", levels=[0, 1]).eval()
        zeros = [Zero(), Zero()]
        for slot, zero in zip(encoder.branches(1), zeros, strict=True):
            slot.put(zero)
        # After append the stage is one deeper; its blocks are still found.
        encoder.append(1, nn.Identity())
        assert len(encoder.branches(1)) == 2
        with torch.no_grad():
            stem, level = encoder(torch.randn(1, 3, 64, 64))
        pooled = nn.functional.max_pool2d(stem, 3, 2, 1)
        torch.testing.assert_close(level, pooled)  # Nothing but the shortcuts is left.
        block = next(m for m in encoder.modules() if type(m).__name__ == "BasicBlock")
        with torch.no_grad():
            torch.testing.assert_close(
                zeros[0].seen, block.bn2(block.conv2(block.act1(block.bn1(block.conv1(pooled)))))
            )
        encoder.branches(1)[0].put(last := Zero())
        assert list(block.se) == [zeros[0], last]

    @pytest.mark.parametrize("backbone", ["convnext_atto", "efficientnet_lite0", "mambaout_femto"])
    def test_other_families_have_none(self, backbone):
        with torch.device("meta"):
            encoder = TimmEncoder(3, backbone=backbone)
        assert all(not encoder.branches(i) for i in range(len(encoder.strides)))
