"""HER-Seg: linear attention at one scale, and a light mask decoder."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from models.interfaces import Output, Prompts, Segmenter
from models.layers import conv, crop, resize
from models.sam.image_encoder import LayerNorm2d
from models.sizes import pad_to_multiple, refuse_single_position
from models.systems.background import foreground_maps, with_background
from models.systems.parts.light_mask_decoder import LightMaskDecoder
from models.systems.parts.linear_vit import LinearViT


class HerSeg(Segmenter):
    """High-resolution images in little memory: patches of 16, linear attention, SAM's decoder without its weight.

    Xu et al., HER-Seg: Holistically Efficient Segmentation for High-Resolution Medical Images, arXiv 2504.06205::

        image (B, in_channels, H, W)
          encoder   patches, 2 inverted bottlenecks, 2 + 6 + 2 blocks of linear attention   (B, dim, H/16, W/16)
          neck      1x1, norm, 3x3, norm, as SAM's                                          (B, width, H/16, W/16)
          decoder   two-way transformer without prompts, up-scaling by 4                    (B, masks, H/4, W/4)
          linear interpolation                                                              (B, K, H, W)

    Where paper and released code disagree, the defaults are the released code, which the published parameters and
    operations belong to:

    - every mask is made from token 0, the one that told the quality in SAM; ``own_tokens: true`` gives each mask its
      own, as in SAM;
    - means at several scales in the decoder are described, and not in the code that runs; ``pooling: [5, 9, 13]``
      adds them (where they stand is ours).

    The code makes three masks and uses the first; here there are as many as foreground classes. It takes images of
    1024 x 1024, as its rotations are a table; here they are made for the image at hand, which may have any size: it
    is filled up below and at the right to whole patches by repeating its edge. The decoder works on whole batches, the code's on
    one image after another.

    Args:
        in_channels: channels of the image.
        num_classes: K, logits per position.
        ndim: 2; SAM's decoder is for planes.
        patch: side of a patch.
        dim: channels of the encoder.
        depths: blocks of each stage; those of the first are inverted bottlenecks.
        heads: heads of each stage but the first.
        ratio: how many times wider the middles of the encoder's blocks are.
        drop_path: stochastic depth of the last block.
        width: channels of the embedding and of the decoder.
        decoder_depth: two-way blocks of the decoder.
        decoder_heads: its heads.
        decoder_hidden: middle of its perceptrons.
        own_tokens: each mask is made from a token of its own.
        pooling: odd sides of the means that are added to the embedding; none as released.
        background: the first class is what no map shows, with logit 0 (:mod:`models.systems.background`).

    Raises:
        ModelError: three axes, or numbers that do not fit each other.
    """

    ndims = frozenset({2})

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        ndim: int = 2,
        patch: int = 16,
        dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        heads: Sequence[int] = (6, 12, 24),
        ratio: int = 2,
        drop_path: float = 0.1,
        width: int = 256,
        decoder_depth: int = 2,
        decoder_heads: int = 8,
        decoder_hidden: int = 256,
        own_tokens: bool = False,
        pooling: Sequence[int] = (),
        background: bool = True,
    ) -> None:
        super().__init__()
        self._serve(in_channels, num_classes, ndim)
        self.patch = patch
        self.background = background
        self.encoder = LinearViT(in_channels, ndim, patch, dim, depths, heads, ratio, drop_path)
        self.neck = nn.Sequential(
            conv(ndim, dim, width, 1, bias=False),
            LayerNorm2d(width),
            conv(ndim, width, width, 3, bias=False),
            LayerNorm2d(width),
        )
        self.decoder = LightMaskDecoder(
            width,
            foreground_maps(num_classes, background),
            decoder_depth,
            decoder_heads,
            decoder_hidden,
            own_tokens,
            pooling,
        )

    def encode(self, image: Tensor) -> list[Tensor]:
        """``(B, in_channels, H, W)`` -> the embedding, ``(B, width, ceil(H / patch), ceil(W / patch))``.

        Raises:
            ModelError: the image is a single patch.
        """
        patch = (self.patch,) * self.ndim
        refuse_single_position(image, patch)
        return [self.neck(self.encoder(pad_to_multiple(image, patch, repeat=True)))]

    def decode(self, features: list[Tensor], size: Sequence[int], prompts: Prompts | None = None) -> Output:
        """The embedding -> logits at ``size``; ``prompts`` are not used."""
        (embedding,) = features
        maps = self.decoder(embedding)
        maps = resize(maps, [n * self.patch for n in embedding.shape[2:]])
        return Output(with_background(crop(maps, size), self.background))
