"""The options of ``delineate predict``, in groups, and the settings that they become."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.prediction import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments, in groups; what most runs need stands first."""
    parser.add_argument(
        "-m",
        "--model",
        nargs="+",
        required=True,
        help="model.safetensors written by delineate fit; of several (folds) the probabilities are averaged",
    )
    parser.add_argument(
        "-i", "--input", nargs="+", default=[], help="files, folders, globs in quotes, or @FILE for a list"
    )
    parser.add_argument("--list", nargs="+", default=[], help="text files with a path per line")
    parser.add_argument("-o", "--output", required=True, help="folder for the masks and status.csv")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: a GPU where there is one)")
    parser.add_argument("-q", "--quiet", action="store_true", help="no estimate and no progress bar")
    _add_run(parser.add_argument_group("the run"))
    _add_products(parser.add_argument_group("also write, beside each mask"))
    _add_quality(parser.add_argument_group("how images are looked at (each changes masks)"))
    _add_exceptions(parser.add_argument_group("exceptions"))


def _add_run(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--dry-run", action="store_true", help="say what it will take, and end")
    group.add_argument("--overwrite", action="store_true", help="do again what is done")
    group.add_argument(
        "--layout",
        default="mirror",
        help="mirror (the tree of the inputs), or bids (names of a BIDS derivative; default: mirror)",
    )
    group.add_argument("--shard", default="1/1", metavar="i/n", help="do the i-th of n parts of the inputs")
    group.add_argument(
        "--window-batch",
        type=int,
        metavar="N",
        help="windows per forward pass: more take more memory, and are faster on a GPU (default: by their size)",
    )
    group.add_argument(
        "--engine",
        default="local",
        help="local (in this process), or ray (in worker processes, on this machine or a cluster; default: local)",
    )
    group.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="worker processes of --engine ray (default: by GPUs and cores)",
    )
    group.add_argument(
        "--backend",
        choices=("torch", "onnx"),
        help="what computes the network; onnx runs the model.onnx that delineate export wrote (default: by -m)",
    )
    group.add_argument("--address", help="of a Ray cluster that runs (default: one is started here)")


def _add_products(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--polygons", choices=("geojson", "gpkg"), help="polygons")
    group.add_argument("--table", action="store_true", help="sizes and places of what was found (csv)")
    group.add_argument("--preview", action="store_true", help="a picture of the mask on the image (png)")
    group.add_argument(
        "--probabilities", action="store_true", help="the probability of each class (tif, nii.gz)"
    )
    group.add_argument(
        "--entropy", action="store_true", help="how undecided each position is, 0 to 1 (tif, nii.gz)"
    )
    group.add_argument(
        "--scaled",
        action="store_true",
        help="these two with 8 bits and a scale: a quarter of the size; not for pictures",
    )
    group.add_argument(
        "--attention",
        action="store_true",
        help="what each attention block looks at (npz, and a picture that evaluate's report shows)",
    )
    group.add_argument("--sidecar", action="store_true", help="what made the mask (json)")
    group.add_argument(
        "--dicom-seg", action="store_true", help="DICOM-SEG; it carries the patient's name and numbers"
    )
    group.add_argument(
        "--minimum-area",
        type=float,
        default=0.0,
        metavar="A",
        help="leave smaller pieces out of polygons (m2, or pixels) and of the table (its unit)",
    )
    group.add_argument(
        "--simplify",
        type=float,
        default=0.0,
        metavar="D",
        help="simplify polygons by this many metres (or pixels)",
    )


def _add_quality(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--region",
        metavar="a:b,c:d",
        help="only this part of each image: first:end per axis in pixels or voxels, rows first",
    )
    group.add_argument(
        "--overlap", type=float, help="share by which windows overlap, 0 to below 1 (default: the model's)"
    )
    group.add_argument(
        "--blend",
        choices=("constant", "gaussian", "hann"),
        help="how windows that overlap are weighted (default: the model's)",
    )
    group.add_argument(
        "--mirror",
        metavar="AXES",
        help="average over flipped windows: all, none, or axes such as 0,1 (default: the model's)",
    )
    group.add_argument(
        "--rotate", action="store_true", help="average over windows turned by right angles: 4 times the time"
    )
    group.add_argument(
        "--fast",
        action="store_true",
        help="16-bit numbers where the processor has them, and compilation; compared with the plain network first",
    )
    group.add_argument(
        "--threshold",
        type=float,
        metavar="P",
        help="draw foreground from this probability on (delineate evaluate --detection finds one; default: the class that "
        "is most probable)",
    )
    group.add_argument(
        "--skip-background",
        type=float,
        nargs="?",
        const=0.0,
        metavar="SHARE",
        help="leave out windows that show only background, but for this share (0 when only named)",
    )


def _add_exceptions(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--allow-gaps",
        action="store_true",
        help="take the slices of a DICOM series as equally far apart where they are not",
    )
    group.add_argument(
        "--trust",
        action="store_true",
        help="run the code of a model whose class is not ours; know its source",
    )


def settings_of(args: argparse.Namespace) -> Settings:
    """The arguments as the settings of a batch."""
    from tasks.batch.settings import parse_region
    from tasks.prediction import Settings, Shard
    from tasks.windows import parse_mirror

    polygons = {"format": args.polygons, "minimum_area": args.minimum_area, "simplify": args.simplify}
    wanted: dict[str, tuple[object, dict[str, Any]]] = {
        "polygons": (args.polygons, polygons),
        "table": (args.table, {"minimum_size": args.minimum_area}),
        "preview": (args.preview, {}),
        "dicom-seg": (args.dicom_seg, {}),
        "sidecar": (args.sidecar, {}),
    }
    return Settings(
        device=args.device,
        overlap=args.overlap,
        blend=args.blend,
        mirror=None if args.mirror is None else parse_mirror(args.mirror),
        rotate=args.rotate or None,
        window_batch=args.window_batch,
        skip_background=args.skip_background,
        threshold=args.threshold,
        fast=args.fast,
        region=None if args.region is None else parse_region(args.region),
        probabilities=args.probabilities,
        entropy=args.entropy,
        scaled=args.scaled,
        attention=args.attention,
        allow_gaps=args.allow_gaps,
        trust=args.trust,
        overwrite=args.overwrite,
        shard=Shard.parse(args.shard),
        layout=args.layout,
        engine=args.engine,
        workers=args.workers,
        address=args.address,
        products={name: options for name, (asked, options) in wanted.items() if asked},
    )
