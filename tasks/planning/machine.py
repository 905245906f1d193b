"""What the machine has, as far as a plan depends on it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

# Above this nnU-Net's own presets (8, 24 and 40 GB) hardly gained; --memory asks for more.
_MOST_GPU_GIB = 24.0
_MOST_CPU_GIB = 8.0
# Rough training speeds: measured on one core of a server with the networks planned here (19 to 34 GFLOP/s, float32);
# for GPUs an order of magnitude. Estimates of time may be wrong by a factor of three.
_CPU_GFLOPS_PER_CORE = 20.0
_GPU_GFLOPS = 15_000.0


@dataclass(frozen=True)
class Machine:
    """Where training will run.

    Attributes:
        gpu: its name, or None for a CPU.
        memory: GiB that a training step may take.
        cores: CPU cores.
        stated: whether the user stated the memory.
    """

    gpu: str | None
    memory: float
    cores: int
    stated: bool = False

    @property
    def gflops(self) -> float:
        """Assumed speed of training, in 1e9 floating point operations per second."""
        return _GPU_GFLOPS if self.gpu else _CPU_GFLOPS_PER_CORE * self.cores

    @property
    def bytes_per_element(self) -> dict[int, float]:
        """Memory of a training step per element that a convolution puts out, by number of axes.

        GPU, mixed precision: what nnU-Net's reference values mean (8 GiB for 2 x 560e6 elements in 3D, 12 x 85e6
        in 2D). CPU, float32: 8.3 bytes are kept for the backward pass (measured: every convolution's output and its
        normalised form), and up to half as much again is in flight.
        """
        return {2: 8.4, 3: 7.7} if self.gpu else {2: 12.0, 3: 12.0}

    def __str__(self) -> str:
        return self.gpu or f"CPU with {self.cores} core{'' if self.cores == 1 else 's'}"


def this_machine(memory: float | None = None) -> Machine:
    """The machine this runs on.

    Args:
        memory: GiB to plan for; by default 80 % of the GPU's (24 at most), or half of the RAM (8 at most).
    """
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        found = min(_MOST_GPU_GIB, 0.8 * device.total_memory / 2**30)
        name: str | None = device.name
    else:
        found = min(_MOST_CPU_GIB, 0.5 * _ram() / 2**30)
        name = None
    return Machine(name, found if memory is None else memory, cores, memory is not None)


def _ram() -> float:
    """Bytes of RAM, or of what a container may take of it."""
    try:
        total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):
        return 8.0 * 2**30
    limit = Path("/sys/fs/cgroup/memory.max")
    try:
        return min(total, float(limit.read_text("ascii")))
    except (OSError, ValueError):
        return total
