"""Plain transformers of timm behind a pyramid: sizes, files in timm's format, position embeddings, refusals."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from models import EncoderDecoder
from models.encoders import ViTEncoder
from tests.test_encoders import assert_block_is_seen_from, assert_maps_are_as_declared

SMALLEST = "vit_tiny_patch16_224"
BACKBONES = {
    SMALLEST: {},
    "deit_tiny_distilled_patch16_224": {},
    "eva02_tiny_patch14_224": {"patch": 16},
    "vit_small_patch14_dinov2": {"patch": 16},
    "vit_small_patch14_reg4_dinov2": {"strides": [7, 14, 28, 56]},
    "vit_small_patch16_dinov3": {},
    "vit_tiny_r_s16_p8_224": {},
    "vit_small_patch8_224": {},
}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_any_size_and_number_of_channels(backbone):
    torch.manual_seed(0)
    encoder = ViTEncoder(5, backbone=backbone, widths=[8, 12, 16, 20], **BACKBONES[backbone]).eval()
    assert encoder.strides == tuple((s, s) for s in BACKBONES[backbone].get("strides", (4, 8, 16, 32)))
    assert encoder.out_channels == (8, 12, 16, 20)
    with torch.no_grad():
        for size in ((37, 70), (64, 33), (9, 130)):
            maps = assert_maps_are_as_declared(encoder, torch.randn(1, 5, *size))
            assert all(m.std() > 0 for m in maps if m.numel() > 8)


def test_the_map_is_that_of_the_whole_network(tmp_path):
    """At the size it was built for: all of timm's blocks, of a file, and no more."""
    torch.manual_seed(0)
    whole = timm.create_model(SMALLEST, num_classes=7).eval()
    save_file(whole.state_dict(), str(tmp_path / "a.safetensors"))
    encoder = ViTEncoder(3, backbone=SMALLEST, weights=str(tmp_path / "a.safetensors")).eval()
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        wanted = whole.forward_intermediates(image, indices=1, intermediates_only=True)[0]
        torch.testing.assert_close(encoder.body(image)[-1], wanted)
        for ours, theirs in zip(encoder(image), encoder.pyramid(wanted, (224, 224)), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_weights_of_a_file_adapt_to_other_channels(tmp_path):
    whole = timm.create_model(SMALLEST)
    torch.save({"state_dict": whole.state_dict(), "epoch": 3}, tmp_path / "a.pth")
    ours = ViTEncoder(
        5, backbone=SMALLEST, weights=str(tmp_path / "a.pth")
    ).body.model.patch_embed.proj.weight
    # timm repeats the channels and keeps the response to a constant image: r g b r g, times 3 / 5.
    torch.testing.assert_close(ours, whole.patch_embed.proj.weight[:, [0, 1, 2, 0, 1]] * 3 / 5)


def test_patches_of_dinov2_are_resampled(tmp_path):
    whole = timm.create_model("vit_small_patch14_dinov2")
    torch.nn.init.normal_(whole.pos_embed)
    torch.save(whole.state_dict(), tmp_path / "a.pth")
    encoder = ViTEncoder(
        3, backbone="vit_small_patch14_dinov2", patch=16, image_size=256, weights=str(tmp_path / "a.pth")
    )
    theirs = whole.patch_embed.proj.weight
    ours = encoder.body.model.patch_embed.proj.weight
    assert ours.shape == (384, 3, 16, 16)
    # The resampling keeps what an embedding answers to a patch that was enlarged with it.
    patch = torch.randn(1, 3, 14, 14)
    enlarged = torch.nn.functional.interpolate(patch, 16, mode="bicubic", antialias=True)
    torch.testing.assert_close(
        torch.nn.functional.conv2d(enlarged, ours),
        torch.nn.functional.conv2d(patch, theirs),
        atol=1e-3,
        rtol=1e-3,
    )
    assert encoder.body.model.pos_embed.shape[1] == 1 + 16 * 16
    assert torch.equal(encoder.body.model.blocks[3].attn.qkv.weight, whole.blocks[3].attn.qkv.weight)


def test_positions_follow_the_size():
    """A larger image is another one to the transformer, but as resampled positions say, not as a table of its own."""
    torch.manual_seed(0)
    encoder = ViTEncoder(3, backbone=SMALLEST, image_size=64).eval()
    vit = encoder.body.model
    torch.nn.init.normal_(vit.pos_embed)
    seen = []
    vit.norm_pre.register_forward_hook(lambda module, given, out: seen.append(out))
    torch.nn.init.zeros_(vit.patch_embed.proj.weight)
    with torch.no_grad():
        encoder(torch.randn(1, 3, 128, 96))
        wanted = torch.nn.functional.interpolate(
            vit.pos_embed[:, 1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2),
            (8, 6),
            mode="bicubic",
            antialias=True,
        )
        got = seen[0][:, 1:] - vit.patch_embed.proj.bias
    torch.testing.assert_close(got, wanted.flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-5)


def test_appended_block_is_seen_by_its_skip():
    encoder = ViTEncoder(1, backbone=SMALLEST, widths=8, strides=[8, 16])
    with pytest.raises(AssertionError, match="level 1"):
        assert_block_is_seen_from(encoder, 0, torch.randn(1, 1, 32, 48))


def test_in_a_network_it_trains():
    torch.manual_seed(0)
    encoder = {"name": "vit", "backbone": SMALLEST, "widths": [8, 8, 16, 16]}
    model = EncoderDecoder(4, 3, encoder=encoder, attention={"name": "eca", "at": "bottleneck"})
    logits = model(torch.randn(2, 4, 70, 45)).logits
    assert logits.shape == (2, 3, 70, 45)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.encoder.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ndim": 3}, "2D; for 3D use encoder: pyramid, monai or residual"),
        ({"backbone": "resnet18"}, "no plain transformer, it has levels of strides .* use encoder: timm"),
        (
            {"backbone": "vit_tiny_patch16"},
            "no backbone 'vit_tiny_patch16'; did you mean one of: .*vit_tiny_patch16_224",
        ),
        ({"backbone": "eva02_tiny_patch14_224"}, "4 is not the patch of 14 .* or patch: 16"),
        ({"backbone": SMALLEST, "strides": [6]}, "6 is not the patch of 16"),
        ({"backbone": SMALLEST, "widths": [8, 8]}, "widths has 2 entries"),
        ({"backbone": SMALLEST, "weights": "nothing.pth"}, "nothing.pth is not a file"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        ViTEncoder(1, **options)


def test_size_of_a_transformer_with_tables():
    encoder = ViTEncoder(1, backbone="cait_xxs24_224", widths=8, image_size=64).eval()
    with torch.no_grad():
        assert_maps_are_as_declared(encoder, torch.randn(1, 1, 60, 50))
        with pytest.raises(ValueError, match=r"images of \(64, 64\), not \(64, 80\)"):
            encoder(torch.randn(1, 1, 60, 70))
