"""Many parts of a file read at once, each thread with files of its own that stay open meanwhile."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

from datamodules.formats import gdal

T = TypeVar("T")
# More threads than these only drive each other's blocks out of what GDAL holds decoded.
_THREADS = 2
# Seconds between two words about how far it is.
_TOLD = 0.1


def in_threads(
    work: Callable[[T], None], parts: Sequence[T], progress: Callable[[float], None] | None = None
) -> None:
    """Call ``work`` with each part, neighbours in one thread: what was decoded for one serves the next one, too.

    Args:
        work: reads one part.
        parts: in the order of the file.
        progress: called with the share done, from 0 to 1, in the thread of the caller.

    Raises:
        Exception: the first one of ``work``, or of ``progress``; what has not begun is then left out.
    """
    done: list[T] = []
    over = threading.Event()

    def run(share: Sequence[T]) -> None:
        keep = gdal.KeepOpen()
        keep.start()
        try:
            for part in share:
                if over.is_set():
                    return
                work(part)
                done.append(part)
        except BaseException:
            over.set()
            raise
        finally:
            keep.stop()

    threads = min(_THREADS, os.cpu_count() or 1)
    each = max(1, -(-len(parts) // threads))
    with ThreadPoolExecutor(threads) as pool:
        shares = [pool.submit(run, parts[at : at + each]) for at in range(0, len(parts), each)]
        try:
            while wait(shares, _TOLD, FIRST_EXCEPTION).not_done and not over.is_set():
                if progress is not None:
                    progress(len(done) / len(parts))
        except BaseException:  # the person has gone on
            over.set()
            raise
    for share in shares:
        share.result()
    if progress is not None:
        progress(1.0)
