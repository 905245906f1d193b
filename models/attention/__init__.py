"""Attention blocks, maps in and maps out: ``(B, C, *S) -> (B, C, *S)``.

Every block is constructed as ``cls(channels, ndim=2, **options)``, takes any size and a batch of one, and
cites its paper. :data:`ATTENTION` is the one table of their names, by family; docs/attention.md says more of each.
"""

from models.attention.agent import Agent
from models.attention.aggregated import Aggregated
from models.attention.atconv import ATConv
from models.attention.block import AttentionBlock, AttentionMap
from models.attention.bra import BRA
from models.attention.cbam import CBAM
from models.attention.channel_group import ChannelGroupAttention
from models.attention.contmix import ContMix
from models.attention.conv_glu import ConvGLU
from models.attention.coord import CoordinateAttention, CoordinateSE
from models.attention.craft import CRAFTFusion, CRAFTHigh, CRAFTWindow
from models.attention.dau import DAU
from models.attention.dfc import DFC
from models.attention.dla import DLA
from models.attention.domain_channel import DomainChannelAttention
from models.attention.double_window import DoubleWindow
from models.attention.dual import DualAttention
from models.attention.eca import ECA
from models.attention.ela import ELA
from models.attention.flow import Flow
from models.attention.focal import FocalModulation
from models.attention.gaussian import GaussianAdaptiveAttention
from models.attention.gpsa import GPSA
from models.attention.halo import Halo
from models.attention.hat import CAB, OCAB
from models.attention.head_tokens import HeadTokens
from models.attention.hilo import HiLo
from models.attention.l2_linear import L2Linear
from models.attention.lka import LKA
from models.attention.lsda import LSDA
from models.attention.maxvit import MaxViT
from models.attention.medusa import Medusa
from models.attention.mixture_of_head import MixtureOfHead
from models.attention.neighborhood import Neighborhood
from models.attention.partial import PartialChannel, PartialSelf, PartialSpatial
from models.attention.polyline import Polyline
from models.attention.probing import Probing
from models.attention.psa import PSA
from models.attention.pyramid_sparse import PyramidSparse
from models.attention.raft_mlp import RaftMLP
from models.attention.region import RegionAttention
from models.attention.rgt import RGT
from models.attention.se import SE
from models.attention.shsa import SHSA
from models.attention.strip import StripAttention
from models.attention.token_aggregation import TokenAggregation
from models.attention.ulsam import ULSAM
from models.attention.vsa import VSA
from models.attention.wave_block import WaveBlock
from models.attention.wavelet import MobileMambaMixer
from models.attention.wavemix import WaveMix

# By family. A comment is the heading of its family in docs/attention.md: title, colon, one sentence.
ATTENTION: dict[str, type[AttentionBlock]] = {
    # Channels: each channel is weighted as a whole, or channels attend to channels.
    "eca": ECA,
    "se": SE,
    "domain_channel": DomainChannelAttention,
    "channel_group": ChannelGroupAttention,
    # Positions and axes: each position is weighted, mostly by what lies along its row and column.
    "ela": ELA,
    "coord": CoordinateAttention,
    "dfc": DFC,
    "ulsam": ULSAM,
    "medusa": Medusa,
    "probing": Probing,
    # Channels and positions: weights for both, one after the other or added.
    "cbam": CBAM,
    "psa": PSA,
    "coord_se": CoordinateSE,
    "dual": DualAttention,
    "gaussian": GaussianAdaptiveAttention,
    # Convolutions: attention made of convolutions, with large, computed or gated kernels.
    "lka": LKA,
    "focal": FocalModulation,
    "atconv": ATConv,
    "contmix": ContMix,
    "conv_glu": ConvGLU,
    # A part of the channels: some attend, the others are convolved or passed on.
    "shsa": SHSA,
    "pat_channel": PartialChannel,
    "pat_spatial": PartialSpatial,
    "pat_self": PartialSelf,
    # Windows and neighbourhoods: self-attention among positions near each other, or on a lattice or a line.
    "neighborhood": Neighborhood,
    "halo": Halo,
    "vsa": VSA,
    "double_window": DoubleWindow,
    "maxvit": MaxViT,
    "lsda": LSDA,
    "polyline": Polyline,
    # All positions: self-attention of every position to every other, for coarse maps.
    "gpsa": GPSA,
    "head_tokens": HeadTokens,
    "mixture_of_head": MixtureOfHead,
    # Fewer keys: every position attends to a summary of the map, or to what is chosen of it.
    "hilo": HiLo,
    "agent": Agent,
    "bra": BRA,
    "pyramid_sparse": PyramidSparse,
    "strip": StripAttention,
    "aggregated": Aggregated,
    # Linear attention: sums over keys are made once, before any query is looked at.
    "dla": DLA,
    "flow": Flow,
    "l2_linear": L2Linear,
    # Mixers without attention: wavelets, scans and perceptrons along axes.
    "wavelet": MobileMambaMixer,
    "wavemix": WaveMix,
    "raft_mlp": RaftMLP,
    # From restoration networks: blocks of networks that sharpen and denoise images.
    "cab": CAB,
    "ocab": OCAB,
    "craft_high": CRAFTHigh,
    "craft_window": CRAFTWindow,
    "craft_fusion": CRAFTFusion,
    "dau": DAU,
    "rgt": RGT,
    "token_aggregation": TokenAggregation,
    "region": RegionAttention,
    # In training only: what disturbs features while a network learns.
    "wave_block": WaveBlock,
}

__all__ = [
    "ATTENTION",
    "BRA",
    "CAB",
    "CBAM",
    "DAU",
    "DFC",
    "DLA",
    "ECA",
    "ELA",
    "GPSA",
    "LKA",
    "LSDA",
    "OCAB",
    "PSA",
    "RGT",
    "SE",
    "SHSA",
    "ULSAM",
    "VSA",
    "ATConv",
    "Agent",
    "Aggregated",
    "AttentionBlock",
    "AttentionMap",
    "CRAFTFusion",
    "CRAFTHigh",
    "CRAFTWindow",
    "ChannelGroupAttention",
    "ContMix",
    "ConvGLU",
    "CoordinateAttention",
    "CoordinateSE",
    "DomainChannelAttention",
    "DoubleWindow",
    "DualAttention",
    "Flow",
    "FocalModulation",
    "GaussianAdaptiveAttention",
    "Halo",
    "HeadTokens",
    "HiLo",
    "L2Linear",
    "MaxViT",
    "Medusa",
    "MixtureOfHead",
    "MobileMambaMixer",
    "Neighborhood",
    "PartialChannel",
    "PartialSelf",
    "PartialSpatial",
    "Polyline",
    "Probing",
    "PyramidSparse",
    "RaftMLP",
    "RegionAttention",
    "StripAttention",
    "TokenAggregation",
    "WaveBlock",
    "WaveMix",
]
