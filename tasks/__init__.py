"""Training, prediction and measuring. Everything loads lazily: importing this package imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.predictor import Predictor, load
    from tasks.segmentation import SegmentationTask
    from tasks.segmented import Prediction

__all__ = ["Prediction", "Predictor", "SegmentationTask", "load"]

_LAZY = {
    "Prediction": "segmented",
    "Predictor": "predictor",
    "SegmentationTask": "segmentation",
    "load": "predictor",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(f"tasks.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'tasks' has no attribute {name!r}")
