"""Segment Anything as a segmenter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from models.base_weights import base_of, weight_file
from models.errors import ModelError
from models.interfaces import Output, Prompts, Segmenter
from models.parts import Part
from models.precision import full_precision
from models.sam.adapters import place_adapters
from models.sam.checkpoint import read_checkpoint
from models.sam.frame import Frame
from models.sam.image_encoder import ImageEncoder
from models.sam.loading import Report, fit_tensors
from models.sam.package import make_mask_decoder, make_prompt_encoder
from models.sam.prompting import to_frame
from models.sam.sizes import read_size

FITS = ("keep", "stretch")
# Masks that are offered where a prompt is ambiguous.
CANDIDATES = 3


class SamSegmenter(Segmenter):
    """SAM (Kirillov et al. 2023, arXiv 2304.02643) for any channels, classes and image size.

    Without prompts it has a mask per class, as SAMed does it (Zhang and Liu 2023, arXiv 2304.13785). With prompts it
    draws one object, and is SAM itself. Volumes are slices to it, which adapters may let speak with each other.

    Images of another size than ``image_size`` are scaled to it and filled up; masks come back at the image's size.

    Args:
        in_channels: any number; weights for three are repeated, or summed for one.
        num_classes: K, logits per position. With ``prompts`` it is 1, whatever the data have: an object of any class.
        ndim: 2, or 3 for stacks of slices.
        size: vit_b, vit_l, vit_h, tiny, or the numbers of :class:`~models.sam.sizes.SamSize`.
        image_size: side of the square that the network sees. Weights are resampled from the one they were trained at.
        adapters: what is trained instead of the whole; see :mod:`models.sam.adapters`.
        prompts: whether it is asked for one object at a time.
        weights: a checkpoint of SAM or of what was made of it: a path, or a name in a folder of ``DELINEATE_WEIGHTS``.
        fit: keep the image's shape (SAM), or stretch it to a square (MedSAM).
        deep_supervision: in training, also return the logits as the decoder makes them, at a quarter of the size.
        checkpointing: train with less memory and a third more time.

    Attributes:
        report: what was taken from ``weights``; None without.
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 2,
        ndim: int = 2,
        size: str | dict[str, int | float | list[int]] = "vit_b",
        image_size: int = 1024,
        adapters: list[Part] | None = None,
        prompts: bool = False,
        weights: str | None = None,
        fit: str = "keep",
        deep_supervision: bool = False,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self._serve(in_channels, 1 if prompts else num_classes, ndim)
        if fit not in FITS:
            raise ModelError(f"fit is {fit!r}; choose from: {', '.join(FITS)}")
        self.size = read_size(size)
        self.prompts = prompts
        self.deep_supervision = deep_supervision
        self.frame = Frame(image_size, stretch=fit == "stretch")
        self.image_encoder = ImageEncoder(in_channels, image_size, self.size, checkpointing)
        self.prompt_encoder = make_prompt_encoder(self.size, image_size)
        self.mask_decoder = make_mask_decoder(self.size, CANDIDATES if prompts else num_classes)
        # SAM's own names, before adapters add theirs.
        self._own = tuple(self.state_dict())
        self.report: Report | None = None
        if weights is not None:
            self._load(weight_file(weights))
        place_adapters(adapters, self)

    def encode(self, image: Tensor) -> list[Tensor]:
        """``(B, in_channels, *S)`` -> the embedding, ``(B, C, h, w)``, or ``(B, C, D, h, w)`` of D slices."""
        if self.ndim == 2:
            return [self.image_encoder(self.frame.put(image))]
        batch, depth = image.shape[0], image.shape[2]
        embedding = self.image_encoder(self.frame.put(image.transpose(1, 2).flatten(0, 1)), depth)
        return [embedding.unflatten(0, (batch, depth)).transpose(1, 2)]

    def decode(self, features: list[Tensor], size: Sequence[int], prompts: Prompts | None = None) -> Output:
        """Logits of all classes; or, with prompts, of the object: where the prompts are ambiguous (a single point, or
        none) the candidate that SAM believes to be best.

        One image may be asked for several objects: prompts of N rows give logits ``(N, 1, *S)``. Labels of -1 are no
        points, and boxes that are not finite no boxes, so that rows may have different prompts.

        Raises:
            ModelError: prompts that do not fit the image or each other.
        """
        masks, quality, single = self.masks(features, size, prompts)
        if self.prompts:
            best = torch.where(single, 0, 1 + quality[:, 1:].detach().argmax(1))
            rows = torch.arange(len(masks), device=masks.device)
            masks, quality = masks[rows, best][:, None], quality[rows, best][:, None]
        else:
            masks, quality = masks[:, 1:], quality[:, 1:]
        output = Output(self._at(masks, size), quality=self._mean(quality, size))
        if self.training and self.deep_supervision:
            output.aux = [self._unfold(self.frame.cut(masks, size[-2:]), size)]
        return output

    def candidates(
        self, features: list[Tensor], size: Sequence[int], prompts: Prompts | None = None
    ) -> tuple[Tensor, Tensor]:
        """What the prompts may mean: ``(N, 3, *S)`` logits and ``(N, 3)`` predicted quality.

        Raises:
            ModelError: as :meth:`decode`; or the network is not one for prompts.
        """
        if not self.prompts:
            raise ModelError("candidates exist for a network with prompts: true")
        masks, quality, _ = self.masks(features, size, prompts)
        return self._at(masks[:, 1:], size), self._mean(quality[:, 1:], size)

    def masks(
        self, features: list[Tensor], size: Sequence[int], prompts: Prompts | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """All masks as the decoder makes them, over the square frame.

        Returns:
            ``(N, M, h, w)`` logits and ``(N, M)`` predicted quality for N images, objects, or images times slices; and
            ``(N,)``, whether the prompts mean one object. The first mask is made for those, the others for the
            candidates or classes. Logits of the first may be given as ``Prompts.mask`` of the next round.
        """
        embedding = features[0]
        if self.ndim == 3:
            embedding = embedding.transpose(1, 2).flatten(0, 1)
        side = 4 * embedding.shape[-1]
        positions = self.prompt_encoder.get_dense_pe()
        if prompts is None:
            # Nothing that depends on values, so that such a network can be exported.
            masks, quality = self.mask_decoder(embedding, positions, *self._embed(len(embedding)))
            return masks, quality, torch.zeros(len(embedding), dtype=torch.bool, device=embedding.device)
        asked = to_frame(prompts, len(embedding), size, self.frame, side, embedding.device)
        found: list[tuple[Tensor, Tensor]] = []
        order: list[Tensor] = []
        for rows, points, labels, boxes, mask in asked.alike():
            sparse, dense = self._embed(len(rows), points, labels, boxes, mask)
            images = embedding if len(embedding) == 1 else embedding[rows]
            found.append(self.mask_decoder(images, positions, sparse, dense))
            order.append(rows)
        back = torch.cat(order).argsort()
        return torch.cat([m for m, _ in found])[back], torch.cat([q for _, q in found])[back], asked.single

    def base_tensors(self, file: Path) -> dict[str, Tensor]:
        """What this network takes from ``file`` as it is, by its own names; see :class:`~models.base_weights.Base`."""
        tensors, report = self._fit(file)
        # Copies: a file that is mapped and then cut short would end the process.
        return {name: tensors[name].clone() for name in report.loaded}

    def _load(self, file: Path) -> None:
        tensors, self.report = self._fit(file)
        self.load_state_dict(tensors, strict=False)
        self.base = base_of(file, {name: tensors[name] for name in self.report.loaded})

    def _fit(self, file: Path) -> tuple[dict[str, Tensor], Report]:
        state = self.state_dict()
        return fit_tensors({n: state[n] for n in self._own if n in state}, read_checkpoint(file), file)

    def _embed(
        self,
        rows: int,
        points: Tensor | None = None,
        labels: Tensor | None = None,
        boxes: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        # In full precision: it is little work, positions need it, and the package mixes dtypes under autocast.
        with full_precision(self.prompt_encoder.no_mask_embed.weight):
            sparse, dense = self.prompt_encoder(
                points=None if points is None else (points, labels),
                boxes=boxes,
                masks=None if mask is None else mask.float(),
            )
        # Without any prompts the package speaks of one image.
        return sparse.expand(rows, -1, -1), dense.expand(rows, -1, -1, -1)

    def _at(self, masks: Tensor, size: Sequence[int]) -> Tensor:
        return self._unfold(self.frame.take(masks, size[-2:]), size)

    def _unfold(self, maps: Tensor, size: Sequence[int]) -> Tensor:
        """``(B * D, K, h, w) -> (B, K, D, h, w)``, in 3D."""
        return maps if self.ndim == 2 else maps.unflatten(0, (-1, size[0])).transpose(1, 2)

    def _mean(self, quality: Tensor, size: Sequence[int]) -> Tensor:
        """Of a volume's slices, the mean."""
        return quality if self.ndim == 2 else quality.unflatten(0, (-1, size[0])).mean(1)
