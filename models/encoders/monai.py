"""Networks of monai as encoders: the half of SegResNet and of Swin UNETR that makes maps of an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from models.encoders.monai_weights import load_monai
from models.errors import ModelError
from models.interfaces import Encoder, Slot
from models.parts import make_part

NORMS = ("batch", "group", "instance")


class SegResNetHalf(nn.Module):
    """Stages of residual blocks that normalise first (Myronenko, arXiv 1810.11654), halving the grid in between.

    Args:
        in_channels: channels of the image.
        ndim: number of spatial axes.
        width: channels of the finest level; each level has twice those of the one before.
        blocks: blocks of each level.
        norm: ``group`` (of 8 groups), ``instance`` or ``batch``.
    """

    # What a whole network has besides: its decoder, and that of the variational form.
    unused = ("up_layers.", "up_samples.", "conv_final.", "vae_")

    def __init__(
        self,
        in_channels: int,
        ndim: int = 2,
        width: int = 8,
        blocks: Sequence[int] = (1, 2, 2, 4),
        norm: str = "group",
    ) -> None:
        super().__init__()
        from monai.networks.nets import SegResNet  # Here, not above: monai takes seconds.

        _known_norm(norm)
        if norm == "group" and width % 8:
            raise ModelError(
                f"monai: segresnet normalises 8 groups; width {width} is no multiple of 8: take one, or another norm"
            )
        whole: Any = SegResNet(
            spatial_dims=ndim,
            init_filters=width,
            in_channels=in_channels,
            norm=("GROUP", {"num_groups": 8}) if norm == "group" else (norm, {"affine": True}),
            blocks_down=tuple(blocks),
        )
        self.convInit = whole.convInit
        self.down_layers = whole.down_layers
        self.out_channels = tuple(width * 2**level for level in range(len(blocks)))

    def append(self, level: int, block: nn.Module) -> None:
        """Put ``block`` behind level ``level``; all coarser levels see it."""
        self.down_layers[level].append(block)

    def branches(self, level: int) -> list[Slot]:
        """A slot in each residual block: behind the second convolution, as normalisation comes first here."""

        def slot(block: Any) -> Slot:
            def put(new: nn.Module) -> None:
                block.conv2 = nn.Sequential(block.conv2, new)

            return Slot(self.out_channels[level], put)

        return [slot(block) for block in self.down_layers[level] if hasattr(block, "conv2")]

    def forward(self, image: Tensor) -> list[Tensor]:
        """All levels."""
        x = self.convInit(image)
        maps = []
        for down in self.down_layers:
            x = down(x)
            maps.append(x)
        return maps


class SwinUNETRHalf(nn.Module):
    """A Swin transformer and the convolutions on its maps (Hatamizadeh et al., Swin UNETR, arXiv 2201.01266).

    Six levels: the residual convolution of the image itself; of the patch embedding; of the maps behind stages 1
    and 2; the map behind stage 3 as it is; and the residual convolution of the map behind stage 4.

    Args:
        in_channels: channels of the image.
        ndim: number of spatial axes.
        width: monai's ``feature_size``, a multiple of 12: channels of the two finest levels.
        blocks: transformer blocks of each of the four stages.
        heads: attention heads of each stage.
        window: positions of a window per axis.
        v2: a residual convolution in front of each stage (SwinUNETR-V2).
        norm: of the convolutions: ``instance``, ``batch`` or ``group``.
    """

    unused = ("decoder1.", "decoder2.", "decoder3.", "decoder4.", "decoder5.", "out.")

    def __init__(
        self,
        in_channels: int,
        ndim: int = 2,
        width: int = 24,
        blocks: Sequence[int] = (2, 2, 2, 2),
        heads: Sequence[int] = (3, 6, 12, 24),
        window: int = 7,
        v2: bool = False,
        norm: str = "instance",
    ) -> None:
        super().__init__()
        from monai.networks.nets import SwinUNETR

        _known_norm(norm)
        if width % 12:
            raise ModelError(f"monai: swin_unetr wants a width that is a multiple of 12, got {width}")
        if len(blocks) != 4 or len(heads) != 4:
            raise ModelError(
                f"monai: swin_unetr has four stages; blocks {list(blocks)} and heads {list(heads)} want four entries"
            )
        wrong = [h for i, h in enumerate(heads) if (width * 2**i) % h]
        if wrong:
            raise ModelError(
                f"monai: heads {list(heads)} must divide the widths {[width * 2**i for i in range(4)]}"
            )
        with _RatesOnCPU():
            whole: Any = SwinUNETR(
                in_channels=in_channels,
                out_channels=1,
                feature_size=width,
                depths=tuple(blocks),
                num_heads=tuple(heads),
                window_size=window,
                norm_name=("group", {"num_groups": width}) if norm == "group" else norm,
                spatial_dims=ndim,
                use_v2=v2,
            )
        self.swinViT = whole.swinViT
        self.encoder1 = whole.encoder1
        self.encoder2 = whole.encoder2
        self.encoder3 = whole.encoder3
        self.encoder4 = whole.encoder4
        self.encoder10 = whole.encoder10
        self.appended = nn.ModuleList(nn.Sequential() for _ in range(6))
        self.out_channels = (width, width, 2 * width, 4 * width, 8 * width, 16 * width)

    def append(self, level: int, block: nn.Module) -> None:
        """Put ``block`` behind level ``level``: on the skip alone, as the convolutions are beside the transformer."""
        branch = self.appended[level]
        assert isinstance(branch, nn.Sequential)
        branch.append(block)

    def branches(self, level: int) -> list[Slot]:
        """A slot in the residual convolution of a level, behind its last norm; level 4 has none."""
        if level == 4:
            return []
        parts = {0: self.encoder1, 1: self.encoder2, 2: self.encoder3, 3: self.encoder4, 5: self.encoder10}
        block = parts[level].layer

        def put(new: nn.Module) -> None:
            block.norm2 = nn.Sequential(block.norm2, new)

        return [Slot(self.out_channels[level], put)]

    def forward(self, image: Tensor) -> list[Tensor]:
        """All levels."""
        hidden = self._transformed(image)
        maps = [
            self.encoder1(image),
            self.encoder2(hidden[0]),
            self.encoder3(hidden[1]),
            self.encoder4(hidden[2]),
            hidden[3],
            self.encoder10(hidden[4]),
        ]
        return [branch(x) for branch, x in zip(self.appended, maps, strict=True)]

    def _transformed(self, image: Tensor) -> list[Tensor]:
        """The patch embedding and the map behind each stage, their channels normalised at each position.

        Written out, as monai's own method needs a package (einops) that monai does not install.
        """
        from monai.networks.nets.swin_unetr import compute_mask, get_window_size

        swin = self.swinViT
        x = swin.pos_drop(swin.patch_embed(image))
        hidden = [x]
        for number in (1, 2, 3, 4):
            if swin.use_v2:
                x = getattr(swin, f"layers{number}c")[0](x)
            layer = getattr(swin, f"layers{number}")[0]
            size = x.shape[2:]
            window, shift = get_window_size(size, layer.window_size, layer.shift_size)
            padded = [-(-n // w) * w for n, w in zip(size, window, strict=True)]
            mask = compute_mask(padded, window, shift, x.device)
            x = x.movedim(1, -1).contiguous()
            for block in layer.blocks:
                x = block(x, mask)
            x = layer.downsample(x).movedim(-1, 1).contiguous()
            hidden.append(x)
        return [F.layer_norm(h.movedim(1, -1), h.shape[1:2]).movedim(-1, 1) for h in hidden]


class _RatesOnCPU(TorchFunctionMode):
    """monai makes numbers of ``torch.linspace``, which is impossible where networks are built without memory."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        return func(*args, **({**kwargs, "device": "cpu"} if func is torch.linspace else kwargs))


NETWORKS: dict[str, type[SegResNetHalf] | type[SwinUNETRHalf]] = {
    "segresnet": SegResNetHalf,
    "swin_unetr": SwinUNETRHalf,
}


class MonaiEncoder(Encoder):
    """The encoder half of a network of monai, in two or three dimensions, for images of any size.

    Sizes round up at each halving, as monai's layers do of themselves; nothing is resized. Options that are not
    given have the defaults of monai.

    Args:
        in_channels: channels of the image.
        ndim: number of spatial axes.
        network: ``segresnet`` or ``swin_unetr``.
        weights: path of a state dict of that network as monai saves it (``.pt``, ``.pth``, ``.safetensors``);
            read without running code, its decoder ignored; see :func:`load_monai`.
        width: channels of the finest level.
        blocks: blocks of each level (``segresnet``) or stage (``swin_unetr``).
        norm: ``group``, ``instance`` or ``batch``.
        heads: attention heads of each stage; ``swin_unetr`` only.
        window: positions of a window per axis; ``swin_unetr`` only.
        v2: SwinUNETR-V2; ``swin_unetr`` only.

    Raises:
        ValueError: a network or option that does not exist, or a weight file that is not this network's.
    """

    def __init__(
        self,
        in_channels: int,
        ndim: int = 2,
        network: str = "segresnet",
        weights: str | None = None,
        width: int | None = None,
        blocks: Sequence[int] | None = None,
        norm: str | None = None,
        heads: Sequence[int] | None = None,
        window: int | None = None,
        v2: bool | None = None,
    ) -> None:
        super().__init__()
        options = {
            "width": width,
            "blocks": blocks,
            "norm": norm,
            "heads": heads,
            "window": window,
            "v2": v2,
        }
        part = {"name": network, **{name: value for name, value in options.items() if value is not None}}
        self.body = make_part(NETWORKS, part, "monai network", in_channels, ndim=ndim)
        self.ndim = ndim
        self.in_channels = in_channels
        self.out_channels = self.body.out_channels
        self.strides = tuple((2**level,) * ndim for level in range(len(self.out_channels)))
        if weights is not None:
            load_monai(self.body, weights, network, self.body.unused)

    def append(self, level: int, block: nn.Module) -> None:
        """Put ``block`` behind level ``level``; in ``swin_unetr``, whose levels are parallel, the skip alone sees it."""
        self.body.append(level, block)

    def branches(self, level: int) -> list[Slot]:
        """A slot in each residual convolution block of the level."""
        return self.body.branches(level)

    def forward(self, image: Tensor) -> list[Tensor]:
        """``(B, in_channels, *S) -> [(B, out_channels[i], *ceil(S / 2^i))]``."""
        return self.body(image)


def _known_norm(norm: str) -> None:
    if norm not in NORMS:
        raise ModelError(f"monai: norm {norm!r} is not known; choose from {', '.join(NORMS)}")
