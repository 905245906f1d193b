"""Networks: attention blocks, encoders, decoders, and the segmenters built from them."""

from models.encoder_decoder import EncoderDecoder
from models.interfaces import Decoder, Encoder, Fusion, Output, Prompts, Segmenter
from models.systems import SYSTEMS

__all__ = ["SYSTEMS", "Decoder", "Encoder", "EncoderDecoder", "Fusion", "Output", "Prompts", "Segmenter"]
