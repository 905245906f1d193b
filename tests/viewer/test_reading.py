"""Parts read in threads: each once, neighbours together, and nothing more after an error."""

from __future__ import annotations

import threading
from collections import defaultdict

import pytest

from apps.viewer.render.reading import in_threads


def test_each_part_is_read_once_and_neighbours_by_one_thread() -> None:
    by_thread: dict[int, list[int]] = defaultdict(list)
    told: list[float] = []
    in_threads(lambda part: by_thread[threading.get_ident()].append(part), list(range(11)), told.append)
    assert sorted(part for parts in by_thread.values() for part in parts) == list(range(11))
    for parts in by_thread.values():
        assert parts == sorted(parts)
    assert told[-1] == 1.0
    assert told == sorted(told)
    in_threads(by_thread[0].append, [])
    assert not by_thread[0]


def test_an_error_is_the_callers_and_ends_the_others() -> None:
    read: list[int] = []
    failed = threading.Event()

    def work(part: int) -> None:
        read.append(part)
        if part == 0:
            failed.set()
            raise ValueError("part 0 is damaged")
        failed.wait(10)

    with pytest.raises(ValueError, match="part 0 is damaged"):
        in_threads(work, list(range(1000)))
    assert len(read) < 1000


def test_who_stops_waiting_stops_the_reading() -> None:
    read: list[int] = []
    gone = threading.Event()

    def work(part: int) -> None:
        read.append(part)
        gone.wait(10)

    def told(_: float) -> None:
        gone.set()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        in_threads(work, list(range(100_000)), told)
    assert len(read) < 100_000
