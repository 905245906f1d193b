"""CLIPSeg as a segmenter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from models.base_weights import base_of
from models.clipseg.adapters import place_adapters
from models.clipseg.sizes import make_network
from models.clipseg.snapshot import PATCHES, read_tensors, read_tokens, tensor_file
from models.errors import ModelError
from models.interfaces import Output, Prompts, Segmenter
from models.parts import Part
from models.sam.frame import Frame


class ClipSegSegmenter(Segmenter):
    """CLIPSeg (Lueddecke and Ecker 2022, arXiv 2112.10003): a mask for each of several texts.

    The texts are given once; each class has its own, the background too. Images are scaled to ``image_size`` as SAM's
    are, positions are resampled.

    Args:
        in_channels: any number; weights for three are repeated, or summed for one.
        num_classes: K.
        ndim: 2.
        texts: what each class is called, K of them; "class 0", "class 1" ... when not given.
        size: rd64_refined or tiny.
        image_size: side of the square that the network sees, a multiple of 16.
        adapters: what is trained instead of the whole; see :mod:`models.clipseg.adapters`.
        weights: folder of a snapshot of CIDAS/clipseg-rd64-refined with its tokenizer and ``model.safetensors``; never
            downloaded. Without it weights are random, and a text is its bytes.
        text_length: most tokens of a text, with one in front and one behind.
    """

    ndims = frozenset({2})

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 2,
        ndim: int = 2,
        texts: list[str] | None = None,
        size: str = "rd64_refined",
        image_size: int = 352,
        adapters: list[Part] | None = None,
        weights: str | None = None,
        text_length: int = 24,
    ) -> None:
        super().__init__()
        self._serve(in_channels, num_classes, ndim)
        texts = [f"class {number}" for number in range(num_classes)] if texts is None else texts
        if len(texts) != num_classes:
            raise ModelError(f"texts has {len(texts)} texts; give one for each of the {num_classes} classes")
        whole = make_network(size)
        config = whole.config
        most = config.text_config.max_position_embeddings
        if not 3 <= text_length <= most:
            raise ModelError(f"text_length is {text_length}; it must be from 3 to {most}")
        if image_size < 16 or image_size % config.vision_config.patch_size:
            raise ModelError(
                f"image_size is {image_size}; it must be a multiple of {config.vision_config.patch_size}"
            )
        self.frame = Frame(image_size)
        self.layers = tuple(config.extract_layers)
        self.text_model = whole.clip.text_model
        self.text_projection = whole.clip.text_projection
        self.vision_model = whole.clip.vision_model
        self.decoder = whole.decoder
        # What is behind the last layer that the decoder reads has no use here.
        self.vision_model.encoder.layers = self.vision_model.encoder.layers[: 1 + max(self.layers)]
        self.vision_model.post_layernorm = torch.nn.Identity()
        if in_channels != 3:
            old = self.vision_model.embeddings.patch_embedding
            self.vision_model.embeddings.patch_embedding = torch.nn.Conv2d(
                in_channels, old.out_channels, old.kernel_size, old.stride, bias=False
            )
        # CLIPSeg's own names, before adapters add theirs.
        self._own = tuple(self.state_dict())
        words = self._load(weights, texts) if weights is not None else _bytes(texts, config.text_config)
        self.register_buffer("tokens", _padded(words, texts, text_length, config.text_config.eos_token_id))
        place_adapters(adapters, self)

    tokens: Tensor

    def encode(self, image: Tensor) -> list[Tensor]:
        """``(B, in_channels, H, W)`` -> tokens of the layers that the decoder reads, ``(B, T, C)`` each."""
        seen = self.vision_model(
            pixel_values=self.frame.put(image), interpolate_pos_encoding=True, output_hidden_states=True
        )
        return [seen.hidden_states[layer + 1] for layer in self.layers]

    def conditions(self) -> Tensor:
        """What the texts mean: ``(K, projection)``."""
        return self.text_projection(self.text_model(input_ids=self.tokens).pooler_output)

    def decode(self, features: list[Tensor], size: Sequence[int], prompts: Prompts | None = None) -> Output:
        """A logit per text.

        Raises:
            ModelError: prompts; the texts are given with the network.
        """
        if prompts is not None and prompts != Prompts():
            raise ModelError(
                f"{type(self).__name__} takes no prompts: its texts are given by the option texts"
            )
        batch, count = len(features[0]), self.num_classes
        maps = [f.repeat_interleave(count, dim=0) for f in features]
        logits = self.decoder(maps, self.conditions().repeat(batch, 1)).logits
        return Output(self.frame.take(logits.unflatten(0, (batch, count)), size))

    def base_tensors(self, file: Path) -> dict[str, Tensor]:
        """What this network takes from ``file`` as it is, by its own names; see :class:`~models.base_weights.Base`."""
        found = {name: t.clone() for name, t in read_tensors(file, self._wanted()).items()}
        return found if self.in_channels == 3 else {n: t for n, t in found.items() if n != PATCHES}

    def _load(self, weights: str, texts: Sequence[str]) -> list[list[int]]:
        file = tensor_file(weights)
        tensors = read_tensors(file, self._wanted())
        self.load_state_dict(tensors, strict=False)
        self.base = base_of(file, {n: t for n, t in tensors.items() if self.in_channels == 3 or n != PATCHES})
        return read_tokens(texts, file.parent)

    def _wanted(self) -> dict[str, Tensor]:
        state = self.state_dict()
        return {name: state[name] for name in self._own if name in state}


def _bytes(texts: Sequence[str], config: object) -> list[list[int]]:
    """Without a tokenizer: a token per byte."""
    return [[config.bos_token_id, *text.encode(), config.eos_token_id] for text in texts]  # type: ignore[attr-defined]


def _padded(words: Sequence[Sequence[int]], texts: Sequence[str], length: int, end: int) -> Tensor:
    """``(K, length)``; what is behind the first ``end`` is never looked at."""
    for text, tokens in zip(texts, words, strict=True):
        if len(tokens) > length:
            raise ModelError(
                f"texts: {text!r} has {len(tokens)} tokens; shorten it, or raise text_length ({length})"
            )
    return torch.tensor([[*tokens, *[end] * (length - len(tokens))] for tokens in words])
