"""An image that a person opened, and what kind of thing it is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from datamodules.geometry import PIXEL, RAS_MM
from datamodules.image import Image
from datamodules.open import Source, open_image, stem_of
from tasks.batch.hashes import sha256, sha256_of

Kind = Literal["volume", "scene", "picture"]
# What people call them.
KIND_NAMES: dict[Kind, str] = {"volume": "volume", "scene": "map", "picture": "picture"}


@dataclass(eq=False)
class Opened:
    """An image, opened but not read.

    Attributes:
        name: what the person calls it; shown as text, never used as a path.
        image: the image.
        sample: the sample it is, if it is one.
    """

    name: str
    image: Image
    sample: str = ""

    @property
    def kind(self) -> Kind:
        """A volume has three axes, a scene lies on earth, all else is a picture."""
        if self.image.geometry.ndim == 3:
            return "volume"
        return "picture" if self.image.geometry.frame in (PIXEL, RAS_MM) else "scene"

    @property
    def stem(self) -> str:
        """What files made of it are called: its name without folders and suffix, of harmless characters."""
        last = self.name.replace("\\", "/").rsplit("/", 1)[-1]
        kept = "".join(c if c.isalnum() or c in "-_. " else "_" for c in stem_of(last))
        return kept.strip(" .")[:80] or "image"

    @cached_property
    def key(self) -> str:
        """Hash of the content, by which embeddings and the like are kept. Reads the files."""
        return sha256_of([sha256(file) for file in self.image.files])

    @cached_property
    def values(self) -> np.ndarray:
        """``(C, *S)``, all of it in memory; for volumes and pictures, not for scenes.

        Raises:
            DataError: the image is damaged.
        """
        return self.image.read()

    def facts(self) -> list[tuple[str, str]]:
        """What is known of it, as (name, value) pairs in the words of its field."""
        geometry, image = self.image.geometry, self.image
        sizes = " x ".join(str(n) for n in geometry.shape)
        spacing = " x ".join(f"{s:.4g}" for s in geometry.spacing)
        unit = {"volume": "voxels", "scene": "pixels", "picture": "pixels"}[self.kind]
        found = [("Size", f"{sizes} {unit}")]
        if geometry.frame == RAS_MM:
            found.append(("Spacing", f"{spacing} mm"))
        elif self.kind == "scene":
            found += [("Pixel", spacing), ("Reference system", geometry.frame)]
        names = ", ".join(image.channels[:8]) + (" ..." if len(image.channels) > 8 else "")
        found.append(("Channels", f"{len(image.channels)} ({names})"))
        found.append(("Stored as", str(image.dtype)))
        return found


def open_named(source: Source, name: str, sample: str = "", unpack: Path | None = None) -> Opened:
    """Open an image under the name that a person gave it.

    Args:
        source: what it is made of.
        name: its name.
        sample: the sample it is, if it is one.
        unpack: the session's folder, where a compressed volume is kept unpacked: it is read again and again.

    Raises:
        DataError: as :func:`datamodules.open_image`.
    """
    return Opened(name, open_image(source, unpack=unpack), sample)
