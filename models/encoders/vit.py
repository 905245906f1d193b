"""Plain vision transformers of timm, with a pyramid of levels made of their last map; in two dimensions."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from models.encoders.simple_pyramid import SimplePyramid
from models.encoders.timm_body import check_size, fixed_size, make_body
from models.errors import ModelError
from models.interfaces import Encoder
from models.sizes import pad_to_multiple


class ViTEncoder(Encoder):
    """ViT, DeiT, EVA, DINOv2, DINOv3 ... of timm, whose maps have one stride, behind a :class:`SimplePyramid`.

    ViTDet (Li et al., ECCV 2022, arXiv 2203.16527): the map of the last block, without the final norm, is brought
    to strides 4, 8, 16, 32. ViTDet's own windows inside of the transformer are not made: all blocks are global,
    as the weights were trained.

    Images are padded with zeros at the end of each axis to whole patches. Position embeddings are resampled to the
    size at hand by timm (``dynamic_img_size``), those of pretrained weights too. BEiT's tables cannot be: it takes
    images of ``image_size`` only.

    Args:
        in_channels: any number; timm adapts the patch embedding, of pretrained weights too.
        ndim: 2; timm's backbones are two-dimensional.
        backbone: a name from ``timm.list_models()``.
        weights: None (random), ``pretrained`` (timm's own download) or the path of a weight file in timm's format.
        widths: channels of each level, finest first, or one number.
        strides: of each level, finest first; each is the patch times or divided by a power of two.
        patch: side of a patch, where another than the backbone's own is wanted; timm resamples the embedding of
            pretrained weights (FlexiViT, arXiv 2212.08013). DINOv2 and EVA have patches of 14: give 16.
        image_size: what timm builds the position embeddings for.

    Raises:
        ValueError: three axes, an unknown backbone or one with maps of several strides, strides that the patch does
            not lead to, or a weight file that is not there or is not for it.
    """

    def __init__(
        self,
        in_channels: int,
        ndim: int = 2,
        backbone: str = "vit_small_patch16_224",
        weights: str | None = None,
        widths: int | Sequence[int] = 256,
        strides: Sequence[int] = (4, 8, 16, 32),
        patch: int | None = None,
        image_size: int | Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if ndim != 2:
            raise ModelError(
                f"timm's transformers are 2D; for {ndim}D use encoder: pyramid, monai or residual"
            )
        options = {"patch_size": patch, "img_size": image_size}
        body = make_body(
            backbone, in_channels, weights, None, {k: v for k, v in options.items() if v is not None}
        )
        steps = body.feature_info.reduction()
        if len(set(steps)) > 1:
            raise ModelError(
                f"{backbone} is no plain transformer, it has levels of strides {steps}: use encoder: timm"
            )
        self.backbone = backbone
        self.body = body
        self.patch = int(steps[-1])
        self.only = fixed_size(body)
        self.pyramid = SimplePyramid(
            body.feature_info.channels()[-1], self.patch, 2, widths, [_up(self.patch, s) for s in strides]
        )
        self.ndim = 2
        self.in_channels = in_channels
        self.out_channels = self.pyramid.out_channels
        self.strides = self.pyramid.strides

    def append(self, level: int, block: nn.Module) -> None:
        """Put ``block`` behind level ``level``. The levels are parallel: the skip alone sees it."""
        self.pyramid.append(level, block)

    def forward(self, image: Tensor) -> list[Tensor]:
        """``(B, in_channels, H, W) -> [(B, widths[i], ceil(H / strides[i]), ceil(W / strides[i]))]``."""
        height, width = image.shape[2:]
        padded = pad_to_multiple(image, (self.patch, self.patch))
        check_size(self.backbone, self.only, padded.shape[2:])
        return self.pyramid(self.body(padded)[-1], (height, width))


def _up(patch: int, stride: int) -> int:
    """How often the grid of patches is doubled (negative: halved) to arrive at ``stride``."""
    for up in range(-8, 9):
        if stride * 2**up == patch:
            return up
    raise ModelError(
        f"strides: {stride} is not the patch of {patch} times or divided by a power of two; "
        "give other strides, or patch: 16, to which timm resamples the weights"
    )
