"""What the systems of papers cost at the size that their papers speak of: memory of a training step, speed of an answer.

    python -m benchmarks.systems_cost memory herseg --image 1024 --loss DiceFocal
    python -m benchmarks.systems_cost speed pranet --image 352

The preset is ``paper`` with random weights, three channels, and as many classes as ``--classes`` says. Every row is a
process of its own.

``memory``: a step is forward, loss, backward and Adam. Printed are parameters; what lives all the time (weights, gradients
and Adam's two numbers for each); what the forward pass keeps for the way back, each tensor's memory once, weights left
out, which is the same on any device; and the peak: on a GPU torch's own count of memory in use, otherwise resident memory
above what the process had before the network was made (Linux only). Units are GB of 10^9 bytes, as in papers.

``speed``: milliseconds of a forward pass without gradients, the median and quartiles of ``--rounds``, and multiplications
as torch's FlopCounterMode counts them, halved.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import machine, peak_above
from models import SYSTEMS
from models.interfaces import Segmenter
from tasks import losses


def make(options: argparse.Namespace, preset: str) -> Segmenter:
    """The system with random weights, on the device."""
    torch.manual_seed(0)
    network = SYSTEMS[options.system].preset(preset, in_channels=3, num_classes=options.classes)
    return network.to(options.device)


def steps(network: Segmenter, options: argparse.Namespace, side: int, number: int) -> int:
    """Train on noise.

    Returns:
        Bytes that the last forward pass kept for the way back.
    """
    network.train()
    optimizer = torch.optim.Adam(network.parameters(), 1e-4)
    loss = getattr(losses, options.loss)()
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    for _ in range(number):
        kept.clear()
        image = torch.randn(options.batch, 3, side, side, device=options.device)
        mask = torch.randint(0, options.classes, (options.batch, side, side), device=options.device)
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast(
                torch.device(options.device).type, torch.bfloat16, enabled=options.precision == "bf16"
            ),
        ):
            found = loss(network(image).logits, mask)
        optimizer.zero_grad()
        found.backward()
        optimizer.step()
    return sum(kept.values())


def memory(options: argparse.Namespace) -> dict[str, float]:
    """In this process: parameters, and bytes."""
    steps(make(options, "tiny"), options, 64, 1)  # loads libraries, which are not the network's
    result: dict[str, float] = {}

    def run() -> None:
        network = make(options, "paper")
        result["parameters"] = sum(p.numel() for p in network.parameters())
        result["lasting"] = 4 * 4 * result["parameters"]
        result["kept"] = steps(network, options, options.image, 2)

    if options.device == "cpu":
        result["peak"] = peak_above(run) * 2**20
    else:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        result["peak"] = torch.cuda.max_memory_allocated() - before
    return result


def speed(options: argparse.Namespace) -> dict[str, float]:
    """In this process: parameters, multiplications, and milliseconds."""
    network = make(options, "paper").eval().requires_grad_(False)
    image = torch.randn(options.batch, 3, options.image, options.image, device=options.device)
    with FlopCounterMode(display=False) as counter:
        network(image)
    times = []
    for _ in range(options.rounds):
        start = time.perf_counter()
        network(image)
        if options.device != "cpu":
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - start))
    lower, median, upper = statistics.quantiles(times, n=4)
    return {
        "parameters": sum(p.numel() for p in network.parameters()),
        "multiplications": counter.get_total_flops() / 2,
        "lower": lower,
        "median": median,
        "upper": upper,
    }


def say(found: dict[str, float], options: argparse.Namespace) -> str:
    """One line for a person."""
    name = f"{options.system} {options.image} x {options.image}, batch {options.batch}"
    head = f"{name}: {found['parameters'] / 1e6:.2f} million parameters; "
    if options.what == "memory":
        return head + (
            f"{found['lasting'] / 1e9:.3f} GB all the time, {found['kept'] / 1e9:.3f} GB kept for the way back, "
            f"peak {found['peak'] / 1e9:.3f} GB ({options.precision}, {options.device})"
        )
    rate = 1000 * options.batch / found["median"]
    return head + (
        f"{found['multiplications'] / 1e9:.2f} billion multiplications; {found['median']:.1f} ms "
        f"({found['lower']:.1f} to {found['upper']:.1f}), {rate:.1f} images a second ({options.device})"
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["memory", "speed"])
    parser.add_argument("system", choices=sorted(SYSTEMS))
    parser.add_argument("--image", type=int, default=352, help="side of the image")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--classes", type=int, default=2)
    parser.add_argument("--loss", default="DiceCE", help="a name of tasks.losses")
    parser.add_argument("--precision", choices=["32", "bf16"], default="32")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        print(json.dumps({"memory": memory, "speed": speed}[options.what](options)))
        return
    given = list(arguments if arguments is not None else sys.argv[1:])
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.systems_cost", *given, "--one"],
        check=True,
        capture_output=True,
        text=True,
    )
    print(json.dumps(machine()))
    print(say(json.loads(done.stdout.splitlines()[-1]), options))


if __name__ == "__main__":
    main()
