"""Named configurations of each segmenter: the numbers live in the YAML files of this folder, not in code."""

from importlib.resources import files
from typing import Any

import yaml


def read_preset(model: str, name: str) -> dict[str, Any]:
    """Return the constructor arguments of preset ``name`` of the class ``model``.

    Raises:
        KeyError: there is no such preset; the message lists those there are.
    """
    file = files(__name__) / f"{model}.yaml"
    presets: dict[str, dict[str, Any]] = yaml.safe_load(file.read_text("utf-8")) if file.is_file() else {}
    if name not in presets:
        raise KeyError(f"{model} has no preset {name!r}; it has: {', '.join(sorted(presets)) or 'none'}")
    return dict(presets[name])
