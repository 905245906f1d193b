"""monai's AttentionUnet and DynUNet as :class:`~models.interfaces.Segmenter`: peers, in our own harness."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from monai.networks.nets import AttentionUnet, DynUNet
from torch import Tensor, nn
from torch.nn import functional as F

from models.interfaces import Output, Prompts, Segmenter


class _Peer(Segmenter):
    """Pads the image to a multiple of what the network halves it by, and crops its logits."""

    multiple: int

    @abstractmethod
    def logits(self, image: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, K, *S)``, S multiples."""

    def encode(self, image: Tensor) -> list[Tensor]:
        """The padded image: these networks are one piece."""
        ends = [-n % self.multiple for n in image.shape[2:]]
        return [F.pad(image, [n for end in reversed(ends) for n in (0, end)])]

    def decode(self, features: list[Tensor], size: Sequence[int], prompts: Prompts | None = None) -> Output:
        """Logits, cropped back to ``size``."""
        return Output(self.logits(features[0])[(..., *(slice(0, n) for n in size))])


class MonaiAttentionUnet(_Peer):
    """``monai.networks.nets.AttentionUnet`` (Oktay 2018, arXiv 1804.03999).

    Args:
        in_channels: channels of the image.
        num_classes: logits per position.
        ndim: 2 or 3.
        channels: of each level.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        ndim: int = 2,
        channels: Sequence[int] = (16, 32, 64, 128, 256),
    ) -> None:
        super().__init__()
        self.ndim, self.in_channels, self.num_classes = ndim, in_channels, num_classes
        steps = [2] * (len(channels) - 1)
        self.multiple = 2 ** len(steps)
        self.network = AttentionUnet(ndim, in_channels, num_classes, list(channels), steps)

    def logits(self, image: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, K, *S)``."""
        return self.network(image)


class MonaiDynUNet(_Peer):
    """``monai.networks.nets.DynUNet``, the network of nnU-Net (arXiv 1904.08128).

    Its parts are called one by one: it registers them a second time in a chain of skips, and no model file holds a
    tensor twice.

    Args:
        in_channels: channels of the image.
        num_classes: logits per position.
        ndim: 2 or 3.
        channels: of each level.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        ndim: int = 2,
        channels: Sequence[int] = (16, 32, 64, 128, 256),
    ) -> None:
        super().__init__()
        self.ndim, self.in_channels, self.num_classes = ndim, in_channels, num_classes
        strides = [1] + [2] * (len(channels) - 1)
        self.multiple = 2 ** (len(channels) - 1)
        whole = DynUNet(
            ndim, in_channels, num_classes, [3] * len(channels), strides, strides[1:], filters=list(channels)
        )
        self.down = nn.ModuleList([whole.input_block, *whole.downsamples])
        self.bottleneck = whole.bottleneck
        self.up = nn.ModuleList(whole.upsamples)
        self.head = whole.output_block

    def logits(self, image: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, K, *S)``."""
        skips = []
        x = image
        for block in self.down:
            x = block(x)
            skips.append(x)
        x = self.bottleneck(x)
        for block, skip in zip(self.up, reversed(skips), strict=True):
            x = block(x, skip)
        return self.head(x)
