"""Stacked convolutions: the encoder of the U-Net (arXiv 1505.04597), as nnU-Net builds it (arXiv 1904.08128)."""

from models.encoders.staged import StagedEncoder
from models.layers import ConvBlock


class PlainEncoder(StagedEncoder):
    """Each stage is ``blocks`` times convolution, normalisation, activation."""

    block = ConvBlock
