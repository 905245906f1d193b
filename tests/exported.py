"""The smallest network that is exported in a second, shared by the tests of exports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datamodules import Classes
from datamodules.patch import Patch
from datamodules.preprocessing import Preprocessing
from models.interfaces import Output, Prompts, Segmenter
from models.layers import conv
from tasks.model_file import Description, save_model

CLASSES = Classes({"background": 0, "organ": 3, "lesion": 7})
RGB = ("red", "green", "blue")


class OneLayer(Segmenter):
    """A convolution of 3. Only with --trust is it built from a model file."""

    def __init__(self, in_channels: int, num_classes: int, ndim: int = 2) -> None:
        super().__init__()
        self.in_channels, self.num_classes, self.ndim = in_channels, num_classes, ndim
        self.layer = conv(ndim, in_channels, num_classes)

    def encode(self, image: Tensor) -> list[Tensor]:
        return [image]

    def decode(self, features: list[Tensor], size: Sequence[int], prompts: Prompts | None = None) -> Output:
        return Output(self.layer(features[0]))


class Told(OneLayer):
    """Adds one where a channel is missing."""

    def encode_lacking(self, image: Tensor, present: Tensor) -> list[Tensor]:
        return [image + (~present).float()[:, :, None, None]]


class ByBatch(OneLayer):
    """Says something else of an image that is alone, which no graph can know."""

    def decode(self, features: list[Tensor], size: Sequence[int], prompts: Prompts | None = None) -> Output:
        scale = 2.0 if not torch.compiler.is_exporting() else 1.0
        return Output(self.layer(features[0]) * scale)


class OneSize(OneLayer):
    """Takes images of 16 x 16 alone."""

    def encode(self, image: Tensor) -> list[Tensor]:
        if image.shape[2] != 16 or image.shape[3] != 16:
            raise ValueError("16 x 16 alone")
        return [image]


def describe(
    size: Sequence[int] = (16, 16), channels: Sequence[str] = RGB, classes: Classes = CLASSES, **more: object
) -> Description:
    preprocessing = Preprocessing(channels=tuple(channels), normalization="range", **more)  # type: ignore[arg-type]
    return Description(
        preprocessing,
        Patch(size),
        classes,
        {"overlap": 0.25, "blend": "gaussian", "mirror": []},
        metrics={"val/dice": 0.5},
        data={"name": "synthetic"},
        calibration={"temperature": 1.5},
    )


def save(path: Path, network: Segmenter, description: Description) -> Path:
    save_model(path, network.eval(), description)
    return path


def seeded(cls: type[OneLayer] = OneLayer, channels: int = 3, classes: int = 3, ndim: int = 2) -> Segmenter:
    torch.manual_seed(0)
    return cls(channels, classes, ndim).eval()


def convolved(image: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """What :class:`OneLayer` computes of ``(C, *S)`` with zeros around it, in numpy."""
    padded = np.pad(image.astype(np.float64), [(0, 0), *[(1, 1)] * (image.ndim - 1)])
    out = np.zeros((len(weight), *image.shape[1:]))
    for place in np.ndindex(weight.shape[2:]):
        window = padded[
            (slice(None), *(slice(p, p + n) for p, n in zip(place, image.shape[1:], strict=True)))
        ]
        out += np.tensordot(weight[(slice(None), slice(None), *place)].astype(np.float64), window, axes=1)
    return out + bias.reshape(-1, *(1,) * (image.ndim - 1))


def by_hand(
    path: Path, network: OneLayer, description: Description, heeds_missing: bool = False, **header: object
) -> Path:
    """The ONNX file of a :class:`OneLayer`, written without torch's exporter."""
    from tasks.export.onnx_file import write_onnx

    said = {**description.to_json(), "export": {"heeds_missing_channels": heeds_missing}, **header}
    write_onnx(path, graph_by_hand(network), said)
    return path


def graph_by_hand(network: OneLayer, **names: str) -> object:
    """A graph of one Conv. ``names`` calls ``image`` or ``logits`` otherwise."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    image, logits = names.get("image", "image"), names.get("logits", "logits")
    space = [f"n{axis}" for axis in range(network.ndim)]
    weights = [
        numpy_helper.from_array(tensor.detach().numpy(), name)
        for name, tensor in network.layer.named_parameters()
    ]
    node = helper.make_node(
        "Conv", [image, "weight", "bias"], [logits], name="only", pads=[1] * 2 * network.ndim
    )
    graph = helper.make_graph(
        [node],
        "one layer",
        [helper.make_tensor_value_info(image, TensorProto.FLOAT, ["batch", network.in_channels, *space])],
        [helper.make_tensor_value_info(logits, TensorProto.FLOAT, ["batch", network.num_classes, *space])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return model
