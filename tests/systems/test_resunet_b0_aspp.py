"""ASPP against loops over offsets, the parts of the system, and nested regions from file to classes that overlap."""

from __future__ import annotations

import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile
import torch
import yaml
from torch import nn

from datamodules import Classes
from datamodules.labels import read_labels
from datamodules.layouts import read_layout
from models import SYSTEMS, EncoderDecoder
from models.attention import SE
from models.errors import ModelError
from models.systems.parts.aspp import ASPP
from models.systems.resunet_b0_aspp import ResUNetB0ASPP

ROOT = Path(__file__).parents[2]
CARD = ROOT / "docs" / "systems" / "resunet_b0_aspp.md"
PAPER = ROOT / "configs" / "recipes" / "systems" / "resunet_b0_aspp_paper.yaml"


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def settled(module: nn.Module) -> nn.Module:
    """Random numbers for all that a new network has as zeros and ones."""
    torch.manual_seed(3)
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            tensor.data.uniform_(0.1, 0.6).mul_(torch.where(torch.rand(tensor.shape) < 0.3, -1, 1))
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            layer.running_var.abs_()
    return module.double().eval()


def normed(x: np.ndarray, norm: nn.Module) -> np.ndarray:
    mean, var, weight, bias = (
        t.detach().numpy()[(None, slice(None), *[None] * (x.ndim - 2))]
        for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return np.maximum((x - mean) / np.sqrt(var + 1e-5) * weight + bias, 0)


def dilated(x: np.ndarray, weight: np.ndarray, rate: int) -> np.ndarray:
    """Sum over the offsets of the kernel, zeros outside."""
    out = np.zeros((len(x), len(weight), *x.shape[2:]))
    for tap in np.ndindex(weight.shape[2:]):
        moved = x
        for axis, t in enumerate(tap):
            shift = (t - weight.shape[2 + axis] // 2) * rate
            padded = np.pad(moved, [(abs(shift),) * 2 if a == 2 + axis else (0, 0) for a in range(x.ndim)])
            moved = np.take(padded, np.arange(x.shape[2 + axis]) + shift + abs(shift), 2 + axis)
        out += np.einsum("oi,bi...->bo...", weight[(slice(None), slice(None), *tap)], moved)
    return out


@pytest.mark.parametrize("size", [(7, 5), (4, 5, 3)])
@pytest.mark.parametrize("pooling", [True, False])
def test_aspp_by_hand(size, pooling):
    ndim = len(size)
    made = settled(ASPP(3, 5, ndim, rates=(1, 2, 6), width=4, pooling=pooling))
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    array = x.numpy()
    parts = [
        normed(dilated(array, branch[0].weight.detach().numpy(), rate), branch[1])
        for branch, rate in zip(made.branches, (1, 1, 2, 6), strict=True)
    ]
    if pooling:
        linear, norm, _ = made.pooled
        mean = array.mean(tuple(range(2, 2 + ndim))) @ linear.weight.detach().numpy().T
        spread = normed(mean, norm).reshape(2, 4, *[1] * ndim)
        parts.append(np.broadcast_to(spread, parts[0].shape))
    joined = np.concatenate(parts, 1)
    wanted = normed(dilated(joined, made.project[0].weight.detach().numpy(), 1), made.project[1])
    with torch.no_grad():
        np.testing.assert_allclose(made(x).numpy(), wanted, rtol=1e-9, atol=1e-9)


def test_rates_beyond_the_map_see_nothing_but_the_middle():
    """Why 6, 12, 18 are not the default on a map of 8 x 8."""
    made = settled(ASPP(3, 4, rates=(12,), pooling=False))
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        before = made(x)
        weight = made.branches[1][0].weight
        weight[:, :, [0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 2, 0, 2, 0, 1, 2]] = 0
        torch.testing.assert_close(made(x), before)


def test_aspp_trains_on_a_batch_of_one():
    made = ASPP(3, 4, rates=(1, 2)).train()
    made(torch.randn(1, 3, 5, 5)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters())
    with pytest.raises(ModelError, match="at least 1"):
        ASPP(3, 4, rates=(1, 0))


def residual(before, width):
    """Two convolutions of 3, the second with a bias, a norm before each; a shortcut with a bias where widths differ."""
    shortcut = 0 if before == width else before * width + width
    return 2 * before + 9 * before * width + 2 * width + 9 * width * width + width + shortcut


def test_parameters_of_the_paper_part_by_part():
    with torch.device("meta"):
        network = ResUNetB0ASPP.preset("paper", in_channels=3, num_classes=2)
    # EfficientNet-B0 with its classifier has 5,288,548; the classifier and the last convolution with its norm go.
    encoder = 5_288_548 - 1_281_000 - (320 * 1280 + 2 * 1280)
    c, w = 320, 256
    aspp = c * w * (1 + 3 * 9 + 1) + 5 * w * c + 5 * 2 * w + 2 * c
    skips, widths = [16, 24, 40, 112], [16, 32, 64, 128, 256]
    decoder = 0
    for coarse, width, skip in zip([320, 256, 128, 64, 32], widths[::-1], [*skips[::-1], 0], strict=True):
        decoder += coarse * width + width + residual(width + skip, width)
    attention = sum(2 * n * (n // 4) + n // 4 + n for n in (*skips, *widths))
    assert count(network.encoder) == encoder == 3_595_388
    assert count(network.aspp) == aspp
    assert count(network) == encoder + aspp + decoder + attention + 16 * 2 + 2


def test_without_aspp_and_attention_it_is_a_residual_unet_on_the_same_encoder():
    options = {"in_channels": 3, "num_classes": 2}
    bare = SYSTEMS["resunet_b0_aspp"].preset("tiny", **options, rates=[], attention="none").eval()
    assert bare.aspp is None
    assert not any(isinstance(m, SE) for m in bare.modules())
    other = EncoderDecoder(
        **options,
        encoder={"name": "timm", "backbone": "tinynet_e"},
        decoder={"name": "residual", "widths": [16, 16, 24, 32, 48]},
    ).eval()
    other.load_state_dict(bare.state_dict())
    image = torch.randn(1, 3, 48, 40)
    with torch.no_grad():
        torch.testing.assert_close(bare(image).logits, other(image).logits)
    whole = SYSTEMS["resunet_b0_aspp"].preset("tiny", **options)
    # One on each of four skips, one behind each of five stages; those inside of the encoder are timm's own.
    assert sum(isinstance(m, SE) for m in whole.modules()) == 9


def test_nested_regions_arrive_as_the_card_says(tmp_path, monkeypatch):
    """The card's script, run on a patient, and what training reads of what it writes."""
    labels = np.zeros((6, 5, 4), np.uint8)
    labels[0, 0], labels[1, 1], labels[2, 2] = 1, 2, 4
    patient = tmp_path / "BraTS2020" / "BraTS20_Training_001"
    patient.mkdir(parents=True)
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    for i, name in enumerate(("flair", "t1", "t1ce", "t2")):
        image = nib.Nifti1Image(np.full(labels.shape, i + 1, np.float32), affine)
        nib.save(image, patient / f"{patient.name}_{name}.nii")
    nib.save(nib.Nifti1Image(labels, affine), patient / f"{patient.name}_seg.nii")
    script, _ = re.findall(r"```python\n(.*?)```", CARD.read_text("utf-8"), re.S)
    monkeypatch.chdir(tmp_path)
    exec(compile(script, "card", "exec"), {})  # noqa: S102

    recipe = yaml.safe_load(PAPER.read_text("utf-8"))["data"]["init_args"]
    layout = read_layout(tmp_path / "data" / "brats", channels=recipe["channels"], classes=recipe["classes"])
    (case,) = layout.cases
    assert case.key == patient.name
    image = case.open()
    assert image.geometry.spacing == (1.0, 1.0, 2.0)
    np.testing.assert_array_equal(image.read()[:, 0, 0, 0], [1, 2, 3, 4])
    classes = Classes(recipe["classes"], exclusive=not recipe["overlapping"])
    found = read_labels(case, image, classes)
    wanted = np.stack([np.isin(labels, [1, 2, 4]), np.isin(labels, [1, 4]), labels == 4])
    np.testing.assert_array_equal(found, wanted)


def test_slices_of_a_patient_stay_together_as_the_card_says(tmp_path, monkeypatch):
    for patient in ("TCGA_CS_1", "TCGA_CS_2"):
        folder = tmp_path / "kaggle_3m" / patient
        folder.mkdir(parents=True)
        for number in (1, 2):
            tifffile.imwrite(folder / f"{patient}_{number}.tif", np.zeros((8, 9, 3), np.uint8))
            tifffile.imwrite(folder / f"{patient}_{number}_mask.tif", np.zeros((8, 9), np.uint8))
    _, script = re.findall(r"```python\n(.*?)```", CARD.read_text("utf-8"), re.S)
    monkeypatch.chdir(tmp_path)
    exec(compile(script, "card", "exec"), {})  # noqa: S102
    cases = read_layout(tmp_path / "kaggle_3m").cases
    assert sorted(case.group for case in cases) == ["TCGA_CS_1"] * 2 + ["TCGA_CS_2"] * 2
    assert all(case.mask is not None and case.mask.stem == f"{case.images[0].stem}_mask" for case in cases)


def test_attention_without_a_name_is_refused() -> None:
    with pytest.raises(ModelError, match=r"attention: .* has no name"):
        ResUNetB0ASPP(1, 2, attention={"reduction": 4})
