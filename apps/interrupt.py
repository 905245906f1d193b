"""Ctrl-C: once to end after the current image, twice to end at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupt:
    """Counts interruptions."""

    def __init__(self) -> None:
        self.count = 0

    @property
    def asked(self) -> bool:
        """Whether the run is to end."""
        return self.count > 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle the signal."""
        self.count += 1
        if self.count == 1:
            # Not print: the signal may have come in the midst of one.
            os.write(2, b"\nending after this image; interrupt again to end at once\n")
        elif self.count == 2:
            # Files that are half-written are removed on the way out; a third interruption does not disturb that.
            raise KeyboardInterrupt


@contextmanager
def gentle() -> Iterator[Interrupt]:
    """While the block runs, the first interruption is counted, and only the second one raises."""
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():  # only that one may handle signals
        yield interrupt
        return
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)
