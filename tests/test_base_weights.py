"""Base weights stay in their own file, which is found by name and hash and never by a path."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from datamodules.classes import Classes
from datamodules.patch import Patch
from datamodules.preprocessing import Preprocessing
from models import base_weights
from models.base_weights import Base, base_of, digest, is_name, sha256_of, weight_file
from models.errors import ModelError
from models.interfaces import Output, Prompts, Segmenter
from models.sam import SamSegmenter
from tasks.model_file import HEADER, Description, ModelFileError, load_model, save_model
from tests.sam.official import TINY, checkpoint, official_tiny

DESCRIPTION = Description(
    Preprocessing(("r", "g", "b"), None, None, "zscore"),
    Patch((32, 32)),
    Classes({"background": 0, "thing": 1}),
)


class Backbone(Segmenter):
    """The smallest user of the contract: not SAM, and with names of its own."""

    def __init__(self, in_channels: int = 3, num_classes: int = 2, weights: str | None = None) -> None:
        super().__init__()
        self.ndim, self.in_channels, self.num_classes = 2, in_channels, num_classes
        self.body = nn.Conv2d(in_channels, 64, 3, padding=1)
        self.head = nn.Conv2d(64, num_classes, 1)
        if weights is not None:
            tensors = self.base_tensors(Path(weights))
            self.load_state_dict(tensors, strict=False)
            self.base = base_of(Path(weights), tensors)

    def base_tensors(self, file: Path) -> dict[str, Tensor]:
        return {f"body.{name}": tensor for name, tensor in load_file(file).items()}

    def encode(self, image: Tensor) -> list[Tensor]:
        return [self.body(image)]

    def decode(self, features: list[Tensor], size: Any, prompts: Prompts | None = None) -> Output:
        return Output(self.head(features[0]))


@pytest.fixture(autouse=True)
def no_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(base_weights.VARIABLE, raising=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "weights").mkdir()
    save_file(nn.Conv2d(3, 64, 3).state_dict(), tmp_path / "weights" / "backbone.safetensors")
    return tmp_path / "weights" / "backbone.safetensors"


def header_of(file: Path) -> Any:
    with safe_open(file, framework="pt") as opened:
        return json.loads(opened.metadata()[HEADER])


def rewrite(source: Path, change: Any) -> Path:
    header = header_of(source)
    change(header)
    target = source.with_name("changed.safetensors")
    save_file(load_file(source), target, metadata={HEADER: json.dumps(header)})
    return target


def saved(file: Path, folder: Path) -> tuple[Backbone, Path]:
    network = Backbone(weights=str(file))
    save_model(folder / "model.safetensors", network, DESCRIPTION)
    return network, folder / "model.safetensors"


def test_what_is_unchanged_stays_out_and_comes_back(file: Path, tmp_path: Path) -> None:
    network, model = saved(file, tmp_path)
    assert set(load_file(model)) == {"head.weight", "head.bias"}
    said = header_of(model)["base"]
    assert (said["file"], said["sha256"]) == ("backbone.safetensors", sha256_of(file))
    assert str(file.parent) not in json.dumps(header_of(model))
    loaded, _ = load_model(model, trust=True, base_folders=[file.parent])
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(loaded(x).logits, network.eval()(x).logits)
    # And is saved again as it was.
    save_model(tmp_path / "again.safetensors", loaded, DESCRIPTION)
    assert header_of(tmp_path / "again.safetensors")["base"] == said


def test_what_was_changed_is_in_the_file_whether_frozen_or_not(file: Path, tmp_path: Path) -> None:
    network = Backbone(weights=str(file)).requires_grad_(False)
    with torch.no_grad():
        network.body.bias[0] += 1
    save_model(tmp_path / "model.safetensors", network, DESCRIPTION)
    assert set(load_file(tmp_path / "model.safetensors")) == {"head.weight", "head.bias", "body.bias"}
    loaded, _ = load_model(tmp_path / "model.safetensors", trust=True, base_folders=[file.parent])
    assert torch.equal(loaded.state_dict()["body.bias"], network.body.bias)


def test_how_tensors_lie_in_memory_is_no_change(file: Path, tmp_path: Path) -> None:
    network = Backbone(weights=str(file)).to(memory_format=torch.channels_last)
    save_model(tmp_path / "model.safetensors", network, DESCRIPTION)
    assert "body.weight" not in load_file(tmp_path / "model.safetensors")


def test_a_network_that_was_tuned_as_a_whole_needs_no_base(file: Path, tmp_path: Path) -> None:
    network = Backbone(weights=str(file))
    with torch.no_grad():
        network.body.weight += 1
    save_model(tmp_path / "model.safetensors", network, DESCRIPTION)
    assert header_of(tmp_path / "model.safetensors")["base"] is None
    file.unlink()
    loaded, _ = load_model(tmp_path / "model.safetensors", trust=True)
    assert torch.equal(loaded.state_dict()["body.bias"], network.body.bias)


@pytest.mark.parametrize("where", ["beside", "variable", "argument"])
def test_where_the_base_is_found(
    file: Path, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, model = saved(file, tmp_path)
    folders: list[Path] = []
    if where == "beside":
        file.rename(tmp_path / file.name)
    elif where == "variable":
        monkeypatch.setenv(base_weights.VARIABLE, f"/nowhere:{file.parent}")
    else:
        folders = [file.parent]
    load_model(model, trust=True, base_folders=folders)


def test_a_missing_base_is_said_with_what_to_do(file: Path, tmp_path: Path) -> None:
    _, model = saved(file, tmp_path)
    with pytest.raises(
        ModelFileError,
        match=rf"{model}: needs .*backbone.safetensors \(sha256 .*put the file there, or set DELINEATE",
    ):
        load_model(model, trust=True)


def test_another_file_of_that_name_is_passed_over_and_named(file: Path, tmp_path: Path) -> None:
    _, model = saved(file, tmp_path)
    save_file(nn.Conv2d(3, 64, 3).state_dict(), tmp_path / file.name)
    with pytest.raises(ModelFileError, match="the name is right, the content is another"):
        load_model(model, trust=True)
    load_model(model, trust=True, base_folders=[file.parent])


@pytest.mark.parametrize(
    "name",
    [
        *("../weights/backbone.safetensors", "/etc/hostname", "a/b.pth", "a\\b.pth", "//host/share.pth"),
        *("C:b.pth", "http://host/x.pth", "..", ".hidden", "", "a\0b", "x" * 300, 3),
    ],
)
def test_a_header_names_no_path(file: Path, tmp_path: Path, name: Any) -> None:
    assert not is_name(name)
    _, model = saved(file, tmp_path)
    changed = rewrite(model, lambda header: header["base"].update(file=name))
    with pytest.raises(ModelFileError, match="not the name of a file without folders"):
        load_model(changed, trust=True, base_folders=[file.parent])


def test_a_changed_list_of_tensors_is_refused(file: Path, tmp_path: Path) -> None:
    _, model = saved(file, tmp_path)
    for change in ({"body.bias": "0" * 32}, {"head.bias": "0" * 32}):
        changed = rewrite(model, lambda header, c=change: header["base"]["tensors"].update(c))
        with pytest.raises(ModelFileError, match="does not give the tensors"):
            load_model(changed, trust=True, base_folders=[file.parent])
    changed = rewrite(model, lambda header: header["base"]["tensors"].pop("body.bias"))
    with pytest.raises(ModelFileError, match=r"do not fit: body.bias"):
        load_model(changed, trust=True, base_folders=[file.parent])


@pytest.mark.parametrize(
    "broken", [3, {}, {"file": "a", "sha256": "b"}, {"file": "a", "sha256": "b", "tensors": 1}]
)
def test_a_broken_header_is_said(file: Path, tmp_path: Path, broken: Any) -> None:
    _, model = saved(file, tmp_path)
    changed = rewrite(model, lambda header: header.update(base=broken))
    with pytest.raises(ModelFileError, match="header is incomplete or wrong"):
        load_model(changed, trust=True)


def test_a_class_without_base_tensors_says_so(file: Path, tmp_path: Path) -> None:
    from models import EncoderDecoder

    save_model(tmp_path / "model.safetensors", EncoderDecoder(3, 2), DESCRIPTION)
    base = Base(file.name, sha256_of(file), {"x": "0"})
    changed = rewrite(tmp_path / "model.safetensors", lambda header: header.update(base=base.to_json()))
    with pytest.raises(ModelFileError, match="EncoderDecoder takes no tensors from a file of base weights"):
        load_model(changed, base_folders=[file.parent])


def test_digests_tell_values_shapes_and_dtypes_apart() -> None:
    x = torch.arange(6.0)
    others = [x + 1, x.reshape(2, 3), x.double(), x.bfloat16(), torch.tensor(0.0), x[:0]]
    assert len({digest(t) for t in (x, *others)}) == 7
    assert digest(x.reshape(2, 3).T.contiguous().T) == digest(x.reshape(2, 3))


def test_a_weight_file_is_a_path_or_a_name(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert weight_file(str(file)) == file
    with pytest.raises(ModelError, match="is not a file"):
        weight_file(file.name)
    monkeypatch.setenv(base_weights.VARIABLE, str(file.parent))
    assert weight_file(file.name) == file
    with pytest.raises(ModelError, match="is not a file"):
        weight_file(f"../weights/nothing/{file.name}")


def test_a_sam_whose_decoder_was_tuned(tmp_path: Path) -> None:
    official = official_tiny()
    source = checkpoint(tmp_path, official)
    network = SamSegmenter(3, 2, weights=str(source), **{**TINY, "image_size": 64}).eval()
    with torch.no_grad():
        for parameter in network.mask_decoder.parameters():
            parameter += 0.01
    model = tmp_path / "model.safetensors"
    save_model(model, network, DESCRIPTION)
    held = load_file(model)
    encoder = {n for n in held if n.startswith("image_encoder.")}
    assert encoder == set(network.report.resampled)
    assert {n for n in held if n.startswith("mask_decoder.")} == {
        n for n in network.state_dict() if n.startswith("mask_decoder.")
    }
    loaded, _ = load_model(model)
    state = network.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
    assert "weights" not in loaded.arguments or loaded.arguments["weights"] is None
    source.rename(tmp_path / "elsewhere.pth")
    with pytest.raises(ModelFileError, match=r"sam_tiny.pth .* are not in"):
        load_model(model)
