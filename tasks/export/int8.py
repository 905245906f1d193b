"""Weights and maps in 8 bits (static quantisation of an ONNX graph), for speed on CPUs, with what it costs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from tasks.export.errors import ExportError
from tasks.export.parity import Function, decided
from tasks.export.traced import INPUT, first_line, quiet

if TYPE_CHECKING:
    import onnx

# How the range of a map is found from what it was on the calibration windows: all of it, or all but the outermost
# hundred-thousandth. (onnxruntime's "entropy", as it can be called, weighs one candidate alone: the whole range.)
Method = Literal["minmax", "percentile"]
METHODS: tuple[str, ...] = get_args(Method)
# What is computed in 8 bits: that for which onnxruntime has kernels that gain, and what only moves values about.
# Norms and activations stay in floats.
_COMPUTED = ("Conv", "MatMul", "Gemm")


@dataclass(frozen=True)
class Agreement:
    """What the 8-bit network says of windows, against the float network.

    Attributes:
        windows: how many windows.
        equal: share of positions with the same class (of classes and positions where classes overlap).
        dice: per class, of the two networks' answers; None where neither draws it.
    """

    windows: int
    equal: float
    dice: dict[str, float | None]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def __str__(self) -> str:
        parts = [f"{name} {'-' if value is None else f'{value:.4f}'}" for name, value in self.dice.items()]
        return (
            f"{100 * self.equal:.3f} % of classes are equal on {self.windows} windows; Dice of the two: "
            f"{', '.join(parts)}"
        )


def agreement(
    reference: Function, other: Function, images: Sequence[Tensor], names: Sequence[str], exclusive: bool
) -> Agreement:
    """Compare two functions on windows.

    Args:
        reference: windows -> logits, in floats.
        other: the same, in 8 bits.
        images: windows ``(B, C, *S)`` per image.
        names: of the classes.
        exclusive: whether each position has one class.
    """
    both, one, other_one = (torch.zeros(len(names), dtype=torch.int64) for _ in range(3))
    equal = total = 0
    for windows in images:
        for window in windows.split(1):
            with torch.inference_mode():
                a, b = decided(reference(window), exclusive), decided(other(window), exclusive)
            equal, total = equal + int((a == b).sum()), total + a.numel()
            for k in range(len(names)):
                in_a, in_b = (a == k, b == k) if exclusive else (a[:, k], b[:, k])
                both[k] += (in_a & in_b).sum()
                one[k] += in_a.sum()
                other_one[k] += in_b.sum()
    sums = (one + other_one).tolist()
    dice = {name: (2 * int(both[k]) / sums[k] if sums[k] else None) for k, name in enumerate(names)}
    return Agreement(sum(map(len, images)), equal / total, dice)


def quantized(
    graph: onnx.ModelProto, windows: Sequence[Tensor], method: Method, keep: Sequence[str] = ()
) -> onnx.ModelProto:
    """The graph with 8-bit weights (a scale per channel) and maps (a scale each).

    Args:
        graph: in floats.
        windows: to calibrate with, ``(B, C, *S)`` per image.
        method: how ranges are found.
        keep: names of nodes that stay in floats.

    Raises:
        ExportError: onnxruntime cannot quantise it.
    """
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    methods = quantization.CalibrationMethod
    with tempfile.TemporaryDirectory(prefix="delineate-") as scratch:
        source, prepared, target = (Path(scratch) / f"{name}.onnx" for name in ("float", "prepared", "int8"))
        onnx.save(graph, source)
        try:
            with quiet():
                # Symbolic shapes are only of use to graphs of transformers.
                quant_pre_process(source, prepared, skip_symbolic_shape=True)
                quantization.quantize_static(
                    prepared,
                    target,
                    _Reader(windows),
                    quant_format=quantization.QuantFormat.QDQ,
                    op_types_to_quantize=list(_COMPUTED),
                    per_channel=True,
                    activation_type=quantization.QuantType.QUInt8,
                    weight_type=quantization.QuantType.QInt8,
                    nodes_to_exclude=list(keep),
                    calibrate_method=methods.MinMax if method == "minmax" else methods.Percentile,
                )
        except Exception as error:  # its errors share no class of their own
            raise ExportError(f"onnxruntime cannot quantise the network ({first_line(error)})") from error
        return onnx.load(target)


def outer_layers(graph: onnx.ModelProto) -> list[str]:
    """The first and the last node that would be computed in 8 bits: image and logits suffer most there."""
    names = [node.name for node in graph.graph.node if node.op_type in _COMPUTED]
    return sorted({names[0], names[-1]}) if names else []


class _Reader:
    """Hands window after window to the calibration; a reader of onnxruntime by its one method."""

    def __init__(self, images: Sequence[Tensor]) -> None:
        self._windows: Iterator[Tensor] = (window for windows in images for window in windows.split(1))

    def get_next(self) -> dict[str, Any] | None:
        """The next window, None behind the last one."""
        window = next(self._windows, None)
        return None if window is None else {INPUT: window.contiguous().numpy()}
