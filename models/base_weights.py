"""Weights that a network began with and still has: they stay in the file they came from."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.errors import ModelError

# Folders with weight files, separated as in PATH.
VARIABLE = "DELINEATE_WEIGHTS"


@dataclass(frozen=True)
class Base:
    """A weight file, and what a network took from it as it is.

    Attributes:
        file: its name, without folders.
        sha256: of its content.
        tensors: name in the network's ``state_dict`` ``->`` :func:`digest` of the tensor that came from the file.
    """

    file: str
    sha256: str
    tensors: Mapping[str, str]

    def unchanged(self, state: Mapping[str, Tensor]) -> set[str]:
        """Which tensors of ``state`` are still those of the file, bit for bit."""
        return {
            name for name, known in self.tensors.items() if name in state and digest(state[name]) == known
        }

    def to_json(self) -> dict[str, Any]:
        """Plain data, as it stands in the header of a model file."""
        return {"file": self.file, "sha256": self.sha256, "tensors": dict(self.tensors)}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Base:
        """The inverse of :meth:`to_json`.

        Raises:
            ValueError: (or KeyError, TypeError, AttributeError) something is missing, or the file's name is a path.
        """
        file, sha256 = plain["file"], plain["sha256"]
        if not is_name(file):
            raise ValueError(
                f"the base weights are named {file!r}, which is not the name of a file without folders"
            )
        tensors = {str(name): str(value) for name, value in plain["tensors"].items()}
        return cls(file, str(sha256), tensors)


def base_of(file: Path, tensors: Mapping[str, Tensor]) -> Base:
    """The :class:`Base` of a network that took ``tensors`` from ``file``."""
    return Base(file.name, sha256_of(file), {name: digest(t) for name, t in sorted(tensors.items())})


def digest(tensor: Tensor) -> str:
    """Of dtype, shape and values; how they lie in memory does not matter."""
    plain = tensor.detach().cpu().contiguous()
    seen = hashlib.sha256(f"{plain.dtype} {tuple(plain.shape)}".encode())
    seen.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return seen.hexdigest()[:32]


def sha256_of(file: Path) -> str:
    """Of the whole content."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def is_name(name: object) -> bool:
    """Whether this names a file and nothing else: no folder, drive, address, parent or hidden file."""
    return (
        isinstance(name, str)
        and 0 < len(name) <= 255
        and name.isprintable()
        and not name.startswith(".")
        and not set(name) & set('/\\:*?"<>|')
    )


def weight_folders() -> list[Path]:
    """The folders that the environment variable names."""
    return [Path(folder) for folder in os.environ.get(VARIABLE, "").split(os.pathsep) if folder]


def weight_file(given: str) -> Path:
    """The file that a configuration names: a path, or a name that lies in one of :func:`weight_folders`.

    Raises:
        ModelError: there is no such file.
    """
    for candidate in (Path(given), *(folder / given for folder in weight_folders() if is_name(given))):
        if candidate.is_file():
            return candidate
    raise ModelError(
        f"weights: {given} is not a file; give a path, or the name of a file in a folder that {VARIABLE} names"
    )


def find_base(base: Base, folders: Iterable[Path]) -> Path:
    """The file of ``base`` in one of ``folders``, known by its hash.

    Raises:
        ModelError: none of the folders has it; the message says what to do.
    """
    looked: Sequence[Path] = list(dict.fromkeys([*folders, *weight_folders()]))
    others = []
    for folder in looked:
        file = folder / base.file
        if file.is_file():
            if sha256_of(file) == base.sha256:
                return file
            others.append(str(file))
    found = f" ({', '.join(others)}: the name is right, the content is another)" if others else ""
    raise ModelError(
        f"needs the weights it was trained from, {base.file} (sha256 {base.sha256[:12]}...), which are not in "
        f"{', '.join(map(str, looked))}{found}; put the file there, or set {VARIABLE} to its folder"
    )
