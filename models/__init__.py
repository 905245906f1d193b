"""Networks: attention blocks, encoders, decoders, and the segmenters built from them."""

from models.encoder_decoder import EncoderDecoder
from models.interfaces import Decoder, Encoder, Fusion, Output, Prompts, Segmenter

# Name -> class with presets `paper` and `tiny`: SYSTEMS["unet"].preset("tiny", in_channels=1, num_classes=2).
SYSTEMS: dict[str, type[Segmenter]] = {"unet": EncoderDecoder}

__all__ = ["SYSTEMS", "Decoder", "Encoder", "EncoderDecoder", "Fusion", "Output", "Prompts", "Segmenter"]
