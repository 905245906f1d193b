"""A network that onnxruntime computes, and that is called as every other segmenter is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from datamodules.errors import DataError
from models.interfaces import Output, Prompts
from tasks.export.errors import ExportError
from tasks.export.onnx_file import read_onnx, require_onnx
from tasks.export.traced import INPUT, OUTPUT, first_line
from tasks.model_file import Description, ModelFileError

SUFFIX = ".onnx"
_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


class OnnxNetwork(nn.Module):
    """``image -> Output``, by a session of onnxruntime.

    It has no parameters, and so nothing to train or to move; images may lie anywhere.

    Args:
        content: of an ONNX file with the input ``image`` and the output ``logits``.
        heeds_missing: whether the network it was made of wants to be told which channels an image lacks.
        device: ``cpu``, or ``cuda`` with or without a number. A CPU when not given.

    Raises:
        ExportError: onnxruntime cannot use the device.
        ValueError: it cannot use the file.
    """

    def __init__(self, content: bytes, heeds_missing: bool = False, device: str | None = None) -> None:
        super().__init__()
        import onnxruntime

        onnxruntime.disable_telemetry_events()
        options = onnxruntime.SessionOptions()
        # As many as torch has: who limits one limits both.
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        # Everything that goes wrong is raised too.
        options.log_severity_level = 4
        options.add_session_config_entry("session.load_model_format", "ONNX")
        try:
            self.session = onnxruntime.InferenceSession(content, options, providers=_providers(device))
        except ExportError:
            raise
        except Exception as error:  # its errors share no class of their own
            raise ValueError(f"onnxruntime does not take it ({first_line(error)})") from error
        self.heeds_missing = heeds_missing

    def forward(self, image: Tensor, prompts: Prompts | None = None, present: Tensor | None = None) -> Output:
        """``(B, C, *S)`` -> logits, on the image's device.

        Args:
            image: of a size that the graph takes.
            prompts: there is no input for them.
            present: ``(B, C)`` booleans, which channels each image has; all when not given.

        Raises:
            DataError: channels are missing, and the network would have to be told.
        """
        if prompts is not None:
            raise DataError("an exported model takes no prompts; use its model.safetensors")
        if present is not None and self.heeds_missing and not present.all():
            raise DataError(
                "the image lacks channels, and the exported model cannot be told which; predict with the "
                "model.safetensors it was made of"
            )
        inputs = {INPUT: np.ascontiguousarray(image.detach().cpu().numpy(), dtype=np.float32)}
        (logits,) = self.session.run([OUTPUT], inputs)
        return Output(torch.from_numpy(logits).to(image.device))


def load_onnx(path: str | Path, device: str | None = None) -> tuple[OnnxNetwork, Description]:
    """Load an exported model.

    Args:
        path: a ``model.onnx`` that ``delineate export`` wrote.
        device: as for :class:`OnnxNetwork`.

    Raises:
        ModelFileError: it cannot be used.
        ExportError: packages are missing, or onnxruntime cannot use the device.
    """
    require_onnx(f"{path}: an ONNX file")
    content, header, description = read_onnx(path)
    said = header.get("export")
    heeds = isinstance(said, dict) and said.get("heeds_missing_channels") is True
    try:
        network = OnnxNetwork(content, heeds, device)
        _check_signature(network.session, description)
    except ExportError:
        raise
    except ValueError as error:
        raise ModelFileError(
            f"{path}: {error}; copy it again, or write it again with `delineate export`"
        ) from error
    return network, description


def _providers(device: str | None) -> list[Any]:
    """Where to compute, in order of preference."""
    if device is None or device == "cpu":
        return [_CPU]
    import onnxruntime

    kind, _, number = device.partition(":")
    if kind != "cuda" or not (number or "0").isdecimal():
        raise ExportError(f"device {device!r} is not known to exported models; choose cpu, cuda, cuda:1 ...")
    if _CUDA not in onnxruntime.get_available_providers():
        raise ExportError(
            f"device {device!r}: the installed onnxruntime has no CUDA; install onnxruntime-gpu in its place, leave "
            "--device out, or predict with the model.safetensors"
        )
    return [(_CUDA, {"device_id": int(number or 0)}), _CPU]


def _check_signature(session: Any, description: Description) -> None:
    """Compare what goes in and comes out with the description."""
    channels = description.patch.channels(len(description.preprocessing.outputs))
    wanted = (
        ("input", session.get_inputs(), INPUT, channels),
        ("output", session.get_outputs(), OUTPUT, len(description.classes)),
    )
    for what, found, name, count in wanted:
        fits = len(found) == 1 and found[0].name == name and found[0].type == "tensor(float)"
        shape = found[0].shape if fits else []
        if not fits or len(shape) != description.patch.ndim + 2 or shape[1] != count:
            seen = ", ".join(f"{one.name} {one.type} {one.shape}" for one in found)
            raise ValueError(
                f"its {what} is {seen or 'missing'}, where its header wants {name}, float, with {count} channels and "
                f"{description.patch.ndim} spatial axes"
            )
        for axis, have in zip(description.patch.axes, shape[2:], strict=True):
            if isinstance(have, int) and have != description.patch.size[axis]:
                raise ValueError(
                    f"its {what} has the shape {shape}, where its header's patch is {list(description.patch.size)}"
                )
