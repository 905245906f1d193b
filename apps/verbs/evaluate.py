"""``delineate evaluate``: predictions against references."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from datamodules.classes import Classes
    from tasks.detection import Detecting
    from tasks.evaluation import Evaluation

HELP = "measure predictions against references, with a report"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("pred", metavar="PREDICTIONS", help="folder of predicted masks, or one file")
    parser.add_argument(
        "ref", metavar="REFERENCES", help="folder of the true masks, with the same stems, or one file"
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        help="folder for the report, and the numbers as CSV and JSON (default: the table on the screen is all)",
    )
    parser.add_argument(
        "--classes",
        metavar="NAMES",
        help="background,liver,tumor (values 0, 1, 2), liver=1,tumor=4, or field=#d2b48c,forest=#228b22 where references "
        "are coloured (default: predictions.json beside the predictions, else every value in the references)",
    )
    parser.add_argument(
        "--images", metavar="DIR", help="folder of the images, for the pictures in the report"
    )
    parser.add_argument(
        "--ignore-value", type=int, metavar="N", help="reference positions of this value are not measured"
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        metavar="N",
        help="borders up to this far apart count as the same in NSD (surface Dice), in mm, m or px (default: "
        "the largest spacing of each case)",
    )
    parser.add_argument(
        "--groups",
        metavar="CSV",
        help="table of the cases (first column the case, others its site, sex ...); scores per group are reported "
        "(default with --by: cases.csv in the references' folder or above it)",
    )
    parser.add_argument(
        "--by",
        metavar="NAMES",
        help="columns of that table to group by: site,sex (default: every column with 2 to 20 different values)",
    )
    parser.add_argument(
        "--detection",
        type=float,
        nargs="?",
        const=0.25,
        metavar="SHARE",
        help="also count what was found, by patient and by object: found is what overlaps by a Dice of SHARE (0.25 when "
        "only named); with probabilities beside the masks, also look for the best --threshold of predict",
    )
    parser.add_argument(
        "--bands",
        metavar="SIZES",
        help="with --detection: sizes that divide objects into bands, in ml, ha or px, such as 1,3,10",
    )
    parser.add_argument(
        "--within",
        metavar="DIR",
        help="folder of masks with the cases' names (the field of view, a region), or one mask: where they are 0 nothing is "
        "measured",
    )
    parser.add_argument(
        "--lines",
        action="store_true",
        help="also measure thin structures such as vessels and roads, in flat images: Dice of centrelines, and the area "
        "under the ROC curve where probabilities lie beside the masks",
    )
    parser.add_argument(
        "-q", "--quiet", action="store_true", help="no table and no progress bar, only what went wrong"
    )


def run(args: argparse.Namespace) -> int:
    """Measure, print the table, name what could not be measured, and say where the report is."""
    from pathlib import Path

    from rich.console import Console
    from rich.progress import Progress

    from tasks.evaluation import evaluate

    messages = Console(stderr=True)
    with Progress(console=messages, transient=True, disable=args.quiet or not messages.is_terminal) as bar:
        done = bar.add_task("evaluate", total=None)
        evaluation = evaluate(
            args.pred,
            args.ref,
            args.output,
            classes=None if args.classes is None else parse_classes(args.classes),
            images=args.images,
            ignore_value=args.ignore_value,
            tolerance=args.tolerance,
            groups=args.groups,
            by=[name.strip() for name in (args.by or "").split(",") if name.strip()],
            detecting=parse_detecting(args.detection, args.bands),
            within=args.within,
            lines=args.lines,
            on_case=lambda number, total: bar.update(done, completed=number, total=total),
        )
    if not args.quiet and evaluation.pairs:
        Console().print(table(evaluation))
        for line in [*gaps(evaluation), *found(evaluation), *thin(evaluation)]:
            print(line)
    for file, reason in evaluation.problems:
        text = reason if file in reason else f"{file}: {reason}"
        messages.print(f"not measured: {text}", style="red", markup=False, highlight=False, soft_wrap=True)
    if not args.quiet:
        if evaluation.skipped:
            print(f"{len(evaluation.skipped)} prediction(s) have no reference and were passed over")
        if args.output is not None:
            print(f"report: {Path(args.output) / 'report.html'}")
    return evaluation.exit_code


def table(evaluation: Evaluation) -> Table:
    """Scores per class, and their means; ``-`` where no case has one, and for infinite distances in a mean."""
    from rich.table import Table
    from rich.text import Text

    count = len(evaluation.pairs)
    shown = Table(title=f"{count} case{'' if count == 1 else 's'} measured", title_justify="left")
    shown.add_column("class", overflow="fold")
    unit = f" {evaluation.distance_unit}" if evaluation.distance_unit else ""
    for heading in ("scored", "empty", "Dice", "SD", "IoU", f"HD95{unit}", "NSD"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for row in evaluation.summary_rows():
        numbers = (row.dice.mean, row.dice.std, row.iou.mean)
        far = [_short(row.hd95.mean, 2), _short(row.nsd.mean, 3)]
        shown.add_row(Text(row.name), str(row.n), str(row.empty), *[_short(n, 6) for n in numbers], *far)
    shown.add_section()
    means = evaluation.means()
    overall = (_short(evaluation.mean_dice, 6), "", _short(evaluation.mean_iou, 6))
    shown.add_row("mean", "", "", *overall, _short(means["hd95"].mean, 2), _short(means["nsd"].mean, 3))
    return shown


def gaps(evaluation: Evaluation) -> list[str]:
    """A line per attribute: its worst and its best group."""
    from tasks.groups import ALL_CLASSES

    return [
        f"by {row.attribute}: Dice {row.worst:.3f} in {row.worst_group}, {row.best:.3f} in {row.best_group} "
        f"(gap {row.gap:.3f}, equity-scaled {row.equity_scaled:.3f})"
        for row in evaluation.groups()[1]
        if row.name == ALL_CLASSES
    ]


def found(evaluation: Evaluation) -> list[str]:
    """A line per level, class and band that has objects, and one on the best threshold."""
    lines = [
        f"{row.name} by {row.level}{'' if row.band == 'all' else ', ' + row.band}: "
        f"{row.found} found, {row.missed} missed, {row.false} false "
        f"(precision {_short(row.precision, 3)}, recall {_short(row.recall, 3)}, F1 {_short(row.f1, 3)})"
        for row in evaluation.detections()
        if row.found or row.missed or row.false
    ]
    search = evaluation.search
    if search is not None and search.kept and (best := search.best()) is not None:
        at = {score.threshold: score for score in search.scores()}
        lines.append(
            f"best threshold: {best:g} by Dice ({at[best].dice:.4f}; at 0.5 {at[0.5].dice:.4f}), {search.best('f1'):g} by "
            f"F1 of patients; delineate predict --threshold {best:g}, on other cases than these"
        )
    return lines


def thin(evaluation: Evaluation) -> list[str]:
    """A line per class that was measured as a thin structure."""
    return [
        f"{row.name}: clDice {_short(row.cldice, 4)} ({_short(row.cldice_low, 4)} to {_short(row.cldice_high, 4)})"
        + (
            f", AUC {row.auc:.4f} ({_short(row.auc_low, 4)} to {_short(row.auc_high, 4)})"
            if row.auc_n
            else ""
        )
        for row in evaluation.line_summaries()
    ]


def parse_detecting(share: float | None, bands: str | None) -> Detecting | None:
    """``--detection`` and ``--bands`` as they are counted by; None where nothing is asked for.

    Raises:
        DataError: bands without detection, or numbers that make no sense.
    """
    from datamodules.errors import DataError
    from tasks.detection import Detecting

    if share is None:
        if bands is not None:
            raise DataError("--bands divides what --detection counts; add --detection, or leave --bands out")
        return None
    try:
        sizes = tuple(float(size) for size in (bands or "").split(",") if size.strip())
    except ValueError as error:
        raise DataError(f"--bands {bands!r} is not usable; give sizes that ascend, such as 1,3,10") from error
    return Detecting(share, sizes)


def parse_classes(text: str) -> Classes:
    """``background,liver`` (values 0, 1) or ``liver=1,tumor=4`` (0 is the background unless it is named).

    Or ``field=#d2b48c,forest=#228b22``, where masks are coloured.

    Raises:
        DataError: a value is no whole number, or a name or value stands twice.
    """
    from datamodules.classes import Classes
    from datamodules.errors import DataError

    entries = [entry.strip() for entry in text.split(",") if entry.strip()]
    if not any("=" in entry for entry in entries):
        return Classes(entries)
    if all("=#" in entry for entry in entries):
        return Classes(
            [{"name": n.strip(), "colour": f"#{c}"} for n, _, c in (e.rpartition("=#") for e in entries)],
            by_colour=True,
        )
    pairs = []
    for entry in entries:
        name, _, value = entry.rpartition("=")
        if not name.strip() or not value.strip().isdecimal():
            raise DataError(
                f"--classes: {entry!r} is not name=value; write background,liver,tumor or liver=1,tumor=4"
            )
        pairs.append((name.strip(), int(value)))
    if 0 not in [value for _, value in pairs]:
        pairs.append(("background", 0))
    if len(dict(pairs)) < len(pairs):
        raise DataError(f"--classes: {text!r} has a name twice; every name may stand once")
    # The first class is the background, and it is 0.
    return Classes(dict(sorted(pairs, key=lambda pair: pair[1])))


def _short(number: float, decimals: int) -> str:
    return "-" if number != number else f"{number:.{decimals}f}"
