"""The model file: self-contained, and nothing in it can make us run code."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from datamodules.classes import Classes
from datamodules.patch import Patch
from datamodules.preprocessing import Preprocessing
from models import EncoderDecoder, Segmenter
from tasks.model_file import HEADER, Description, ModelFileError, load_model, save_model


@pytest.fixture
def description() -> Description:
    return Description(
        Preprocessing(("t1", "t2"), "RAS", (1.0, 1.0, 2.0), "zscore"),
        Patch((8, 8, 1), context=1),
        Classes({"background": 0, "tumour": 7}),
        tiling={"overlap": 0.25, "blend": "constant", "mirror": [0]},
        metrics={"val/dice": 0.5},
    )


def small(**options: Any) -> Segmenter:
    return EncoderDecoder(6, 2, encoder={"name": "plain", "widths": [4, 8]}, **options).eval()


def rewrite(source: Path, target: Path, change: Any) -> Path:
    """Copy a model file with a changed header."""
    from safetensors import safe_open

    with safe_open(source, framework="pt") as opened:
        header = json.loads(opened.metadata()[HEADER])
    change(header)
    save_file(load_file(source), target, metadata={HEADER: json.dumps(header)})
    return target


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"attention": "psa", "fusion": "attention_gate", "deep_supervision": True},
        {"attention": [{"name": "se", "at": ["skips", "decoder"], "levels": [0]}]},
    ],
)
def test_what_is_loaded_is_what_was_saved(
    tmp_path: Path, description: Description, options: dict[str, Any]
) -> None:
    network = small(**options)
    save_model(tmp_path / "model.safetensors", network, description)
    loaded, found = load_model(tmp_path / "model.safetensors")
    x = torch.randn(2, 6, 9, 11)
    assert torch.equal(loaded(x).logits, network(x).logits)
    assert not loaded.training
    assert found.preprocessing == description.preprocessing
    assert found.patch == description.patch
    assert found.classes.to_json() == description.classes.to_json()
    assert found.tiling == description.tiling
    assert found.metrics == {"val/dice": 0.5}
    assert "torch" in found.versions


def test_weights_of_a_backbone_are_in_the_file_and_never_read_from_elsewhere(
    tmp_path: Path, description: Description
) -> None:
    import timm

    source = timm.create_model("resnet18", pretrained=False)
    save_file(source.state_dict(), tmp_path / "backbone.safetensors")
    encoder = {
        "name": "timm",
        "backbone": "resnet18",
        "weights": str(tmp_path / "backbone.safetensors"),
        "levels": [0, 1],
    }
    network = EncoderDecoder(3, 2, encoder=encoder)
    save_model(tmp_path / "model.safetensors", network, description)
    (tmp_path / "backbone.safetensors").unlink()
    loaded, _ = load_model(tmp_path / "model.safetensors")
    assert torch.equal(loaded.state_dict()["encoder.body.conv1.weight"], source.state_dict()["conv1.weight"])

    def plant(header: dict[str, Any]) -> None:
        header["architecture"]["arguments"]["encoder"]["weights"] = str(tmp_path / "planted.pth")

    load_model(rewrite(tmp_path / "model.safetensors", tmp_path / "planted.safetensors", plant))


@pytest.mark.parametrize(
    "class_path",
    ["os.system", "subprocess.Popen", "torch.nn.Linear", "evil.Net", "modelsx.Net", "builtins.eval"],
)
def test_a_class_outside_our_packages_is_refused_and_not_imported(
    tmp_path: Path, description: Description, class_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "imported"
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    save_model(tmp_path / "model.safetensors", small(), description)
    planted = rewrite(
        tmp_path / "model.safetensors",
        tmp_path / "planted.safetensors",
        lambda header: header["architecture"].update(class_path=class_path),
    )
    with pytest.raises(ModelFileError, match=r"not one of ours.*--trust"):
        load_model(planted)
    assert not marker.exists()


def test_our_own_class_that_is_no_segmenter_is_refused(tmp_path: Path, description: Description) -> None:
    save_model(tmp_path / "model.safetensors", small(), description)
    planted = rewrite(
        tmp_path / "model.safetensors",
        tmp_path / "planted.safetensors",
        lambda header: header["architecture"].update(class_path="models.attention.ECA"),
    )
    with pytest.raises(ModelFileError, match="not a segmenter"):
        load_model(planted)


def test_trust_imports_a_class_of_the_users_own(
    tmp_path: Path, description: Description, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine_for_this_test.py").write_text(
        "from models import EncoderDecoder\nclass Mine(EncoderDecoder):\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    save_model(tmp_path / "model.safetensors", small(), description)
    own = rewrite(
        tmp_path / "model.safetensors",
        tmp_path / "own.safetensors",
        lambda header: header["architecture"].update(class_path="mine_for_this_test.Mine"),
    )
    with pytest.raises(ModelFileError):
        load_model(own)
    network, _ = load_model(own, trust=True)
    assert type(network).__name__ == "Mine"


class Evil:
    """Touches a file when it is unpickled."""

    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("writer", ["pickle", "torch"])
def test_a_pickle_of_any_name_is_refused_unread(tmp_path: Path, writer: str) -> None:
    marker, file = tmp_path / "run", tmp_path / "model.safetensors"
    if writer == "pickle":
        file.write_bytes(pickle.dumps(Evil(str(marker))))
    else:
        torch.save(Evil(str(marker)), file)
    with pytest.raises(ModelFileError, match="pickle"):
        load_model(file)
    assert not marker.exists()


def test_damaged_files_are_named(tmp_path: Path, description: Description) -> None:
    save_model(tmp_path / "model.safetensors", small(), description)
    whole = (tmp_path / "model.safetensors").read_bytes()
    for name, content in {"cut": whole[: len(whole) // 2], "junk": b"junk" * 50, "empty": b""}.items():
        file = tmp_path / f"{name}.safetensors"
        file.write_bytes(content)
        with pytest.raises(ModelFileError, match=name):
            load_model(file)
    with pytest.raises(ModelFileError, match="no such file"):
        load_model(tmp_path / "missing.safetensors")


def test_tensors_without_our_header_and_other_formats_are_refused(
    tmp_path: Path, description: Description
) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ModelFileError, match="not written by delineate"):
        load_model(tmp_path / "foreign.safetensors")
    save_model(tmp_path / "model.safetensors", small(), description)
    newer = rewrite(
        tmp_path / "model.safetensors", tmp_path / "new.safetensors", lambda h: h.update(format=99)
    )
    with pytest.raises(ModelFileError, match="format 99"):
        load_model(newer)


def test_an_architecture_that_does_not_fit_its_tensors_is_refused_before_it_takes_memory(
    tmp_path: Path, description: Description
) -> None:
    save_model(tmp_path / "model.safetensors", small(), description)

    def inflate(header: dict[str, Any]) -> None:
        # Half a terabyte of weights, were they made.
        header["architecture"]["arguments"]["encoder"]["widths"] = [100_000, 200_000]

    inflated = rewrite(tmp_path / "model.safetensors", tmp_path / "inflated.safetensors", inflate)
    with pytest.raises(ModelFileError, match="do not fit"):
        load_model(inflated)


@pytest.mark.parametrize("lost", ["architecture", "classes", "patch", "preprocessing"])
def test_an_incomplete_header_is_said(tmp_path: Path, description: Description, lost: str) -> None:
    save_model(tmp_path / "model.safetensors", small(), description)
    broken = rewrite(tmp_path / "model.safetensors", tmp_path / "broken.safetensors", lambda h: h.pop(lost))
    with pytest.raises(ModelFileError, match="header is incomplete"):
        load_model(broken)


@pytest.mark.parametrize("length", [0x80, 0x4B50])
def test_a_header_whose_length_looks_like_a_pickle_is_no_pickle(
    tmp_path: Path, description: Description, length: int
) -> None:
    """A safetensors file begins with the length of its header: any bytes, those of a pickle or a zip too."""
    save_model(tmp_path / "model.safetensors", small(), description)
    whole = (tmp_path / "model.safetensors").read_bytes()
    size = int.from_bytes(whole[:8], "little")
    header = whole[8 : 8 + size].rstrip()
    padded = header.ljust(
        next(
            n
            for n in range(len(header), len(header) + 70000)
            if n & (0xFF if length == 0x80 else 0xFFFF) == length
        )
    )
    (tmp_path / "padded.safetensors").write_bytes(
        len(padded).to_bytes(8, "little") + padded + whole[8 + size :]
    )
    load_model(tmp_path / "padded.safetensors")
