"""``delineate export``: a trained model for other runtimes."""

from __future__ import annotations

import argparse

HELP = "write a trained model as ONNX or torch.export, checked against the network"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("-m", "--model", required=True, help="model.safetensors written by delineate fit")
    parser.add_argument("-o", "--output", required=True, help="what to write: model.onnx or model.pt2")
    parser.add_argument("--check-with", metavar="IMAGE", help="an image to check with, besides random ones")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-3,
        help="by how much logits may differ, as a share of the largest one (default: 0.001)",
    )
    parser.add_argument("--int8", action="store_true", help="8-bit weights and maps, for CPUs (ONNX)")
    parser.add_argument(
        "--calibrate-with",
        metavar="FOLDER",
        help="images for --int8, two or more; every second is held apart to measure on",
    )
    parser.add_argument(
        "--calibration",
        choices=("minmax", "percentile"),
        default="percentile",
        help="how the ranges of 8-bit maps are found (default: percentile)",
    )
    parser.add_argument("--force", action="store_true", help="overwrite the output where it exists")
    parser.add_argument(
        "--trust",
        action="store_true",
        help="run the code of a model whose class is not ours; know its source",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="print only what needs attention")


def run(args: argparse.Namespace) -> int:
    """Export, and say what was checked."""
    from pathlib import Path

    from datamodules.errors import DataError

    if args.int8 != (args.calibrate_with is not None):
        raise DataError("--int8 and --calibrate-with FOLDER go together: ranges are found with images")
    if Path(args.output).exists() and not args.force:
        raise DataError(f"-o {args.output}: exists; give --force to overwrite it, or another name")

    from tasks.export.exporting import Calibration, export

    calibration = Calibration(args.calibrate_with, args.calibration) if args.int8 else None
    done = export(args.model, args.output, args.check_with, calibration, args.tolerance, args.trust)
    if args.quiet:
        return 0
    for one in done.checks:
        print(f"checked: {one}")
    if done.agreement is not None:
        kept = "first and last layer in floats" if done.kept else "all layers in 8 bits"
        print(f"int8 against float, images held apart ({kept}): {done.agreement}")
    if done.sizes == "any":
        print("sizes: any number of images of any size")
    else:
        print(f"sizes: any number of images, of the patch's size alone, since {done.why_patch}")
    print(f"written: {done.path}")
    if done.path.suffix == ".onnx":
        print(f"next: delineate predict -m {done.path} -i SCANS -o OUT")
    return 0
