"""ParaTransCNN: a convolutional network and a pyramid of transformers side by side."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from models.attention.mechanics.tokens import to_map, to_tokens
from models.attention.se import SE
from models.encoded import Encoded
from models.encoders import ENCODERS
from models.encoders.convnext import PatchMap
from models.encoders.vit_block import ViTBlock
from models.errors import ModelError
from models.interfaces import Output, Prompts
from models.layers import ConvBlock, conv, crop, transposed_conv
from models.parts import Part, make_part
from models.sizes import refuse_single_position

# How many of each encoder's maps are joined.
LEVELS = 3
# They lie at strides 4, 8 and 16, as there is no max-pool.
_RESNET_LEVELS: list[int | list[int]] = [2, 3, 4]
PUBLISHED: Part = {"name": "timm", "backbone": "resnet34", "levels": _RESNET_LEVELS, "max_pool": False}


class _TransformerStage(nn.Module):
    """A linear map of patches, then transformer blocks over all positions: ``(B, C, *S) -> (B, dim, *ceil(S / step))``."""

    def __init__(
        self,
        ndim: int,
        in_channels: int,
        dim: int,
        step: Sequence[int],
        depth: int,
        heads: int,
        hidden: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.patches = PatchMap(ndim, in_channels, dim, step)
        self.blocks = nn.Sequential(
            *(ViTBlock(dim, heads, hidden, bias=False, dropout=dropout) for _ in range(depth))
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x)
        return to_map(self.blocks(to_tokens(x)), x.shape[2:])


class _Up(nn.Sequential):
    """Twice convolution, norm, ReLU at one width, then a transposed convolution with kernel = stride."""

    def __init__(self, ndim: int, channels: int, out_channels: int, stride: Sequence[int]) -> None:
        super().__init__(
            ConvBlock(ndim, channels, channels, norm_name="batch", activation_name="relu"),
            ConvBlock(ndim, channels, channels, norm_name="batch", activation_name="relu"),
            transposed_conv(ndim, channels, out_channels, stride),
        )


class ParaTransCNN(Encoded):
    """Two encoders see the image, one of convolutions and one of transformers; channels of both are weighted and joined
    at three levels.

    Sun et al., ParaTransCNN: Parallelized TransCNN Encoder for Medical Image Segmentation, WACV 2024, arXiv 2401.15307.
    With the dimension d, maps e2, e3, e4 of the convolutions at strides 4, 8, 16 and v1, v2, v3 of the transformers
    (d, 2d, 4d channels at the same strides; full attention, pre-norm, no position embedding, no class token)::

        c1 = up2(convs(SE([v3, e4])))
        c2 = up2(convs([SE([v2, e3]), c1]))
        c3 = up4(convs([SE([v1, e2]), c2]))
        logits = Conv1(c3)

    SE is squeeze and excitation on the concatenation. up2 gives ``2d + C(e3)`` channels both times, up4 gives d. There is
    no deep supervision: ``Output.aux`` is empty.

    The published convolutions are a ResNet-34 **without its max-pool**. Here they are any encoder whose last three
    levels double their strides; the transformer's first patches and the last up-sampling follow those strides. The
    default is the published one with random weights: ``weights: pretrained`` in ``encoder`` downloads ImageNet's, which
    the released code does whenever it builds the network.

    Images of any size: maps are completed with zeros to whole patches, and cropped. (The released code wants squares
    of a multiple of 16.) Attention is over all positions at stride 4, 3136 of them for 224 x 224: time grows with the
    fourth power of the side. The released code also drops attention weights, at 0.1, and drops attention's output
    twice; here each part's output is dropped once.

    Args:
        in_channels: channels of the image; the paper repeats grey images to 3.
        num_classes: K, logits per position.
        ndim: 2.
        encoder: the convolutions, a name of :data:`models.encoders.ENCODERS` or a mapping with its options; the published
            ones when not given.
        dim: d.
        heads: heads of every transformer block; divides d.
        depth: blocks of each of the three stages.
        mlp_ratio: how many times wider the blocks' feed-forward parts are than their stage.
        dropout: of the transformer.
        reduction: of the squeeze and excitation.
        parallel: False leaves the transformers out, for ablation; the SE then sees the convolutions alone.

    Raises:
        ModelError: another number of axes, an unknown encoder or option, fewer than three levels or strides that do not
            double, numbers that do not divide, or (at the call) an image that is a single position at the coarsest level.
    """

    ndims = frozenset({2})

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        ndim: int = 2,
        encoder: Part | None = None,
        dim: int = 320,
        heads: int = 8,
        depth: Sequence[int] = (3, 3, 3),
        mlp_ratio: int = 2,
        dropout: float = 0.1,
        reduction: int = 16,
        parallel: bool = True,
    ) -> None:
        super().__init__()
        self._serve(in_channels, num_classes, ndim)
        if len(depth) != LEVELS:
            raise ModelError(f"depth {list(depth)} has {len(depth)} numbers; give one per stage: [3, 3, 3]")
        self.encoder = make_part(
            ENCODERS, PUBLISHED if encoder is None else encoder, "encoder", in_channels, ndim=ndim
        )
        strides = self.encoder.strides[-LEVELS:]
        if len(strides) < LEVELS or any(b != tuple(2 * s for s in a) for a, b in itertools.pairwise(strides)):
            raise ModelError(
                f"encoder has levels of strides {[list(s) for s in self.encoder.strides]}; ParaTransCNN joins its last "
                "three, which must double, as 4, 8, 16 do: choose other levels or strides"
            )
        self.stride = strides[0]
        fine, middle, coarse = self.encoder.out_channels[-LEVELS:]
        dims = [dim * 2**level for level in range(LEVELS)]
        self.transformer = nn.ModuleList()
        if parallel:
            before, step = in_channels, strides[0]
            for width, blocks in zip(dims, depth, strict=True):
                self.transformer.append(
                    _TransformerStage(ndim, before, width, step, blocks, heads, mlp_ratio * width, dropout)
                )
                before, step = width, (2,) * ndim
        else:
            dims = [0] * LEVELS
        joined = [v + e for v, e in zip(dims, (fine, middle, coarse), strict=True)]
        self.attention = nn.ModuleList(SE(c, ndim, reduction, bias=False) for c in joined)
        between = 2 * dim + middle
        two = (2,) * ndim
        self.up3 = _Up(ndim, joined[2], between, two)
        self.up2 = _Up(ndim, joined[1] + between, between, two)
        self.up1 = _Up(ndim, joined[0] + between, dim, self.stride)
        self.head = conv(ndim, dim, num_classes, kernel=1)

    def _encode(self, image: Tensor, encoder: Callable[[Tensor], list[Tensor]]) -> list[Tensor]:
        """``(B, in_channels, *S)`` -> three maps, fine to coarse: both encoders' channels, weighted."""
        refuse_single_position(image, self.encoder.strides[-1])
        maps = encoder(image)[-LEVELS:]
        x = image
        for level, stage in enumerate(self.transformer):
            x = stage(x)
            maps[level] = torch.cat([x, maps[level]], 1)
        return [attention(m) for attention, m in zip(self.attention, maps, strict=True)]

    def decode(self, features: list[Tensor], size: Sequence[int], prompts: Prompts | None = None) -> Output:
        """Maps of an image of ``size`` -> logits."""
        fine, middle, coarse = features
        x = crop(self.up3(coarse), middle.shape[2:])
        x = crop(self.up2(torch.cat([middle, x], 1)), fine.shape[2:])
        x = crop(self.up1(torch.cat([fine, x], 1)), size)
        return Output(self.head(x))
