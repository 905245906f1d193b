"""Memory that fine-tuning a SAM takes on a CPU: peak of the process over training steps, a process per row.

    python -m benchmarks.sam_memory [--size vit_b] [--image 512] [--batch 1] [--adapters lora bottleneck dual_branch]

Weights are random and under autocast to bfloat16 (``--precision 32`` without). A step is forward, Dice and cross entropy
of three classes, backward and AdamW on what learns. Printed per row: trainable and all parameters; the peak of the
resident memory above what the process had before a network was made, and of the whole process; what remains after
the steps is not asked. ``all`` trains everything. Linux only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.measure import machine, peak_above
from models.parts import Part
from models.sam import SamSegmenter
from tasks.losses import DiceCE

# What learns in each row.
ROWS: dict[str, list[Part]] = {
    "decoder": ["decoder", "prompt_encoder"],
    "lora": ["lora", "decoder", "prompt_encoder"],
    "bottleneck": ["bottleneck", "decoder", "prompt_encoder"],
    "attention": [{"name": "attention", "block": "eca"}, "decoder", "prompt_encoder"],
    "dual_branch": ["dual_branch", "neck", "decoder", "prompt_encoder"],
    "all": ["all"],
}


def measure(row: str, options: argparse.Namespace) -> dict[str, float]:
    """In this process: parameters, and MiB."""
    counts: dict[str, float] = {}

    def run() -> None:
        torch.manual_seed(0)
        network = SamSegmenter(
            num_classes=3,
            size=options.size,
            image_size=options.image,
            adapters=ROWS[row],
            checkpointing=options.checkpointing,
        ).train()
        learning = [p for p in network.parameters() if p.requires_grad]
        counts["trainable"] = sum(p.numel() for p in learning)
        counts["all"] = sum(p.numel() for p in network.parameters())
        optimizer = torch.optim.AdamW(learning)
        loss = DiceCE()
        for _ in range(options.steps):
            image = torch.randn(options.batch, 3, options.image, options.image)
            mask = torch.randint(0, 3, (options.batch, options.image, options.image))
            with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bf16"):
                found = loss(network(image).logits, mask)
            optimizer.zero_grad()
            found.backward()
            optimizer.step()

    above = peak_above(run)
    lines = Path("/proc/self/status").read_text().splitlines()
    whole = int(next(n for n in lines if n.startswith("VmHWM:")).split()[1]) / 1024
    return {**counts, "above": above, "whole": whole}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="vit_b", help="vit_b, vit_l, vit_h or tiny")
    parser.add_argument("--image", type=int, default=512, help="side of the image")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2, help="the second has the optimizer's state too")
    parser.add_argument("--precision", choices=["bf16", "32"], default="bf16")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--adapters", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--one", choices=list(ROWS), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        print(json.dumps(measure(options.one, options)))
        return
    print(json.dumps(machine()))
    given = list(arguments if arguments is not None else sys.argv[1:])
    for row in options.adapters:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.sam_memory", *given, "--one", row],
            check=True,
            capture_output=True,
            text=True,
        )
        found = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{row:12} {found['trainable'] / 1e6:7.2f} of {found['all'] / 1e6:.2f} million learn; peak "
            f"{found['above'] / 1024:.2f} GiB above the start, {found['whole'] / 1024:.2f} GiB of the process"
        )


if __name__ == "__main__":
    main()
