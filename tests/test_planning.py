"""The rules against nnU-Net's published numbers, and recipes that train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import yaml

from apps.cli import main
from datamodules import DataError
from datamodules.fingerprint import CaseFacts, ChannelFacts, ClassFacts, Fingerprint, Intensity
from models import EncoderDecoder
from tasks.losses import DiceCE, deep_supervision
from tasks.planning import Machine, make_plan
from tasks.planning.decisions import parse_overrides
from tasks.planning.network import UNet, topology, widths
from tasks.planning.patch import fitted_patch, target_spacing
from tests.synthetic import make_mri_dataset, make_picture_dataset

GPU = Machine("a GPU", 8.0, 8)
CPU = Machine(None, 8.0, 2)


def dataset(
    shapes: list[tuple[int, ...]],
    spacing: tuple[float, ...] | None = None,
    shares: dict[int, float] | None = None,
    channels: tuple[str, ...] = ("image",),
    **changes: Any,
) -> Fingerprint:
    """A fingerprint made by hand; every case trains."""
    shares = {0: 0.95, 1: 0.05} if shares is None else shares
    level = Intensity(100.0, 20.0, 50.0, 100.0, 150.0)
    cases = []
    for number, shape in enumerate(shapes):
        size = int(np.prod(shape))
        labels = {v: ClassFacts(int(s * size), 1, s * size, int(s * size)) for v, s in shares.items()}
        frame = "pixel" if len(shape) == 2 else "RAS+ mm"
        steps = spacing or (1.0,) * len(shape)
        facts = tuple(ChannelFacts(name, level, level) for name in channels)
        cases.append(
            CaseFacts(f"{number}", "train", shape, steps, frame, "uint8", 1.0, 1.0, 1.0, facts, labels)
        )
    splits = {"train": len(cases), "val": 2, "test": 2}
    plain: dict[str, Any] = {"channels": None, "classes": None, "ignore_value": None}
    return Fingerprint(
        "somewhere",
        "native",
        **(plain | changes),
        splits=splits,
        splits_file=True,
        cases=tuple(cases),
        problems=(),
    )


# nnU-Net's numbers -----------------------------------------------------------------------------------------------


def test_hippocampus_as_nnunet_plans_it() -> None:
    """Task04: median 36 x 50 x 35, patch 40 x 56 x 40, batch 9, 3 halvings per axis, 32 to 256 channels."""
    facts = dataset([(36, 50, 35)] * 260, shares={0: 0.948, 1: 0.027, 2: 0.025})
    plan = make_plan(facts, GPU)
    assert plan["data.spacing"] == [1.0, 1.0, 1.0]
    assert plan["data.patch"] == [40, 56, 40]
    assert plan["data.batch_size"] == 9
    assert plan["model.network.encoder.strides"] == [1, 2, 2, 2]
    assert plan["model.network.encoder.kernels"] == [3, 3, 3, 3]
    assert plan["model.network.encoder.widths"] == [32, 64, 128, 256]
    assert plan["model.loss"] == "tasks.losses.DiceCE"


@pytest.mark.parametrize(
    ("median", "spacing", "patch", "halvings"),
    [
        # Decathlon's published plans of nnU-Net for 8 GB (Isensee 2021, supplement): brain tumour, heart, prostate.
        ((138, 169, 138), (1.0, 1.0, 1.0), (128, 128, 128), (5, 5, 5)),
        ((115, 320, 232), (1.37, 1.25, 1.25), (80, 192, 160), (4, 5, 5)),
        ((20, 320, 319), (3.6, 0.62, 0.62), (20, 320, 256), (2, 6, 6)),
    ],
    ids=["brain", "heart", "prostate"],
)
def test_patches_of_8_gib_as_nnunet_plans_them(
    median: tuple[int, ...], spacing: tuple[float, ...], patch: tuple[int, ...], halvings: tuple[int, ...]
) -> None:
    def fits(size: tuple[int, ...], shape: Any) -> bool:
        net = UNet(shape, widths(shape.levels, 3, 1.0), 2, 2, 1, 3)
        # nnU-Net's reference: two patches of 560e6 elements in 8 GB.
        return net.elements(size) <= 560e6

    found, shape, _ = fitted_patch(median, spacing, fits)
    assert (found, shape.halvings) == (patch, halvings)


def test_coarse_axes_wait_and_have_kernel_1() -> None:
    shape = topology((16, 256, 256), (10.0, 1.5, 1.5))
    # 10 mm against 1.5: the slices wait until 1.5 became 6, which is within a factor of two.
    assert shape.strides[:4] == ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2))
    assert shape.kernels[:3] == ((1, 3, 3), (1, 3, 3), (3, 3, 3))
    assert all(min(size) >= 4 for size in shape.sizes((16, 256, 256)))


def test_target_spacing_takes_the_tenth_percentile_of_a_coarse_axis_only() -> None:
    spacings = [(1.5, 1.5, z) for z in (5.0, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10)]
    shapes = [(200, 200, 10)] * 11
    assert target_spacing(spacings, shapes) == ((1.5, 1.5, 10.0), True)
    spacings = [(1.5, 1.5, z) for z in (5.0, 5.0, 5.0, 10, 10)]
    assert target_spacing(spacings, shapes[:5]) == ((1.5, 1.5, 5.0), True)
    # Not anisotropic: the median, however few slices.
    assert target_spacing([(1, 1, z) for z in (1.0, 2.0, 2.5)], shapes[:3]) == ((1, 1, 2), False)
    # Coarse, but with as many slices: the median again.
    assert target_spacing(spacings, [(200, 200, 200)] * 5) == ((1.5, 1.5, 5.0), False)


# Costs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patch", [(16, 24, 16), (48, 64)])
def test_costs_are_those_of_the_network(patch: tuple[int, ...]) -> None:
    """Elements against hooks on a real network, operations against torch's own count."""
    from torch.utils.flop_counter import FlopCounterMode

    ndim = len(patch)
    shape = topology(patch, (1.0, 2.0, 1.0)[:ndim])
    net = UNet(shape, widths(shape.levels, ndim, 0.25), 2, 1, 3, 4)
    encoder = {"name": "plain", "widths": net.widths, "strides": shape.strides, "kernels": shape.kernels}
    real = EncoderDecoder(3, 4, ndim, encoder, {"name": "unet", "blocks": 1}, deep_supervision=True)
    seen: list[int] = []
    for module in real.modules():
        if "Conv" in type(module).__name__ and hasattr(module, "kernel_size"):
            module.register_forward_hook(lambda m, i, out: seen.append(out.numel()))
    with FlopCounterMode(display=False) as counter:
        output = real(torch.randn(1, 3, *patch))
        mask = torch.zeros(1, *patch, dtype=torch.long)
        deep_supervision(DiceCE(), [output.logits, *output.aux], mask).backward()
    assert net.elements(patch) == sum(seen)
    # The first layer has no gradient of its input; else they are the same.
    assert net.training_flops(patch) == pytest.approx(counter.get_total_flops(), rel=0.1)


def test_memory_and_time_shrink_patches() -> None:
    facts = dataset([(300, 400, 300)] * 20)
    large, small = make_plan(facts, Machine("g", 24.0, 8)), make_plan(facts, Machine("g", 4.0, 8))
    assert np.prod(large["data.patch"]) > np.prod(small["data.patch"])
    assert small["data.batch_size"] == 2
    slow, fast = make_plan(facts, CPU, minutes=10), make_plan(facts, CPU, minutes=1000)
    assert np.prod(slow["data.patch"]) < np.prod(fast["data.patch"])
    assert slow["trainer.max_epochs"] * slow["data.patches_per_epoch"] >= 500


def test_a_budget_is_kept() -> None:
    for minutes in (5.0, 60.0):
        plan = make_plan(dataset([(64, 64, 64)] * 30), CPU, minutes=minutes)
        reason = plan.decisions["trainer.max_epochs"].reason
        assert f"a budget of {minutes:g} minutes" in reason
        assert float(reason.split("about ")[1].split()[0]) < 1.3 * minutes


# Choices ---------------------------------------------------------------------------------------------------------


def test_rare_classes_change_loss_and_sampling() -> None:
    common = make_plan(dataset([(512, 512)] * 9, shares={0: 0.7, 1: 0.3}, channels=("r", "g", "b")), CPU)
    rare = make_plan(
        dataset([(5120, 5120)] * 9, shares={0: 0.9995, 1: 0.0005}, channels=("r", "g", "b")), CPU
    )
    assert common["model.loss"] == "tasks.losses.DiceCE"
    assert (rare["model.loss"], rare["model.loss.beta"]) == ("tasks.losses.Tversky", 0.7)
    assert rare["data.foreground"] == 0.5


def test_classes_that_nobody_named() -> None:
    def classes(**shares: float) -> Any:
        numbers = {int(k[1:]): v for k, v in shares.items()}
        return make_plan(dataset([(64, 64)] * 4, shares=numbers), CPU).decisions["data.classes"]

    assert classes(v0=0.9, v255=0.1).value == {"background": 0, "foreground": 255}
    assert classes(v0=0.9, v2=0.05, v5=0.05).value == {"background": 0, "class 2": 2, "class 5": 5}
    clouds = classes(v0=0.17, v3=0.57, v4=0.26)
    assert clouds.value == {"class 0": 0, "class 3": 3, "class 4": 4}
    assert "may be a real class" in clouds.reason
    with pytest.raises(DataError, match="every mask holds only"):
        classes(v0=1.0)


def test_one_sparsely_labelled_case_gets_advice() -> None:
    facts = dataset([(512, 512)], shares={0: 0.999, 1: 0.0005, 2: 0.0005})
    assert any("data.ignore_value=0" in note for note in make_plan(facts, CPU).notes)
    assert not any("data.ignore_value" in n for n in make_plan(dataset([(64, 64)] * 5), CPU).notes)


def test_radiographs_are_scaled_to_what_the_smallest_structure_needs() -> None:
    # A disc of 1 % of the area of a 2000 x 2000 film is 226 wide: at 256 it is 29 wide, more than 16.
    large = make_plan(dataset([(2000, 2000)] * 5, shares={0: 0.99, 1: 0.01}), CPU)
    assert large["data.long_side"] == 256
    # 0.05 %: 50 wide; 16 of them need 634 pixels.
    small = make_plan(dataset([(2000, 2000)] * 5, shares={0: 0.9995, 1: 0.0005}), CPU)
    assert small["data.long_side"] == 768


def test_few_slices_are_seen_one_by_one() -> None:
    plan = make_plan(dataset([(200, 220, 3)] * 8, spacing=(1.0, 1.0, 8.0)), GPU)
    assert plan["data.patch"][2] == 1
    assert len(plan["model.network.encoder.kernels"]) > 3


# What the user sets ----------------------------------------------------------------------------------------------


def test_what_the_user_sets_wins_and_later_rules_see_it() -> None:
    facts = dataset([(128, 128, 128)] * 10)
    chosen = parse_overrides(
        [
            "data.patch=[64, 64, 1]",
            "model.init_args.loss.class_path=tasks.losses.Focal",
            "trainer.max_epochs=7",
            "data.context=1",
        ]
    )
    plan = make_plan(facts, GPU, chosen)
    assert plan["data.patch"] == [64, 64, 1]
    assert plan.decisions["data.patch"].reason == "set by you"
    # A 2D network of the 64 x 64 that are left: 64, 32, 16, 8, 4.
    assert plan["model.network.encoder.strides"] == [1, 2, 2, 2, 2]
    assert plan["model.scheduler.T_max"] == 7
    assert plan["data.context"] == 1
    assert plan["model.loss"] == "tasks.losses.Focal"
    assert "alpha" not in plan.text


def test_a_mapping_replaces_what_stands_below_it() -> None:
    plan = make_plan(
        dataset([(64, 64)] * 5),
        CPU,
        parse_overrides(["model.network.encoder={name: timm, backbone: resnet18}"]),
    )
    network = yaml.safe_load(plan.text)["model"]["init_args"]["network"]["init_args"]
    assert network["encoder"] == {"name": "timm", "backbone": "resnet18"}


@pytest.mark.parametrize("entry", ["data.patch", "patch=[1]", "data.patch=[1", "=3"])
def test_settings_that_cannot_be_read(entry: str) -> None:
    with pytest.raises(DataError, match="--set"):
        parse_overrides([entry])


def test_every_line_but_the_plainest_has_a_reason() -> None:
    plan = make_plan(dataset([(64, 80, 48)] * 12), CPU)
    silent = {key for key, made in plan.decisions.items() if not made.reason}
    assert {k.rsplit(".", 1)[-1] for k in silent} <= {
        "root", "scale", "shift", "model", "network", "name", "fusion", "lr", "weight_decay", "T_max",
        "num_sanity_val_steps",
    }  # fmt: skip
    assert all(len(line) <= 110 for line in plan.text.splitlines() if line.lstrip().startswith("#"))


# Recipes that train ----------------------------------------------------------------------------------------------


def gray(root: Path) -> Path:

    make_picture_dataset(root, shape=(40, 48))
    for file in (root / "images").iterdir():
        PIL.Image.open(file).convert("L").save(file)
    return root


def bands(root: Path) -> Path:
    rasterio = pytest.importorskip("rasterio")
    from affine import Affine

    make_picture_dataset(root, shape=(48, 64))
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        for file in sorted((root / folder).iterdir()):
            array = np.asarray(PIL.Image.open(file))
            if folder == "images":
                clean = array.mean(axis=2) * 20
                array = (
                    np.stack([clean + rng.normal(0, 50, clean.shape) for _ in range(5)])
                    .clip(0)
                    .astype("uint16")
                )
            else:
                array = array[None]
            file.unlink()
            with rasterio.open(
                file.with_suffix(".tif"), "w", driver="GTiff", width=array.shape[2], height=array.shape[1],
                count=len(array), dtype=array.dtype, crs="EPSG:32636", transform=Affine(10, 0, 5e5, 0, -10, 4e6),
            ) as target:  # fmt: skip
                target.write(array)
    return root


KINDS = {
    "isotropic": lambda root: make_mri_dataset(root, shape=(20, 24, 16), spacing=(1, 1, 1)),
    "anisotropic": lambda root: make_mri_dataset(root, shape=(32, 32, 6), spacing=(1, 1, 6)),
    "gray": gray,
    "colour": lambda root: make_picture_dataset(root, shape=(48, 64)),
    "bands": bands,
}
WANTED = {"gray": "XRay", "colour": "Folder", "bands": "Satellite"}


@pytest.mark.parametrize("kind", KINDS)
def test_planned_recipes_train(kind: str, tmp_path: Path) -> None:
    root = KINDS[kind](tmp_path / "data")
    recipe = tmp_path / "recipe.yaml"
    found = ["--fingerprint", str(tmp_path / "found.json")]
    small = [
        "--set",
        "model.network.encoder.widths=[4,8]",
        "--set",
        "trainer.default_root_dir=" + str(tmp_path),
    ]
    assert main(["plan", str(root), "-o", str(recipe), "-q", *found, *small]) == 0
    written = yaml.safe_load(recipe.read_text())
    assert written["data"]["class_path"] == f"datamodules.{WANTED.get(kind, 'MRI')}"
    facts = Fingerprint.from_json(json.loads((tmp_path / "found.json").read_text()))
    assert facts.values() == [0, 1, 2]
    again = ["--data.cache_dir", str(tmp_path / "cache"), "--trainer.fast_dev_run", "true"]
    assert main(["fit", "-q", "-c", str(recipe), *again]) == 0


def test_a_recipe_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_picture_dataset(tmp_path / "data", shape=(32, 32))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("mine")
    assert main(["plan", str(root), "-o", str(recipe), "-q"]) == 2
    assert "give --force" in capsys.readouterr().err
    assert recipe.read_text() == "mine"
    assert (
        main(["plan", str(root), "-o", str(recipe), "-q", "--force", "--classes", "nothing,organ,lesion"])
        == 0
    )
    assert yaml.safe_load(recipe.read_text())["data"]["init_args"]["classes"] == {
        "nothing": 0,
        "organ": 1,
        "lesion": 2,
    }


def test_a_bad_case_does_not_lose_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_picture_dataset(tmp_path / "data", shape=(32, 32))
    (root / "masks" / "picture_03.png").write_bytes(b"no picture")
    recipe = tmp_path / "recipe.yaml"
    assert main(["plan", str(root), "-o", str(recipe), "-q"]) == 1
    assert "picture_03" in capsys.readouterr().err
    assert "picture_03" in recipe.read_text()


# Real data, where it is there ------------------------------------------------------------------------------------


def test_hippocampus_from_its_files(shared_data: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    assert main(["plan", str(shared_data / "hippocampus_msd"), "-o", str(recipe), "-q", "--memory", "8"]) == 0
    data = yaml.safe_load(recipe.read_text())["data"]["init_args"]
    assert (data["patch"], data["spacing"]) == ([40, 56, 40], [1.0, 1.0, 1.0])
    assert data["classes"] == {"background": 0, "class 1": 1, "class 2": 2}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "hippocampus_msd",
        "spinalcord_sct",
        "clouds_ukis",
        "medscribble",
        "oam_buildings_kampala",
        "sentinel2_rcr_sparse",
    ],
)
def test_plans_of_real_data_train(name: str, shared_data: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    assert main(["plan", str(shared_data / name), "-o", str(recipe), "-q", "--memory", "4"]) == 0
    again = ["--data.cache_dir", str(tmp_path / "cache"), "--trainer.fast_dev_run", "true"]
    assert main(["fit", "-q", "-c", str(recipe), *again]) == 0


def test_a_recipe_for_coloured_masks_says_the_colours(tmp_path: Path) -> None:
    root, recipe = tmp_path / "data", tmp_path / "recipe.yaml"
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for i in range(4):
        mask = np.full((32, 32, 3), (0xD2, 0xB4, 0x8C), np.uint8)
        mask[4 : 12 + i, 8:20] = (0x22, 0x8B, 0x22)
        PIL.Image.fromarray(mask).save(root / f"masks/{i}.png")
        PIL.Image.fromarray(mask // 2).save(root / f"images/{i}.png")
    stated = ["--classes", "field=#d2b48c,forest=#228b22", "--set", "model.network.encoder.widths=[4,8]"]
    assert main(["plan", str(root), "-o", str(recipe), "-q", *stated]) == 0
    written = yaml.safe_load(recipe.read_text())["data"]["init_args"]
    assert written["classes"] == {"field": "#d2b48c", "forest": "#228b22"}
    again = ["--data.cache_dir", str(tmp_path / "cache"), "--trainer.fast_dev_run", "true"]
    assert main(["fit", "-q", "-c", str(recipe), *again]) == 0
