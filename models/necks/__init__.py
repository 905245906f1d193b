"""What stands between encoder and decoder and lets the levels see each other. :data:`NECKS` is the one table of names."""

from models.interfaces import Neck
from models.necks.dense import DenseAttention

NECKS: dict[str, type[Neck]] = {"dense_attention": DenseAttention}

__all__ = ["NECKS", "DenseAttention"]
