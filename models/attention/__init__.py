"""Attention blocks, maps in and maps out: ``(B, C, *S) -> (B, C, *S)``.

Every block is constructed as ``cls(channels, ndim=2, **options)``, takes any size and a batch of one, and
cites its paper. :data:`ATTENTION` is the one table of their names.
"""

from models.attention.block import AttentionBlock, AttentionMap
from models.attention.channel_group import ChannelGroupAttention
from models.attention.dla import DLA
from models.attention.domain_channel import DomainChannelAttention
from models.attention.dual import DualAttention
from models.attention.eca import ECA
from models.attention.focal import FocalModulation
from models.attention.gaussian import GaussianAdaptiveAttention
from models.attention.hat import CAB, OCAB
from models.attention.lka import LKA
from models.attention.neighborhood import Neighborhood
from models.attention.psa import PSA
from models.attention.raft_mlp import RaftMLP
from models.attention.region import RegionAttention
from models.attention.se import SE
from models.attention.shsa import SHSA
from models.attention.strip import StripAttention
from models.attention.wavelet import MobileMambaMixer
from models.attention.wavemix import WaveMix

ATTENTION: dict[str, type[AttentionBlock]] = {
    "cab": CAB,
    "channel_group": ChannelGroupAttention,
    "dla": DLA,
    "domain_channel": DomainChannelAttention,
    "dual": DualAttention,
    "eca": ECA,
    "focal": FocalModulation,
    "gaussian": GaussianAdaptiveAttention,
    "lka": LKA,
    "neighborhood": Neighborhood,
    "ocab": OCAB,
    "psa": PSA,
    "raft_mlp": RaftMLP,
    "region": RegionAttention,
    "se": SE,
    "shsa": SHSA,
    "strip": StripAttention,
    "wavelet": MobileMambaMixer,
    "wavemix": WaveMix,
}

__all__ = [
    "ATTENTION",
    "CAB",
    "DLA",
    "ECA",
    "LKA",
    "OCAB",
    "PSA",
    "SE",
    "SHSA",
    "AttentionBlock",
    "AttentionMap",
    "ChannelGroupAttention",
    "DomainChannelAttention",
    "DualAttention",
    "FocalModulation",
    "GaussianAdaptiveAttention",
    "MobileMambaMixer",
    "Neighborhood",
    "RaftMLP",
    "RegionAttention",
    "StripAttention",
    "WaveMix",
]
