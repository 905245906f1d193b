"""``delineate plan``: from a dataset to a recipe that explains itself."""

from __future__ import annotations

import argparse

HELP = "look at a dataset and write a recipe in which every value has its reason"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("dataset", help="the dataset's folder, such as one with images/ and masks/")
    parser.add_argument("-o", "--output", required=True, help="the recipe to write, e.g. recipe.yaml")
    parser.add_argument("--force", action="store_true", help="overwrite the recipe where it exists")
    parser.add_argument(
        "--classes",
        metavar="NAMES",
        help="background,liver,tumor (values 0, 1, 2), liver=1,tumor=4, or field=#d2b48c,forest=#228b22 where masks are "
        "coloured (default: what the dataset says, else every value in the masks)",
    )
    parser.add_argument(
        "--domain",
        choices=("mri", "xray", "satellite", "folder"),
        help="what the images are, instead of a guess",
    )
    parser.add_argument(
        "--set",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        dest="settings",
        help="a setting you choose, as fit takes it: data.patch=[64,64]; the rules go on from it; may be repeated",
    )
    parser.add_argument(
        "--memory",
        type=float,
        metavar="GIB",
        help="memory that a training step may take (default: most of the GPU's, or half of the RAM)",
    )
    parser.add_argument(
        "--budget",
        type=float,
        metavar="MINUTES",
        help="time that training may take, roughly (default: 30 on a CPU, no limit on a GPU)",
    )
    parser.add_argument("--fingerprint", metavar="FILE", help="also write what was found, as JSON")
    parser.add_argument(
        "-q", "--quiet", action="store_true", help="no progress bar, only what needs attention"
    )


def run(args: argparse.Namespace) -> int:
    """Fingerprint, plan, write; 1 where cases had to be left out."""
    import json
    from pathlib import Path

    from rich.console import Console
    from rich.progress import Progress

    from apps.verbs.evaluate import parse_classes
    from datamodules.atomic import write_text
    from datamodules.errors import DataError
    from datamodules.fingerprint import take_fingerprint
    from tasks.planning import make_plan, this_machine
    from tasks.planning.decisions import parse_overrides

    output = Path(args.output)
    for name, file in (("-o", output), ("--fingerprint", args.fingerprint and Path(args.fingerprint))):
        if file and file.exists() and not args.force:
            raise DataError(f"{name} {file}: exists; give --force to overwrite it, or another name")
    for name, number in (("--memory", args.memory), ("--budget", args.budget)):
        if number is not None and not 0 < number < float("inf"):
            raise DataError(f"{name} {number:g}: must be above 0")
    overrides = parse_overrides(args.settings)
    classes = None if args.classes is None else parse_classes(args.classes)
    if classes is not None and classes.by_colour:
        # A fingerprint holds values; the recipe must say the colours that the masks hold.
        overrides.setdefault("data.classes", {one.name: one.colour for one in classes})
    messages = Console(stderr=True)
    with Progress(console=messages, transient=True, disable=args.quiet or not messages.is_terminal) as bar:
        done = bar.add_task("read", total=None)
        facts = take_fingerprint(
            args.dataset,
            classes,
            overrides.get("data.ignore_value"),
            on_case=lambda number, total: bar.update(done, completed=number, total=total),
        )
    plan = make_plan(facts, this_machine(args.memory), overrides, args.domain, args.budget)
    if args.fingerprint:
        write_text(args.fingerprint, json.dumps(facts.to_json(), indent=1) + "\n")
    write_text(output, plan.text)
    for note in plan.notes:
        messages.print(f"note: {note}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    if not args.quiet:
        print(f"recipe: {output}")
        print(f"next:   delineate fit -c {output}")
    return 1 if facts.problems else 0
