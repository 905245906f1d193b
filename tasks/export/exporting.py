"""From a model file to an exported one, which is written where it says the same as the network, and not else."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from datamodules.atomic import atomic_path
from models.interfaces import Segmenter
from tasks.batch.hashes import sha256
from tasks.export import int8, onnx_file, views
from tasks.export.errors import ExportError
from tasks.export.int8 import Agreement, Method
from tasks.export.onnx_network import SUFFIX as ONNX
from tasks.export.onnx_network import OnnxNetwork
from tasks.export.parity import Check, Function, check, other_size, random_windows
from tasks.export.traced import Sizes, check_exportable, first_line, heeds_missing, quiet, trace, window_size
from tasks.model_file import HEADER, Description, load_model

if TYPE_CHECKING:
    import onnx

TORCH = ".pt2"
# By how much logits may differ, as a share of the largest one.
TOLERANCE = 1e-3
# Windows of an image that is checked with.
_CHECKED = 8


@dataclass(frozen=True)
class Calibration:
    """What 8-bit ranges are found with.

    Attributes:
        folder: of images; every second one is held apart to measure on.
        method: how ranges are found.
        images: how many are read at most.
        windows: of each image at most.
    """

    folder: str | Path
    method: Method = "percentile"
    images: int = 16
    windows: int = 8


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: the file.
        sizes: what sizes of images it takes: any, or those of the patch alone.
        why_patch: why it does not take any size, if so.
        checks: against the network it was made of.
        agreement: of the 8-bit network with the float one, on images that were not calibrated with.
        kept: the layers that stay in floats.
    """

    path: Path
    sizes: Sizes
    why_patch: str
    checks: tuple[Check, ...]
    agreement: Agreement | None = None
    kept: tuple[str, ...] = ()


@dataclass
class _Attempt:
    """A graph of which the checks have passed."""

    sizes: Sizes
    checks: list[Check]
    program: torch.export.ExportedProgram
    graph: Any = None
    why_patch: str = field(default="")


def export(
    model: str | Path,
    output: str | Path,
    check_with: str | Path | None = None,
    calibration: Calibration | None = None,
    tolerance: float = TOLERANCE,
    trust: bool = False,
) -> Exported:
    """Export a model file; the suffix of ``output`` chooses ONNX (``.onnx``) or torch.export (``.pt2``).

    Args:
        model: a ``model.safetensors``.
        output: what to write. It appears whole or not at all.
        check_with: an image to check with, besides random ones.
        calibration: what to find 8-bit ranges with; floats are kept when not given.
        tolerance: by how much logits may differ, as a share of the largest one.
        trust: load a model whose class is not ours.

    Raises:
        ModelFileError: the model cannot be used.
        ExportError: it cannot be exported, or what was exported does not say the same.
        DataError: an image cannot be read.
    """
    target = Path(output)
    if target.suffix not in (ONNX, TORCH):
        raise ExportError(f"{output}: name it .onnx for ONNX or .pt2 for torch.export; the suffix chooses")
    if calibration is not None and target.suffix != ONNX:
        raise ExportError(f"{output}: 8-bit networks are written as ONNX; name it .onnx")
    if target.suffix == ONNX:
        onnx_file.require_onnx("the export to ONNX")
    if not tolerance > 0:
        raise ExportError(
            f"tolerance {tolerance:g} is not usable; give a number over 0, such as {TOLERANCE:g}"
        )
    network, description = load_model(model, trust)
    try:
        check_exportable(network)
        real = None if check_with is None else views.windows_of(check_with, description, _CHECKED)
        attempt = _attempt(network, description, real, target.suffix, tolerance)
    except ExportError as error:
        raise ExportError(f"{model}: {error}") from error
    said: dict[str, Any] = {
        "model_sha256": sha256(Path(model)),
        "sizes": attempt.sizes,
        "heeds_missing_channels": heeds_missing(network),
        "tolerance": tolerance,
        "checks": [one.to_json() for one in attempt.checks],
        "versions": {name: version(name) for name in ("torch", *_PACKAGES[target.suffix])},
    }
    agreement: Agreement | None = None
    kept: tuple[str, ...] = ()
    if calibration is not None:
        attempt.graph, agreement, kept = _in_8_bits(attempt.graph, description, calibration)
        said["int8"] = {
            "method": calibration.method,
            "float_layers": list(kept),
            "agreement": agreement.to_json(),
        }
    header = {**description.to_json(), "export": said}
    with atomic_path(target) as temporary:
        if target.suffix == ONNX:
            onnx_file.write_onnx(temporary, attempt.graph, header)
        else:
            extra = {f"{HEADER}.json": json.dumps({"format": onnx_file.FORMAT, **header})}
            temporary.write_bytes(_pt2(attempt.program, extra))
    return Exported(target, attempt.sizes, attempt.why_patch, tuple(attempt.checks), agreement, kept)


_PACKAGES = {ONNX: ("onnx", "onnxruntime", "onnxscript"), TORCH: ()}


def _attempt(
    network: Segmenter, description: Description, real: Tensor | None, suffix: str, tolerance: float
) -> _Attempt:
    """For any size where the network allows it; else for the patch alone. Only what was checked is claimed."""
    size = window_size(description.patch)
    why = ""
    ways: tuple[Sizes, ...] = ("any", "patch")
    for sizes in ways:
        try:
            program = trace(network, size, sizes)
            graph = onnx_file.to_onnx(program) if suffix == ONNX else None
            function = _run_onnx(graph) if graph is not None else _run_torch(program)
            checks = _checks(network, function, description, size, sizes, real, tolerance)
            return _Attempt(sizes, checks, program, graph, why)
        except ExportError as error:
            if sizes == "patch":
                raise
            why = str(error)
    raise AssertionError


def _checks(
    network: Segmenter,
    function: Function,
    description: Description,
    size: tuple[int, ...],
    sizes: Sizes,
    real: Tensor | None,
    tolerance: float,
) -> list[Check]:
    """Compare on random windows of the patch's size, alone and together, of another size, and on real ones.

    Raises:
        ExportError: it does not run, or differs by too much.
    """
    channels = network.in_channels
    wanted = [
        ("random", random_windows(channels, size, 1)),
        ("random", random_windows(channels, size, 3, seed=1)),
    ]
    if sizes == "any":
        wanted.append(("random, another size", random_windows(channels, other_size(size), 2, seed=2)))
    if real is not None:
        wanted.append(("image", real))
    found = []
    for name, windows in wanted:
        try:
            one = check(name, lambda x: network(x).logits, function, windows, description.classes.exclusive)
        except Exception as error:  # whatever the runtime says
            raise ExportError(f"what was exported does not run ({name}: {first_line(error)})") from error
        if not one.passes(tolerance):
            raise ExportError(
                f"what was exported does not say the same as the network, so nothing is written ({one}; accepted are "
                f"{tolerance:g} of the largest, and 99.99 %); predict with the model file itself"
            )
        found.append(one)
    return found


def _run_onnx(graph: onnx.ModelProto) -> Function:
    """Run a graph by onnxruntime."""
    if graph.ByteSize() > onnx_file.MAX_BYTES:
        raise ExportError("the network is larger than the 2 GiB that an ONNX file can hold; export to .pt2")
    try:
        network = OnnxNetwork(graph.SerializeToString())
    except ValueError as error:
        raise ExportError(str(error)) from error
    return lambda windows: network(windows).logits


def _run_torch(program: torch.export.ExportedProgram) -> Function:
    """Run a program as it comes back from a file."""
    with quiet():
        # Not for files of others: reading one can run code.
        module = torch.export.load(io.BytesIO(_pt2(program, {}))).module()
    return lambda windows: module(windows)


def _in_8_bits(
    graph: onnx.ModelProto, description: Description, calibration: Calibration
) -> tuple[onnx.ModelProto, Agreement, tuple[str, ...]]:
    """Quantise, with the outer layers in floats where that agrees better on the images that are calibrated with."""
    seen, apart = (
        [views.windows_of(source, description, calibration.windows) for source in sources]
        for sources in views.divided(calibration.folder, description, calibration.images)
    )
    compared = partial(
        int8.agreement,
        _run_onnx(graph),
        names=description.classes.names,
        exclusive=description.classes.exclusive,
    )
    outer = int8.outer_layers(graph)
    best: tuple[float, onnx.ModelProto, Sequence[str]] | None = None
    for keep in ([], outer) if outer else ([],):
        candidate = int8.quantized(graph, seen, calibration.method, keep)
        equal = compared(_run_onnx(candidate), seen).equal
        if best is None or equal > best[0]:
            best = (equal, candidate, keep)
    assert best is not None
    _, chosen, kept = best
    return chosen, compared(_run_onnx(chosen), apart), tuple(kept)


def _pt2(program: torch.export.ExportedProgram, extra: dict[str, Any]) -> bytes:
    """The content of a file. Not written to it directly: the archive would carry the file's temporary name."""
    content = io.BytesIO()
    with quiet():
        torch.export.save(program, content, extra_files=extra)
    return content.getvalue()
