"""From the file that lacks a channel to the network that is told so: training, validation, calibration, prediction."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import PIL.Image
import pytest
import torch
from scipy.special import softmax
from torch import Tensor

from datamodules import Folder, open_image
from datamodules.sample import Batch
from models import EncoderDecoder
from models.interfaces import Output, Prompts, Segmenter
from tasks.callbacks import _validation_scores
from tasks.model_file import Description
from tasks.predictor import Predictor
from tasks.segmentation import SegmentationTask
from tasks.windows import Windows
from tests.synthetic import blob_image, blob_labels

# What was said with each call of the network, None where nothing was.
Said = list[list[list[bool]] | None]


class Listener(Segmenter):
    """Remembers what it was told."""

    def __init__(self, in_channels: int, num_classes: int, ndim: int = 2) -> None:
        super().__init__()
        self.in_channels, self.num_classes, self.ndim = in_channels, num_classes, ndim
        self.head = torch.nn.Conv2d(in_channels, num_classes, 1)
        self.said: Said = []

    def encode(self, image: Tensor) -> list[Tensor]:
        self.said.append(None)
        return [image]

    def encode_lacking(self, image: Tensor, present: Tensor) -> list[Tensor]:
        self.said.append(present.tolist())
        return [image]

    def decode(self, features: list[Tensor], size: Sequence[int], prompts: Prompts | None = None) -> Output:
        return Output(self.head(features[0]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of pictures, the second of which some cases lack: c0 and c2 have T1 alone."""
    folder = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    for number in range(4):
        index = blob_labels((24, 28), rng)
        for name in ("T1", "FLAIR") if number % 2 else ("T1",):
            file = folder / "images" / f"c{number}_{name}.png"
            file.parent.mkdir(exist_ok=True)
            PIL.Image.fromarray(blob_image(index, rng)).save(file)
        (folder / "masks").mkdir(exist_ok=True)
        PIL.Image.fromarray(index).save(folder / "masks" / f"c{number}.png")
    (folder / "splits.json").write_text(json.dumps({"train": ["c0", "c1"], "val": ["c2", "c3"], "test": []}))
    return folder


@pytest.fixture
def data(folder: Path) -> Folder:
    return Folder(
        str(folder),
        classes=["background", "organ", "lesion"],
        channels=["T1", "FLAIR"],
        may_miss=["FLAIR"],
        patch=[16, 16],
        batch_size=2,
        cache_dir=str(folder / "cache"),
    )


def task_with(data: Folder, network: Segmenter) -> SegmentationTask:
    return SegmentationTask(network, data.classes, data.patch, data.channels, window_batch=8)


def listening(data: Folder) -> tuple[SegmentationTask, Said]:
    torch.manual_seed(0)
    network = Listener(data.in_channels, data.num_classes)
    return task_with(data, network), network.said


def batch_of(data: Folder, *keys: str) -> Batch:
    dataset: Any = data.train_dataloader().dataset
    drawn = [dataset[n] for n in range(8)]
    return Batch.of([next(s for s in drawn if s.key == key) for key in keys])


def test_training_tells(data: Folder) -> None:
    task, said = listening(data)
    task.compute_loss(batch_of(data, "c0", "c1"))
    task.compute_loss(batch_of(data, "c1", "c1"))
    assert said == [[[True, False], [True, True]], None]


def trainer() -> lightning.Trainer:
    return lightning.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore")
def test_validation_tells(data: Folder) -> None:
    task, said = listening(data)
    trainer().validate(task, data, verbose=False)
    # c2 lacks FLAIR, c3 does not; 24 x 28 takes 2 x 3 windows of 16 x 16 at half overlap.
    assert said == [[[True, False]] * 6, None]


@pytest.mark.filterwarnings("ignore")
def test_calibration_tells(data: Folder) -> None:
    task, said = listening(data)
    fitted = trainer()
    fitted.validate(task, data, verbose=False)
    said.clear()
    assert len(list(_validation_scores(fitted, task))) == 2
    assert said == [[[True, False]] * 6, None]


def test_prediction_tells(data: Folder, folder: Path) -> None:
    task, said = listening(data)
    predictor = Predictor(
        task.network, Description(data.preprocessing, data.patch, data.classes), windows=Windows(batch=8)
    )
    predictor.predict(open_image({"T1": folder / "images" / "c0_T1.png"}))
    predictor.predict(open_image({name: folder / "images" / f"c1_{name}.png" for name in ("T1", "FLAIR")}))
    assert said == [[[True, False]] * 6, None]


@pytest.mark.parametrize("encoder", ["chada_vit", "channelvit"])
def test_a_network_that_cares_learns_and_predicts(data: Folder, folder: Path, encoder: str) -> None:
    torch.manual_seed(0)
    small = {"dim": 16, "depth": 1, "heads": 2, "hidden": 32, "patch": 4, "grid": 4, "widths": [4, 6, 8, 8]}
    network = EncoderDecoder(2, 3, encoder={"name": encoder, **small})
    task = task_with(data, network)
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-2)
    batch, losses = batch_of(data, "c0", "c1"), []
    for _ in range(20):
        loss = task.compute_loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.8 * losses[0]
    predictor = Predictor(network, Description(data.preprocessing, data.patch, data.classes))
    lacking = open_image({"T1": folder / "images" / "c0_T1.png"})
    one = predictor.predict(lacking, probabilities=True)
    # As by a network that never heard of FLAIR.
    network.encoder.in_channels = 1
    with torch.no_grad():
        network.encoder.channel = torch.nn.Parameter(network.encoder.channel[:1])
    network.in_channels = 1
    image = data.preprocessing.image(lacking)[:1]
    alone = softmax(predictor.tiler.run(lambda patches: network(patches).logits.detach(), image), axis=0)
    assert one.probabilities is not None
    np.testing.assert_allclose(one.probabilities, alone, rtol=1e-4, atol=1e-5)
