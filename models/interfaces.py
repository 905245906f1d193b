"""The contracts of every network. Read this page first.

Shapes are written ``(B, C, *S)``: batch, channels, then two or three spatial axes. Two and three
dimensions are the same code: ``ndim`` appears only where a layer is made, and reductions run over
``dim=tuple(range(2, x.ndim))``.

    image --Encoder--> maps, fine to coarse --Decoder--> maps, fine to coarse --head--> Output

A Neck may stand before the decoder and change the maps, not their shapes.

Everything that computes a segmentation, whatever its paper, is a :class:`Segmenter` and returns an
:class:`Output`; training, prediction, export and viewer know nothing else about it.
"""

from __future__ import annotations

import copy
import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from models.base_weights import Base
from models.errors import ModelError
from models.presets import read_preset


class AttentionFactory(Protocol):
    """Makes a block that re-weights a map: ``(B, C, *S) -> (B, C, *S)``. A block class is its own factory."""

    def __call__(self, channels: int, ndim: int = 2) -> nn.Module:
        """Return the block for maps with ``channels`` channels and ``ndim`` spatial axes."""
        ...


class Fusion(nn.Module, ABC):
    """Joins a decoder map with the skip of the same size. Subclasses are constructed with
    ``(x_channels, skip_channels, ndim)`` and state the channel count of what they return.
    """

    out_channels: int

    @abstractmethod
    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """``(B, x_channels, *S), (B, skip_channels, *S) -> (B, out_channels, *S)``."""


class FusionFactory(Protocol):
    """Makes a :class:`Fusion`. A fusion class is its own factory."""

    def __call__(self, x_channels: int, skip_channels: int, ndim: int = 2) -> Fusion:
        """Return the fusion for the given channel counts."""
        ...


@dataclass(frozen=True)
class Slot:
    """A place inside a network where a block fits.

    Attributes:
        channels: C of the maps there.
        put: places a block ``(B, C, *S) -> (B, C, *S)``.
    """

    channels: int
    put: Callable[[nn.Module], object]


class Encoder(nn.Module, ABC):
    """Turns an image into maps, fine to coarse.

    Attributes:
        ndim: number of spatial axes, 2 or 3.
        in_channels: channels of the image.
        out_channels: channels of each level's map.
        strides: size of the image divided by the size of the map, per level and per axis.
    """

    ndim: int
    in_channels: int
    out_channels: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]

    @abstractmethod
    def forward(self, image: Tensor) -> list[Tensor]:
        """``(B, in_channels, *S) -> [(B, out_channels[i], *ceil(S / strides[i])) for each level i]``."""

    def forward_lacking(self, image: Tensor, present: Tensor) -> list[Tensor]:
        """The same for images of which some channels are missing (they are 0), and the encoder is told which.

        An encoder that does not care is as it is. One that does gives maps that do not depend on what stands in
        a missing channel.

        Args:
            image: ``(B, in_channels, *S)``.
            present: ``(B, in_channels)`` booleans.
        """
        return self(image)

    @abstractmethod
    def append(self, level: int, block: nn.Module) -> None:
        """Put ``block`` behind level ``level``, so that the skip and all coarser levels see its output."""

    def branches(self, level: int) -> list[Slot]:
        """A slot in each residual block of level ``level``, behind the last norm and before the sum; none where
        there are no such blocks.
        """
        return []


class Neck(nn.Module, ABC):
    """Lets the levels of an encoder see each other before they are decoded. Subclasses are constructed with
    ``(channels, ndim)``: the channels of each level, finest first.
    """

    @abstractmethod
    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """``[(B, channels[i], *S_i)] -> [(B, channels[i], *S_i)]``: as many maps, of the same channels and sizes."""


class Decoder(nn.Module, ABC):
    """Turns an encoder's maps into maps at the same or finer grids. Constructed with the encoder it serves.

    Attributes:
        out_channels: channels of each returned map, finest first.
    """

    out_channels: tuple[int, ...]

    @abstractmethod
    def forward(
        self, features: Sequence[Tensor], size: Sequence[int], prompts: Prompts | None = None
    ) -> list[Tensor]:
        """Maps of an encoder for an image of ``size`` ``-> [(B, out_channels[i], *S_i)]``, finest first."""

    @abstractmethod
    def append(self, level: int, block: nn.Module) -> None:
        """Put ``block`` behind the decoder stage that returns map ``level``."""

    @abstractmethod
    def append_to_skip(self, level: int, block: nn.Module) -> None:
        """Put ``block`` on the skip of encoder level ``level``, before it is fused."""


@dataclass(frozen=True)
class Prompts:
    """What a person or an example says about the image. All fields are optional.

    Attributes:
        points: ``(B, P, ndim)`` array-index coordinates.
        labels: ``(B, P)``, 1 for inside, 0 for outside, -1 for no point (rows of different length).
        boxes: ``(B, Q, 2 * ndim)``, lower then upper corner, array-index coordinates.
        mask: ``(B, 1, *S)`` logits of an earlier round.
        support: image ``(B, M, C, *S)`` and mask ``(B, M, *S)`` examples: few-shot is prompting by example.
    """

    points: Tensor | None = None
    labels: Tensor | None = None
    boxes: Tensor | None = None
    mask: Tensor | None = None
    support: tuple[Tensor, Tensor] | None = None


@dataclass
class Output:
    """What every segmenter returns.

    Attributes:
        logits: ``(B, K, *S)``, always at the size of the image.
        aux: further logits at their own grids, finest first; filled in training only (deep supervision).
        quality: ``(B, K)`` predicted quality of each mask, where the model has such a head.
        attention: name of a block ``->`` its map at image size, ``(B, 1 or C, *S)``; filled on request only.
        extra: what a term of the loss wants of this network (:mod:`tasks.terms`); filled in training only.
    """

    logits: Tensor
    aux: list[Tensor] = field(default_factory=list)
    quality: Tensor | None = None
    attention: dict[str, Tensor] = field(default_factory=dict)
    extra: dict[str, Tensor] = field(default_factory=dict)


def _recording(init: Callable[..., None]) -> Callable[..., None]:
    """Wrap an ``__init__`` so that the outermost call leaves its arguments in ``self.arguments``."""

    @functools.wraps(init)
    def wrapped(self: Segmenter, *args: Any, **kwargs: Any) -> None:
        if "arguments" not in self.__dict__:
            bound = inspect.signature(init).bind(self, *args, **kwargs)
            bound.apply_defaults()
            recorded = dict(bound.arguments)
            recorded.pop("self")
            # Before nn.Module.__init__ has run only plain attributes can be set.
            # A copy, so that a configuration edited later does not change what this model says of itself.
            object.__setattr__(self, "arguments", copy.deepcopy(recorded))
        init(self, *args, **kwargs)

    return wrapped


class Segmenter(nn.Module, ABC):
    """Every model is one of these.

    The arguments of the constructor are plain data (numbers, strings, lists, dicts), so that
    ``type(model)(**model.arguments)`` makes the same architecture again: all that a model file needs to say.

    Attributes:
        ndim: spatial axes of its images.
        in_channels: channels of its images.
        num_classes: K, the number of logits per position.
        arguments: what the constructor was called with.
        base: the weight file it began with, whose tensors stay out of its model file; None where it keeps its own.
        ndims: numbers of spatial axes this class can be built for.
        exports: whether it can be exported (ONNX, torch.export); what says no is refused before it is tried.
    """

    ndims: ClassVar[frozenset[int]] = frozenset({2, 3})
    exports: ClassVar[bool] = True
    ndim: int
    in_channels: int
    num_classes: int
    arguments: dict[str, Any]
    base: Base | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in cls.__dict__:
            cls.__init__ = _recording(cls.__init__)  # type: ignore[method-assign]

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> Segmenter:
        """Build a named configuration (``tiny``, ``paper``); ``overrides`` win over its numbers."""
        return cls(**(read_preset(cls.__name__, name) | overrides))

    def _serve(self, in_channels: int, num_classes: int, ndim: int) -> None:
        """Take what the data decide, the first thing that a constructor does behind ``super().__init__()``.

        Raises:
            ModelError: the class does not exist for so many axes, or there is no channel or class.
        """
        if ndim not in self.ndims:
            exists = " and ".join(f"{n}D" for n in sorted(self.ndims))
            remedy = ": give a patch with an axis of length 1" if ndim - 1 in self.ndims else ""
            raise ModelError(f"ndim is {ndim}; {type(self).__name__} exists in {exists}{remedy}")
        if in_channels < 1 or num_classes < 1:
            raise ModelError(
                f"in_channels is {in_channels}, num_classes {num_classes}; {type(self).__name__} wants at least 1 of each"
            )
        self.ndim = ndim
        self.in_channels = in_channels
        self.num_classes = num_classes

    def base_tensors(self, file: Path) -> dict[str, Tensor]:
        """The tensors that this network takes from the weight file ``file`` as they are, by its own names. A class
        that sets :attr:`base` defines it; it must also work where the network has no memory (the meta device).

        Raises:
            ValueError: the file cannot be used.
        """
        raise ModelError(f"{type(self).__name__} takes no tensors from a file of base weights")

    @abstractmethod
    def encode(self, image: Tensor) -> list[Tensor]:
        """``(B, in_channels, *S)`` -> features. Done once per image, however many times it is decoded."""

    def encode_lacking(self, image: Tensor, present: Tensor) -> list[Tensor]:
        """:meth:`encode` for images of which some channels are missing, ``present (B, in_channels)`` booleans: which
        are there. A network that does not care is as it is: missing channels are 0.
        """
        return self.encode(image)

    @abstractmethod
    def decode(self, features: list[Tensor], size: Sequence[int], prompts: Prompts | None = None) -> Output:
        """Features of an image of ``size`` (and prompts) -> :class:`Output` at that size."""

    def forward(self, image: Tensor, prompts: Prompts | None = None, present: Tensor | None = None) -> Output:
        """``decode(encode(image))``.

        Args:
            image: ``(B, in_channels, *S)``.
            prompts: see :class:`Prompts`.
            present: ``(B, in_channels)`` booleans, which channels each image has; all when not given.

        Raises:
            ValueError: the image's axes or channels are not the model's, or ``present`` is not the image's.
        """
        if image.ndim != self.ndim + 2 or image.shape[1] != self.in_channels:
            axes = ", ".join("DHW"[-self.ndim :])
            raise ModelError(
                f"image has shape {tuple(image.shape)}; {type(self).__name__} wants (batch, "
                f"{self.in_channels}, {axes}): {self.in_channels} channel(s) and {self.ndim} spatial axes"
            )
        if present is None:
            features = self.encode(image)
        elif present.shape == image.shape[:2]:
            features = self.encode_lacking(image, present)
        else:
            raise ModelError(
                f"present has shape {tuple(present.shape)}; an image of {tuple(image.shape)} wants a boolean for each "
                f"of its channels: {tuple(image.shape[:2])}"
            )
        return self.decode(features, image.shape[2:], prompts)
