"""``delineate predict``: masks for files, folders and globs."""

from __future__ import annotations

import argparse

HELP = "draw masks for images, folders and globs with a trained model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("-m", "--model", required=True, help="model.safetensors written by delineate fit")
    parser.add_argument("-i", "--input", required=True, nargs="+", help="files, folders, or globs in quotes")
    parser.add_argument("-o", "--output", required=True, help="folder for the masks and status.csv")
    parser.add_argument(
        "--overlap", type=float, help="share by which windows overlap, 0 to below 1 (default: the model's)"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: a GPU where there is one)")
    parser.add_argument(
        "--allow-gaps",
        action="store_true",
        help="take the slices of a DICOM series as equally far apart where they are not",
    )
    parser.add_argument("--probabilities", action="store_true", help="also write the probabilities (npz)")
    parser.add_argument(
        "--attention",
        action="store_true",
        help="also write what each attention block looks at (npz, and a picture that evaluate's report shows)",
    )
    parser.add_argument(
        "--trust",
        action="store_true",
        help="run the code of a model whose class is not ours; know its source",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    """Predict, name what failed, and say where the masks are."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from tasks.prediction import STATUS_FILE, predict

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=args.quiet or not console.is_terminal) as bar:
        done = bar.add_task("predict", total=None)
        finished: list[str] = []

        def on_progress(name: str, share: float) -> None:
            if share >= 1 and name not in finished:
                finished.append(name)
            bar.update(done, completed=len(finished), description=escape(name))

        summary = predict(
            args.model,
            args.input,
            args.output,
            device=args.device,
            overlap=args.overlap,
            probabilities=args.probabilities,
            attention=args.attention,
            allow_gaps=args.allow_gaps,
            trust=args.trust,
            on_start=lambda count: bar.update(done, total=count),
            on_progress=on_progress,
        )
    for row in summary.failed:
        console.print(
            f"failed: {row.path}: {row.error}", style="red", markup=False, highlight=False, soft_wrap=True
        )
    count = len(summary.rows) - len(summary.failed)
    print(
        f"{count} of {len(summary.rows)} predicted into {summary.output}; see {summary.output / STATUS_FILE}"
    )
    return summary.exit_code
