"""What the viewer was started with. The same for everybody on one server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """How ``delineate view`` was called.

    Attributes:
        data_root: images below it can be opened; nothing outside of it.
        models: folders with model files.
        output: where masks of whole folders go.
        upload_mb: the largest upload, in MB.
        device: where models run; a GPU where there is one, when None.
    """

    data_root: Path | None = None
    models: tuple[Path, ...] = ()
    output: Path | None = None
    upload_mb: int = 1024
    device: str | None = None


_chosen = Options()


def use(options: Options) -> None:
    """Make these the options of this process."""
    global _chosen
    _chosen = options


def current() -> Options:
    """The options of this process."""
    return _chosen
