"""``python -m apps.viewer.samples.train``: makes the three small models that the viewer comes with.

They are trained on generated images (other ones than the samples) and, for MRI, also on the template that the demo
uses. They show how the viewer works; they are of no use on other images.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import torch

from apps.viewer.samples import chest, head, land
from datamodules.classes import Classes
from datamodules.open import open_image
from datamodules.patch import Patch
from datamodules.preprocessing import Preprocessing
from datamodules.sensors import sensor
from models import EncoderDecoder
from models.parts import Part
from tasks import demo
from tasks.losses import DiceCE
from tasks.model_file import Description, save_model
from tasks.overlap import counts, dice

FOLDER = Path(__file__).resolve().parent
WIDTHS = (6, 10, 14, 20)
# Random squares that are trained on, and how many at a time.
_SIDE, _BATCH = 112, 8
_HELD_OUT = 3

# Prepared channels (C, rows, columns) and labels (rows, columns).
Pair = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Task:
    """What a model is trained on.

    Attributes:
        preprocessing: how images are prepared.
        patch: what the network sees at a time.
        classes: what it draws.
        pairs: prepared images with labels; the last :data:`_HELD_OUT` are measured on.
        source: said in the model's card.
    """

    preprocessing: Preprocessing
    patch: Patch
    classes: Classes
    pairs: Callable[[], list[Pair]]
    source: str


def _percentile(values: np.ndarray) -> np.ndarray:
    low, high = np.percentile(values, (0.5, 99.5))
    return ((values.astype(np.float32) - low) / max(high - low, 1e-6)).clip(0, 1)


def _mri() -> list[Pair]:
    pairs: list[Pair] = []
    with tempfile.TemporaryDirectory() as folder:
        ready = demo.prepare(folder)
        volume, labels = (open_image(f).read()[0] for f in (ready.image, ready.reference))
        middle = [z for z in ready.held_out if z % 5 == 0][:_HELD_OUT]
        scaled = _percentile(volume)
        inner = [z for z in range(0, volume.shape[2], 2) if z not in ready.held_out]
        held_out = [(scaled[None, :, :, z], labels[:, :, z]) for z in middle]
        pairs += [(scaled[None, :, :, z], labels[:, :, z]) for z in inner]
    for seed in range(100, 103):
        volume, labels, _ = head.head(seed)
        scaled = _percentile(volume)
        pairs += [(scaled[None, :, :, z], labels[:, :, z]) for z in range(1, volume.shape[2], 4)]
    return [*pairs, *held_out]


def _xray() -> list[Pair]:
    how = TASKS["xray"].preprocessing
    pairs = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(100, 140):
            values, labels = chest.chest(seed, 384)
            file = Path(folder) / f"{seed}.png"
            PIL.Image.fromarray(values).save(file)
            image = open_image(file)
            # As it will be seen: the whole film, small.
            pairs.append((how.image(image), how.mask(labels, image.geometry)))
    return pairs


def _satellite() -> list[Pair]:
    found = sensor("sentinel2")
    made = (land.land(seed, 320) for seed in range(100, 116))
    return [(bands.astype(np.float32) * found.scale + found.offset, labels) for bands, labels in made]


TASKS = {
    "mri": Task(
        Preprocessing(("T1",), "RAS", None, "percentile"),
        Patch((208, 240, 1)),
        head.CLASSES,
        _mri,
        "ICBM-152 2009a T1 template (as packaged with nilearn), four fifths of its slices; generated heads",
    ),
    "xray": Task(
        Preprocessing(("gray",), None, None, "percentile", long_side=128),
        Patch((128, 128)),
        chest.CLASSES,
        _xray,
        "generated chests",
    ),
    "satellite": Task(
        Preprocessing(("blue", "green", "red", "nir"), None, None, "reflectance", sensor="sentinel2"),
        Patch((256, 256)),
        land.CLASSES,
        _satellite,
        "generated land in four bands of 10 m",
    ),
}


def _batches(pairs: list[Pair], random: np.random.Generator) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    while True:
        images, masks = [], []
        for number in random.integers(0, len(pairs), _BATCH):
            image, mask = pairs[number]
            top, left = (int(random.integers(0, max(1, n - _SIDE + 1))) for n in mask.shape)
            cut = np.s_[..., top : top + _SIDE, left : left + _SIDE]
            images.append(image[cut] * random.uniform(0.93, 1.07))
            masks.append(mask[cut])
        yield torch.from_numpy(np.stack(images)).float(), torch.from_numpy(np.stack(masks)).long()


def train(name: str, steps: int, target: Path) -> dict[str, float]:
    """Train one of :data:`TASKS`, write its model, and return Dice on what was held out."""
    task = TASKS[name]
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    pairs = task.pairs()
    rest, held_out = pairs[:-_HELD_OUT], pairs[-_HELD_OUT:]
    widths: list[int | list[int]] = [*WIDTHS]
    encoder: Part = {"name": "plain", "widths": widths, "norm": "batch"}
    network = EncoderDecoder(
        len(task.preprocessing.channels),
        len(task.classes),
        2,
        encoder=encoder,
        decoder={"name": "unet", "blocks": 1},
        fusion="attention_gate",
        attention={"name": "psa", "at": "bottleneck"},
    )
    optimizer = torch.optim.AdamW(network.parameters(), 4e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 8e-3, steps)
    loss = DiceCE()
    for step, (images, masks) in zip(range(steps), _batches(rest, random), strict=False):
        value = loss(network(images).logits, masks)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(f"{name} {step:4d} {float(value.detach()):.3f}", flush=True)
    network.eval()
    with torch.inference_mode():
        drawn = [network(torch.from_numpy(i[None]).float()).logits.argmax(1)[0].numpy() for i, _ in held_out]
    truth = np.concatenate([mask.ravel() for _, mask in held_out])
    scores = dice(counts(np.concatenate([d.ravel() for d in drawn]), truth, len(task.classes)))
    metrics = {f"dice/{task.classes[k].name}": round(float(scores[k]), 4) for k in task.classes.foreground}
    description = Description(
        task.preprocessing,
        task.patch,
        task.classes,
        tiling={"overlap": 0.25, "blend": "gaussian", "mirror": []},
        metrics=metrics,
        data={
            "name": f"viewer sample ({name})",
            "source": task.source,
            "licence": "Apache-2.0, as Delineate",
        },
        calibration=None,
    )
    save_model(target, network, description)
    return metrics


def main() -> None:
    """Train those that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=[], metavar="NAME", help=", ".join(TASKS))
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("-o", "--output", type=Path, default=FOLDER)
    args = parser.parse_args()
    for name in args.names or TASKS:
        file = args.output / f"{name}.safetensors"
        print(name, train(name, args.steps, file), f"{file.stat().st_size} bytes", flush=True)


if __name__ == "__main__":
    main()
