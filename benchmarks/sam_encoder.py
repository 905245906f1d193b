"""SAM's image encoder, ours against segment-anything's: the same weights and image, in turns in one run.

    python -m benchmarks.sam_encoder [--size vit_b] [--image 1024] [--rounds 3] [--bf16]

Printed: the largest difference of the embeddings; the median over rounds of our time over the package's in the same
round, by the clock and of the cores (which other work on the machine hardly changes); and the peak of memory, each
encoder in a process of its own: above the loaded model, and of the whole process. Linux only.
Weights are random, with positions that are not 0.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import torch

from benchmarks.measure import machine, paired, peak_above
from models.sam.image_encoder import ImageEncoder
from models.sam.sizes import SamSize, read_size

NAMES = ("ours", "package")


def package_encoder(size: SamSize, image: int) -> torch.nn.Module:
    """segment-anything's encoder with the numbers of ``size``."""
    from segment_anything.modeling import ImageEncoderViT

    return ImageEncoderViT(
        img_size=image,
        patch_size=size.patch_size,
        embed_dim=size.embed_dim,
        depth=size.depth,
        num_heads=size.num_heads,
        mlp_ratio=size.mlp_ratio,
        out_chans=size.out_chans,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=size.window_size,
        global_attn_indexes=size.global_attn_indexes,
    )


def encoder(name: str, size: SamSize, image: int) -> torch.nn.Module:
    """One of the two, in eval mode."""
    made = ImageEncoder(3, image, size) if name == "ours" else package_encoder(size, image)
    return made.eval().requires_grad_(False)


def precision(bf16: bool) -> AbstractContextManager[object]:
    return torch.autocast("cpu", torch.bfloat16, enabled=bf16)


def peak(name: str, size: str, image: int, bf16: bool) -> dict[str, float]:
    """In this process: MiB above the loaded model, and of the whole process."""
    network = encoder(name, read_size(size), image)
    pixels = torch.randn(1, 3, image, image)

    def run() -> None:
        with torch.inference_mode(), precision(bf16):
            network(pixels)

    above = peak_above(run)
    lines = Path("/proc/self/status").read_text().splitlines()
    return {"above": above, "whole": int(next(n for n in lines if n.startswith("VmHWM:")).split()[1]) / 1024}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="vit_b", help="vit_b, vit_l, vit_h or tiny")
    parser.add_argument("--image", type=int, default=1024, help="side of the image")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bf16", action="store_true", help="under autocast to bfloat16")
    parser.add_argument("--peak", choices=NAMES, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.peak:
        print(json.dumps(peak(options.peak, options.size, options.image, options.bf16)))
        return
    print(json.dumps(machine()))
    size = read_size(options.size)
    torch.manual_seed(0)
    networks = {name: encoder(name, size, options.image) for name in NAMES}
    networks["package"].load_state_dict(networks["ours"].state_dict())
    image = torch.randn(1, 3, options.image, options.image)
    wall: dict[str, list[float]] = {name: [] for name in NAMES}
    cores: dict[str, list[float]] = {name: [] for name in NAMES}
    found: dict[str, torch.Tensor] = {}
    for turn in range(options.rounds):
        for name in NAMES[:: 1 if turn % 2 else -1]:
            start, used = time.perf_counter(), time.process_time()
            with torch.inference_mode(), precision(options.bf16):
                found[name] = networks[name](image)
            wall[name].append(time.perf_counter() - start)
            cores[name].append(time.process_time() - used)
    peaks = {
        name: json.loads(
            subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "benchmarks.sam_encoder",
                    "--peak",
                    name,
                    *(arguments or sys.argv[1:]),
                ],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
        for name in NAMES
    }
    print(f"largest difference {(found['ours'] - found['package']).abs().max():.1e}")
    for seconds, what in ((wall, "time"), (cores, "of cores")):
        ratio = paired(seconds["ours"], seconds["package"])
        print(f"{what:9} {ratio:.2f} x the package's ({_listed(seconds)})")
    for kind, what in (("above", "above the loaded model"), ("whole", "of the whole process")):
        ours, package = (peaks[name][kind] for name in NAMES)
        print(f"peak      {ours / package:.2f} x the package's ({ours:.0f} of {package:.0f} MiB {what})")


def _listed(seconds: dict[str, list[float]]) -> str:
    return "; ".join(f"{name} {' '.join(f'{s:.1f}' for s in each)} s" for name, each in seconds.items())


if __name__ == "__main__":
    main()
