"""One person asks a promptable network for objects of an image: encoded once, decoded at every click.

Knows of no viewer. Everything loads lazily: importing this package imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.interactive.embeddings import EmbeddingCache
    from tasks.interactive.model import PromptModel, is_promptable, load_prompt_model
    from tasks.interactive.session import InteractiveSession

__all__ = ["EmbeddingCache", "InteractiveSession", "PromptModel", "is_promptable", "load_prompt_model"]

_LAZY = {
    "EmbeddingCache": "embeddings",
    "InteractiveSession": "session",
    "PromptModel": "model",
    "is_promptable": "model",
    "load_prompt_model": "model",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(f"tasks.interactive.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'tasks.interactive' has no attribute {name!r}")
