"""An ablation as a page of text with a chart."""

from __future__ import annotations

import math
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tasks.ablation.entries import NONE
from tasks.ablation.results import Ablation, DatasetResult, EntryResult
from tasks.ablation.sheet import ACCENT, INK, QUIET, label_rows, times_beside, write_sheet
from tasks.ablation.statistics import Comparison, compare

LEVEL = 0.05


def write_page(ablation: Ablation, path: str | Path) -> None:
    """Write the page, and its chart beside it (same name, ``.png``)."""
    write_sheet(path, lambda picture: render(ablation, picture), lambda file: _chart(ablation, file))


def render(ablation: Ablation, picture: str) -> str:
    """The page as Markdown."""
    parts = [
        _HEAD.format(command=ablation.command, machine=ablation.machine, overrides=said_overrides(ablation))
    ]
    parts.append(f"![Gain in Dice over none, and time]({picture})\n")
    parts.append("## What it shows\n\n" + "".join(f"- {line}\n" for line in findings(ablation)))
    parts += [_section(name, dataset) for name, dataset in ablation.datasets.items()]
    return "\n".join(parts)


def findings(ablation: Ablation) -> list[str]:
    """Sentences that follow from the numbers, whatever they are."""
    lines = []
    for name, dataset in ablation.datasets.items():
        compared = comparisons(dataset)
        spread = [c.difference for label, c in compared.items() if label != NONE]
        if not spread:
            continue
        better = [label for label, c in compared.items() if c.p < LEVEL and c.difference > 0]
        worse = [label for label, c in compared.items() if c.p < LEVEL and c.difference < 0]
        best = max(
            (label for label in compared if label != NONE), key=lambda label: compared[label].difference
        )
        lines.append(
            f"**{name}**: the mean differences from `none` lie between {min(spread):+.3f} and {max(spread):+.3f} Dice; the "
            f"largest is that of `{best}`. Corrected for the number of blocks ({len(spread)}), {_named(better)} better than "
            f"`none` and {_named(worse)} worse (p < {LEVEL})."
        )
    everywhere = [
        label
        for label in _labels(ablation)
        if label != NONE
        and all(
            label in dataset.entries and comparisons(dataset)[label].difference > 0
            for dataset in ablation.datasets.values()
        )
    ]
    if len(ablation.datasets) > 1:
        what = ", ".join(f"`{label}`" for label in everywhere) if everywhere else "no block"
        lines.append(f"Above `none` in the mean on every dataset, significant or not: {what}.")
    return lines


def summary(ablation: Ablation) -> str:
    """One sentence on all datasets: how many differences are beyond chance, and how large differences are."""
    found = [
        c
        for dataset in ablation.datasets.values()
        for label, c in comparisons(dataset).items()
        if label != NONE
    ]
    better, worse = (sum(c.p < LEVEL and sign * c.difference > 0 for c in found) for sign in (1, -1))
    gaps = [c.difference for c in found]
    return (
        f"Of {len(found)} comparisons with a network without attention, {better} came out better and {worse} worse beyond "
        f"chance (p < {LEVEL}, corrected); the mean differences lie between {min(gaps):+.3f} and {max(gaps):+.3f} Dice."
    )


def comparisons(dataset: DatasetResult) -> dict[str, Comparison]:
    """Each entry of a dataset against ``none``, over the seeds that all of them have."""
    seeds = sorted(set.intersection(*(set(entry.scores) for entry in dataset.entries.values())))
    return compare({label: [e.scores[s] for s in seeds] for label, e in dataset.entries.items()}, NONE)


def table(dataset: DatasetResult) -> list[list[str]]:
    """The rows of a dataset's table, a head first."""
    rows = [["block", "parameters", "GFLOPs", "MiB", "time", "Dice", "minus none", "p"]]
    compared = comparisons(dataset)
    for label, entry in dataset.entries.items():
        found, cost = compared[label], entry.cost
        reference = label == NONE
        rows.append(
            [
                label,
                f"{cost.parameters:,}",
                f"{cost.flops / 1e9:.2f}",
                f"{cost.activations / 2**20:.1f}",
                f"{cost.latency:.2f}",
                f"{found.mean:.4f}{_half(found.low, found.high)}",
                ""
                if reference
                else f"{found.difference:+.4f}{_half(found.difference_low, found.difference_high)}",
                "" if reference or math.isnan(found.p) else f"{found.p:.2f}" if found.p >= 0.005 else "<0.01",
            ]
        )
    return rows


_HEAD = """# Attention blocks under one budget

Made by this command, which can be run again; rows that are there are not trained twice. Nothing here is written by hand.

```sh
{command}
```

Every row is the same recipe, data, random changes, seeds and number of steps. Only `model.network.attention` differs.
Changed in every recipe: {overrides}. Machine: {machine}.

- **block**: `name(options)@place:levels`, as the command takes it; without a place, behind every encoder stage.
- **parameters, GFLOPs**: of the whole network; operations of convolutions and matrix products for one patch.
- **MiB**: memory: what a training step keeps for the backward pass, per patch.
- **time**: of a forward pass in inference on one patch, divided by that of `none`; median of turns in one run.
- **Dice**: mean over foreground classes and test cases; mean over seeds, ± half of its 95 % interval (Student's t).
- **minus none**: the mean difference from `none` with the same seed, ± the same.
- **p**: paired t-test over seeds, adjusted by Holm for all rows of the table. The training is the unit: a difference
  counts if it comes back when the network is trained again. With few seeds only large differences can.

The seed decides the first weights. These are short trainings of small networks: a block that wins here may lose in a
long one, and the other way round.
"""


def _section(name: str, dataset: DatasetResult) -> str:
    seeds = len(next(iter(dataset.entries.values())).scores)
    extent = " x ".join(str(n) for n in dataset.size)
    head = (
        f"## {name}\n\nRecipe `{dataset.recipe}`, patches of {extent} with {dataset.channels} channel(s), {dataset.steps} "
        f"steps of {dataset.batch}, {dataset.test_cases} test cases, {seeds} seed(s).\n\n"
    )
    rows = table(dataset)
    lines = [rows[0], ["---", *["---:"] * (len(rows[0]) - 1)], *([f"`{r[0]}`", *r[1:]] for r in rows[1:])]
    return head + "".join("| " + " | ".join(row) + " |\n" for row in lines)


def _chart(ablation: Ablation, path: Path) -> None:
    labels = [label for label in _labels(ablation) if label != NONE]
    datasets = list(ablation.datasets.items())
    width = 3.2 + 3.4 * len(datasets)
    figure = Figure(figsize=(width, 1.2 + 0.27 * len(labels)), dpi=144, layout="constrained")
    all_axes = figure.subplots(1, len(datasets) + 1, sharey=True, squeeze=False)[0]
    for axes, (name, dataset) in zip(all_axes, datasets, strict=False):
        for row, label in enumerate(labels):
            if label not in dataset.entries:
                continue
            found = comparisons(dataset)[label]
            colour = ACCENT if found.p < LEVEL else INK
            axes.plot([found.difference_low, found.difference_high], [row, row], color=colour, linewidth=1.2)
            axes.plot(found.difference, row, "o", color=colour, markersize=4.5)
        gaps = [c.difference for label, c in comparisons(dataset).items() if label != NONE]
        # Intervals over few seeds are wide; the points shall be seen apart.
        reach = max([0.01, *(1.6 * abs(gap) for gap in gaps)])
        axes.set_xlim(-reach, reach)
        axes.axvline(0, color=QUIET, linewidth=0.8)
        axes.set_title(name, fontsize=9, color=INK)
        axes.set_xlabel("Dice minus none, 95 %", fontsize=8, color=INK)
    ratios = ([d.entries[label].cost.latency for _, d in datasets if label in d.entries] for label in labels)
    times_beside(all_axes[-1], ratios, NONE, ", mean")
    label_rows(all_axes, labels)
    FigureCanvasAgg(figure).print_png(str(path))


def _labels(ablation: Ablation) -> list[str]:
    found: dict[str, EntryResult] = {}
    for dataset in ablation.datasets.values():
        found.update(dataset.entries)
    return list(found)


def said_overrides(ablation: Ablation) -> str:
    """The settings that were changed in every recipe, as text."""
    pairs = zip(ablation.overrides[::2], ablation.overrides[1::2], strict=False)
    return ", ".join(f"`{key.removeprefix('--')}: {value}`" for key, value in pairs) or "nothing"


def _named(labels: list[str]) -> str:
    if not labels:
        return "no block is"
    names = ", ".join(f"`{label}`" for label in labels)
    return f"{names} {'is' if len(labels) == 1 else 'are'}"


def _half(low: float, high: float) -> str:
    """Half the length of an interval."""
    return "" if math.isnan(low) else f" ± {(high - low) / 2:.3f}"
