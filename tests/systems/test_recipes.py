"""Every system has a recipe that trains on a CPU, the published one, a card, and a row."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from apps.cli import main
from apps.training import DelineateCLI
from apps.verbs.recipes import folder
from datamodules.segmentation import SegmentationData
from models import SYSTEMS
from models.presets import read_preset
from tasks.segmentation import SegmentationTask
from tests.small import folders
from tests.synthetic import make_mri_dataset, make_picture_dataset

ROOT = Path(__file__).resolve().parents[2]
# A system is there when its class is; the U-Net has the recipes of the first days.
KEYS = [key for key in SYSTEMS if key != "unet"]
every_system = pytest.mark.parametrize("key", KEYS)
# Where the made data are not what a recipe wants.
OVERRIDES: dict[str, list[str]] = {}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        "MRI": make_mri_dataset(tmp_path_factory.mktemp("mri")),
        "pictures": make_picture_dataset(tmp_path_factory.mktemp("pictures")),
    }


def recipe(key: str) -> Path:
    return folder() / "systems" / f"{key}.yaml"


def arguments(file: Path, data: dict[str, Path], tmp_path: Path) -> list[str]:
    """A rehearsal on made data, whatever the recipe's own are."""
    text = file.read_text("utf-8")
    root = data["MRI" if "datamodules.MRI" in text else "pictures"]
    bands = ["--data.channels", "[red, green, blue]", "--data.indices", "[]"]
    return [
        *("-c", str(file), *folders(root, tmp_path)),
        *("--trainer.fast_dev_run", "1", "--data.batch_size", "2", "--data.num_workers", "0"),
        *("--data.classes", "{a: 0, b: 1, c: 2}"),
        *(bands if "datamodules.Satellite" in text else []),
        *OVERRIDES.get(file.stem, []),
    ]


@every_system
def test_cpu_recipe_runs(key: str, data: dict[str, Path], tmp_path: Path) -> None:
    assert main(["fit", "-q", *arguments(recipe(key), data, tmp_path)]) == 0


@every_system
def test_published_recipe_builds_the_published_network(
    key: str, data: dict[str, Path], tmp_path: Path
) -> None:
    task = built(arguments(recipe(f"{key}_paper"), data, tmp_path))
    assert type(task.network) is SYSTEMS[key]
    said, published = task.network.arguments, read_preset(SYSTEMS[key].__name__, "paper")
    differ = {name for name in published if without_weights(said[name]) != without_weights(published[name])}
    assert not differ, f"the recipe's network is not the preset's in {', '.join(sorted(differ))}"


def built(arguments: list[str]) -> SegmentationTask:
    """What the command line makes of a configuration, without memory for the weights."""
    with torch.device("meta"):
        cli = DelineateCLI(
            SegmentationTask,
            SegmentationData,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,
            auto_configure_optimizers=False,
            trainer_defaults={"logger": False, "enable_model_summary": False},
            args=["--config" if word == "-c" else word for word in arguments],
            run=False,
        )
    task = cli.model
    assert isinstance(task, SegmentationTask)
    # The optimizer takes what it is given, and the schedule takes the optimizer.
    optimizer = task.optimizer([torch.nn.Parameter(torch.zeros(1))])
    if task.scheduler is not None:
        task.scheduler(optimizer)
    return task


def without_weights(value: Any) -> Any:
    """Where weights come from is not the network."""
    if isinstance(value, dict):
        return {
            name: without_weights(v) for name, v in value.items() if name not in ("weights", "pretrained")
        }
    if isinstance(value, list | tuple):
        return [without_weights(v) for v in value]
    return value


@every_system
def test_recipes_say_what_they_are(key: str) -> None:
    for file in (recipe(key), recipe(f"{key}_paper")):
        first, *_ = file.read_text("utf-8").splitlines()
        assert re.fullmatch(r"# \S.{20,}", first), f"{file.name}: the first comment is the summary"
        loaded = yaml.safe_load(file.read_text("utf-8"))
        assert loaded["trainer"]["default_root_dir"] == f"runs/{file.stem}"
        assert not Path(loaded["data"]["init_args"]["root"]).is_absolute()
    assert "weights: pretrained" not in recipe(key).read_text("utf-8"), "nothing is downloaded for a CPU run"


@every_system
def test_card_and_row(key: str) -> None:
    card = (ROOT / "docs" / "systems" / f"{key}.md").read_text("utf-8")
    assert f"delineate fit -c {key} --data.root FOLDER" in card
    assert re.search("licence", card, re.IGNORECASE)
    assert re.search("arxiv.org|doi.org", card)
    assert re.search("^#+ .*limits", card, re.IGNORECASE | re.MULTILINE)
    assert {"constant", "threshold"} <= set(re.findall("constant|threshold", card)), (
        "beside what sees nothing"
    )
    page = (ROOT / "docs" / "systems.md").read_text("utf-8")
    assert re.search(rf"^\| `{key}` \|.*\(systems/{key}\.md\)", page, re.MULTILINE)
