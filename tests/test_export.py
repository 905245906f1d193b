"""Exports: what is written, what is checked, and that nothing is left where a check fails."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from apps.cli import main
from datamodules import DataError
from models import EncoderDecoder
from models.attention import ATTENTION
from tasks.export import exporting, parity
from tasks.export.errors import ExportError
from tasks.export.exporting import Calibration, export
from tasks.export.int8 import agreement
from tasks.export.traced import check_exportable, heeds_missing
from tasks.model_file import HEADER
from tasks.networks import load_network
from tests.exported import ByBatch, OneLayer, OneSize, Told, describe, graph_by_hand, save, seeded

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(tmp_path / "model.safetensors", seeded(), describe())


@pytest.fixture
def handmade(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the place of torch's exporter, which takes seconds."""
    monkeypatch.setattr(exporting.onnx_file, "to_onnx", lambda program: graph_by_hand(seeded()))


def pictures(folder: Path, count: int, side: int = 24) -> Path:
    folder.mkdir()
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 255, (side, side, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f"p{number}.png")
    return folder


def header_of(file: Path) -> dict:
    if file.suffix == ".onnx":
        return json.loads({e.key: e.value for e in onnx.load(file).metadata_props}[HEADER])
    with zipfile.ZipFile(file) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(f"{HEADER}.json"))
        return json.loads(archive.read(name))


def assert_described(header: dict) -> None:
    """The header holds exactly what a model file says of itself, but for the architecture."""
    described = json.loads(json.dumps(describe().to_json()))
    assert {name: header[name] for name in described} == described
    assert header.keys() - described.keys() == {"format", "export"}


# torch.export, which is quick ----------------------------------------------------------------------------------


def test_a_pt2_says_the_same_as_the_network_and_carries_the_description(model: Path, tmp_path: Path) -> None:
    done = export(model, tmp_path / "model.pt2", trust=True)
    assert done.sizes == "any"
    program = torch.export.load(done.path).module()
    for shape in ((1, 3, 16, 16), (4, 3, 16, 16), (1, 3, 33, 20)):
        image = torch.rand(shape)
        torch.testing.assert_close(program(image), seeded()(image).logits)
    header = header_of(done.path)
    assert_described(header)
    assert header["export"]["sizes"] == "any"
    assert len(header["export"]["model_sha256"]) == 64
    assert [one["name"] for one in header["export"]["checks"]] == ["random", "random", "random, another size"]


def test_a_pt2_names_nothing_of_this_machine(model: Path, tmp_path: Path) -> None:
    file = export(model, tmp_path / "model.pt2", trust=True).path
    with zipfile.ZipFile(file) as archive:
        assert not any("part-" in name for name in archive.namelist())
        for name in archive.namelist():
            assert str(Path.cwd()).encode() not in archive.read(name), name


def test_a_network_of_one_size_is_exported_for_that_size_and_says_so(tmp_path: Path, capsys) -> None:
    model = save(tmp_path / "model.safetensors", seeded(OneSize), describe())
    assert main(["export", "-m", str(model), "-o", str(tmp_path / "m.pt2"), "--trust"]) == 0
    assert "the patch's size alone, since torch cannot trace" in capsys.readouterr().out
    assert header_of(tmp_path / "m.pt2")["export"]["sizes"] == "patch"
    program = torch.export.load(tmp_path / "m.pt2").module()
    assert program(torch.rand(3, 3, 16, 16)).shape == (3, 3, 16, 16)


def test_a_volume(tmp_path: Path) -> None:
    model = save(
        tmp_path / "m.safetensors",
        seeded(channels=1, ndim=3),
        describe((8, 10, 6), ("T1",), orientation="RAS"),
    )
    done = export(model, tmp_path / "m.pt2", trust=True)
    assert done.sizes == "any"
    assert done.checks[0].shape == (1, 1, 8, 10, 6)


def test_nothing_is_left_where_the_check_fails(tmp_path: Path) -> None:
    model = save(tmp_path / "model.safetensors", seeded(ByBatch), describe())
    target = tmp_path / "out" / "model.pt2"
    with pytest.raises(ExportError, match=r"model\.safetensors: .* does not say the same as the network"):
        export(model, target, trust=True)
    assert not target.parent.exists()


def test_an_earlier_file_stays_where_the_check_fails(tmp_path: Path, capsys) -> None:
    model = save(tmp_path / "model.safetensors", seeded(ByBatch), describe())
    target = tmp_path / "model.pt2"
    target.write_text("earlier")
    assert main(["export", "-m", str(model), "-o", str(target), "--trust", "--force"]) == 2
    assert "does not say the same" in capsys.readouterr().err
    assert target.read_text() == "earlier"
    assert sorted(os.listdir(tmp_path)) == ["model.pt2", "model.safetensors"]


def test_an_image_is_checked_with_as_it_is_seen_in_prediction(model: Path, tmp_path: Path) -> None:
    image = pictures(tmp_path / "in", 1, side=40) / "p0.png"
    done = export(model, tmp_path / "m.pt2", check_with=image, trust=True)
    assert done.checks[-1].name == "image"
    assert done.checks[-1].shape == (8, 3, 16, 16)
    (tmp_path / "broken.png").write_bytes(image.read_bytes()[:100])
    with pytest.raises(DataError, match=r"broken\.png"):
        export(model, tmp_path / "n.pt2", check_with=tmp_path / "broken.png", trust=True)
    assert not (tmp_path / "n.pt2").exists()


# What is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-o", "m.pth"], r"name it \.onnx"),
        (["-o", "m.onnx", "--int8"], "--calibrate-with"),
        (["-o", "m.onnx", "--calibrate-with", "x"], "--int8"),
        (["-o", "m.pt2", "--int8", "--calibrate-with", "x"], "8-bit networks are written as ONNX"),
        (["-o", "m.pt2", "--tolerance", "0"], "tolerance 0"),
        (["-o", "m.pt2", "--tolerance", "nan"], "tolerance nan"),
        (["-o", "model.safetensors"], "exists; give --force"),
        (["-o", "m.pt2", "--check-with", "no.png"], "no such file"),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence(
    model: Path, tmp_path: Path, monkeypatch, capsys, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", "-m", str(model), "--trust", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    import re

    assert re.search(said, error)
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_a_block_that_cannot_be_exported_is_named(tmp_path: Path, monkeypatch) -> None:
    network = EncoderDecoder(
        1, 2, 2, encoder={"name": "plain", "widths": [2, 3], "blocks": 1}, attention="eca"
    )
    check_exportable(network)
    monkeypatch.setattr(ATTENTION["eca"], "exports", False)
    with pytest.raises(ExportError, match=r"because of ECA \(.*\), ECA \(.*\); predict with"):
        check_exportable(network)
    model = save(tmp_path / "m.safetensors", network, describe((8, 8), ("gray",)))
    with pytest.raises(ExportError, match=r"m\.safetensors: cannot be exported because of ECA"):
        export(model, tmp_path / "m.onnx")


def test_a_missing_package_is_named(model: Path, tmp_path: Path, monkeypatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ExportError, match=r"pip install 'delineate\[onnx\]'"):
        export(model, tmp_path / "m.onnx", trust=True)


def test_who_wants_to_be_told_of_missing_channels() -> None:
    assert not heeds_missing(seeded())
    assert heeds_missing(seeded(Told))
    assert not heeds_missing(EncoderDecoder(2, 2, 2, encoder={"name": "plain", "widths": [2, 3]}))
    told = {"name": "channelvit", "patch": 4, "dim": 8, "depth": 1, "heads": 2, "grid": 2}
    assert heeds_missing(EncoderDecoder(2, 2, 2, encoder=told))


# The comparison ---------------------------------------------------------------------------------------------------


def test_a_check_counts_what_it_says() -> None:
    logits = torch.zeros(1, 2, 10, 10)
    logits[:, 0] = 2.0
    other = logits.clone()
    other[0, 1, 0, :3] = 2.5  # three positions change their class
    found = parity.check("x", lambda x: logits, lambda x: other, torch.zeros(1, 1, 10, 10), exclusive=True)
    assert (found.difference, found.largest, found.equal) == (2.5, 2.0, pytest.approx(0.97))
    assert not found.passes(10)
    assert parity.check("x", lambda x: logits, lambda x: logits + 1e-4, torch.zeros(1), True).passes(1e-4)
    assert not parity.check("x", lambda x: logits, lambda x: logits + 1e-2, torch.zeros(1), True).passes(1e-4)


def test_what_is_not_a_number_never_passes() -> None:
    logits = torch.ones(1, 2, 4, 4)
    for a, b in ((logits, logits * torch.nan), (logits * torch.nan, logits * torch.nan)):
        assert not parity.check("x", lambda x, a=a: a, lambda x, b=b: b, torch.zeros(1), True).passes(1e9)


def test_other_shapes_never_pass() -> None:
    with pytest.raises(ValueError, match="shape"):
        parity.check(
            "x", lambda x: torch.ones(1, 2, 4, 4), lambda x: torch.ones(1, 2, 4, 1), torch.zeros(1), True
        )


def test_agreement_of_two_networks_is_counted_per_class() -> None:
    a = torch.tensor([0, 0, 1, 1, 2, 2, 2, 2])
    b = torch.tensor([0, 1, 1, 1, 2, 2, 0, 2])
    hot = [torch.nn.functional.one_hot(x, 4).T.reshape(1, 4, 2, 4).float() for x in (a, b)]
    found = agreement(lambda x: hot[0], lambda x: hot[1], [torch.zeros(1, 1, 2, 4)], list("abcd"), True)
    assert found.equal == 6 / 8
    assert found.dice == {"a": 2 * 1 / 4, "b": 2 * 2 / 5, "c": 2 * 3 / 7, "d": None}
    assert "d -" in str(found)


# ONNX -------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("handmade")
def test_an_onnx_file_is_checked_and_carries_what_was_found(model: Path, tmp_path: Path, capsys) -> None:
    assert main(["export", "-m", str(model), "-o", str(tmp_path / "m.onnx"), "--trust"]) == 0
    out = capsys.readouterr()
    assert out.err == ""
    assert out.out.count("checked: ") == 3
    header = header_of(tmp_path / "m.onnx")
    assert_described(header)
    assert {"torch", "onnx", "onnxruntime", "onnxscript"} == header["export"]["versions"].keys()
    assert all(one["equal"] == 1 for one in header["export"]["checks"])
    assert load_network(tmp_path / "m.onnx")[1].to_json() == describe().to_json()


def test_a_wrong_graph_is_not_written(model: Path, tmp_path: Path, monkeypatch) -> None:
    torch.manual_seed(7)
    wrong = OneLayer(3, 3)
    monkeypatch.setattr(exporting.onnx_file, "to_onnx", lambda program: graph_by_hand(wrong))
    with pytest.raises(ExportError, match="does not say the same"):
        export(model, tmp_path / "m.onnx", trust=True)
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_a_graph_that_does_not_run_is_not_written(model: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(exporting.onnx_file, "to_onnx", lambda program: graph_by_hand(seeded(channels=2)))
    with pytest.raises(ExportError, match="does not run"):
        export(model, tmp_path / "m.onnx", trust=True)
    assert os.listdir(tmp_path) == ["model.safetensors"]


@pytest.mark.usefixtures("handmade")
@pytest.mark.parametrize("method", ["minmax", "percentile"])
def test_8_bits_are_measured_on_images_held_apart(model: Path, tmp_path: Path, method, capsys) -> None:
    folder = pictures(tmp_path / "in", 4)
    code = main(
        ["export", "-m", str(model), "-o", str(tmp_path / "m.onnx"), "--trust", "--int8", "--calibrate-with",
         str(folder), "--calibration", method]
    )  # fmt: skip
    assert code == 0
    assert "int8 against float" in capsys.readouterr().out
    said = header_of(tmp_path / "m.onnx")["export"]["int8"]
    assert said["method"] == method
    # Two images held apart, of 2 x 2 windows each.
    assert said["agreement"]["windows"] == 8
    network, _ = load_network(tmp_path / "m.onnx")
    image = torch.rand(2, 3, 16, 16)
    found, expected = network(image).logits, seeded()(image).logits
    # The one layer is first and last: in 8 bits, or in floats where that agrees better.
    assert (found - expected).abs().max() < 0.2
    assert said["agreement"]["equal"] > 0.9


@pytest.mark.usefixtures("handmade")
def test_calibration_wants_two_images(model: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="two or more"):
        export(model, tmp_path / "m.onnx", calibration=Calibration(pictures(tmp_path / "in", 1)), trust=True)
    assert not (tmp_path / "m.onnx").exists()


# torch's exporter -------------------------------------------------------------------------------------------------


def small(ndim: int, **more: object) -> EncoderDecoder:
    torch.manual_seed(0)
    encoder = {"name": "plain", "widths": [4, 6], "blocks": 1}
    return EncoderDecoder(3 if ndim == 2 else 1, 3, ndim, encoder=encoder, **more).eval()  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ndim", "more"),
    [
        (2, {"attention": "eca"}),
        (2, {"attention": "cbam", "fusion": "attention_gate", "deep_supervision": True}),
        (3, {"attention": "se"}),
    ],
)
def test_unets_of_any_batch_and_size(tmp_path: Path, capfd, ndim: int, more: dict) -> None:
    network = small(ndim, **more)
    described = describe((32, 24)) if ndim == 2 else describe((12, 16, 8), ("T1",), orientation="RAS")
    model = save(tmp_path / "m.safetensors", network, described)
    assert main(["export", "-m", str(model), "-o", str(tmp_path / "m.onnx")]) == 0
    out = capfd.readouterr()
    assert out.err == ""
    assert "any number of images of any size" in out.out
    assert str(Path.cwd()).encode() not in (tmp_path / "m.onnx").read_bytes()
    exported, _ = load_network(tmp_path / "m.onnx")
    for shape in ((1, *(16,) * ndim), (5, *(17, 20, 9)[:ndim]), (2, *(40, 40, 12)[:ndim])):
        image = torch.rand(shape[0], network.in_channels, *shape[1:])
        with torch.inference_mode():
            torch.testing.assert_close(exported(image).logits, network(image).logits, atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_a_network_in_8_bits_is_smaller(tmp_path: Path) -> None:
    network = EncoderDecoder(3, 3, 2, encoder={"name": "plain", "widths": [16, 32], "blocks": 2}).eval()
    model = save(tmp_path / "m.safetensors", network, describe((32, 32)))
    folder = pictures(tmp_path / "in", 4, 64)
    export(model, tmp_path / "float.onnx")
    done = export(model, tmp_path / "int8.onnx", calibration=Calibration(folder))
    sizes = [(tmp_path / f"{name}.onnx").stat().st_size for name in ("float", "int8")]
    assert sizes[1] < 0.6 * sizes[0]
    assert done.agreement is not None
    assert done.agreement.equal > 0.9
