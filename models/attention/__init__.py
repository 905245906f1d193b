"""Attention blocks, maps in and maps out: ``(B, C, *S) -> (B, C, *S)``.

Every block is constructed as ``cls(channels, ndim=2, **options)``, takes any size and a batch of one, and
cites its paper. :data:`ATTENTION` is the one table of their names.
"""

from models.attention.block import AttentionBlock, AttentionMap
from models.attention.eca import ECA
from models.attention.psa import PSA
from models.attention.se import SE

ATTENTION: dict[str, type[AttentionBlock]] = {
    "eca": ECA,
    "psa": PSA,
    "se": SE,
}

__all__ = ["ATTENTION", "ECA", "PSA", "SE", "AttentionBlock", "AttentionMap"]
