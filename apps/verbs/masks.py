"""``delineate masks``: all objects of pictures and scenes, unasked, with a promptable model."""

from __future__ import annotations

import argparse
import sys

HELP = "find all objects in pictures and scenes with a promptable model (everything at once)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "-m",
        "--model",
        required=True,
        help="model.safetensors of a promptable network (recipe sam_prompt_any)",
    )
    parser.add_argument(
        "-i", "--input", nargs="+", required=True, help="files, folders, globs in quotes, or @FILE for a list"
    )
    parser.add_argument("-o", "--output", required=True, help="folder for the masks, and a table beside each")
    parser.add_argument("--polygons", choices=("geojson", "gpkg"), help="also write polygons")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: a GPU where there is one)")
    parser.add_argument("-q", "--quiet", action="store_true", help="no line per image")
    group = parser.add_argument_group("what is asked, and what is kept")
    group.add_argument(
        "--points", type=int, default=32, metavar="N", help="points along each side of a window (default: 32)"
    )
    group.add_argument(
        "--quality",
        type=float,
        default=0.88,
        metavar="Q",
        help="keep what the network believes to be better than this (default: 0.88)",
    )
    group.add_argument(
        "--stability",
        type=float,
        default=0.95,
        metavar="S",
        help="keep masks whose border hardly moves with the threshold (default: 0.95)",
    )
    group.add_argument(
        "--nms",
        type=float,
        default=0.7,
        metavar="IOU",
        help="of two masks whose boxes overlap by more, keep the better (default: 0.7)",
    )
    group.add_argument("--minimum-pixels", type=int, default=0, metavar="N", help="leave out smaller objects")
    group.add_argument(
        "--window", type=int, metavar="N", help="side of the windows in pixels (default: the model's patch)"
    )
    group.add_argument(
        "--overlap",
        type=float,
        default=0.25,
        help="share by which windows overlap, 0 to below 1: what one cuts is joined there (default: 0.25)",
    )


def run(args: argparse.Namespace) -> int:
    """Find, write, name what failed; 0, 1 or 2 as ``delineate predict``."""
    from pathlib import Path

    from datamodules.errors import DataError
    from datamodules.open import stem_of
    from tasks.batch.reasons import reason
    from tasks.inputs import collect_inputs
    from tasks.instances import Everything, automatic_masks
    from tasks.interactive import load_prompt_model

    how = Everything(args.points, args.quality, args.stability, overlap=args.nms)
    model = load_prompt_model(args.model, args.device)
    output = Path(args.output)
    inputs = collect_inputs(args.input, model.description.preprocessing.channels, skip=output)
    failed = 0
    taken: set[Path] = set()
    for item in inputs:
        file = output / item.output
        try:
            if file in taken or any(file.resolve() == one.resolve() for one in item.files):
                raise DataError(f"{item.name}: its mask would be written over another file, {file}")
            taken.add(file)
            found = automatic_masks(item.source, model, how, args.window, args.overlap, args.minimum_pixels)
            # The mask last: where it is, all is.
            beside = file.with_name(stem_of(file.name))
            found.save_table(beside.with_name(f"{beside.name}.objects.csv"))
            if args.polygons:
                found.save_polygons(beside.with_name(f"{beside.name}.{args.polygons}"))
            found.save(file)
        except (DataError, OSError, RuntimeError, MemoryError) as error:
            failed += 1
            said = reason(error, output)
            print(said if said.startswith(item.name) else f"{item.name}: {said}", file=sys.stderr)
            continue
        if not args.quiet:
            print(f"{file}: {len(found)} objects")
    print(f"{len(inputs) - failed} of {len(inputs)} images into {output}", file=sys.stderr)
    return 0 if not failed else 1 if failed < len(inputs) else 2
