"""Clocks, rounds in turns, and peaks of memory: what benchmarks of whole images share."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


class Clock:
    """Adds up the time spent within ``with clock.running():``."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count what happens inside."""
        start = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - start


class Stopwatch(torch.nn.Module):
    """A network that adds up the time it takes."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network
        self.seconds = 0.0

    def forward(self, *arguments: object, **named: object) -> object:
        """The network's answer."""
        start = time.perf_counter()
        answer = self.network(*arguments, **named)
        self.seconds += time.perf_counter() - start
        return answer


class Logits(torch.nn.Module):
    """What peers want of a segmenter: image -> logits."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """``(B, C, *S)`` -> ``(B, K, *S)``."""
        return self.network(image).logits


@dataclass
class Times:
    """Seconds of one method, a number per round."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    network: list[float] = field(default_factory=list)
    decision: list[float] = field(default_factory=list)

    @property
    def outside(self) -> list[float]:
        """Of the network."""
        return [wall - network for wall, network in zip(self.wall, self.network, strict=True)]


def in_turns(
    runs: dict[str, Callable[[], None]], rounds: int, network: Stopwatch, decision: Clock
) -> dict[str, Times]:
    """Every method once per round, each round beginning with another one; the first round is not counted."""
    times = {name: Times() for name in runs}
    names = list(runs)
    for number in range(rounds + 1):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            network.seconds = decision.seconds = 0.0
            cpu, start = sum(os.times()[:4]), time.perf_counter()
            runs[name]()
            wall, cpu = time.perf_counter() - start, sum(os.times()[:4]) - cpu
            if number:
                mine = times[name]
                mine.wall.append(wall)
                mine.cpu.append(cpu)
                mine.network.append(network.seconds)
                mine.decision.append(decision.seconds)
    return times


def paired(mine: list[float], other: list[float]) -> float:
    """Median over rounds of the ratio within each round."""
    return statistics.median(a / b for a, b in zip(mine, other, strict=True))


def peak_above(run: Callable[[], None]) -> float:
    """MiB that this process took at most during ``run``, above what it had before. Linux only."""

    def kib(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(name)).split()[1])

    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    before = kib("VmRSS:")
    run()
    return (kib("VmHWM:") - before) / 1024


def machine() -> dict[str, Any]:
    """What it ran on, in neutral words."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "torch threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__.split("+")[0],
        "load before": round(os.getloadavg()[0], 2),
    }
