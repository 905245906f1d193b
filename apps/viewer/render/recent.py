"""Tiles that were read a moment ago: a browser that forgot some of them gets them without another look at the file."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from apps.viewer.render.slabs import Slab

# Bytes of values that are kept, per scene that somebody looks at.
MOST = 2**26


class Recent:
    """Slabs by their key, up to a limit; the one that was asked for longest ago goes first.

    Keys name the content, its version included: what is found is what would be read.
    """

    def __init__(self, most: int = MOST) -> None:
        self.most = most
        self.bytes = 0
        self._slabs: OrderedDict[str, Slab] = OrderedDict()

    def of(self, keys: Iterable[str]) -> dict[str, Slab]:
        """Those of the keys that are here."""
        found = {key: self._slabs[key] for key in keys if key in self._slabs}
        for key in found:
            self._slabs.move_to_end(key)
        return found

    def keep(self, slabs: Iterable[Slab]) -> None:
        """Keep these, and let go of others where there are too many."""
        for slab in slabs:
            if slab.key not in self._slabs:
                self._slabs[slab.key] = slab
                self.bytes += slab.values.nbytes
            self._slabs.move_to_end(slab.key)
        while self.bytes > self.most and len(self._slabs) > 1:
            _, gone = self._slabs.popitem(last=False)
            self.bytes -= gone.values.nbytes
