"""Networks from files: a model file is rebuilt in torch, an exported one is run by onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from tasks.model_file import Description, ModelFileError, load_model

# What computes a network, and the suffix of the files that it reads.
BACKENDS = {"torch": ".safetensors", "onnx": ".onnx"}


def load_network(
    path: str | Path, device: str | None = None, trust: bool = False
) -> tuple[nn.Module, Description]:
    """Load a ``model.safetensors``, or a ``model.onnx`` that ``delineate export`` wrote.

    Args:
        path: the file; its suffix chooses.
        device: where an exported network runs; a CPU when not given. Others are moved later.
        trust: also run the code of a model whose class is not ours.

    Raises:
        ModelFileError: it cannot be used.
        ExportError: what runs exported networks is missing.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".pt2":
        # Reading one unpickles what is in it, and evaluates its text.
        raise ModelFileError(
            f"{path}: is written for torch.export, and never read here, since reading one can run code; give the "
            "model.safetensors, or a model.onnx"
        )
    if is_exported(path):
        from tasks.export.onnx_network import load_onnx

        return load_onnx(path, device)
    return load_model(path, trust)


def is_exported(path: str | Path) -> bool:
    """Whether onnxruntime runs it: attention cannot be read from it, and it is not told of missing channels."""
    return Path(path).suffix.lower() == BACKENDS["onnx"]


def check_backend(backend: str | None, models: Sequence[str | Path]) -> None:
    """Refuse files that the asked-for backend does not read.

    Args:
        backend: of :data:`BACKENDS`; by the files' suffixes when not given.
        models: the files.

    Raises:
        ModelFileError: names the file, and the command that makes the other one.
    """
    for model in models:
        if backend == "onnx" and not is_exported(model):
            made = Path(model).with_suffix(".onnx")
            raise ModelFileError(
                f"{model}: --backend onnx wants an exported model; `delineate export -m {model} -o {made}` makes it"
            )
        if backend == "torch" and is_exported(model):
            raise ModelFileError(
                f"{model}: is run by onnxruntime; leave --backend out, or give the model.safetensors"
            )
