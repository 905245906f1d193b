"""Our recipes against segmentation_models.pytorch's plain U-Net: same data, patches, seeds, loss and steps.

    python -m benchmarks.versus_smp retina_vessels=data/retina xray_lungs=data/xray ...

Each recipe is trained twice by ``delineate fit``: as it is, and with its network replaced by
``smp.Unet("resnet34", encoder_weights=None)``. Everything else (splits, augmentation, optimizer, schedule,
averaging of weights, prediction in tiles) is the recipe's. Printed are the mean foreground Dice of the test
cases, the seconds of training, and ours minus theirs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NETWORKS = {"ours": [], "smp": ["--model.network", "benchmarks.smp_unet.SmpUnet"]}


def train(recipe: str, root: str, network: str, folder: Path, overrides: list[str]) -> tuple[float, float]:
    """Run one training; returns (mean foreground Dice of the test cases, seconds)."""
    run = folder / recipe / network
    command = [sys.executable, "-m", "apps.cli", "fit", "-q", "-c", recipe, "--data.root", root]
    command += ["--trainer.default_root_dir", str(run), *NETWORKS[network], *overrides]
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    return float(json.loads((run / "metrics.json").read_text("utf-8"))["test/dice"]), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("datasets", nargs="+", metavar="RECIPE=FOLDER")
    parser.add_argument("--keep", metavar="FOLDER", help="keep the runs here")
    arguments, overrides = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(arguments.keep or scratch)
        print(f"{'recipe':24}{'ours':>8}{'smp':>8}{'minus':>8}{'s ours':>8}{'s smp':>8}", flush=True)
        for entry in arguments.datasets:
            recipe, _, root = entry.partition("=")
            found = {name: train(recipe, root, name, folder, overrides) for name in NETWORKS}
            (ours, seconds), (theirs, their_seconds) = found["ours"], found["smp"]
            print(
                f"{recipe:24}{ours:8.4f}{theirs:8.4f}{ours - theirs:+8.4f}{seconds:8.0f}{their_seconds:8.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
