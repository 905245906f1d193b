"""Pixel connectivity: a head that says which neighbours belong together, on any encoder and decoder."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from models.encoder_decoder import EncoderDecoder
from models.errors import ModelError
from models.interfaces import Output, Prompts
from models.layers import conv, resize
from models.parts import Part
from models.systems.background import foreground_maps, with_background
from models.systems.parts.connectivity import VOTES, directions, elected, log_votes


class ConnNet(EncoderDecoder):
    """ConnNet (Kampffmeyer et al. 2018, arXiv 1804.07836), and what DconnNet (CVPR 2023) makes of its maps.

    For each class and each neighbour (8 in 2D, 26 in 3D) the head gives a map: do this pixel and that neighbour both
    belong to the class? A connection counts as much as *both* sides say it is there (the product of what they say), and
    the class of a pixel is its strongest connection, or the mean of all. The maps are resized to the image before the
    votes are counted, so neighbours are those of the image.

    In training ``Output.extra`` holds ``connectivity`` ``(B, M, N, *S)``, logits of the head's maps, and with deep
    supervision ``connectivity/1`` and so on at coarser grids, for the terms in :mod:`tasks.connectivity_terms`.

    Which of all votes is taken: with ``mean``, a corner pixel of an object whose connections are all right has 3 of 8,
    which is under one half, and is lost; ``max`` gives a right answer back as it was. So ``max`` is the default. A
    pixel of a class without any neighbour of that class cannot be said with either.

    Args:
        in_channels: channels of the image.
        num_classes: K, logits per position.
        ndim: 2 or 3.
        encoder: see :class:`~models.encoder_decoder.EncoderDecoder`.
        decoder: see there.
        fusion: see there.
        attention: see there.
        deep_supervision: in training, also votes and connectivity of every coarser decoder map.
        neck: see there.
        vote: max or mean.
        background: the first class is what the others leave; False where there is none, or classes overlap.

    Raises:
        ModelError: an option that is not known, or does not exist for ``ndim`` axes.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        ndim: int = 2,
        encoder: Part = "plain",
        decoder: Part = "unet",
        fusion: Part = "concat",
        attention: Part | list[Part] | None = None,
        deep_supervision: bool = False,
        neck: Part | None = None,
        vote: str = "max",
        background: bool = True,
    ) -> None:
        super().__init__(
            in_channels, num_classes, ndim, encoder, decoder, fusion, attention, deep_supervision, neck
        )
        if vote not in VOTES:
            raise ModelError(f"vote {vote!r} is not known; choose from {', '.join(VOTES)}")
        self.vote = vote
        self.background = background
        self.maps = foreground_maps(num_classes, background)
        self.neighbours = len(directions(ndim))
        channels = self.decoder.out_channels[: len(self.heads)]
        self.heads = nn.ModuleList(conv(ndim, c, self.maps * self.neighbours, kernel=1) for c in channels)

    def decode(self, features: list[Tensor], size: Sequence[int], prompts: Prompts | None = None) -> Output:
        """Maps -> connectivity -> votes -> logits at ``size``."""
        maps = self.decoder(features, size, prompts)
        connections = self._connections(resize(self.heads[0](maps[0]), size))
        output = Output(self._elected(connections))
        if self.training:
            output.extra["connectivity"] = connections
            for level, (head, one) in enumerate(zip(self.heads[1:], maps[1:], strict=False), start=1):
                coarse = self._connections(head(one))
                output.aux.append(self._elected(coarse))
                output.extra[f"connectivity/{level}"] = coarse
        return output

    def _connections(self, maps: Tensor) -> Tensor:
        """``(B, M * N, *S) -> (B, M, N, *S)``."""
        return maps.unflatten(1, (self.maps, self.neighbours))

    def _elected(self, connections: Tensor) -> Tensor:
        """``(B, M, N, *S) -> (B, K, *S)``."""
        return with_background(elected(log_votes(connections), self.vote), self.background)
