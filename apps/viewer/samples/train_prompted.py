"""``python -m apps.viewer.samples.train_prompted``: makes the small promptable model that the viewer comes with.

It learns from generated chests (other ones than the sample) to draw the heart, a lung, or both, as it is asked: by a
click, a box, and clicks where its last answer was wrong.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import label
from torch import Tensor

from apps.viewer.samples.chest import chest
from apps.viewer.samples.train import FOLDER
from datamodules.classes import Classes
from datamodules.patch import Patch
from datamodules.preprocessing import Preprocessing
from models.interfaces import Prompts
from models.sam import SamSegmenter
from tasks.model_file import Description, save_model
from tasks.prompting.clicks import next_click

SIDE = 128
# Small enough to come along: below 200 kB.
SIZE: dict[str, int | float | list[int]] = {
    "embed_dim": 24, "depth": 3, "num_heads": 3, "global_attn_indexes": [1, 2], "window_size": 8, "patch_size": 8,
    "mlp_ratio": 3.0, "out_chans": 16, "mask_in_chans": 8, "decoder_depth": 2, "decoder_heads": 2,
    "decoder_mlp_dim": 48, "iou_hidden_dim": 16,
}  # fmt: skip
CLASSES = Classes({"background": 0, "object": {"value": 1, "colour": "#e69f00"}})
HOW = Preprocessing(("gray",), None, None, "percentile", long_side=SIDE)
_BATCH, _ROUNDS, _HELD_OUT = 8, 3, 6


def objects(labels: np.ndarray) -> list[np.ndarray]:
    """What may be meant: each lung, both, and the heart."""
    regions, count = label(labels == 1)
    sizes = np.bincount(regions.ravel())
    lungs = [regions == i for i in range(1, count + 1) if sizes[i] > 0.01 * labels.size]
    return [*lungs, labels == 1, labels == 2]


def _percentile(values: np.ndarray) -> np.ndarray:
    low, high = np.percentile(values, (0.5, 99.5))
    return ((values - low) / max(high - low, 1e-6)).clip(0, 1).astype(np.float32)


def _prompt(drawn: np.ndarray, wanted: np.ndarray, random: np.random.Generator) -> tuple[list[int], int]:
    found = next_click(drawn, wanted, rng=random)
    return ([0, 0], -1) if found is None else ([*found[0]], int(found[1]))


def _losses(logits: Tensor, wanted: Tensor) -> Tensor:
    """``(B, M, *S)`` logits, ``(B, 1, *S)`` truth -> cross entropy and soft Dice of each mask, ``(B, M)``."""
    truth = wanted.expand_as(logits)
    cross = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean((2, 3))
    p = logits.sigmoid()
    dice = 1 - (2 * (p * truth).sum((2, 3)) + 1) / (p.sum((2, 3)) + truth.sum((2, 3)) + 1)
    return cross + dice


def _overlap(logits: Tensor, wanted: Tensor) -> Tensor:
    drawn, truth = logits > 0, wanted > 0
    return (drawn & truth).sum((2, 3)) / (drawn | truth).sum((2, 3)).clamp_min(1)


def step(network: SamSegmenter, images: Tensor, truths: np.ndarray, random: np.random.Generator) -> Tensor:
    """Some rounds of prompts for one batch -> the loss."""
    features = network.encode(images)
    wanted = torch.from_numpy(truths[:, None]).float()
    drawn, total = np.zeros_like(truths), images.new_zeros(())
    points: list[list[list[int]]] = [[] for _ in truths]
    labels: list[list[int]] = [[] for _ in truths]
    boxes, mask = None, None
    if random.random() < 0.3:
        corners = [np.argwhere(t) for t in truths]
        spots = [
            [*(c.min(0) + random.integers(-3, 4, 2)), *(c.max(0) + random.integers(-3, 4, 2))]
            for c in corners
        ]
        boxes = torch.tensor(np.clip(spots, 0, SIDE - 1)).float()[:, None]
    for number in range(_ROUNDS):
        if number or boxes is None:
            for i, truth in enumerate(truths):
                at, inside = _prompt(drawn[i], truth, random)
                points[i].append(at)
                labels[i].append(inside)
        told = torch.tensor(points).float() if points[0] else None
        prompts = Prompts(told, torch.tensor(labels) if points[0] else None, boxes, mask)
        coarse, quality, single = network.masks(features, (SIDE, SIDE), prompts)
        logits = network.frame.take(coarse, (SIDE, SIDE))
        losses = _losses(logits, wanted)
        best = losses[:, 1:].detach().argmin(1)
        rows = torch.arange(len(truths))
        # The first mask answers where one object is meant; of the others the best one learns.
        ambiguous = losses[rows, 1 + best] + 0.05 * losses[:, 1:].mean(1)
        total = total + torch.where(single, losses[:, 0], ambiguous).mean() + 0.2 * ambiguous.mean()
        total = total + F.mse_loss(quality, _overlap(logits.detach(), wanted))
        chosen = torch.where(single, torch.zeros_like(best), 1 + quality[:, 1:].detach().argmax(1))
        mask = coarse[rows, chosen][:, None].detach()
        drawn = (logits[rows, chosen] > 0).numpy()
    return total / _ROUNDS


def measure(network: SamSegmenter, cases: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """Mean IoU of the answer that counts after one, two and three clicks, without chance."""
    scores = np.zeros((_ROUNDS, 0))
    for image, labels in cases:
        features = network.encode(torch.from_numpy(image)[None, None])
        for truth in objects(labels):
            row: list[float] = []
            drawn, mask = np.zeros_like(truth), None
            points: list[list[int]] = []
            signs: list[int] = []
            for _ in range(_ROUNDS):
                found = next_click(drawn, truth)
                if found is not None:
                    points.append([*found[0]])
                    signs.append(int(found[1]))
                prompts = Prompts(torch.tensor([points]).float(), torch.tensor([signs]), None, mask)
                coarse, quality, single = network.masks(features, truth.shape, prompts)
                best = 0 if single[0] else 1 + int(quality[0, 1:].argmax())
                mask = coarse[:, best : best + 1]
                drawn = (network.frame.take(mask, truth.shape)[0, 0] > 0).numpy()
                row.append(float((drawn & truth).sum() / (drawn | truth).sum()))
            scores = np.concatenate([scores, np.array(row)[:, None]], axis=1)
    return {f"iou/{n + 1} clicks": round(float(v), 4) for n, v in enumerate(scores.mean(1))}


def train(steps: int, target: Path) -> dict[str, float]:
    """Train, write the model, and return what it reaches on chests that it has not seen."""
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    cases = [chest(seed, SIDE) for seed in range(100, 160)]
    pairs = [(_percentile(values), labels) for values, labels in cases]
    seen, held_out = pairs[:-_HELD_OUT], pairs[-_HELD_OUT:]
    network = SamSegmenter(1, 1, 2, size=SIZE, image_size=SIDE, prompts=True)
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
    choices = [objects(labels) for _, labels in seen]
    for number in range(steps):
        picked = random.integers(0, len(seen), _BATCH)
        truths = np.stack([choices[i][random.integers(len(choices[i]))] for i in picked])
        images = torch.from_numpy(np.stack([seen[i][0] for i in picked]))[:, None]
        images = images * float(random.uniform(0.93, 1.07))
        if random.random() < 0.5:  # the heart on either side
            images, truths = images.flip(3), truths[:, :, ::-1].copy()
        value = step(network, images, truths, random)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if number % 100 == 0:
            print(f"{number:5d} {float(value.detach()):.3f}", flush=True)
    network.eval()
    with torch.inference_mode():
        metrics = measure(network, held_out)
    description = Description(
        HOW,
        Patch((SIDE, SIDE)),
        CLASSES,
        metrics=metrics,
        data={
            "name": "viewer sample (prompted)",
            "source": "generated chests",
            "licence": "Apache-2.0, as Delineate",
        },
    )
    save_model(target, network, description)
    return metrics


def main() -> None:
    """Train and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1800)
    parser.add_argument("-o", "--output", type=Path, default=FOLDER / "prompted.safetensors")
    args = parser.parse_args()
    print(train(args.steps, args.output), f"{args.output.stat().st_size} bytes", flush=True)


if __name__ == "__main__":
    main()
