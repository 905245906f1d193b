"""Any timm backbone that offers feature maps, in two dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from models.encoders.timm_body import check_size, fixed_size, make_body
from models.errors import ModelError
from models.interfaces import Encoder, Slot
from models.sizes import pad_to_multiple


class TimmEncoder(Encoder):
    """``timm.create_model(backbone, features_only=True)`` behind the :class:`Encoder` contract.

    Images are padded at the end of each axis to a multiple of the coarsest stride (MaxViT: times its window),
    and the maps are cropped back to ``ceil(size / stride)``. So any size is accepted, also by Swin and ViT, which
    timm builds for one size but lets go of it; not by CoAtNet, Hiera, BEiT and some others of its transformers.
    A plain ViT gives maps of one stride here; the encoder ``vit`` makes a pyramid of its last one.

    Args:
        in_channels: any number; timm adapts the first layer, of pretrained weights too.
        ndim: 2; timm's backbones are two-dimensional.
        backbone: a name from ``timm.list_models()``.
        weights: None (random), ``pretrained`` (timm's own download) or the path of a weight file in timm's
            format (``.safetensors``, or ``.pth`` which is read without unpickling code).
        levels: which of the backbone's feature maps to use, e.g. ``[0, 1, 2, 3]``; all when not given.
        image_size: what timm builds the backbone for, where it is built for one size. MaxViT's windows are a 32nd of
            it, so that a small one spares padding; timm resamples position tables of pretrained weights.
        max_pool: False takes the pooling out of the stem of a ResNet (ResNeXt, SE-ResNet ...), so that all levels behind
            it are twice as fine.

    Raises:
        ValueError: three axes, an unknown backbone, no pooling to take out, or a weight file that is not there or is not
            for it.
    """

    def __init__(
        self,
        in_channels: int,
        ndim: int = 2,
        backbone: str = "resnet18",
        weights: str | None = None,
        levels: Sequence[int] | None = None,
        image_size: int | Sequence[int] | None = None,
        max_pool: bool = True,
    ) -> None:
        super().__init__()
        if ndim != 2:
            raise ModelError(f"timm backbones are 2D; for {ndim}D use encoder: plain or residual")
        options = {} if image_size is None else {"img_size": image_size}
        body = make_body(backbone, in_channels, weights, levels, options)
        self.backbone = backbone
        self.body = body
        self.only = fixed_size(body)
        self.channels_last = getattr(body, "output_fmt", None) == "NHWC"
        self.ndim = 2
        self.in_channels = in_channels
        self.out_channels = tuple(body.feature_info.channels())
        reached = body.feature_info.reduction()
        if not max_pool:
            reached = _without_max_pool(backbone, body)
        self.strides = tuple((r, r) for r in reached)
        self.multiple = self.strides[-1][0] * _partition(body)

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

    def branches(self, level: int) -> list[Slot]:
        """A slot in each residual block of a ResNet (ResNeXt, Res2Net, SKNet ...): timm's own place for attention,
        behind the last norm and before the sum, where ECA-Net and SENet have it.
        """
        return [_slot(block) for block in self._parts_of(level) if _has_slot(block)]

    def forward(self, image: Tensor) -> list[Tensor]:
        """``(B, in_channels, H, W) -> [(B, out_channels[i], ceil(H / stride), ceil(W / stride))]``."""
        height, width = image.shape[2:]
        padded = pad_to_multiple(image, (self.multiple, self.multiple))
        check_size(self.backbone, self.only, padded.shape[2:])
        maps = self.body(padded)
        if self.channels_last:
            maps = [m.permute(0, 3, 1, 2) for m in maps]
        sizes = [(-(-height // s), -(-width // s)) for s, _ in self.strides]
        return [m[:, :, :h, :w] for m, (h, w) in zip(maps, sizes, strict=True)]

    def _parts_of(self, level: int) -> list[nn.Module]:
        """The modules that lie between the map before ``level`` and the map ``level``."""
        names = [name.replace(".", "_") for name in self.body.feature_info.module_name()]
        reached = 0
        parts: list[nn.Module] = []
        for name, child in self.body.named_children():
            if reached == level:
                parts += child.modules()
            reached += name in names
        return parts

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
        side = 2 * self.multiple
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


def _without_max_pool(backbone: str, body: Any) -> list[int]:
    """Take the pooling out of the stem, and say what the levels' strides are then."""
    if not isinstance(getattr(body, "maxpool", None), nn.MaxPool2d):
        raise ModelError(f"max_pool: the stem of {backbone} has none to take out; leave the option away")
    behind = [not name.startswith("act") for name in body.feature_info.module_name()]
    body.maxpool = nn.Identity()
    return [r // 2 if late else r for r, late in zip(body.feature_info.reduction(), behind, strict=True)]


def _has_slot(block: Any) -> bool:
    from timm.models import res2net, resnet, sknet

    classes = (
        resnet.BasicBlock,
        resnet.Bottleneck,
        res2net.Bottle2neck,
        sknet.SelectiveKernelBasic,
        sknet.SelectiveKernelBottleneck,
    )
    return isinstance(block, classes) and hasattr(block, "se")


def _slot(block: Any) -> Slot:
    def put(new: nn.Module) -> None:
        block.se = new if block.se is None else nn.Sequential(block.se, new)

    norms = [
        m
        for name, m in block.named_modules()
        if name.startswith(("bn", "conv")) and hasattr(m, "num_features")
    ]
    return Slot(norms[-1].num_features, put)


def _partition(body: nn.Module) -> int:
    """Windows that a map must divide into (MaxViT); 1 where there are none or the backbone pads by itself."""
    sizes = {size for m in body.modules() for size in getattr(m, "partition_size", ())}
    return math.lcm(*sizes)
