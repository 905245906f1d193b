"""fit, validate and test through the command line, on data made here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

import tasks
from apps.cli import main
from apps.verbs.recipes import folder
from apps.verbs.training import configs_first
from tasks.segmentation import NonFiniteError, SegmentationTask
from tests.small import FAST, MRI, fit, folders
from tests.synthetic import make_mri_dataset, make_picture_dataset

# Enough to learn the blobs, not only to run.
LONGER = ["--data.patches_per_epoch", "32", "--trainer.max_epochs", "8", "--data.foreground", "0.5"]
RECIPES = sorted(folder().glob("*.yaml"))


@pytest.fixture(scope="module")
def mri(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_mri_dataset(tmp_path_factory.mktemp("mri"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_picture_dataset(tmp_path_factory.mktemp("pictures"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_runs(recipe: Path, mri: Path, pictures: Path, tmp_path: Path) -> None:
    text = recipe.read_text()
    root = mri if "datamodules.MRI" in text else pictures
    # The small pictures have no more bands than these.
    bands = (
        ["--data.channels", "[red, green, blue]", "--data.indices", "[]"]
        if "datamodules.Satellite" in text
        else []
    )
    code = main(
        [
            "fit",
            "-q",
            "-c",
            str(recipe),
            *folders(root, tmp_path),
            "--trainer.fast_dev_run",
            "1",
            "--data.batch_size",
            "2",
            "--data.num_workers",
            "0",
            "--data.classes",
            "{a: 0, b: 1, c: 2}",
            *bands,
        ]
    )
    assert code == 0


def test_it_learns_and_writes_what_it_says(
    mri: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fit(mri, tmp_path / "run", *FAST, *LONGER)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["test/dice"] > 0.8
    assert f"{metrics['test/dice']:.6f}" in capsys.readouterr().out
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["data"]["init_args"]["root"] == str(mri)
    assert config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.02
    splits = json.loads((run / "splits.json").read_text())
    assert sorted(key for keys in splits.values() for key in keys) == [f"case_{i:02d}" for i in range(6)]
    _, description = _model(run)
    assert description.data["cases"]["train"] == len(splits["train"])
    assert description.metrics["test/dice"] == metrics["test/dice"]
    # The saved configuration and model measure the same again.
    arguments = ["-q", "-c", str(run / "config.yaml"), "--weights", str(run / "model.safetensors")]
    capsys.readouterr()
    assert main(["test", *arguments]) == 0
    assert f"{metrics['test/dice']:.6f}" in capsys.readouterr().out
    assert main(["validate", *arguments]) == 0


def _model(run: Path) -> Any:
    from tasks.model_file import load_model

    return load_model(run / "model.safetensors")


@pytest.mark.parametrize("patch", ["[16,16,12]", "[16,16,1]"], ids=["3d", "2d"])
@pytest.mark.parametrize("fusion", ["concat", "attention_gate"])
@pytest.mark.parametrize("attention", ["none", "eca", "se", "psa"])
def test_one_switch_turns_attention_on(
    mri: Path, tmp_path: Path, attention: str, fusion: str, patch: str
) -> None:
    switches = [
        "--model.network.attention",
        attention,
        "--model.network.fusion",
        fusion,
        "--data.patch",
        patch,
    ]
    run = fit(mri, tmp_path, *FAST, *switches, "--trainer.max_epochs", "1", "--test_after_fit", "false")
    prediction = tasks.load(run / "model.safetensors").predict(mri / "images" / "case_00.nii.gz")
    assert prediction.mask.shape == (24, 20, 12)
    names = set(load_file(run / "model.safetensors"))
    has = {
        "eca": "stages.0.2.conv.weight",
        "se": "stages.0.2.squeeze.weight",
        "psa": "stages.0.2.channel.query.weight",
    }
    assert {key for key, name in has.items() if f"encoder.{name}" in names} == {attention} - {"none"}
    assert any("fusions.0.psi" in name for name in names) == (fusion == "attention_gate")


@pytest.mark.parametrize("average", [False, True], ids=["plain", "ema"])
def test_two_and_two_epochs_equal_four(mri: Path, tmp_path: Path, average: bool) -> None:
    # No epoch is validated: there must be something to resume from all the same.
    extra = ["--test_after_fit", "false", "--trainer.check_val_every_n_epoch", "9"]
    extra += [] if average else ["--trainer.callbacks", "null"]
    whole = fit(mri, tmp_path / "whole", *extra, "--trainer.max_epochs", "4")
    half = fit(mri, tmp_path / "half", *extra, "--trainer.max_epochs", "2")
    resume = ["--trainer.max_epochs", "4", "--ckpt_path", str(half / "checkpoints" / "last.ckpt")]
    fit(mri, tmp_path / "half", *extra, *resume)
    first, second = (load_file(run / "model.safetensors") for run in (whole, half))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (half / "model.previous.safetensors").is_file()
    assert not torch.equal(
        load_file(half / "model.previous.safetensors")["heads.0.weight"], second["heads.0.weight"]
    )


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_good_weights(
    mri: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    honest = SegmentationTask.compute_loss

    def poisoned(self: SegmentationTask, batch: Any) -> torch.Tensor:
        loss = honest(self, batch)
        return loss * float("nan") if self.global_step == 3 else loss

    monkeypatch.setattr(SegmentationTask, "compute_loss", poisoned)
    assert main(["fit", "-q", *MRI, *FAST, *folders(mri, tmp_path), "--trainer.max_epochs", "5"]) == 2
    said = capsys.readouterr().err
    assert "the loss became nan at step 3" in said
    assert "case_0" in said
    weights = load_file(tmp_path / "model.safetensors")
    assert all(torch.isfinite(w).all() for w in weights.values())


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(
    mri: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Finite(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            return gradient * float("inf")

    honest = SegmentationTask.compute_loss
    monkeypatch.setattr(
        SegmentationTask, "compute_loss", lambda self, batch: Finite.apply(honest(self, batch))
    )
    assert main(["fit", "-q", *MRI, *FAST, *folders(mri, tmp_path), "--trainer.max_epochs", "2"]) == 2
    assert "gradient became infinite or NaN at step 0" in capsys.readouterr().err


def test_non_finite_is_an_error_of_its_own() -> None:
    assert issubclass(NonFiniteError, RuntimeError)


def test_early_stopping_from_configuration(mri: Path, tmp_path: Path) -> None:
    stopping = (
        "[{class_path: lightning.pytorch.callbacks.EarlyStopping, "
        "init_args: {monitor: val/dice, mode: max, patience: 1, min_delta: 1.0}}]"
    )
    run = fit(
        mri,
        tmp_path,
        "--trainer.callbacks",
        stopping,
        "--trainer.max_epochs",
        "20",
        "--test_after_fit",
        "false",
    )
    rows = (run / "logs" / "version_0" / "metrics.csv").read_text().splitlines()
    assert len(rows) < 10


def test_the_best_weights_are_the_ones_that_are_kept(mri: Path, tmp_path: Path) -> None:
    # A rate that grows until it destroys what was learned: the last weights are not the best.
    schedule = "{class_path: torch.optim.lr_scheduler.ExponentialLR, init_args: {gamma: 6.0}}"
    run = fit(
        mri,
        tmp_path,
        *FAST,
        "--model.scheduler",
        schedule,
        "--trainer.max_epochs",
        "5",
        "--test_after_fit",
        "false",
    )
    metrics = json.loads((run / "metrics.json").read_text())
    best = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert metrics["epoch"] == best["epoch"]
    saved = load_file(run / "model.safetensors")
    assert all(torch.equal(saved[n], best["state_dict"][f"network.{n}"]) for n in saved)


def test_starting_from_a_model_of_another_architecture_is_refused(
    mri: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fit(mri, tmp_path / "a", *FAST, "--trainer.max_epochs", "1", "--test_after_fit", "false")
    wrong = ["--weights", str(run / "model.safetensors"), "--model.network.encoder.widths", "[6,12]"]
    assert main(["fit", "-q", *MRI, *folders(mri, tmp_path), *wrong]) == 2
    assert "not of the configured architecture" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--data.root", "x", "-c", "folder_2d"], ["--config", "FOLDER", "--data.root", "x"]),
        (
            ["-c=folder_2d", "--a", "1", "--config", "mri_tissue_demo"],
            ["--config", "FOLDER", "--config", "DEMO", "--a", "1"],
        ),
    ],
)
def test_overrides_win_wherever_they_stand(given: list[str], expected: list[str]) -> None:
    names = {"FOLDER": str(folder() / "folder_2d.yaml"), "DEMO": str(folder() / "mri_tissue_demo.yaml")}
    assert configs_first(given) == [names.get(part, part) for part in expected]


def test_problems_of_the_data_are_one_sentence(
    mri: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["fit", "-q", "-c", "mri_hippocampus_3d", "--trainer.default_root_dir", str(tmp_path)]
    assert main([*base, "--data.root", str(tmp_path / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err
    # The blobs' masks hold 2, which these classes do not declare.
    assert main([*base, *folders(mri, tmp_path), "--data.classes", "[background, organ]"]) == 2
    assert "not declared" in capsys.readouterr().err
    assert main(["fit", "-c", "nonsense"]) == 2
    assert "neither a file nor a recipe" in capsys.readouterr().err


def test_two_point_five_d_sees_its_neighbours(mri: Path, tmp_path: Path) -> None:
    extra = [
        "--data.patch",
        "[16,16,1]",
        "--data.context",
        "1",
        "--trainer.max_epochs",
        "1",
        "--test_after_fit",
        "false",
    ]
    run = fit(mri, tmp_path, *FAST, *extra)
    network, description = _model(run)
    assert (network.in_channels, network.ndim, description.patch.context) == (3, 2, 1)
    assert np.asarray(
        tasks.load(run / "model.safetensors").predict(mri / "images" / "case_01.nii.gz")
    ).shape == (24, 20, 12)


def test_resampling_to_a_target_spacing_comes_back_to_the_source_grid(mri: Path, tmp_path: Path) -> None:
    run = fit(mri, tmp_path, *FAST, *LONGER, "--data.spacing", "[1.5,1.5,1.5]")
    prediction = tasks.load(run / "model.safetensors").predict(mri / "images" / "case_00.nii.gz")
    assert prediction.mask.shape == (24, 20, 12)
    import nibabel as nib

    reference = np.asarray(nib.load(mri / "labels" / "case_00.nii.gz").dataobj)
    overlap = (
        2
        * ((prediction.mask == 1) & (reference == 1)).sum()
        / ((prediction.mask == 1).sum() + (reference == 1).sum())
    )
    assert overlap > 0.6


@pytest.mark.parametrize(
    ("switch", "said"),
    [
        (["--model.network.attention", "nonsense"], "attention 'nonsense' is not known; choose from: agent"),
        (
            ["--model.network.encoder.width", "[4]"],
            "encoder 'plain' has no option 'width'; it accepts: widths",
        ),
        (["--model.network.encoder", "{name: timm}"], "timm backbones are 2D"),
    ],
)
def test_a_wrong_network_is_one_sentence(
    mri: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], switch: list[str], said: str
) -> None:
    assert main(["fit", "-q", *MRI, *folders(mri, tmp_path), *switch]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert "Union" not in err
