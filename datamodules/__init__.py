"""Images of every kind behind one contract, and the datamodules that train on them.

``open_image`` and ``save_mask`` are the two doors; the datamodules load lazily, since they need the trainer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from datamodules.classes import IGNORE, Class, Classes
from datamodules.errors import DataError
from datamodules.geometry import Geometry
from datamodules.image import Image
from datamodules.open import open_image, save_mask

if TYPE_CHECKING:
    from datamodules.folder import Folder
    from datamodules.mri import MRI
    from datamodules.satellite import Satellite
    from datamodules.segmentation import SegmentationData
    from datamodules.xray import XRay

__all__ = [
    "IGNORE",
    "MRI",
    "Class",
    "Classes",
    "DataError",
    "Folder",
    "Geometry",
    "Image",
    "Satellite",
    "SegmentationData",
    "XRay",
    "open_image",
    "save_mask",
]

_LAZY = {
    "MRI": "mri",
    "XRay": "xray",
    "Satellite": "satellite",
    "Folder": "folder",
    "SegmentationData": "segmentation",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(f"datamodules.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'datamodules' has no attribute {name!r}")
