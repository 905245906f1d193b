"""The comparison of attention blocks: entries, costs, statistics, and a small one from the command line."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from apps.ablation import Dataset, jobs
from apps.cli import main
from apps.verbs.recipes import path_of
from models import EncoderDecoder
from tasks.ablation.cost import Cost, measure
from tasks.ablation.entries import Entry, EntryError
from tasks.ablation.page import findings, render, summary, table
from tasks.ablation.results import Ablation, DatasetResult, EntryResult
from tasks.ablation.statistics import compare, holm
from tests.small import MRI
from tests.synthetic import make_mri_dataset


class TestEntries:
    @pytest.mark.parametrize(
        ("label", "attention"),
        [
            ("none", "none"),
            ("eca", {"name": "eca"}),
            ("eca@residual", {"name": "eca", "at": "residual"}),
            ("hilo@encoder:1,2", {"name": "hilo", "at": "encoder", "levels": [1, 2]}),
            (
                "psa(layout=sequential;official=true)@skips",
                {"name": "psa", "layout": "sequential", "official": True, "at": "skips"},
            ),
            ("se(reduction=4)", {"name": "se", "reduction": 4}),
        ],
    )
    def test_read(self, label, attention):
        assert Entry.read(label) == Entry(label, attention)

    @pytest.mark.parametrize(
        ("label", "message"),
        [
            ("se(reduction=4", "not closed"),
            ("se(reduction)", "no value"),
            ("eca@encoder:x", "levels are numbers"),
        ],
    )
    def test_what_cannot_be_read(self, label, message):
        with pytest.raises(EntryError, match=message):
            Entry.read(label)


class TestStatistics:
    def test_against_scipy(self):
        rng = np.random.default_rng(0)
        scores = {name: rng.normal(0.8, 0.02, 5) for name in ("none", "a", "b", "c")}
        found = compare(scores, "none")
        raw = {n: stats.ttest_rel(scores[n], scores["none"]).pvalue for n in "abc"}
        for name in "abc":
            interval = stats.ttest_rel(scores[name], scores["none"]).confidence_interval()
            assert found[name].difference_low == pytest.approx(interval.low)
            assert found[name].difference_high == pytest.approx(interval.high)
            assert found[name].p >= raw[name]
        low, high = stats.t.interval(0.95, 4, scores["none"].mean(), stats.sem(scores["none"]))
        assert (found["none"].low, found["none"].high) == pytest.approx((low, high))
        assert math.isnan(found["none"].p)

    def test_holm(self):
        # The smallest times three, the next times two, never falling.
        assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
        assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
        assert holm([float("nan"), 0.02])[1] == pytest.approx(0.02)

    def test_one_seed_has_no_interval(self):
        found = compare({"none": [0.5], "a": [0.6]}, "none")["a"]
        assert found.difference == pytest.approx(0.1)
        assert math.isnan(found.low)
        assert math.isnan(found.p)


class TestCost:
    def networks(self):
        return {
            "none": EncoderDecoder(1, 2, encoder={"name": "plain", "widths": [4, 8], "norm": "none"}),
            "se": EncoderDecoder(
                1, 2, encoder={"name": "plain", "widths": [4, 8], "norm": "none"}, attention="se"
            ),
        }

    def test_costs(self):
        networks = self.networks()
        found = measure(networks, "none", (16, 24))
        assert found["none"].parameters == sum(p.numel() for p in networks["none"].parameters())
        assert found["none"].latency == 1.0
        assert found["se"].latency > 0
        # The difference is what two SE blocks with 1 hidden unit do: 2 C multiplications and additions each.
        assert found["se"].flops - found["none"].flops == 2 * (2 * 4) + 2 * (2 * 8)
        assert found["se"].activations > found["none"].activations

    def test_operations_of_convolutions(self):
        network = EncoderDecoder(1, 2, encoder={"name": "plain", "widths": [4, 8], "norm": "none"})
        n, q = 16 * 24, 8 * 12
        macs = 9 * n * (1 * 4 + 4 * 4) + 9 * q * (4 * 8 + 8 * 8)  # encoder
        macs += 8 * 4 * n + 9 * n * (8 * 4 + 4 * 4) + n * 4 * 2  # transposed convolution, decoder, head
        assert measure({"none": network}, "none", (16, 24))["none"].flops == 2 * macs

    def test_memory_of_a_step_is_that_of_what_is_kept(self):
        found = measure(self.networks(), "none", (16, 24))["none"].activations
        n, q = 16 * 24, 8 * 12
        # Inputs of all convolutions: image, two maps, two coarse maps, the joined map, two maps; activations work in
        # place, and the one behind the transposed convolution is the joined map's part.
        kept = 4 * (n * (1 + 4 + 4) + q * (8 + 8) + n * (8 + 4 + 4))
        assert found == pytest.approx(kept, rel=0.35)


def small_ablation():
    def entry(scores, latency):
        return EntryResult(dict(enumerate(scores)), {0: 1.0}, Cost(1000, 2_000_000_000, 3 * 2**20, latency))

    result = DatasetResult("mri", [8, 8], 1, 10, 2, 5)
    result.entries = {
        "none": entry([0.80, 0.82, 0.81], 1.0),
        "good": entry([0.85, 0.8705, 0.8601], 1.5),
        "bad": entry([0.75, 0.7702, 0.7599], 1.1),
        "same": entry([0.81, 0.81, 0.812], 1.1),
    }
    return Ablation(
        "delineate benchmark attention mri=folder",
        ["--trainer.max_epochs", "3"],
        "a machine",
        {"mri": result},
    )


class TestPage:
    def test_findings_follow_from_the_numbers(self):
        (line,) = findings(small_ablation())
        assert "between -0.050 and +0.050" in line
        assert "the largest is that of `good`" in line
        assert "`good` is better than `none` and `bad` is worse" in line

    def test_nothing_found_is_said(self):
        ablation = small_ablation()
        del ablation.datasets["mri"].entries["good"], ablation.datasets["mri"].entries["bad"]
        (line,) = findings(ablation)
        assert "no block is better than `none` and no block is worse" in line

    def test_page(self):
        page = render(small_ablation(), "chart.png")
        assert "| `good` | 1,000 | 2.00 | 3.0 | 1.50 | 0.8602 ± 0.025 | +0.0502 ± 0.001 | <0.01 |" in page
        assert "`trainer.max_epochs: 3`" in page
        assert "patches of 8 x 8 with 1 channel(s), 10 steps of 2, 5 test cases, 3 seed(s)" in page
        assert page.count("\n| ") == 2 + 4  # head, rule, rows

    def test_kept_and_read_again(self, tmp_path):
        ablation = small_ablation()
        ablation.save(tmp_path / "a.json")
        assert Ablation.load(tmp_path / "a.json") == ablation

    def test_row_of_none_has_no_difference(self):
        assert table(small_ablation().datasets["mri"])[1][-2:] == ["", ""]


class TestPageInTheDocs:
    """It is what a real run found."""

    PAGE = Path(__file__).parent.parent / "docs" / "attention-ablation.md"

    def test_is_made_from_its_numbers(self):
        ablation = Ablation.load(self.PAGE.with_suffix(".json"))
        assert self.PAGE.read_text("utf-8") == render(ablation, "attention-ablation.png")

    def test_is_large_enough(self):
        datasets = Ablation.load(self.PAGE.with_suffix(".json")).datasets
        assert len(datasets) >= 2
        for dataset in datasets.values():
            assert len(dataset.entries) >= 1 + 12
            assert all(len(entry.scores) >= 3 for entry in dataset.entries.values())

    def test_readme_says_the_same(self):
        readme = " ".join((self.PAGE.parent.parent / "README.md").read_text("utf-8").split())
        ablation = Ablation.load(self.PAGE.with_suffix(".json"))
        assert summary(ablation) in readme


@pytest.fixture(scope="module")
def ablated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablation")
    data = make_mri_dataset(folder / "data")
    recipe = folder / "small.yaml"
    recipe.write_text(path_of("mri_hippocampus_3d").read_text("utf-8"), "utf-8")
    settings = dict(zip(MRI[2::2], MRI[3::2], strict=True)) | {"--data.cache_dir": str(folder / "cache")}
    sets = [
        word for name, value in settings.items() for word in ("--set", f"{name.removeprefix('--')}={value}")
    ]
    command = [
        "benchmark",
        "attention",
        f"{recipe}={data}",
        "--blocks",
        "eca",
        "se@bottleneck",
        "--seeds",
        "2",
    ]
    command += ["--epochs", "1", "-q", "-o", str(folder / "out"), *sets]
    return folder, command, main(command)


class TestCommand:
    def test_page_and_numbers(self, ablated):
        folder, _, code = ablated
        assert code == 0
        found = Ablation.load(folder / "out" / "attention.json").datasets["small"]
        assert list(found.entries) == ["none", "eca", "se@bottleneck"]
        assert (folder / "out" / "attention.png").stat().st_size > 1000
        page = (folder / "out" / "attention.md").read_text("utf-8")
        for label, entry in found.entries.items():
            assert sorted(entry.scores) == [0, 1]
            assert f"| `{label}` | {entry.cost.parameters:,} |" in page
        assert found.entries["eca"].cost.parameters > found.entries["none"].cost.parameters

    def test_scores_are_those_of_the_test_cases(self, ablated):
        folder, _, _ = ablated
        found = Ablation.load(folder / "out" / "attention.json").datasets["small"]
        run = next((folder / "out").rglob("eca/1"))
        with (run / "test_cases.csv").open(encoding="utf-8", newline="") as stream:
            head, *rows = csv.reader(stream)
        assert len(rows) == found.test_cases
        classes = np.array([[float(v) for v in row[1:]] for row in rows])
        assert head[0] == "case"
        mean = np.nanmean(np.nanmean(classes, axis=0))
        assert found.entries["eca"].scores[1] == pytest.approx(mean, abs=1e-5)

    def test_what_is_done_is_not_done_again(self, ablated, monkeypatch):
        folder, command, _ = ablated
        written = {p: p.stat().st_mtime_ns for p in (folder / "out").rglob("model.safetensors")}
        assert len(written) == 6
        assert main(command) == 0
        assert {p: p.stat().st_mtime_ns for p in written} == written

    def test_other_settings_are_other_trainings(self, ablated):
        folder, _, _ = ablated
        done = json.loads(next((folder / "out").rglob("eca/0/done.json")).read_text("utf-8"))
        (job,) = jobs([Dataset("x", "y")], [Entry.read("eca")], [0], folder, ["--trainer.max_epochs", "2"])
        assert job.arguments != done["arguments"]
        assert job.seconds() is None

    def test_failed_training_is_named_and_the_others_done(self, ablated, capsys):
        """A block that wants more channels than the finest level has."""
        folder, command, _ = ablated
        command = [c if c != "se@bottleneck" else "psa(layout=sequential;official=true)" for c in command]
        assert main(command) == 1
        assert "psa(layout=sequential;official=true), seed 0: PSA (sequential) wants" in " ".join(
            capsys.readouterr().err.split()
        )
        assert list(Ablation.load(folder / "out" / "attention.json").datasets["small"].entries) == [
            "none",
            "eca",
        ]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["x"], "RECIPE=FOLDER"),
            (["x=missing"], "folder that is there"),
            ([f"x={__file__}", "--blocks", "nothing"], "'nothing' is not known"),
            ([f"x={__file__}", "--set", "a"], "SETTING=VALUE"),
        ],
    )
    def test_refused_before_the_first_training(self, arguments, message, capsys, tmp_path):
        assert main(["benchmark", "attention", *arguments, "-o", str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_costs_do_not_change_the_network():
    network = EncoderDecoder(1, 2, encoder={"name": "plain", "widths": [4, 8]}).eval()
    image = torch.randn(1, 1, 16, 16)
    before = network(image).logits
    measure({"none": network}, "none", (16, 16))
    assert not network.training
    torch.testing.assert_close(network(image).logits, before)
