"""What made a mask, as JSON beside it. Nothing about a patient, and no path of a machine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from datamodules.classes import Classes
from datamodules.errors import DataError
from datamodules.geometry import Geometry
from tasks.model_file import versions
from tasks.products.written import whole

SUFFIX = ".sidecar.json"
FORMAT = 1


def write_sidecar(
    path: str | Path,
    output: str | Path,
    geometry: Geometry,
    classes: Classes,
    *,
    model_sha256: str,
    input_sha256: str,
    settings: Mapping[str, Any] | None = None,
    products: Sequence[str | Path] = (),
) -> None:
    """Write what is needed to tell later how a mask came about.

    Only what stands in the arguments is written, never a header of the image. Of files only the names are.

    Args:
        path: a ``.json``, as a rule the mask's name with :data:`SUFFIX` behind it.
        output: the mask.
        geometry: of the mask.
        classes: what its values mean.
        model_sha256: hash of the model file.
        input_sha256: hash of the image, as ``status.csv`` has it.
        settings: how the mask was made: numbers, truth values, short texts, and lists and mappings of them.
        products: what else was made of the mask.

    Raises:
        DataError: a setting is an absolute path or is no plain data, or the file cannot be written.
    """
    described = {
        "format": FORMAT,
        "output": Path(output).name,
        "products": [Path(product).name for product in products],
        "model_sha256": model_sha256,
        "input_sha256": input_sha256,
        "versions": versions(),
        "classes": classes.to_json(),
        "geometry": {
            "shape": list(geometry.shape),
            "spacing": list(geometry.spacing),
            "frame": geometry.frame,
            "affine": geometry.affine.tolist(),
        },
        "settings": _plain("settings", settings or {}),
        "use": "research only",
    }
    with whole(path) as temporary:
        temporary.write_text(
            json.dumps(described, indent=2, ensure_ascii=False, allow_nan=False), encoding="utf-8"
        )


def _plain(name: str, value: Any) -> Any:
    """The value, if it is plain data that names no place on a machine."""
    if isinstance(value, Mapping):
        return {str(key): _plain(f"{name}.{key}", item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(f"{name}[{i}]", item) for i, item in enumerate(value)]
    if isinstance(value, str):
        if (
            PurePosixPath(value).is_absolute()
            or PureWindowsPath(value).is_absolute()
            or value.startswith("~")
        ):
            raise DataError(
                f"{name} is an absolute path, which a sidecar does not tell; give the file's name or a hash"
            )
        return value
    if (
        value is None
        or isinstance(value, bool | int)
        or (isinstance(value, float) and abs(value) < float("inf"))
    ):
        return value
    raise DataError(
        f"{name} is a {type(value).__name__}; a sidecar holds finite numbers, texts, lists and mappings"
    )
