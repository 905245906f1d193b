"""``delineate demo``: train, predict and report on real MRI that comes with a dependency."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "train, predict and report on real MRI that comes with a dependency"
RECIPE = "mri_tissue_demo"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "-o", "--output", default="runs/demo", help="folder for everything (default: runs/demo)"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bars")


def run(args: argparse.Namespace) -> int:
    """Prepare, fit, predict, evaluate: the commands a user would type."""
    import shutil

    from apps.verbs import training
    from tasks import demo as job
    from tasks.demo_picture import draw
    from tasks.evaluation import evaluate
    from tasks.prediction import predict

    folder = Path(args.output)
    print("1/4 prepare: ICBM-152 T1 template, slabs of axial slices")
    demo = job.prepare(folder)
    print(
        f"    held out: axial slices {demo.held_out.start} to {demo.held_out.stop - 1}; trained on the others"
    )
    print("2/4 fit: a small attention U-Net on 2D slices")
    quiet = ["-q"] if args.quiet else []
    overrides = [f"--data.root={demo.dataset}", f"--trainer.default_root_dir={folder}"]
    training.run("fit", ["-c", RECIPE, *overrides, *quiet])
    print("3/4 predict: the whole volume")
    predicted = folder / "predicted"
    summary = predict(folder / "model.safetensors", [str(demo.image)], predicted)
    if summary.failed:
        print(f"delineate: {summary.failed[0].error}")
        return 2
    prediction = folder / "prediction.nii.gz"
    shutil.move(predicted / "image.nii.gz", prediction)
    shutil.rmtree(predicted)
    print("4/4 evaluate: the held-out slices")
    scores = job.measure(demo, prediction)
    held_out = folder / "held_out"
    for volume, name in ((demo.image, "images"), (prediction, "predictions"), (demo.reference, "references")):
        job.slab_of(demo, volume, held_out / name / "template.nii.gz")
    evaluate(
        held_out / "predictions",
        held_out / "references",
        held_out / "report",
        classes=job.CLASSES,
        images=held_out / "images",
    )
    shutil.copyfile(held_out / "report" / "report.html", folder / "report.html")
    middle = demo.held_out[len(demo.held_out) // 2]
    draw(demo.image, demo.reference, prediction, job.CLASSES, middle, folder / "overview.png")
    for name, score in scores["dice"].items():
        print(f"    Dice on held-out slices, {name}: {score:.4f}")
    print(
        f"\nIn {folder}: model.safetensors, image.nii.gz, reference.nii.gz, prediction.nii.gz, metrics.json, "
        f"report.html, overview.png\nOne template of one average brain: this shows the way, it is not a benchmark.\n\nTry next:\n"
        f"  delineate predict -m {folder}/model.safetensors -i {folder}/image.nii.gz -o out\n"
        f"  delineate evaluate {prediction} {demo.reference} -o out/report\n"
        f"  delineate recipes\n"
        f"  delineate fit -c folder_2d --data.root YOUR_FOLDER"
    )
    return 0
