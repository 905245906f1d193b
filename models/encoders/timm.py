"""Any timm backbone that offers feature maps, in two dimensions."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.errors import ModelError
from models.interfaces import Encoder


class TimmEncoder(Encoder):
    """``timm.create_model(backbone, features_only=True)`` behind the :class:`Encoder` contract.

    Images are padded at the end of each axis to a multiple of the coarsest stride, and the maps are cropped
    back to ``ceil(size / stride)``: any size is accepted, but for backbones that timm builds for one size
    only (most of its ViT, Swin and MaxViT).

    Args:
        in_channels: any number; timm adapts the first layer, of pretrained weights too.
        ndim: 2; timm's backbones are two-dimensional.
        backbone: a name from ``timm.list_models()``.
        weights: None (random), ``pretrained`` (timm's own download) or the path of a weight file in timm's
            format (``.safetensors``, or ``.pth`` which is read without unpickling code).
        levels: which of the backbone's feature maps to use, e.g. ``[0, 1, 2, 3]``; all when not given.

    Raises:
        ValueError: three axes, an unknown backbone, or a weight file that is not there or is not for it.
    """

    def __init__(
        self,
        in_channels: int,
        ndim: int = 2,
        backbone: str = "resnet18",
        weights: str | None = None,
        levels: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        import timm  # Here and below, not above: it takes seconds, and only this encoder needs it.

        if ndim != 2:
            raise ModelError(f"timm backbones are 2D; for {ndim}D use encoder: plain or residual")
        if not timm.is_model(backbone):
            close = ", ".join(difflib.get_close_matches(backbone, timm.list_models(), n=8))
            raise ModelError(
                f"timm has no backbone {backbone!r}; did you mean one of: {close or 'see timm.list_models()'}"
            )
        file = None if weights == "pretrained" else weights
        given = [] if file is None else _tensors(file)
        try:
            body: Any = timm.create_model(
                backbone,
                features_only=True,
                in_chans=in_channels,
                pretrained=weights is not None,
                pretrained_cfg_overlay=None if file is None else {"file": file},
                out_indices=None if levels is None else tuple(levels),
            )
        except RuntimeError as error:
            if file is None:
                raise
            raise ModelError(f"weights: {file} does not fit {backbone}: {error}") from error
        if file is not None:
            _check_loaded(body, given, backbone, file)
        self.body = body
        self.channels_last = getattr(body, "output_fmt", None) == "NHWC"
        self.ndim = 2
        self.in_channels = in_channels
        self.out_channels = tuple(body.feature_info.channels())
        self.strides = tuple((r, r) for r in body.feature_info.reduction())

    def append(self, level: int, block: nn.Module) -> None:
        """Put ``block`` behind the module that makes map ``level``, so that all that follows sees its output
        (in HRNet, whose levels are parallel, the skip alone).

        Raises:
            ValueError: no module of the backbone makes that map in NCHW (ViT, MambaOut ...).
        """
        name = self._module_of_map(level)
        if name is None:
            raise ModelError(
                f"this timm backbone does not expose the module that makes its level {level}; "
                "place attention at 'skips' or 'decoder' instead of 'encoder' or 'bottleneck'"
            )
        parent, _, child = name.rpartition(".")
        setattr(self.body.get_submodule(parent), child, nn.Sequential(self.body.get_submodule(name), block))

    def forward(self, image: Tensor) -> list[Tensor]:
        """``(B, in_channels, H, W) -> [(B, out_channels[i], ceil(H / stride), ceil(W / stride))]``."""
        height, width = image.shape[2:]
        multiple = self.strides[-1][0]
        maps = self.body(F.pad(image, (0, -width % multiple, 0, -height % multiple)))
        if self.channels_last:
            maps = [m.permute(0, 3, 1, 2) for m in maps]
        sizes = [(-(-height // s), -(-width // s)) for s, _ in self.strides]
        return [m[:, :, :h, :w] for m, (h, w) in zip(maps, sizes, strict=True)]

    def _module_of_map(self, level: int) -> str | None:
        """Name of the outermost module whose output is map ``level``, found by running the body once.

        The stage names that timm gives are not names of modules in all of its feature extractors.
        """
        from timm.models import FeatureHookNet

        if self.channels_last or isinstance(self.body, FeatureHookNet):
            return None  # Blocks want NCHW; maps taken by hooks would not pass through the block.
        outputs: list[tuple[str, Any, int]] = []

        def note(name: str) -> Callable[..., None]:
            # The version tells a tensor before an in-place activation from the same tensor after it.
            def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
                outputs.append((name, output, getattr(output, "_version", 0)))

            return hook

        handles = [m.register_forward_hook(note(name)) for name, m in self.body.named_modules() if name]
        side = 2 * self.strides[-1][0]
        image = next(self.body.parameters()).new_zeros(1, self.in_channels, side, side)
        training = self.body.training
        try:
            with torch.no_grad():
                wanted = self.body.eval()(image)[level]
        finally:
            self.body.train(training)
            for handle in handles:
                handle.remove()
        made = [name for name, output, version in outputs if output is wanted and version == wanted._version]
        # Later ones hand the map on unchanged (identity shortcuts); outer ones contain the first.
        return min(
            (name for name in made if made[0] == name or made[0].startswith(f"{name}.")),
            key=len,
            default=None,
        )


def _tensors(file: str) -> list[Tensor]:
    """What a weight file holds, read without unpickling code."""
    from timm.models import load_state_dict

    if not Path(file).is_file():
        raise ModelError(f"weights: {file} is not a file; give a path, 'pretrained' or nothing")
    try:
        return [value for value in load_state_dict(file).values() if isinstance(value, Tensor)]
    except Exception as error:
        raise ModelError(
            f"weights: {file} cannot be read as tensors alone, and code in it is not run; "
            f"save the network's state_dict() as .safetensors ({type(error).__name__})"
        ) from error


def _check_loaded(body: nn.Module, given: list[Tensor], backbone: str, file: str) -> None:
    """timm ignores tensors whose names it does not know; say so where that leaves the backbone random."""
    weights = [p for p in body.parameters() if p.ndim > 1 and not p.is_meta]
    found = sum(any(t.shape == p.shape and torch.equal(t.to(p.dtype), p) for t in given) for p in weights)
    if found < len(weights) / 2:
        raise ModelError(
            f"weights: {file} holds {found} of the {len(weights)} weight tensors of {backbone}; "
            "it is for another network or not in timm's naming"
        )
