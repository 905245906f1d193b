"""Corrected masks as labels: a folder with ``images/`` and ``masks/``, which training reads as it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from apps.viewer.session.opened import Opened
from datamodules.atomic import atomic_path, write_text
from datamodules.classes import Classes
from datamodules.errors import DataError
from datamodules.guard import inside
from datamodules.open import save_mask, suffix_of

CLASSES_FILE = "classes.json"
# Kind of image -> how its labels are written; each holds a value per class.
_SUFFIX = {"volume": ".nii.gz", "scene": ".tif", "picture": ".png"}


class LabelledFolder:
    """A dataset that grows by one case at a time.

    ``classes.json`` keeps which value each name has, so that a name means the same in every mask.

    Args:
        root: the folder; made when the first case is saved.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def classes(self) -> dict[str, int]:
        """Name -> value, as far as cases were saved.

        Raises:
            DataError: ``classes.json`` is there, but does not hold them.
        """
        file = self.root / CLASSES_FILE
        if not file.is_file():
            return {"background": 0}
        try:
            found = json.loads(file.read_text("utf-8"))["classes"]
            return {str(name): int(value) for name, value in found.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{file}: does not hold classes ({type(error).__name__}: {error}); mend it, or save to another folder"
            ) from error

    def mask_of(self, name: str, kind: str) -> Path:
        """Where the labels of the case of this name lie.

        Raises:
            DataError: the name leads out of the folder.
        """
        return inside(self.root, f"masks/{name}{_SUFFIX[kind]}")

    def holds(self, name: str) -> bool:
        """Whether a case of this name has labels."""
        return any(inside(self.root, f"masks/{name}{suffix}").is_file() for suffix in _SUFFIX.values())

    def save(self, opened: Opened, mask: np.ndarray, classes: Classes) -> str:
        """Write the image and its labels; labels that were there are replaced.

        Args:
            opened: the image, as it is stored.
            mask: ``(*S)`` values of ``classes``.
            classes: names and values; the folder's own values are written.

        Returns:
            The name of the case.

        Raises:
            DataError: too many classes, or there is no room.
        """
        name = case_name(opened)
        known = self.classes
        for one in classes:
            if one.value and one.name not in known:
                known[one.name] = max(known.values()) + 1
        if max(known.values()) > 254:
            raise DataError(f"{self.root}: would hold {max(known.values())} classes; 254 are the most")
        table = np.zeros(int(max(c.value for c in classes)) + 1, dtype=np.uint8)
        for one in classes:
            table[one.value] = known[one.name] if one.value else 0
        target = self.mask_of(name, opened.kind)
        target.parent.mkdir(parents=True, exist_ok=True)
        self._copy(opened, name)
        write_text(self.root / CLASSES_FILE, json.dumps({"classes": known}, indent=1) + "\n")
        save_mask(target, table[mask], opened.image, Classes(known))
        return name

    def _copy(self, opened: Opened, name: str) -> None:
        """The image beside its labels: a file, or a folder of slices or channels."""
        files = [file for file in opened.image.files if file.is_file()]
        channels = opened.image.channels
        if len(files) == 1:
            _copied(files[0], inside(self.root, f"images/{name}{suffix_of(files[0]) or files[0].suffix}"))
            return
        # A file per channel is called by its channel; slices of a series keep their names.
        apart = len(files) == len(channels) and opened.kind != "volume"
        for file, channel in zip(files, channels if apart else [""] * len(files), strict=True):
            called = f"{channel}{suffix_of(file)}" if apart else file.name
            _copied(file, inside(self.root, f"images/{name}/{called}"))


def case_name(opened: Opened) -> str:
    """What a case is called: as its image, with its folder below the data folder."""
    folders = opened.name.replace("\\", "/").split("/")[:-1]
    kept = ["".join(c if c.isalnum() or c in "-_ " else "_" for c in part).strip() for part in folders]
    return "/".join([*[part for part in kept if part], opened.stem])


def _copied(file: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with atomic_path(target) as temporary:
            shutil.copyfile(file, temporary)
    except OSError as error:
        raise DataError(
            f"{target}: cannot be written ({error.strerror}); is there room on the disk?"
        ) from error
