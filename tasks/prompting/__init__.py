"""Training and measuring networks that are asked for one object at a time, with simulated clicks and boxes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.prompting.task import PromptableTask

__all__ = ["PromptableTask"]


def __getattr__(name: str) -> Any:
    if name == "PromptableTask":
        from tasks.prompting.task import PromptableTask

        return PromptableTask
    raise AttributeError(f"module 'tasks.prompting' has no attribute {name!r}")
