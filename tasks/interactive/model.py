"""A promptable network with what its model file says, and the hash that stands for its weights."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from models.interfaces import Prompts
from tasks.batch.hashes import sha256
from tasks.model_file import HEADER, Description, ModelFileError, load_model
from tasks.prompting.answers import Answer, ask, is_promptable_network

# Changes where the same weights and pixels are no longer encoded to the same.
_FORMAT = "1"


class PromptModel:
    """A network for prompts, ready. Many sessions may share one.

    Args:
        network: draws one object at a time (``prompts: true``), of pictures or slices.
        description: what its model file says.
        device: where it runs; a GPU where there is one, when not given.
        key: hash of its weights; computed from them when not given.

    Raises:
        ModelFileError: the network is not one for prompts.
    """

    def __init__(
        self,
        network: nn.Module,
        description: Description,
        device: str | None = None,
        key: str | None = None,
    ) -> None:
        if not is_promptable_network(network):
            raise ModelFileError(
                f"{type(network).__name__} takes no prompts; train one with the recipe sam_prompt_any, or predict with it"
            )
        if getattr(network, "ndim", 2) != 2:
            raise ModelFileError(
                "a promptable network of volumes (ndim: 3) cannot be asked click by click; train one of slices, which "
                "follows objects through volumes"
            )
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.network: Any = network.to(self.device).eval()
        self.description = description
        self.key = key or _hash(network)

    def key_of(self, pixels: np.ndarray) -> str:
        """What the embedding of a view is kept under: a hash of the weights and of all that the encoder sees."""
        said = hashlib.sha256(f"{_FORMAT} {self.key} {pixels.dtype} {pixels.shape}".encode())
        said.update(np.ascontiguousarray(pixels).data)
        return said.hexdigest()

    def encode(self, pixels: np.ndarray, progress: Callable[[float], None] | None = None) -> list[Tensor]:
        """``(C, H, W)`` as prepared -> features.

        Args:
            pixels: of a view.
            progress: called with the share done, from 0 to 1.
        """
        image = torch.from_numpy(pixels)[None].to(self.device)
        with torch.inference_mode(), _blocks_told(self.network, progress):
            features: list[Tensor] = self.network.encode(image)
        return [map_.clone() for map_ in features]

    def ask(self, features: list[Tensor], size: tuple[int, int], prompts: Prompts | None) -> Answer:
        """Decode once; the answer is on the CPU."""
        with torch.inference_mode():
            said = ask(self.network, [map_.to(self.device) for map_ in features], size, prompts)
        return Answer(said.masks.float().cpu(), said.quality.float().cpu(), said.single.cpu())

    def over_view(self, coarse: Tensor, size: tuple[int, int]) -> Tensor:
        """Coarse logits ``(N, K, h, w)`` -> over the view, ``(N, K, *size)``, float32 on the CPU."""
        with torch.inference_mode():
            found: Tensor = self.network.frame.take(coarse.to(self.device), size)
            return found.float().cpu()


def load_prompt_model(path: str | Path, device: str | None = None, trust: bool = False) -> PromptModel:
    """Load a ``model.safetensors`` of a promptable network.

    Args:
        path: the file.
        device: as for :class:`PromptModel`.
        trust: also run the code of a model whose class is not ours.

    Raises:
        ModelFileError: it cannot be used, or is no network for prompts.
    """
    network, description = load_model(path, trust)
    try:
        return PromptModel(network, description, device, sha256(Path(path)))
    except ModelFileError as error:
        raise ModelFileError(f"{path}: {error}") from error


def is_promptable(path: str | Path) -> bool:
    """Whether a model file is of a promptable network, by its header alone; False where it is no model file."""
    try:
        with safe_open(path, framework="pt") as opened:
            header = json.loads((opened.metadata() or {})[HEADER])
        return bool(header["architecture"]["arguments"].get("prompts", False))
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _hash(network: nn.Module) -> str:
    said = hashlib.sha256(json.dumps(getattr(network, "arguments", {}), default=str, sort_keys=True).encode())
    for name, tensor in sorted(network.state_dict().items()):
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        said.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        said.update(flat.numpy().data)
    return said.hexdigest()


@contextmanager
def _blocks_told(network: Any, progress: Callable[[float], None] | None) -> Iterator[None]:
    """Say after each block of the image encoder how much is done."""
    blocks = list(getattr(getattr(network, "image_encoder", None), "blocks", ()))
    if progress is None:
        yield
        return
    thread, done = threading.get_ident(), 0

    def told(*_: object) -> None:
        nonlocal done
        if threading.get_ident() == thread:  # another session may run the same network
            done += 1
            progress(min(1.0, done / (len(blocks) + 1)))

    hooks = [block.register_forward_hook(told) for block in blocks]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    progress(1.0)
