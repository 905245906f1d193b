"""Attention blocks, maps in and maps out: ``(B, C, *S) -> (B, C, *S)``.

Every block is constructed as ``cls(channels, ndim=2, **options)``, takes any size and a batch of one, and
cites its paper. :data:`ATTENTION` is the one table of their names.
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

ATTENTION: dict[str, type[AttentionBlock]] = {
    "agent": Agent,
    "aggregated": Aggregated,
    "atconv": ATConv,
    "bra": BRA,
    "cab": CAB,
    "cbam": CBAM,
    "channel_group": ChannelGroupAttention,
    "contmix": ContMix,
    "conv_glu": ConvGLU,
    "coord": CoordinateAttention,
    "coord_se": CoordinateSE,
    "craft_fusion": CRAFTFusion,
    "craft_high": CRAFTHigh,
    "craft_window": CRAFTWindow,
    "dau": DAU,
    "dfc": DFC,
    "dla": DLA,
    "domain_channel": DomainChannelAttention,
    "double_window": DoubleWindow,
    "dual": DualAttention,
    "eca": ECA,
    "ela": ELA,
    "flow": Flow,
    "focal": FocalModulation,
    "gaussian": GaussianAdaptiveAttention,
    "gpsa": GPSA,
    "halo": Halo,
    "head_tokens": HeadTokens,
    "hilo": HiLo,
    "l2_linear": L2Linear,
    "lka": LKA,
    "lsda": LSDA,
    "maxvit": MaxViT,
    "medusa": Medusa,
    "mixture_of_head": MixtureOfHead,
    "neighborhood": Neighborhood,
    "ocab": OCAB,
    "pat_channel": PartialChannel,
    "pat_self": PartialSelf,
    "pat_spatial": PartialSpatial,
    "polyline": Polyline,
    "probing": Probing,
    "psa": PSA,
    "pyramid_sparse": PyramidSparse,
    "raft_mlp": RaftMLP,
    "region": RegionAttention,
    "rgt": RGT,
    "se": SE,
    "shsa": SHSA,
    "strip": StripAttention,
    "token_aggregation": TokenAggregation,
    "ulsam": ULSAM,
    "vsa": VSA,
    "wave_block": WaveBlock,
    "wavelet": MobileMambaMixer,
    "wavemix": WaveMix,
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
