"""Files with weights: what is taken, what is resampled, adapted, new and left out; and what is refused."""

from __future__ import annotations

import ast
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

import models
from models.errors import ModelError
from models.sam import SamSegmenter
from models.sam import checkpoint as checkpoint_module
from tests.sam.official import TINY, checkpoint, official_tiny


@pytest.fixture(scope="module")
def official() -> Any:
    return official_tiny()


def load(file: Path | str, **options: Any) -> SamSegmenter:
    wanted = {"num_classes": 1, "prompts": True, **TINY, **options}
    return SamSegmenter(weights=str(file), **wanted)


def names(network: SamSegmenter) -> set[str]:
    report = network.report
    return {*report.loaded, *report.resampled, *report.adapted, *report.new}


def written(folder: Path, official: Any, kind: str) -> Path:
    """The forms in which weights come."""
    state = official.state_dict()
    training = {"optimizer": {"state": {0: {"exp_avg": torch.zeros(5)}}, "param_groups": []}, "epoch": 3}
    file = folder / f"{kind}.pth"
    if kind == "safetensors":
        file = folder / "sam.safetensors"
        save_file(state, file)
    elif kind == "training":
        torch.save({"model": {f"module.{n}": t for n, t in state.items()}, **training}, file)
    elif kind == "lightning":
        torch.save({"state_dict": {f"model.{n}": t for n, t in state.items()}}, file)
    elif kind == "old":
        torch.save(state, file, _use_new_zipfile_serialization=False)
    elif kind == "half":
        torch.save({n: t.half() for n, t in state.items()}, file)
    else:
        torch.save(state, file)
    return file


@pytest.mark.parametrize("kind", ["plain", "safetensors", "training", "lightning", "old"])
def test_every_form_loads_completely(tmp_path: Path, official: Any, kind: str) -> None:
    network = load(written(tmp_path, official, kind))
    state = official.state_dict()
    assert sorted(network.report.loaded) == sorted(state)
    assert not network.report.left_out + network.report.new
    assert all(torch.equal(t, state[n]) for n, t in network.state_dict().items())
    assert sorted(network.base.tensors) == sorted(state)


def test_half_precision_becomes_the_networks(tmp_path: Path, official: Any) -> None:
    network = load(written(tmp_path, official, "half"))
    assert {t.dtype for t in network.state_dict().values()} == {torch.float32}
    assert torch.equal(
        network.image_encoder.neck[0].weight, official.image_encoder.neck[0].weight.half().float()
    )


def test_another_image_size_resamples_positions_of_global_blocks_alone(tmp_path: Path, official: Any) -> None:
    network = load(checkpoint(tmp_path, official), image_size=64)
    blocks = [1, 3]
    assert set(network.report.resampled) == {
        "image_encoder.pos_embed",
        *(f"image_encoder.blocks.{i}.attn.rel_pos_{axis}" for i in blocks for axis in "hw"),
    }
    assert network.report.resampled["image_encoder.pos_embed"] == "1x8x8x48 -> 1x4x4x48"
    state = official.state_dict()
    # As SAMed writes it.
    wanted = F.interpolate(
        state["image_encoder.pos_embed"].permute(0, 3, 1, 2), (4, 4), mode="bilinear", align_corners=False
    )
    torch.testing.assert_close(network.image_encoder.pos_embed.data, wanted.permute(0, 2, 3, 1))
    table = state["image_encoder.blocks.1.attn.rel_pos_h"]
    wanted = F.interpolate(table[None, None], (7, 16), mode="bilinear", align_corners=False)[0, 0]
    torch.testing.assert_close(network.image_encoder.blocks[1].attn.rel_pos_h.data, wanted)
    assert not set(network.base.tensors) & set(network.report.resampled)
    assert names(network) == set(state)
    assert network(torch.randn(1, 3, 64, 64)).logits.shape == (1, 1, 64, 64)


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_other_channels_see_a_grey_image_as_three_did(tmp_path: Path, official: Any, channels: int) -> None:
    network = load(checkpoint(tmp_path, official), in_channels=channels).eval()
    assert list(network.report.adapted) == ["image_encoder.patch_embed.proj.weight"]
    grey = torch.randn(1, 1, 128, 128)
    weight = official.image_encoder.patch_embed.proj.weight
    if channels == 1:
        with torch.no_grad():
            wanted = official.image_encoder(grey.expand(-1, 3, -1, -1))
        torch.testing.assert_close(network.encode(grey)[0], wanted, atol=1e-4, rtol=1e-4)
    ours = network.image_encoder.patch_embed.proj.weight
    torch.testing.assert_close(
        ours[:, -1],
        weight.sum(1) if channels == 1 else weight[:, (channels - 1) % 3] * 3 / channels,
    )


def test_another_number_of_masks_begins_anew_as_a_family(tmp_path: Path, official: Any) -> None:
    network = load(checkpoint(tmp_path, official), prompts=False, num_classes=5)
    new = set(network.report.new)
    assert {name.split(".")[1] for name in new} == {
        "mask_tokens",
        "output_hypernetworks_mlps",
        "iou_prediction_head",
    }
    assert all(name.startswith("mask_decoder.") for name in new)
    assert set(network.report.left_out) == {n for n in new if n in official.state_dict()}
    assert names(network) == set(network.state_dict())
    assert "new" in str(network.report)
    assert len(network.report.lines()) == len(network.state_dict()) + len(network.report.left_out)


def test_what_fine_tunes_add_is_left_out_and_named(tmp_path: Path, official: Any) -> None:
    extra = {"image_encoder.blocks.0.MLP_Adapter.D_fc1.weight": torch.zeros(3, 3)}
    torch.save({**official.state_dict(), **extra}, tmp_path / "adapted.pth")
    network = load(tmp_path / "adapted.pth")
    assert network.report.left_out == list(extra)
    assert "MLP_Adapter" in str(network.report)


def test_a_name_is_found_in_the_folder_of_weights(
    tmp_path: Path, official: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint(tmp_path, official)
    with pytest.raises(ModelError, match="DELINEATE_WEIGHTS"):
        load("sam_tiny.pth")
    monkeypatch.setenv("DELINEATE_WEIGHTS", str(tmp_path))
    assert load("sam_tiny.pth").report.loaded


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


class TestRefused:
    def test_another_size_of_sam(self, tmp_path: Path) -> None:
        with torch.device("meta"):
            wide = SamSegmenter(num_classes=1, prompts=True, size="vit_l", image_size=64).state_dict()
        few = {n: torch.zeros(t.shape) for n, t in wide.items() if "pos_embed" in n}
        few |= {f"image_encoder.blocks.{i}.attn.qkv.bias": torch.zeros(1) for i in range(24)}
        torch.save(few, tmp_path / "sam_vit_l.pth")
        with pytest.raises(
            ModelError, match=r"sam_vit_l.pth is a SAM vit_l \(1024 channels, 24 blocks\), .*set size: vit_l"
        ):
            load(tmp_path / "sam_vit_l.pth")
        other = checkpoint(tmp_path, official_tiny(depth=5), "five.pth")
        with pytest.raises(ModelError, match=r"five.pth is a SAM of another size \(48 channels, 5 blocks\)"):
            load(other)

    def test_no_sam_at_all(self, tmp_path: Path) -> None:
        torch.save({"conv1.weight": torch.zeros(2)}, tmp_path / "resnet.pth")
        with pytest.raises(ModelError, match=r"resnet.pth is no SAM: .* conv1.weight.* Accepted are"):
            load(tmp_path / "resnet.pth")
        torch.save([torch.zeros(2)], tmp_path / "list.pth")
        with pytest.raises(ModelError, match=r"list.pth holds list"):
            load(tmp_path / "list.pth")

    @pytest.mark.parametrize(
        "missing", ["image_encoder.blocks.2.norm1.bias", "prompt_encoder.no_mask_embed.weight"]
    )
    def test_a_part_is_missing(self, tmp_path: Path, official: Any, missing: str) -> None:
        state = official.state_dict()
        del state[missing]
        torch.save(state, tmp_path / "part.pth")
        with pytest.raises(ModelError, match=rf"part.pth is no whole SAM; it lacks {missing}"):
            load(tmp_path / "part.pth")

    def test_another_shape(self, tmp_path: Path, official: Any) -> None:
        state = official.state_dict()
        state["image_encoder.neck.0.weight"] = torch.zeros(32, 48, 1, 1)
        torch.save(state, tmp_path / "shape.pth")
        with pytest.raises(
            ModelError, match=r"shape.pth has image_encoder.neck.0.weight .*32x48x1x1 -> 64x48x1x1"
        ):
            load(tmp_path / "shape.pth")

    @pytest.mark.parametrize("kind", ["plain", "safetensors", "old"])
    @pytest.mark.parametrize("share", [0.0, 0.4, 0.98])
    def test_truncated(self, tmp_path: Path, official: Any, kind: str, share: float) -> None:
        file = written(tmp_path, official, kind)
        file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
        with pytest.raises(
            ModelError, match=rf"{file.name} \(\d+ bytes\) cannot be read .*damaged or incomplete"
        ):
            load(file)

    @pytest.mark.parametrize("writer", ["pickle", "torch"])
    def test_code_is_not_run(self, tmp_path: Path, writer: str) -> None:
        marker, file = tmp_path / "run", tmp_path / "evil.pth"
        content = {"image_encoder.pos_embed": Evil(marker)}
        file.write_bytes(pickle.dumps(content)) if writer == "pickle" else torch.save(content, file)
        with pytest.raises(ModelError, match="code, which is not run"):
            load(file)
        assert not marker.exists()

    def test_too_large(self, tmp_path: Path, official: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(checkpoint_module, "MOST_BYTES", 1000)
        with pytest.raises(ModelError, match="more than any SAM"):
            load(checkpoint(tmp_path, official))

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"missing.pth is not a file"):
            load(tmp_path / "missing.pth")


def test_the_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [
        n for n in sys.modules if n.startswith("segment_anything") or n == "models.sam.mask_decoder"
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "segment_anything", None)
    with pytest.raises(ModelError, match=r"pip install 'delineate\[sam\]'"):
        SamSegmenter(**TINY)


def test_importing_models_does_not_import_the_package() -> None:
    """At its top no module of ours imports it, but the one that is imported when a network is made."""

    def at_the_top(file: Path) -> set[str]:
        statements = [
            n for n in ast.parse(file.read_text("utf-8")).body if isinstance(n, ast.Import | ast.ImportFrom)
        ]
        return {n.module or "" if isinstance(n, ast.ImportFrom) else n.names[0].name for n in statements}

    lazy = {"segment_anything", "segment_anything.modeling", "models.sam.mask_decoder"}
    importing = [file.name for file in Path(models.__file__).parent.rglob("*.py") if lazy & at_the_top(file)]
    assert importing == ["mask_decoder.py"]
