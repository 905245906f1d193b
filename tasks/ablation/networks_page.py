"""A comparison of whole networks as a page of text with a chart."""

from __future__ import annotations

import math
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tasks.ablation.cases import CaseScore, Interval, difference, interval
from tasks.ablation.networks import PEERS, REFERENCE
from tasks.ablation.page import said_overrides
from tasks.ablation.results import Ablation, DatasetResult, EntryResult
from tasks.ablation.sheet import ACCENT, INK, QUIET, label_rows, times_beside, write_sheet

HEAD = ["network", "parameters", "GFLOPs", "MiB", "ms", "Dice", "minus unet", "IoU", "HD95", "missed"]


def write_page(ablation: Ablation, path: str | Path) -> None:
    """Write the page, and its chart beside it (same name, ``.png``)."""
    write_sheet(path, lambda picture: render(ablation, picture), lambda file: _chart(ablation, file))


def render(ablation: Ablation, picture: str) -> str:
    """The page as Markdown."""
    parts = [
        _HEAD.format(command=ablation.command, machine=ablation.machine, overrides=said_overrides(ablation))
    ]
    parts.append(f"![Dice with intervals, and time]({picture})\n")
    parts.append("## What it shows\n\n" + "".join(f"- {line}\n" for line in findings(ablation)))
    parts += [_section(name, dataset) for name, dataset in ablation.datasets.items()]
    if ablation.left_out:
        parts.append("## Left out\n\n" + "".join(f"- {line}\n" for line in ablation.left_out))
    return "\n".join(parts)


def findings(ablation: Ablation) -> list[str]:
    """Sentences that follow from the numbers, whatever they are."""
    lines = []
    for name, dataset in ablation.datasets.items():
        means = {label: interval(seeds_of(entry), "dice").mean for label, entry in dataset.entries.items()}
        best = max(means, key=lambda label: means[label])
        lines.append(
            f"**{name}**: mean Dice lies between {min(means.values()):.3f} and {max(means.values()):.3f}; the highest is "
            f"that of `{best}`, which does not mean that it is the best beyond chance."
        )
        gaps = {label: _gap(dataset, label) for label in dataset.entries if label != REFERENCE}
        better = [label for label, gap in gaps.items() if gap.low > 0]
        worse = [label for label, gap in gaps.items() if gap.high < 0]
        lines.append(
            f"Against `{REFERENCE}`, the interval of the difference lies above 0 for {_named(better)} and below 0 for "
            f"{_named(worse)}; it holds 0 for the other {len(gaps) - len(better) - len(worse)}."
        )
        for baseline, cases in dataset.baselines.items():
            above = [
                label
                for label, entry in dataset.entries.items()
                if difference(seeds_of(entry), [cases], "dice").low > 0
            ]
            others = [label for label in dataset.entries if label not in above]
            lines.append(
                f"The {baseline} has {interval([cases], 'dice').mean:.3f}. {len(above)} of {len(dataset.entries)} networks "
                f"are above it by an interval that does not hold 0; not so: {_named(others)}."
            )
    return lines


def seeds_of(entry: EntryResult) -> list[dict[str, CaseScore]]:
    """Scores of the cases for each seed, in their order."""
    return [entry.cases[seed] for seed in sorted(entry.cases)]


def table(dataset: DatasetResult) -> list[list[str]]:
    """The rows of a dataset's table, a head first: networks by their mean Dice, then what needs none."""
    order = sorted(dataset.entries, key=lambda k: -interval(seeds_of(dataset.entries[k]), "dice").mean)
    rows = [HEAD]
    for label in order:
        entry = dataset.entries[label]
        cost = entry.cost
        gap = "" if label == REFERENCE else _shown(_gap(dataset, label), "+.3f")
        rows.append(
            [
                label,
                f"{cost.parameters:,}",
                f"{cost.flops / 1e9:.2f}",
                f"{cost.activations / 2**20:.1f}",
                "" if cost.seconds is None else f"{cost.seconds * 1e3:.1f}",
                *_scores(seeds_of(entry), gap),
            ]
        )
    rows += [[name, "", "", "", "", *_scores([cases], "")] for name, cases in dataset.baselines.items()]
    return rows


def _gap(dataset: DatasetResult, label: str) -> Interval:
    """A network minus the reference, over the seeds that both have."""
    one, other = dataset.entries[label], dataset.entries[REFERENCE]
    seeds = sorted(set(one.cases) & set(other.cases))
    return difference([one.cases[s] for s in seeds], [other.cases[s] for s in seeds], "dice")


def _scores(seeds: list[dict[str, CaseScore]], gap: str) -> list[str]:
    missed = sum(case.one_sided for seed in seeds for case in seed.values())
    dice, iou, hd95 = (interval(seeds, metric) for metric in ("dice", "iou", "hd95"))
    return [_shown(dice, ".3f"), gap, _shown(iou, ".3f"), _shown(hd95, ".1f"), str(missed)]


def _shown(found: Interval, how: str) -> str:
    if math.isnan(found.mean):
        return "none"
    if math.isnan(found.low):
        return f"{found.mean:{how}}"
    return f"{found.mean:{how}} ({found.low:{how}} to {found.high:{how}})"


_HEAD = """# Systems under one budget

Made by this command, which can be run again; trainings that are there are not repeated. Nothing here is written by
hand.

```sh
{command}
```

Every row is the same recipe, data, random changes, seeds and number of steps, with another network in it: each system's
`tiny` preset, and networks of other libraries as their users call them. The loss is the recipe's for all; a system whose
own recipe adds terms (`model.terms`) keeps them. Changed in every recipe: {overrides}. Machine: {machine}.

**These are short trainings of small networks, from random weights, with one learning rate for all.** The papers trained
larger ones for longer, most from pretrained weights, on other data. A row says how the tiny preset does here, and
nothing of what a paper reached.

- **parameters, GFLOPs**: of the whole network; operations of convolutions and matrix products for one patch.
- **MiB**: what a training step keeps for the backward pass, per patch.
- **ms**: a forward pass in inference on one patch, median; all networks in turns, so they are comparable, on a machine
  that did other work too.
- **Dice, IoU, HD95**: mean over foreground classes, test cases and seeds, whole cases on the network's grid. In
  brackets the 95 % interval of a bootstrap that draws test cases and seeds anew. With few seeds it says little of how
  another seed would do.
- **minus unet**: the difference in Dice from `unet` with the same seeds, with the interval of the same bootstrap.
- **missed**: how often a class was in only one of prediction and reference; such a case has no HD95.
- **constant, threshold**: what can be had without a network (`python -m benchmarks.baselines`): the best answer that
  looks at no image, and Otsu's threshold with the best channel and side, chosen on training cases.
"""


def _section(name: str, dataset: DatasetResult) -> str:
    seeds = len(next(iter(dataset.entries.values())).cases)
    extent = " x ".join(str(n) for n in dataset.size)
    units = {case.unit for e in dataset.entries.values() for s in e.cases.values() for case in s.values()}
    head = (
        f"## {name}\n\nRecipe `{dataset.recipe}`, patches of {extent} with {dataset.channels} channel(s), {dataset.steps} "
        f"steps of {dataset.batch}, {dataset.test_cases} test cases, {seeds} seed(s). HD95 in {', '.join(sorted(units))}.\n\n"
    )
    rows = table(dataset)
    lines = [rows[0], ["---", *["---:"] * (len(HEAD) - 1)], *([f"`{r[0]}`", *r[1:]] for r in rows[1:])]
    return head + "".join("| " + " | ".join(row) + " |\n" for row in lines)


def _chart(ablation: Ablation, path: Path) -> None:
    datasets = list(ablation.datasets.items())
    labels = list(dict.fromkeys(label for _, d in datasets for label in (row[0] for row in table(d)[1:])))
    labels = [label for label in labels if any(label in d.entries for _, d in datasets)]
    figure = Figure(
        figsize=(3.4 + 3.6 * len(datasets), 1.4 + 0.27 * len(labels)), dpi=144, layout="constrained"
    )
    all_axes = figure.subplots(1, len(datasets) + 1, sharey=True, squeeze=False)[0]
    for axes, (name, dataset) in zip(all_axes, datasets, strict=False):
        for style, (baseline, cases) in zip(("--", ":"), dataset.baselines.items(), strict=False):
            axes.axvline(
                interval([cases], "dice").mean, color=QUIET, linewidth=1, linestyle=style, label=baseline
            )
        for row, label in enumerate(labels):
            if label not in dataset.entries:
                continue
            found = interval(seeds_of(dataset.entries[label]), "dice")
            colour = INK if label in PEERS or label == REFERENCE else ACCENT
            axes.plot([found.low, found.high], [row, row], color=colour, linewidth=1.2)
            axes.plot(found.mean, row, "o", color=colour, markersize=4.5)
        axes.set_title(name, fontsize=9, color=INK)
        axes.set_xlabel("Dice, 95 %", fontsize=8, color=INK)
    ratios = ([d.entries[label].cost.latency for _, d in datasets if label in d.entries] for label in labels)
    times_beside(all_axes[-1], ratios, REFERENCE)
    label_rows(all_axes, labels)
    # Outside the axes: inside, it would cover the rows of one dataset or another.
    handles, names = all_axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, names, fontsize=7, frameon=False, loc="outside lower left", ncols=len(names))
    FigureCanvasAgg(figure).print_png(str(path))


def _named(labels: list[str]) -> str:
    return ", ".join(f"`{label}`" for label in labels) or "none"
