"""All objects of an image, unasked: a promptable network is asked at a grid of points, window by window."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.instances.automatic import automatic_masks
    from tasks.instances.everything import Everything

__all__ = ["Everything", "automatic_masks"]

_LAZY = {"Everything": "everything", "automatic_masks": "automatic"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(f"tasks.instances.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'tasks.instances' has no attribute {name!r}")
