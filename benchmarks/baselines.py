"""What can be had without a network, on a recipe's own test cases: a constant answer, and a threshold.

    python -m benchmarks.baselines retina_vessels=data/retina xray_lungs=data/xray ...
    python -m benchmarks.baselines herseg=data/xray --runs runs/herseg

Both are fitted on the recipe's training cases (tasks/ablation/baselines.py) and measured on the grid that the
network sees, by the same rules. Printed is the mean foreground Dice of the test cases, which a network must beat
clearly. Settings of the data may be given: --data.spacing "[0.3,0.3]".

With --runs, folders that delineate fit wrote, both are fitted on the training cases of each run and measured on its test
cases. Then the run's own Dice follows, and what it is above each of them, case by case: when few cases differ much,
the two intervals may overlap where the difference is clear.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from apps.measuring import BASELINES
from apps.training import data_of
from apps.verbs.recipes import path_of
from tasks.ablation.cases import CaseScore, Interval, difference, interval, score_all
from tasks.callbacks import CASES_FILE, SPLITS_FILE

Cases = dict[str, CaseScore]


def measure(recipe: str, root: str, settings: Sequence[str]) -> dict[str, Cases]:
    """Name of a baseline -> scores of the test cases."""
    data = data_of(path_of(recipe) or Path(recipe), ["--data.root", root, *settings])
    return {
        name: score_all(fit(data.whole("train"), data.classes), data.whole("test"), data.classes)
        for name, fit in BASELINES.items()
    }


def measure_beside(recipe: str, root: str, settings: Sequence[str], runs: Sequence[Path]) -> dict[str, Cases]:
    """``run`` and the name of each baseline -> scores of the test cases of all runs.

    Args:
        recipe: the recipe of all runs.
        root: the dataset's folder.
        settings: further settings of the data.
        runs: folders that ``delineate fit`` wrote; no test case may be in two of them.

    Raises:
        SystemExit: a test case is in two runs, or was not measured with this recipe and these settings.
    """
    found: dict[str, Cases] = {"run": {}, **{name: {} for name in BASELINES}}
    for run in runs:
        own = read_run(run)
        if twice := sorted(own.keys() & found["run"].keys()):
            raise SystemExit(f"{run}: {', '.join(twice)} was measured by a run before it; give one of them")
        found["run"] |= own
        for name, cases in measure(
            recipe, root, [*settings, "--data.division.splits", str(run / SPLITS_FILE)]
        ).items():
            if cases.keys() != own.keys():
                raise SystemExit(f"{run}: its {CASES_FILE} has not the test cases of its {SPLITS_FILE}")
            found[name] |= cases
    return found


def read_run(run: Path) -> Cases:
    """Dice of the test cases that a run wrote; nothing else of them is known."""
    with (run / CASES_FILE).open(encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream))[1:]
    # A class that a case does not have is nan there.
    scores = {key: [float(d) if d != "nan" else None for d in dice] for key, *dice in rows}
    return {key: CaseScore(dice, [], [], 0, "") for key, dice in scores.items()}


def lines(recipe: str, found: Mapping[str, Cases]) -> list[str]:
    """A line for each, and one for the difference between the run and each baseline where there is a run."""
    name = Path(recipe).stem
    text = [_line(name, what, interval([cases], "dice"), len(cases)) for what, cases in found.items()]
    if "run" not in found:
        return text
    for what in BASELINES:
        above = difference([found["run"]], [found[what]], "dice")
        text.append(_line(name, f"run - {what}", above, len(found["run"])))
    return text


def _line(recipe: str, what: str, score: Interval, number: int) -> str:
    return f"{recipe:24}{what:18}{score.mean:7.4f}  ({score.low:.4f} to {score.high:.4f})  {number} cases"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("datasets", nargs="+", metavar="RECIPE=FOLDER")
    parser.add_argument("--runs", nargs="+", type=Path, default=[], metavar="RUN")
    arguments, settings = parser.parse_known_args()
    if arguments.runs and len(arguments.datasets) > 1:
        parser.error("--runs are of one recipe; give one RECIPE=FOLDER")
    for entry in arguments.datasets:
        recipe, _, root = entry.partition("=")
        found = (
            measure_beside(recipe, root, settings, arguments.runs)
            if arguments.runs
            else measure(recipe, root, settings)
        )
        print("\n".join(lines(recipe, found)), flush=True)


if __name__ == "__main__":
    main()
