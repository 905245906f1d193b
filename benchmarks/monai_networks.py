"""monai's AttentionUnet and DynUNet as :class:`~models.interfaces.Segmenter`: peers, in our own harness."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from monai.networks.nets import AttentionUnet, DynUNet
from torch import Tensor, nn

from models.interfaces import Output, Prompts, Segmenter
from models.layers import crop
from models.sizes import pad_to_multiple


class _Peer(Segmenter):
    """Pads the image with zeros to a multiple of what the network halves it by, and crops its logits.

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
        self.steps = [2] * (len(channels) - 1)
        self.build(list(channels))

    @abstractmethod
    def build(self, channels: list[int]) -> None:
        """Make the layers."""

    @abstractmethod
    def logits(self, image: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, K, *S)``, S multiples."""

    def encode(self, image: Tensor) -> list[Tensor]:
        """The padded image: these networks are one piece."""
        return [pad_to_multiple(image, (2 ** len(self.steps),) * self.ndim)]

    def decode(self, features: list[Tensor], size: Sequence[int], prompts: Prompts | None = None) -> Output:
        """Logits, cropped back to ``size``."""
        return Output(crop(self.logits(features[0]), size))


class MonaiAttentionUnet(_Peer):
    """``monai.networks.nets.AttentionUnet`` (Oktay 2018, arXiv 1804.03999)."""

    def build(self, channels: list[int]) -> None:
        """Monai's network, whole."""
        self.network = AttentionUnet(self.ndim, self.in_channels, self.num_classes, channels, self.steps)

    def logits(self, image: Tensor) -> Tensor:
        """``(B, C, *S) -> (B, K, *S)``."""
        return self.network(image)


class MonaiDynUNet(_Peer):
    """``monai.networks.nets.DynUNet``, the network of nnU-Net (arXiv 1904.08128).

    Its parts are called one by one: it registers them a second time in a chain of skips, and no model file holds a
    tensor twice.
    """

    def build(self, channels: list[int]) -> None:
        """Monai's network, in pieces."""
        whole = DynUNet(
            *(self.ndim, self.in_channels, self.num_classes),
            kernel_size=[3] * len(channels),
            strides=[1, *self.steps],
            upsample_kernel_size=self.steps,
            filters=channels,
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
