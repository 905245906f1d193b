"""A recipe trained once per fold, so that every case but those of validation is tested once, where test cases are few.

    python -m benchmarks.folds pranet=data/wounds --folds 4 --out runs/pranet_folds

The validation cases of the dataset's own division stay with validation: they chose the settings of the recipe. All others
are dealt to the folds, whole groups at a time. In each training one fold is the test, the others train. Then the
scores of all test cases together, and beside them those of benchmarks/baselines.py, fitted fold by fold. A fold that was
tested is not trained again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from apps.cli import main as delineate
from apps.training import data_of
from apps.verbs.recipes import path_of
from benchmarks.baselines import lines, measure_beside
from datamodules.splits import Splits, k_folds, write_splits
from tasks.callbacks import CASES_FILE


def folds_of(recipe: str, root: str, settings: list[str], number: int) -> list[Splits]:
    """Train, val and test for each fold.

    Args:
        recipe: says which cases there are, and which are a group.
        root: the dataset's folder.
        settings: further settings of the data.
        number: how many folds.

    Raises:
        DataError: there are fewer groups than folds.
    """
    data = data_of(path_of(recipe) or Path(recipe), ["--data.root", root, *settings])
    kept = set(data.splits["val"])
    used = {key for name in ("train", "test") for key in data.splits[name]} - kept
    pool = [case for case in data.all_cases if case.key in used]
    return [
        {"train": fold["train"], "val": sorted(kept), "test": fold["val"]} for fold in k_folds(pool, number)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("dataset", metavar="RECIPE=FOLDER")
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    arguments, settings = parser.parse_known_args()
    recipe, _, root = arguments.dataset.partition("=")
    runs = []
    for number, splits in enumerate(folds_of(recipe, root, settings, arguments.folds)):
        run = arguments.out / str(number)
        runs.append(run)
        if (run / CASES_FILE).is_file():
            continue
        run.mkdir(parents=True, exist_ok=True)
        division = run / "fold.json"
        write_splits(division, splits)
        given = ["--data.root", root, *settings, "--data.division.splits", str(division)]
        code = delineate(["fit", "-q", "-c", recipe, *given, "--trainer.default_root_dir", str(run)])
        if code:
            raise SystemExit(code)
    print("\n".join(lines(recipe, measure_beside(recipe, root, settings, runs))))


if __name__ == "__main__":
    main()
