"""Ways to join a decoder map with a skip. :data:`FUSION` is the one table of their names."""

from models.fusion.attention_gate import AttentionGate
from models.fusion.basic import Add, Concat
from models.fusion.skff import SKFF, SelectiveSum
from models.interfaces import Fusion

FUSION: dict[str, type[Fusion]] = {
    "add": Add,
    "attention_gate": AttentionGate,
    "concat": Concat,
    "skff": SKFF,
}

__all__ = ["FUSION", "SKFF", "Add", "AttentionGate", "Concat", "SelectiveSum"]
