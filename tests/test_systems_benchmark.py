"""The comparison of whole networks: entries, statistics, page, and a small one from the command line."""

from __future__ import annotations

import json
import math
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from apps.cli import main
from apps.verbs.recipes import path_of
from models import SYSTEMS
from tasks.ablation.cases import CaseScore, difference, interval
from tasks.ablation.cost import Cost
from tasks.ablation.entries import EntryError
from tasks.ablation.networks import PEERS, REFERENCE, known, peer, system
from tasks.ablation.networks_page import HEAD, findings, render, table
from tasks.ablation.results import Ablation, DatasetResult, EntryResult
from tests.synthetic import make_picture_dataset

PAGE = Path(__file__).parent.parent / "docs" / "systems-benchmark.md"


class TestEntries:
    def test_all_systems_and_three_libraries(self) -> None:
        assert known()[0] == REFERENCE
        assert set(known()) == set(SYSTEMS) | set(PEERS)
        assert len(PEERS) == 3

    @pytest.mark.parametrize("key", SYSTEMS)
    def test_a_system_is_its_tiny_preset(self, key: str) -> None:
        ndim = min(SYSTEMS[key].ndims)
        entry = system(key, ndim, path_of(key))
        with torch.device("meta"):
            built = SYSTEMS[key](
                in_channels=2, num_classes=3, ndim=ndim, **json.loads(json.dumps(entry.init_args))
            )
            tiny = SYSTEMS[key].preset("tiny", in_channels=2, num_classes=3, ndim=ndim)
        shapes = [{name: t.shape for name, t in n.state_dict().items()} for n in (built, tiny)]
        assert shapes[0] == shapes[1]
        assert entry.class_path.startswith("models.")
        assert not entry.foreign
        assert entry.arguments[::2] == ["--model.network", "--model.terms"]

    def test_what_does_not_exist_is_refused(self) -> None:
        flat = [key for key, cls in SYSTEMS.items() if 3 not in cls.ndims]
        for key in flat:
            with pytest.raises(EntryError, match="has 3 axes"):
                system(key, 3)
        there = find_spec("segmentation_models_pytorch") is not None
        with pytest.raises(EntryError, match="exists in 2D" if there else "which is not installed here"):
            peer("smp_unet", 3)

    @pytest.mark.parametrize(("name", "ndim"), [("monai_attention_unet", 2), ("monai_dynunet", 3)])
    def test_peers_take_any_size(self, name: str, ndim: int) -> None:
        from importlib import import_module

        entry = peer(name, ndim)
        module, _, cls = entry.class_path.rpartition(".")
        network = getattr(import_module(module), cls)(2, 3, ndim, channels=[4, 8, 8]).eval()
        size = (13, 18, 9)[:ndim]
        with torch.no_grad():
            assert network(torch.randn(1, 2, *size)).logits.shape == (1, 3, *size)


def scores(values: np.ndarray) -> dict[str, CaseScore]:
    return {
        f"case {i}": CaseScore([float(v)], [float(v) / 2], [10.0 - v], 0, "px") for i, v in enumerate(values)
    }


def test_the_dynunet_in_parts_is_the_dynunet() -> None:
    from monai.networks.nets import DynUNet

    from benchmarks.monai_networks import MonaiDynUNet

    ours = MonaiDynUNet(2, 3, 2, channels=[4, 8, 8]).eval()
    theirs = DynUNet(2, 2, 3, [3] * 3, [1, 2, 2], [2, 2], filters=[4, 8, 8]).eval()
    names = {
        "down.0.": "input_block.",
        "down.1.": "downsamples.0.",
        "up.": "upsamples.",
        "head.": "output_block.",
    }
    state = {}
    for name, tensor in ours.state_dict().items():
        new = next((b + name.removeprefix(a) for a, b in names.items() if name.startswith(a)), name)
        state[new] = tensor
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.startswith("skip_layers.") for name in missing)
    image = torch.randn(1, 2, 8, 12)
    with torch.no_grad():
        torch.testing.assert_close(ours(image).logits, theirs(image))


class TestStatistics:
    def test_differences_are_paired(self) -> None:
        """Cases that are hard for both widen each interval and not that of the difference."""
        rng = np.random.default_rng(0)
        hard = rng.normal(0.7, 0.2, 30)
        one, other = [scores(hard + 0.02 + rng.normal(0, 0.005, 30))], [scores(hard)]
        gap = difference(one, other, "dice")
        assert gap.mean == pytest.approx(interval(one, "dice").mean - interval(other, "dice").mean)
        assert 0.015 < gap.low < gap.mean < gap.high < 0.025
        assert interval(one, "dice").high - interval(one, "dice").low > 0.1

    def test_against_what_was_not_trained(self) -> None:
        seeds = [scores(np.array([0.5, 0.7, 0.9])), scores(np.array([0.6, 0.8, 1.0]))]
        assert difference(seeds, [scores(np.array([0.1, 0.2, 0.3]))], "dice").mean == pytest.approx(0.55)


def small() -> Ablation:
    rng = np.random.default_rng(0)
    hard = rng.normal(0.6, 0.1, 12)
    entries = {}
    for label, gain in (("unet", 0.0), ("good", 0.1), ("bad", -0.2)):
        cases = {seed: scores(hard + gain + rng.normal(0, 0.01, 12)) for seed in (0, 1)}
        cost = Cost(1000, 2_000_000_000, 3 * 2**20, 1.5, 0.012)
        entries[label] = EntryResult({0: 0.5, 1: 0.5}, {0: 1.0, 1: 1.0}, cost, cases)
    data = DatasetResult(
        "r", [8, 8], 1, 10, 2, 12, entries, {"constant": scores(hard - 0.3), "threshold": scores(hard)}
    )
    return Ablation(
        "delineate benchmark systems r=d", ["--trainer.max_epochs", "3"], "a machine", {"r": data}, ["x."]
    )


class TestPage:
    def test_rows(self) -> None:
        head, *rows = table(small().datasets["r"])
        assert head == HEAD
        assert [row[0] for row in rows] == ["good", "unet", "bad", "constant", "threshold"]
        assert rows[0][1:5] == ["1,000", "2.00", "3.0", "12.0"]
        assert rows[0][6].startswith("+0.1")
        assert rows[1][6] == ""
        assert rows[3][1:5] == [""] * 4

    def test_findings(self) -> None:
        best, gaps, constant, threshold = findings(small())
        assert "the highest is that of `good`" in best
        assert "above 0 for `good` and below 0 for `bad`; it holds 0 for the other 0" in gaps
        assert "3 of 3 networks are above it" in constant
        assert (
            "1 of 3 networks are above it by an interval that does not hold 0; not so: `unet`, `bad`"
            in threshold
        )

    def test_page(self) -> None:
        page = render(small(), "chart.png")
        assert "12 test cases, 2 seed(s). HD95 in px" in page
        assert "## Left out\n\n- x." in page

    def test_kept_and_read_again(self, tmp_path: Path) -> None:
        small().save(tmp_path / "a.json")
        assert Ablation.load(tmp_path / "a.json") == small()

    def test_the_page_in_the_docs_is_made_from_its_numbers(self) -> None:
        if not PAGE.is_file():
            pytest.skip("not run yet")
        ablation = Ablation.load(PAGE.with_suffix(".json"))
        assert PAGE.read_text("utf-8") == render(ablation, "systems-benchmark.png")
        for dataset in ablation.datasets.values():
            assert len(set(dataset.entries) & set(SYSTEMS)) >= len(SYSTEMS) - 2
            assert set(dataset.baselines) == {"constant", "threshold"}
            assert all(len(entry.cases) >= 2 for entry in dataset.entries.values())


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], int]:
    folder = tmp_path_factory.mktemp("systems")
    data = make_picture_dataset(folder / "data", shape=(32, 40))
    settings = {
        "data.classes": "{a: 0, b: 1, c: 2}",
        "data.patch": "[32,32]",
        "data.cache_dir": str(folder / "cache"),
        "data.patches_per_epoch": "8",
        "trainer.callbacks": "null",
    }
    command = ["benchmark", "systems", f"folder_2d={data}", "--systems", "unet", "monai_dynunet"]
    command += ["--seeds", "1", "--epochs", "1", "-q", "-o", str(folder / "out")]
    command += [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    return folder, command, main(command)


class TestCommand:
    def test_page_and_numbers(self, compared: tuple[Path, list[str], int]) -> None:
        folder, _, code = compared
        assert code == 0
        found = Ablation.load(folder / "out" / "systems.json").datasets["folder_2d"]
        assert list(found.entries) == ["unet", "monai_dynunet"]
        assert set(found.baselines) == {"constant", "threshold"}
        assert (folder / "out" / "systems.png").stat().st_size > 1000
        page = (folder / "out" / "systems.md").read_text("utf-8")
        for label, entry in found.entries.items():
            assert f"| `{label}` | {entry.cost.parameters:,} |" in page
            # Measured case by case, the mean is what the training's own test says.
            mean = interval([entry.cases[0]], "dice").mean
            assert mean == pytest.approx(entry.scores[0], abs=1e-4) or math.isnan(mean)

    def test_the_network_is_the_tiny_preset(self, compared: tuple[Path, list[str], int]) -> None:
        from tasks.model_file import load_model

        network, _ = load_model(compared[0] / "out" / "folder_2d" / "unet" / "0" / "model.safetensors")
        assert type(network) is SYSTEMS["unet"]
        tiny = SYSTEMS["unet"].preset("tiny", in_channels=3, num_classes=3)
        assert network.arguments == json.loads(json.dumps(tiny.arguments))

    def test_what_is_done_is_not_done_again(self, compared: tuple[Path, list[str], int]) -> None:
        folder, command, _ = compared
        written = {p: p.stat().st_mtime_ns for p in (folder / "out").rglob("model.safetensors")}
        assert len(written) == 2
        assert main(command) == 0
        assert {p: p.stat().st_mtime_ns for p in written} == written

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["x"], "RECIPE=FOLDER"),
            ([f"folder_2d={__file__}", "--systems", "nothing"], "'nothing' is not known; choose from unet"),
        ],
    )
    def test_refused_before_the_first_training(
        self, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        assert main(["benchmark", "systems", *arguments, "-o", str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err
