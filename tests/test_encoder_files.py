"""Every encoder in a model file: built without memory first, then filled; what comes back computes the same."""

import pytest
import torch

from models import EncoderDecoder
from models.encoders import ENCODERS

ENCODER_OPTIONS = [
    {"name": "convnext", "widths": [8, 16], "blocks": 1},
    {"name": "convnext", "widths": [8, 16], "blocks": 1, "style": "mednext", "grn": True},
    {"name": "monai", "blocks": [1, 1]},
    {"name": "monai", "network": "swin_unetr", "width": 12, "heads": [1, 1, 2, 2], "window": 3},
    {"name": "pyramid", "widths": [8, 16], "depths": 1, "strides": [4, 2]},
    {"name": "pyramid", "preset": "biformer_t", "depths": 1},
    {"name": "pyramid", "preset": "dinat_mini", "depths": 2},
    {"name": "pyramid", "preset": "litv2_s", "depths": 1},
    {"name": "timm", "backbone": "maxvit_pico_rw_256", "levels": [0, 1], "image_size": 64},
    {"name": "timm", "backbone": "resnet18", "levels": [0, 1]},
    {"name": "timm", "backbone": "swin_tiny_patch4_window7_224", "levels": [0, 1]},
    {"name": "vit", "backbone": "eva02_tiny_patch14_224", "patch": 16, "widths": 8},
    {"name": "vit", "backbone": "vit_tiny_patch16_224", "widths": 8},
]


def test_options_are_for_encoders():
    assert {part["name"] for part in ENCODER_OPTIONS} <= set(ENCODERS)


@pytest.mark.parametrize("encoder", ENCODER_OPTIONS, ids=str)
def test_built_without_memory_and_filled(encoder):
    torch.manual_seed(0)
    model = EncoderDecoder(2, 2, encoder=encoder).eval()
    with torch.device("meta"):
        empty = EncoderDecoder(**model.arguments)
    shapes = {name: t.shape for name, t in empty.state_dict().items()}
    assert shapes == {name: t.shape for name, t in model.state_dict().items()}
    assert all(p.is_meta for p in empty.parameters())
    again = EncoderDecoder(**model.arguments).eval()
    again.load_state_dict(model.state_dict())
    image = torch.randn(1, 2, 70, 66)
    with torch.no_grad():
        assert torch.equal(again(image).logits, model(image).logits)
