"""What can be had without a network, on a recipe's own test cases: a constant answer, and a threshold.

    python -m benchmarks.baselines retina_vessels=data/retina xray_lungs=data/xray ...

Both are fitted on the recipe's training cases (tasks/ablation/baselines.py) and measured on the grid that the
network sees, by the same rules. Printed is the mean foreground Dice of the test cases, which a network must beat
clearly. Settings of the data may be given: --data.spacing "[0.3,0.3]".
"""

from __future__ import annotations

import argparse
from pathlib import Path

from apps.measuring import BASELINES
from apps.training import data_of
from apps.verbs.recipes import path_of
from tasks.ablation.cases import interval, score_all


def measure(recipe: str, root: str, settings: list[str]) -> dict[str, tuple[float, float, float]]:
    """Name of a baseline -> mean Dice of the test cases with its 95 % interval."""
    data = data_of(path_of(recipe) or Path(recipe), ["--data.root", root, *settings])
    found = {}
    for name, fit in BASELINES.items():
        answer = fit(data.whole("train"), data.classes)
        dice = interval([score_all(answer, data.whole("test"), data.classes)], "dice")
        found[name] = (dice.mean, dice.low, dice.high)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("datasets", nargs="+", metavar="RECIPE=FOLDER")
    arguments, settings = parser.parse_known_args()
    for entry in arguments.datasets:
        recipe, _, root = entry.partition("=")
        for name, (mean, low, high) in measure(recipe, root, settings).items():
            print(f"{Path(recipe).stem:28}{name:12}{mean:.4f}  ({low:.4f} to {high:.4f})", flush=True)


if __name__ == "__main__":
    main()
