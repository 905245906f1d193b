"""``model.safetensors``: one file that is all a prediction needs.

Tensors, and a JSON header that says the architecture (class path and arguments), the preprocessing, the tile,
the classes, the metrics and where it came from. Nothing is unpickled, and no class is imported but our own
networks, unless the user says so. Tensors that a network took from a file of base weights and never changed stay
in that file, which is named with its hash (docs/decisions/0011-frozen-base-weights.md).
"""

from __future__ import annotations

import importlib
import json
import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from datamodules.atomic import atomic_path
from datamodules.classes import Classes
from datamodules.patch import Patch
from datamodules.preprocessing import Preprocessing
from models.base_weights import Base, digest, find_base
from models.interfaces import Segmenter
from models.meta import without_memory

HEADER = "delineate"
FORMAT = 1
# The only packages whose classes a model file may name.
OWN_PACKAGES = ("models",)


class ModelFileError(ValueError):
    """A model file cannot be used. The message names it, what is wrong, and what to do."""


@dataclass(frozen=True)
class Description:
    """Everything about a trained model but its tensors and architecture.

    Attributes:
        preprocessing: how images are prepared.
        patch: what the network sees at a time.
        tiling: overlap, blend and mirror used when whole images are predicted.
        classes: what its logits mean.
        metrics: scores reached, as logged.
        data: fingerprint of the training data.
        versions: of python and the packages that matter.
        calibration: ``{"temperature": T}``, by which logits are divided before probabilities are given out.
    """

    preprocessing: Preprocessing
    patch: Patch
    classes: Classes
    tiling: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    calibration: dict[str, float] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data, as it stands in the header of a model file and in exported files."""
        return {
            "preprocessing": self.preprocessing.to_json(),
            "patch": self.patch.to_json(),
            "classes": self.classes.to_json(),
            "tiling": self.tiling,
            "metrics": self.metrics,
            "data": self.data,
            "versions": self.versions or versions(),
            "calibration": self.calibration,
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Description:
        """The inverse of :meth:`to_json`; other keys are passed over.

        Raises:
            ValueError: (or KeyError, TypeError, AttributeError) something is missing or not usable.
        """
        description = cls(
            preprocessing=Preprocessing.from_json(plain["preprocessing"]),
            patch=Patch(**plain["patch"]),
            classes=Classes.from_json(plain["classes"]),
            **{name: plain[name] for name in ("tiling", "metrics", "data", "versions", "calibration")},
        )
        temperature = (description.calibration or {}).get("temperature", 1.0)
        if not (isinstance(temperature, int | float) and 0 < temperature < math.inf):
            raise ValueError(f"the temperature is {temperature}, which must be a number over 0")
        return description


def save_model(path: str | Path, network: Segmenter, description: Description) -> None:
    """Write the file, whole or not at all; without what the network still has as its file of base weights has it."""
    cls = type(network)
    state = network.state_dict()
    base = _base_needed(network.base, state)
    header = {
        "format": FORMAT,
        "architecture": {
            "class_path": f"{cls.__module__}.{cls.__qualname__}",
            "arguments": _without_weight_files(network.arguments),
        },
        **description.to_json(),
        "base": None if base is None else base.to_json(),
    }
    if base is not None:
        state = {name: tensor for name, tensor in state.items() if name not in base.tensors}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={HEADER: json.dumps(header)})


def load_model(
    path: str | Path, trust: bool = False, base_folders: Sequence[str | Path] = ()
) -> tuple[Segmenter, Description]:
    """Rebuild the network and its description.

    Args:
        path: a ``model.safetensors`` written by :func:`save_model`.
        trust: also import a class from outside our own packages. Its code will run.
        base_folders: where base weights are looked for, besides the file's own folder and those that
            ``DELINEATE_WEIGHTS`` names. The file says their name and hash, never a path.

    Raises:
        ModelFileError: missing, damaged, a pickle, written by something else, names a foreign class,
            tensors and architecture do not fit, or the base weights are not there.
    """
    file = Path(path)
    header, tensors = _read(file)
    with reading_header(file):
        architecture = header["architecture"]
        description = Description.from_json(header)
        class_path, arguments = (
            str(architecture["class_path"]),
            _without_weight_files(architecture["arguments"]),
        )
        base = None if header.get("base") is None else Base.from_json(header["base"])
    cls = _segmenter_class(class_path, file, trust)
    return _filled(cls, arguments, tensors, file, base, [file.parent, *map(Path, base_folders)]), description


def versions() -> dict[str, str]:
    """Versions of python and of the packages a result depends on."""
    found = {"python": platform.python_version()}
    for package in ("delineate", "torch", "monai", "lightning", "timm"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _read(file: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    if not file.is_file():
        raise ModelFileError(f"{file}: no such file; give the model.safetensors that `delineate fit` wrote")
    with file.open("rb") as stream:
        start = stream.read(9)
    # A safetensors file begins with the length of its header, any 8 bytes, and the header's brace.
    if start[8:] != b"{" and (start[:2] == b"PK" or start[:1] == b"\x80"):
        raise ModelFileError(
            f"{file}: is a pickle (a torch or Lightning checkpoint), whatever its name; pickles can run code and are "
            "not read. Use the model.safetensors beside it"
        )
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelFileError(
            f"{file}: is not a complete safetensors file ({error}); copy it again"
        ) from error
    if HEADER not in metadata:
        raise ModelFileError(
            f"{file}: holds tensors, but was not written by delineate (no {HEADER!r} header)"
        )
    return parse_header(metadata[HEADER], file, FORMAT), tensors


def parse_header(text: str, file: str | Path, accepted: int) -> dict[str, Any]:
    """The header of a model file, or of an exported one, which counts its formats by itself.

    Raises:
        ModelFileError: it is not JSON, or of another format.
    """
    try:
        header = dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise ModelFileError(f"{file}: its header is not valid JSON ({error})") from error
    if header.get("format") != accepted:
        raise ModelFileError(
            f"{file}: has format {header.get('format')}; this version reads format {accepted}"
        )
    return header


@contextmanager
def reading_header(file: str | Path) -> Iterator[None]:
    """What is missing or not usable in a header, inside the block, becomes a :class:`ModelFileError`."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ModelFileError(
            f"{file}: its header is incomplete or wrong ({type(error).__name__}: {error})"
        ) from error


def _segmenter_class(class_path: str, file: Path, trust: bool) -> type[Segmenter]:
    module_name, _, name = class_path.rpartition(".")
    own = module_name.split(".")[0] in OWN_PACKAGES and all(
        part.isidentifier() for part in class_path.split(".")
    )
    if not own and not trust:
        raise ModelFileError(
            f"{file}: names the class {class_path!r}, which is not one of ours; it is not imported. If you know where "
            "the file comes from and want that code to run, pass --trust"
        )
    try:
        cls = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ModelFileError(
            f"{file}: names the class {class_path!r}, which cannot be found ({error})"
        ) from error
    if not (isinstance(cls, type) and issubclass(cls, Segmenter)):
        raise ModelFileError(f"{file}: names {class_path!r}, which is not a segmenter")
    return cls


def _filled(
    cls: type[Segmenter],
    arguments: dict[str, Any],
    tensors: Mapping[str, torch.Tensor],
    file: Path,
    base: Base | None,
    folders: Sequence[Path],
) -> Segmenter:
    """Build without memory first, so that a header cannot ask for more than the file holds."""
    try:
        with without_memory():
            network = cls(**arguments)
    except (TypeError, ValueError) as error:
        raise ModelFileError(f"{file}: its architecture cannot be built ({error})") from error
    if base is not None:
        tensors = {**_from_base(network, base, file, folders), **tensors}
    wanted = {name: tuple(t.shape) for name, t in network.state_dict().items()}
    found = {name: tuple(t.shape) for name, t in tensors.items()}
    if wanted != found:
        different = sorted(n for n in wanted.keys() | found.keys() if wanted.get(n) != found.get(n))
        raise ModelFileError(f"{file}: tensors and architecture do not fit: {', '.join(different[:5])}")
    network.load_state_dict(dict(tensors), strict=True, assign=True)
    if any(b.is_meta for b in network.buffers()):
        # Buffers that are not saved are computed by the constructor: build again, now that sizes are known.
        network = cls(**arguments)
        network.load_state_dict(dict(tensors), strict=True)
    network.base = base
    return network.eval()


def _base_needed(base: Base | None, state: Mapping[str, torch.Tensor]) -> Base | None:
    """``base`` with the tensors that may stay in its file; None where that is less than half of the network, which
    is then worth more in one piece.
    """
    if base is None:
        return None
    unchanged = base.unchanged(state)
    if 2 * sum(state[name].nbytes for name in unchanged) < sum(t.nbytes for t in state.values()):
        return None
    return Base(base.file, base.sha256, {n: value for n, value in base.tensors.items() if n in unchanged})


def _from_base(
    network: Segmenter, base: Base, file: Path, folders: Sequence[Path]
) -> dict[str, torch.Tensor]:
    """The tensors that ``file`` leaves to its base weights, each compared with what it was when it was left out."""
    try:
        source = find_base(base, folders)
        found = network.base_tensors(source)
    except ValueError as error:
        raise ModelFileError(f"{file}: {error}") from error
    wrong = [
        name for name, known in base.tensors.items() if name not in found or digest(found[name]) != known
    ]
    if wrong:
        raise ModelFileError(
            f"{file}: {source} does not give the tensors it was trained with: {', '.join(wrong[:5])}; the file was "
            "written by another version, or its header was changed"
        )
    return {name: found[name] for name in base.tensors}


def _without_weight_files(value: Any) -> Any:
    """Drop names of pretrained weights: the tensors are in the file, and a header may not make us read others."""
    if isinstance(value, Mapping):
        return {k: _without_weight_files(v) for k, v in value.items() if k != "weights"}
    if isinstance(value, list | tuple):
        return [_without_weight_files(v) for v in value]
    return value
