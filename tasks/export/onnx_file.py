"""ONNX files that are all a prediction needs: written with the model's description, read with suspicion."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datamodules.errors import DataError
from datamodules.guard import local_file
from tasks.export.errors import ExportError
from tasks.export.traced import INPUT, OUTPUT, quiet
from tasks.model_file import HEADER, Description, ModelFileError, parse_header, reading_header

if TYPE_CHECKING:
    import onnx
    import torch

FORMAT = 1
# Known to onnxruntime 1.20 and all later ones.
OPSET = 20
# What a protobuf message can hold; tensors outside of the file are neither written nor read.
MAX_BYTES = 2**31 - 1
_NEEDS = "needs the packages onnx and onnxruntime: pip install 'delineate[onnx]'"
_WRITE_AGAIN = "write it again with `delineate export`"


def require_onnx(what: str) -> None:
    """Say what to install where it is missing.

    Raises:
        ExportError: onnx, onnxruntime or (for exports) onnxscript is not there.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise ExportError(f"{what} {_NEEDS} ({error})") from error


def to_onnx(program: torch.export.ExportedProgram) -> onnx.ModelProto:
    """A traced network as an ONNX graph with the input ``image`` and the output ``logits``.

    Raises:
        ExportError: the exporter does not know an operation.
    """
    import torch

    from tasks.export.traced import first_line

    try:
        with quiet():
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                verbose=False,
            )
            assert exported is not None
            graph = exported.model_proto
    except ImportError as error:
        raise ExportError(f"the export {_NEEDS} ({error})") from error
    except Exception as error:  # the exporter names no kind of error for this
        raise ExportError(f"the ONNX exporter cannot take the network ({first_line(error)})") from error
    _strip(graph)
    return graph


def write_onnx(path: Path, graph: onnx.ModelProto, header: dict[str, Any]) -> None:
    """Write a graph with its header; the caller sees to it that the file appears whole.

    Raises:
        ExportError: it is larger than an ONNX file can be.
    """
    set_header(graph, header)
    if graph.ByteSize() > MAX_BYTES:
        raise ExportError(
            "the network is larger than the 2 GiB that an ONNX file can hold; export to .pt2, or predict with the "
            "model file itself"
        )
    path.write_bytes(graph.SerializeToString())


def set_header(graph: onnx.ModelProto, header: dict[str, Any]) -> None:
    """Put the header into ``metadata_props``, in the place of what is there."""
    del graph.metadata_props[:]
    entry = graph.metadata_props.add()
    entry.key, entry.value = HEADER, json.dumps({"format": FORMAT, **header})


def read_onnx(path: str | Path) -> tuple[bytes, dict[str, Any], Description]:
    """Read and check an exported file, all of it, once: what is checked is what runs.

    Returns:
        The file's content, its header, and the description in it.

    Raises:
        ModelFileError: it is missing, damaged, too large, was not written by delineate, refers to other files, or
            names operators of other libraries.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        file = local_file(path)
        if file.stat().st_size > MAX_BYTES:
            raise ModelFileError(
                f"{path}: is larger than the 2 GiB that an ONNX file can hold; {_WRITE_AGAIN}"
            )
        content = file.read_bytes()
    except (OSError, DataError) as error:
        raise ModelFileError(str(error) if isinstance(error, DataError) else f"{path}: {error}") from error
    graph = onnx.ModelProto()
    try:
        graph.ParseFromString(content)
    except (DecodeError, RuntimeError, ValueError) as error:
        raise ModelFileError(
            f"{path}: is not a complete ONNX file; copy it again, or {_WRITE_AGAIN}"
        ) from error
    said = {entry.key: entry.value for entry in graph.metadata_props}
    if HEADER not in said:
        raise ModelFileError(
            f"{path}: is no ONNX file that delineate wrote (no {HEADER!r} in its metadata); {_WRITE_AGAIN}"
        )
    header = parse_header(said[HEADER], path, FORMAT)
    with reading_header(path):
        description = Description.from_json(header)
    _check_closed(path, graph)
    return content, header, description


def _check_closed(path: str | Path, graph: onnx.ModelProto) -> None:
    """Refuse what reaches out of the file, and code that is not ONNX's own."""
    own = {(function.domain, function.name) for function in graph.functions}
    for message in _messages(graph):
        kind = message.DESCRIPTOR.name
        # Also what onnxruntime takes as an address in memory is said in this way.
        if kind == "TensorProto" and (message.external_data or message.data_location):
            raise ModelFileError(
                f"{path}: keeps tensors in other files, which are not read; {_WRITE_AGAIN}, which puts all into one"
            )
        if kind == "NodeProto" and message.domain not in ("", "ai.onnx"):
            if (message.domain, message.op_type) in own:
                continue
            raise ModelFileError(
                f"{path}: wants the operator {message.domain}:{message.op_type} of another library, which is not "
                f"loaded; {_WRITE_AGAIN}"
            )


def _messages(root: Any) -> Iterator[Any]:
    """A message and all messages inside it, however deep."""
    waiting = [root]
    while waiting:
        message = waiting.pop()
        yield message
        for field, value in message.ListFields():
            if field.message_type is None:
                continue
            waiting.extend([value] if hasattr(value, "ListFields") else value)


def _strip(graph: onnx.ModelProto) -> None:
    """Take out what the exporter says of its own work: it names files of the machine on which it ran."""
    for message in _messages(graph):
        message.ClearField("doc_string") if "doc_string" in message.DESCRIPTOR.fields_by_name else None
        message.ClearField(
            "metadata_props"
        ) if "metadata_props" in message.DESCRIPTOR.fields_by_name else None
