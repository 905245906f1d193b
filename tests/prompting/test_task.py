"""Training by clicks."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch

from datamodules.classes import IGNORE, Classes
from datamodules.errors import DataError
from datamodules.geometry import Geometry
from datamodules.patch import Patch
from datamodules.sample import Batch
from models import EncoderDecoder
from tasks.interactive.model import is_promptable, load_prompt_model
from tasks.model_file import ModelFileError
from tasks.predictor import load
from tasks.prompting import PromptableTask
from tests.prompted import promptable_network
from tests.small import fit

CLASSES = Classes(["background", "one", "other"])


def task(**options):
    made = PromptableTask(promptable_network(), CLASSES, Patch((32, 32)), minimum=4, **options)
    made.training = True
    return made


def batch(count=3, empty=()):
    mask = torch.zeros(count, 32, 32, dtype=torch.long)
    for i in range(count):
        if i not in empty:
            mask[i, 4 + i : 16 + i, 5:15] = 1
            mask[i, 20:30, 18:28] = 2
    mask[:, 0] = IGNORE
    image = mask[:, None].where(mask[:, None] != IGNORE, 0) + torch.randn(
        count, 1, 32, 32, generator=torch.Generator().manual_seed(0)
    )
    every = torch.ones(count, 3, dtype=torch.bool)
    names = [str(i) for i in range(count)]
    return Batch(image, mask, [Geometry.identity((32, 32))] * count, names, names, every, every[:, :1])


def test_the_loss_is_a_function_of_seed_and_step():
    one, other = task(seed=3), task(seed=3)
    first = one.compute_loss(batch())
    assert torch.isfinite(first)
    torch.testing.assert_close(first, other.compute_loss(batch()))
    assert one.compute_loss(batch()) == first
    assert task(seed=4).compute_loss(batch()) != first


def test_everything_but_unused_embeddings_learns():
    made = task(rounds=3, box_share=0.5, seed=1)
    made.compute_loss(batch(6)).backward()
    silent = {name for name, p in made.network.named_parameters() if p.grad is None or not p.grad.any()}
    # Only the masks that nothing was asked of.
    assert not {n for n in silent if n.startswith("image_encoder")}, silent
    assert not {n for n in silent if "mask_downscaling" in n or "iou_prediction_head.layers.2" in n}, silent


def test_images_without_objects_are_left_out():
    made = task(box_share=0.0)
    with torch.no_grad():
        for parameter in made.network.image_encoder.parameters():
            parameter.requires_grad_(True)
    nothing = made.compute_loss(batch(2, empty=(0, 1)))
    assert nothing == 0
    nothing.backward()  # a step of nothing
    assert torch.isfinite(made.compute_loss(batch(3, empty=(1,))))


def test_it_learns():
    made = task(rounds=2, objects="class", box_share=0.0)
    made.network.train()
    optimizer = torch.optim.AdamW(made.network.parameters(), lr=2e-3)
    losses = []
    for _ in range(6):
        loss = made.compute_loss(batch(2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]


def test_what_cannot_be_taught_by_clicks_is_refused():
    network = EncoderDecoder(1, 3, encoder={"name": "plain", "widths": [4, 4]})
    with pytest.raises(DataError, match="prompts: true"):
        PromptableTask(network, CLASSES, Patch((32, 32)))
    with pytest.raises(DataError, match="slices"):
        PromptableTask(promptable_network(), CLASSES, Patch((32, 32, 32)))


@pytest.mark.slow
def test_a_run_from_the_recipe(mri_dataset, tmp_path):
    run = fit(
        mri_dataset,
        tmp_path / "run",
        *("--data.classes", "{background: 0, organ: 1, lesion: 2}"),
        *("--data.patch", "[16,1,16]", "--data.batch_size", "2", "--data.patches_per_epoch", "4"),
        *("--model.network.image_size", "32", "--model.clicks", "2", "--model.minimum", "4"),
        *("--model.slices", "1", "--trainer.max_epochs", "1", "--trainer.check_val_every_n_epoch", "1"),
        recipe=["-c", "sam_prompt_any"],
    )
    metrics = json.loads((run / "metrics.json").read_text("utf-8"))
    assert {"test/clicks/dice@1", "test/clicks/dice@2", "test/clicks/noc@0.85"} <= set(metrics)
    assert not any(name.endswith("/dice") for name in metrics)
    with (run / "clicks.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert np.mean([float(r["dice@2"]) for r in rows]) == pytest.approx(
        metrics["test/clicks/dice@2"], abs=1e-5
    )
    assert (run / "clicks.png").stat().st_size > 1000
    assert not (run / "test_cases.csv").exists()
    file = run / "model.safetensors"
    assert is_promptable(file)
    assert load_prompt_model(file, "cpu").description.classes.names[0] == "background"
    with pytest.raises(ModelFileError, match="asked"):
        load(file)
