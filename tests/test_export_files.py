"""What is read of an ONNX file, and what is refused: an exported file is somebody else's data."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from tasks.export.errors import ExportError
from tasks.model_file import HEADER, ModelFileError
from tasks.networks import check_backend, load_network
from tests.exported import by_hand, describe, graph_by_hand, save, seeded

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    return by_hand(tmp_path / "model.onnx", seeded(), describe())


def changed(file: Path, change: object) -> Path:
    """Parse, let ``change`` have its way, and write."""
    model = onnx.load(file)
    change(model)
    file.write_bytes(model.SerializeToString())
    return file


def header(file: Path, **fields: object) -> Path:
    """Set fields of the header; None takes one away."""

    def change(model: object) -> None:
        said = json.loads(model.metadata_props[0].value)
        model.metadata_props[0].value = json.dumps(
            {k: v for k, v in {**said, **fields}.items() if v is not None}
        )

    return changed(file, change)


def refused(file: Path) -> str:
    with pytest.raises((ModelFileError, ExportError)) as caught:
        load_network(file)
    said = str(caught.value)
    assert str(file) in said
    assert "\n" not in said
    return said


def test_the_description_comes_back_as_it_went_in(exported: Path) -> None:
    described = describe()
    _, read = load_network(exported)
    assert read.to_json() == {**described.to_json()}
    assert read.calibration == {"temperature": 1.5}
    assert read.classes.names == described.classes.names


def test_logits_are_those_of_torch_for_any_batch_and_size(exported: Path) -> None:
    network, _ = load_network(exported)
    for shape in ((1, 3, 16, 16), (5, 3, 16, 16), (2, 3, 21, 9)):
        image = torch.rand(shape, generator=torch.Generator().manual_seed(1))
        for laid in (image, image.contiguous(memory_format=torch.channels_last), image.flip(3)):
            torch.testing.assert_close(
                network(laid).logits, seeded()(laid).logits.detach(), atol=1e-5, rtol=1e-4
            )


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_file_that_was_cut_off_is_one_sentence(exported: Path, share: float) -> None:
    content = exported.read_bytes()
    exported.write_bytes(content[: int(len(content) * share)])
    refused(exported)


@pytest.mark.parametrize("number", range(20))
def test_a_file_with_a_changed_byte_is_read_or_refused_in_one_sentence(exported: Path, number: int) -> None:
    content = bytearray(exported.read_bytes())
    content[len(content) * number // 20] ^= 0x5A
    exported.write_bytes(bytes(content))
    try:
        network, _ = load_network(exported)
    except (ModelFileError, ExportError):
        refused(exported)
    else:  # a number of a weight, or a letter of a name
        assert network(torch.zeros(1, 3, 16, 16)).logits.shape == (1, 3, 16, 16)


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 a zip", b"\x80\x04 a pickle", b"ORTM" * 9, bytes(99), b"{" * 99, b"\n" * 99]
)
def test_other_content_under_the_name_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(content)
    refused(file)


def test_missing_files_folders_and_pipes_are_refused(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "no.onnx")
    (tmp_path / "folder.onnx").mkdir()
    assert "not a regular file" in refused(tmp_path / "folder.onnx")
    os.mkfifo(tmp_path / "pipe.onnx")
    assert "not a regular file" in refused(tmp_path / "pipe.onnx")


def test_an_onnx_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(graph_by_hand(seeded()).SerializeToString())
    assert "no ONNX file that delineate wrote" in refused(file)


def test_headers_that_say_too_little_or_too_much_are_refused(exported: Path) -> None:
    good = exported.read_bytes()
    for field, value, said in (
        ("format", 2, "has format 2"),
        ("classes", None, "incomplete"),
        ("patch", {"size": [0, 16], "context": 0}, "not usable"),
        ("patch", [16, 16], "incomplete or wrong"),
        ("preprocessing", {"channels": 3}, "incomplete or wrong"),
        ("calibration", {"temperature": -1}, "temperature"),
    ):
        exported.write_bytes(good)
        assert said in refused(header(exported, **{field: value}))
    exported.write_bytes(good)

    def spoil(model: object) -> None:
        model.metadata_props[0].value = "{"

    assert "JSON" in refused(changed(exported, spoil))


def test_a_header_of_another_network_is_refused(exported: Path) -> None:
    good = exported.read_bytes()
    other = describe(channels=("gray",)).to_json()
    assert "with 1 channels" in refused(header(exported, preprocessing=other["preprocessing"]))
    exported.write_bytes(good)
    assert "3 spatial axes" in refused(header(exported, patch={"size": [8, 8, 8], "context": 0}))
    exported.write_bytes(good)
    refused(header(exported, patch={"size": [8, 8, 1], "context": 1}))


@pytest.mark.parametrize("names", [{"image": "picture"}, {"logits": "scores"}])
def test_graphs_with_other_inputs_or_outputs_are_refused(tmp_path: Path, names: dict[str, str]) -> None:
    from tasks.export.onnx_file import write_onnx

    file = tmp_path / "model.onnx"
    write_onnx(file, graph_by_hand(seeded(), **names), describe().to_json())
    assert "its header wants" in refused(file)


@pytest.mark.parametrize("location", ["/etc/hostname", "../weights", "beside.bin", "*/_ORT_MEM_ADDR_/*"])
def test_tensors_in_other_files_are_refused_wherever_they_stand(exported: Path, location: str) -> None:
    (exported.parent / "beside.bin").write_bytes(bytes(4 * 3 * 3 * 9))
    good = exported.read_bytes()

    def outside(tensor: object) -> None:
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", location

    def in_initializer(model: object) -> None:
        outside(model.graph.initializer[0])

    def in_a_constant(model: object) -> None:
        node = model.graph.node.add(op_type="Constant", output=["unused"])
        value = node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR)
        value.t.CopyFrom(model.graph.initializer[0])
        outside(value.t)

    def in_a_branch(model: object) -> None:
        node = model.graph.node.add(op_type="If", input=["weight"], output=["unused"])
        branch = node.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH)
        branch.g.initializer.add().CopyFrom(model.graph.initializer[0])
        outside(branch.g.initializer[0])

    def in_a_sparse_one(model: object) -> None:
        sparse = model.graph.sparse_initializer.add()
        sparse.values.CopyFrom(model.graph.initializer[0])
        outside(sparse.values)

    def in_a_function(model: object) -> None:
        function = model.functions.add(name="f", domain="mine")
        in_a_constant(
            type(
                "Holder",
                (),
                {"graph": type("G", (), {"node": function.node, "initializer": model.graph.initializer})},
            )
        )

    for hide in (in_initializer, in_a_constant, in_a_branch, in_a_sparse_one, in_a_function):
        exported.write_bytes(good)
        assert "other files" in refused(changed(exported, hide)), hide.__name__


@pytest.mark.parametrize("domain", ["ai.onnx.contrib", "com.microsoft", "mine"])
def test_operators_of_other_libraries_are_refused(exported: Path, domain: str) -> None:
    def foreign(model: object) -> None:
        model.graph.node[0].domain = domain
        model.opset_import.add(domain=domain, version=1)

    assert f"{domain}:Conv" in refused(changed(exported, foreign))


def test_nothing_is_said_by_the_runtime_itself(exported: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def nonsense(model: object) -> None:
        model.graph.node[0].op_type = "NoSuchThing"

    refused(changed(exported, nonsense))
    assert capfd.readouterr() == ("", "")


def test_devices(exported: Path) -> None:
    assert load_network(exported, "cpu")[0].session.get_providers() == ["CPUExecutionProvider"]
    for device in ("tpu", "cuda:x", "mps"):
        with pytest.raises(ExportError, match="not known"):
            load_network(exported, device)
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(ExportError, match="onnxruntime-gpu"):
            load_network(exported, "cuda:0")


def test_backends_name_the_command_that_makes_the_other_file(tmp_path: Path, exported: Path) -> None:
    model = save(tmp_path / "model.safetensors", seeded(), describe())
    check_backend(None, [model, exported])
    check_backend("torch", [model])
    check_backend("onnx", [exported])
    with pytest.raises(ModelFileError, match=r"delineate export -m .*model\.safetensors -o .*model\.onnx"):
        check_backend("onnx", [model])
    with pytest.raises(ModelFileError, match="onnxruntime"):
        check_backend("torch", [exported])


def test_a_pt2_is_never_read(tmp_path: Path) -> None:
    file = tmp_path / "model.pt2"
    file.write_bytes(b"whatever")
    assert "can run code" in refused(file)


def test_no_name_of_this_machine_is_in_the_file(exported: Path) -> None:
    assert HEADER.encode() in exported.read_bytes()
    assert str(Path.cwd()).encode() not in exported.read_bytes()
