"""Adapters: exactly SAM at the beginning, only what is declared learns, counts by formula, small files."""

from __future__ import annotations

import copy
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from datamodules.classes import Classes
from datamodules.patch import Patch
from datamodules.preprocessing import Preprocessing
from datamodules.sample import Batch
from models.attention import ATTENTION
from models.errors import ModelError
from models.sam import SamSegmenter
from models.sam.adapters import ADAPTERS, merge_lora, unmerge_lora
from models.sam.adapters.lora import LoraQkv
from tasks.losses import DiceCE
from tasks.model_file import Description, load_model, save_model
from tasks.schedules import WarmupPolynomial
from tasks.segmentation import SegmentationTask
from tests.sam.official import awake, checkpoint

NEW: dict[str, Any] = {
    "lora": "lora",
    "lora_all": {"name": "lora", "rank": 2, "alpha": 4.0, "at": ["q", "k", "v"], "blocks": [0, 3]},
    "bottleneck": "bottleneck",
    "space": {"name": "bottleneck", "at": "space", "blocks": [1]},
    "eca": "attention",
    "se": {"name": "attention", "block": {"name": "se", "reduction": 4}},
    "psa": {"name": "attention", "block": "psa", "blocks": [2]},
    "mixer": {"name": "attention", "block": {"name": "hilo"}, "blocks": [0]},
    "dual_branch": "dual_branch",
    "two_pyramids": {"name": "dual_branch", "pyramids": 2, "blocks": [0, 2], "points": 2},
}
MIXED = ["lora", "bottleneck", {"name": "attention", "block": "eca"}, "dual_branch", "neck", "decoder"]
every_adapter = pytest.mark.parametrize(
    "adapters", [*([a, "decoder"] for a in NEW.values()), MIXED], ids=[*NEW, "mixed"]
)


def tiny(**options: Any) -> SamSegmenter:
    torch.manual_seed(0)
    return SamSegmenter(**{"size": "tiny", "image_size": 64, "in_channels": 2, "num_classes": 3, **options})


def learning(network: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in network.named_parameters() if p.requires_grad}


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in learning(network).values())


@every_adapter
@torch.no_grad()
def test_it_begins_as_sam_and_keeps_its_names(adapters: list[Any]) -> None:
    plain, adapted = awake(tiny()), tiny(adapters=adapters)
    report = adapted.load_state_dict(plain.state_dict(), strict=False)
    assert not report.unexpected_keys
    assert report.missing_keys
    x = torch.randn(2, 2, 64, 48)
    # In training too: nothing of what is added to the tokens depends on statistics yet.
    for network in (adapted.train(), adapted.eval()):
        torch.testing.assert_close(network(x).logits, plain(x).logits, atol=1e-6, rtol=0)


@pytest.mark.parametrize("adapters", [["bottleneck", "lora", "decoder"], ["dual_branch", "decoder"]])
@torch.no_grad()
def test_volumes_begin_as_sam_too(adapters: list[Any]) -> None:
    plain, adapted = awake(tiny(ndim=3)), tiny(ndim=3, adapters=adapters).eval()
    adapted.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(1, 2, 6, 64, 48)
    torch.testing.assert_close(adapted(x).logits, plain(x).logits, atol=1e-6, rtol=0)


@every_adapter
def test_what_is_declared_learns_and_nothing_else(adapters: list[Any]) -> None:
    network = tiny(adapters=adapters).train()
    frozen = {n: t.clone() for n, t in network.state_dict().items() if n not in learning(network)}
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01, weight_decay=0.1)
    started = {name: p.detach().clone() for name, p in learning(network).items()}
    # What is behind something that begins at 0 gets its first gradient a step later.
    for _ in range(3):
        optimizer.zero_grad()
        network(torch.randn(2, 2, 64, 64)).logits.square().mean().backward()
        # All of them have one, which training in several processes relies on.
        assert {n for n, p in network.named_parameters() if p.grad is not None} == set(started)
        optimizer.step()
    assert [n for n, p in learning(network).items() if torch.equal(p, started[n])] == []
    changed = {n for n, t in network.state_dict().items() if n in frozen and not torch.equal(t, frozen[n])}
    assert all("branch.pyramids" in name for name in changed), changed  # batch norm of its own


def test_nothing_is_frozen_without_adapters() -> None:
    assert len(learning(tiny())) == len(list(tiny().parameters()))
    assert len(learning(tiny(adapters=[]))) == len(list(tiny().parameters()))


def test_parts_that_are_tuned() -> None:
    def parts(*adapters: str, **options: Any) -> set[str]:
        return {".".join(n.split(".")[:2]) for n in learning(tiny(adapters=list(adapters), **options))}

    assert parts("decoder", "prompt_encoder") == {
        "mask_decoder.transformer",
        "mask_decoder.iou_token",
        "mask_decoder.mask_tokens",
        "mask_decoder.output_upscaling",
        "mask_decoder.output_hypernetworks_mlps",
        "prompt_encoder.no_mask_embed",
    }
    assert parts("neck", "decoder") - parts("decoder") == {"image_encoder.neck"}
    asked = {"prompts": True, "num_classes": 1}
    assert parts("prompt_encoder", **asked) >= {"prompt_encoder.point_embeddings"}
    everything = tiny(adapters=["all"], **asked)
    assert len(learning(everything)) == len(list(everything.parameters()))
    network = tiny(adapters=["all"])
    network(torch.randn(1, 2, 64, 64)).logits.sum().backward()
    assert all(p.grad is not None for p in learning(network).values())


class TestCounts:
    """Trainable parameters on ViT-B by formulas, written out from the papers' numbers: C = 768, 12 blocks."""

    C, BLOCKS = 768, 12

    def added(self, *adapters: Any, **options: Any) -> int:
        with torch.device("meta"):
            arguments = {"num_classes": 9, "image_size": 512, **options}
            with_them = SamSegmenter(adapters=[*adapters, "decoder"], **arguments)
            return count(with_them) - count(SamSegmenter(adapters=["decoder"], **arguments))

    @pytest.mark.parametrize("rank", [4, 16])
    def test_lora(self, rank: int) -> None:
        # A: rank x C and B: C x rank, for queries and values of each block.
        assert self.added({"name": "lora", "rank": rank}) == self.BLOCKS * 2 * 2 * rank * self.C
        assert self.added("lora") == 147_456

    def test_bottleneck(self) -> None:
        hidden = self.C // 4
        one = self.C * hidden + hidden + hidden * self.C + self.C
        assert self.added("bottleneck") == self.BLOCKS * 2 * one == 7_100_928
        assert self.added("bottleneck", ndim=3) == self.BLOCKS * 3 * one

    def test_attention(self) -> None:
        # A share per channel beside the block. ECA: log2(768) + 1 over 2 is 5.3, a kernel of 5.
        assert self.added({"name": "attention", "block": "eca"}) == self.BLOCKS * (5 + self.C)
        hidden = self.C // 16
        se = 2 * self.C * hidden + hidden + self.C
        assert self.added({"name": "attention", "block": "se"}) == self.BLOCKS * (se + self.C)
        psa = 2 * self.C**2 + 3 * self.C
        assert self.added({"name": "attention", "block": "psa"}) == self.BLOCKS * (psa + self.C)

    def test_dual_branch(self) -> None:
        c, heads, points, maps = self.C, 12, 4, 4
        widths = [3, 128, 256, 512]
        convolutions = sum(9 * a * b + 2 * b for a, b in itertools.pairwise(widths))
        pyramid = convolutions + 512 * c + c + 2 * c + c  # a convolution of 1, a norm, the level's embedding

        def attention(levels: int) -> int:
            places = heads * levels * points
            return 2 * (c * c + c) + 2 * places * (c + 1) + places * (c + 1)

        exchange = 2 * 2 * c + attention(maps) + attention(1) + c
        gate = c * 64 + 64 + 64 * c + c + 2 * c
        fusion = (1 + maps) * gate + 2 * c + c * 4 * c + 4 * c + 4 * c * c + c + 2 * c + c
        hidden = c // 16
        channel = 2 * c + 9 * c + c + 2 * c * hidden + hidden + c + c * c + c
        expected = maps * pyramid + 4 * exchange + fusion + self.BLOCKS * channel
        assert self.added("dual_branch") == expected

    def test_neck(self) -> None:
        assert self.added("neck") == self.C * 256 + 2 * 256 + 256 * 256 * 9 + 2 * 256

    def test_decoder(self) -> None:
        # segment-anything's own, less what prompts alone need: the first mask's perceptron and the quality head.
        from segment_anything.modeling import MaskDecoder, TwoWayTransformer

        transformer = TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8)
        package = MaskDecoder(transformer_dim=256, transformer=transformer, num_multimask_outputs=9)
        idle = [package.output_hypernetworks_mlps[0], package.iou_prediction_head]
        wanted = sum(p.numel() for p in package.parameters()) - sum(
            p.numel() for m in idle for p in m.parameters()
        )
        with torch.device("meta"):
            assert count(SamSegmenter(num_classes=9, adapters=["decoder"])) == wanted


class TestLora:
    def network(self) -> SamSegmenter:
        adapters = [{"name": "lora", "rank": 3, "alpha": 6.0, "at": ["q", "k", "v"]}, "decoder"]
        return awake(tiny(adapters=adapters))

    @torch.no_grad()
    def test_it_is_the_formula(self) -> None:
        plain = nn.Linear(6, 18)
        lora = LoraQkv(plain, 2, ["q", "v"], 1.0)
        assert torch.equal(lora(torch.ones(1, 6)), plain(torch.ones(1, 6)))
        # torch's own default for linear layers, and so kaiming with a = sqrt(5): uniform within 1 / sqrt(6).
        assert lora.a["q"].abs().max() <= 1 / math.sqrt(6)
        for part in ("q", "v"):
            lora.b[part].normal_()
        x = torch.randn(5, 4, 6)
        query, key, value = plain(x).split(6, dim=-1)
        query = query + torch.einsum("...i,ri,or->...o", x, lora.a["q"], lora.b["q"])
        value = value + torch.einsum("...i,ri,or->...o", x, lora.a["v"], lora.b["v"])
        torch.testing.assert_close(lora(x), torch.cat([query, key, value], -1))

    @torch.no_grad()
    def test_merged_is_unmerged(self) -> None:
        network, x = self.network(), torch.randn(2, 2, 64, 64)
        state = {n: t.clone() for n, t in network.state_dict().items()}
        before = network.encode(x)[0]
        merge_lora(network)
        merge_lora(network)
        weight = network.image_encoder.blocks[0].attn.qkv.weight
        assert not torch.equal(weight, state["image_encoder.blocks.0.attn.qkv.weight"])
        torch.testing.assert_close(network.encode(x)[0], before, atol=1e-5, rtol=1e-5)
        # Its state is the same, merged or not, so that files and copies are.
        assert all(torch.equal(t, state[n]) for n, t in network.state_dict().items())
        assert torch.equal(copy.deepcopy(network).encode(x)[0], network.encode(x)[0])
        unmerge_lora(network)
        assert torch.equal(network.encode(x)[0], before)
        merge_lora(network)
        assert torch.equal(network.train().encode(x)[0], before)

    @torch.no_grad()
    def test_loading_into_a_merged_network(self) -> None:
        network, other = self.network(), awake(self.network(), seed=1)
        x = torch.randn(1, 2, 64, 64)
        merge_lora(network)
        network.load_state_dict(other.state_dict())
        assert torch.equal(network.encode(x)[0], other.encode(x)[0])


@torch.no_grad()
def test_depth_is_attended_to_slice_by_slice_position() -> None:
    """Against attention over the slices of one position at a time, written out."""
    network = awake(tiny(ndim=3, adapters=[{"name": "bottleneck", "at": ["depth"]}, "decoder"]))
    block = network.image_encoder.blocks[0]
    (adapter,) = block.adapters["depth"]
    y = torch.randn(2 * 6, 4, 4, 48)
    found = adapter(block.attn, y, 6)
    volume = y.reshape(2, 6, 4, 4, 48)
    for b, row, column in [(0, 0, 0), (1, 3, 2)]:
        grid = volume[b, :, row, column].reshape(1, 2, 3, 48)  # six slices as two rows of three
        along = adapter.up(F.gelu(adapter.down(block.attn(grid)))).reshape(6, 48)
        torch.testing.assert_close(
            found.reshape(2, 6, 4, 4, 48)[b, :, row, column], along, atol=1e-5, rtol=1e-5
        )
    # Slices speak with each other, images of a batch do not.
    moved = y.clone()
    moved[0] += 1
    differs = (adapter(block.attn, moved, 6) - found).abs().flatten(1).amax(1) > 1e-4
    assert differs.tolist() == [True] * 6 + [False] * 6


@pytest.mark.parametrize(
    ("adapters", "said"),
    [
        (["lora"], "add decoder"),
        ([{"name": "lora", "at": ["x"]}, "decoder"], "one or more of: q, k, v"),
        ([{"name": "lora", "rank": 0}, "decoder"], "rank is 0"),
        (["lora", "lora", "decoder"], "stands twice"),
        ([{"name": "lora", "blocks": [4]}, "decoder"], "has blocks 0 to 3"),
        ([{"name": "lora", "width": 4}, "decoder"], "no option 'width'; it accepts: rank, alpha, at, blocks"),
        (
            [{"name": "bottleneck", "at": ["depth"]}, "decoder"],
            "for images of 2 axes choose from: space, mlp",
        ),
        ([{"name": "bottleneck", "ratio": 0}, "decoder"], "ratio is 0"),
        ([{"name": "attention", "block": "magic"}, "decoder"], "'magic' is not known"),
        (["dual_branch", "dual_branch", "decoder"], "there twice"),
        ([{"name": "dual_branch", "pyramids": 5}, "decoder"], "1 to 4"),
        ([{"name": "dual_branch", "widths": [8]}, "decoder"], "three numbers"),
        ([{"name": "dual_branch", "points": 0}, "decoder"], "points is 0"),
        ([{"name": "dual_branch", "heads": 5}, "decoder"], "not a multiple of 5 heads"),
        (["magic"], "choose from: all, attention, bottleneck, decoder"),
    ],
)
def test_what_does_not_fit_is_said(adapters: list[Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        tiny(adapters=adapters)


def test_the_page_names_every_adapter() -> None:
    page = (Path(__file__).parents[2] / "docs" / "sam.md").read_text("utf-8")
    assert all(f"| `{name}`" in page for name in ADAPTERS)
    assert {"eca", "se", "psa"} <= set(ATTENTION)


@pytest.mark.slow
@torch.no_grad()
def test_a_mixture_can_be_exported() -> None:
    class Logits(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, image: Tensor) -> Tensor:
            return self.network(image).logits

    network = Logits(awake(tiny(adapters=MIXED))).eval()
    x = torch.randn(1, 2, 64, 48)
    program = torch.export.export(network, (x,), strict=False)
    torch.testing.assert_close(program.module()(x), network(x), atol=1e-3, rtol=1e-3)


def description() -> Description:
    return Description(Preprocessing(["a", "b"]), Patch((64, 64)), Classes(["background", "one", "two"]))


def trained(file: Path, adapters: list[Any], **options: Any) -> SamSegmenter:
    """After steps with weight decay that change all that may change."""
    network = tiny(weights=str(file), adapters=adapters, **options).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        network(torch.randn(2, network.in_channels, 64, 64)).logits.square().mean().backward()
        optimizer.step()
    return network.eval()


@pytest.mark.parametrize(
    ("adapters", "options"),
    [
        (["lora", "decoder"], {}),
        # More that learns than is frozen would all be kept: the decoder stays as it is.
        (["lora", "bottleneck", {"name": "attention", "block": "se"}], {"num_classes": 1, "prompts": True}),
    ],
    ids=["lora", "mixed"],
)
def test_a_model_file_holds_what_is_not_the_bases(
    tmp_path: Path, adapters: list[Any], options: dict[str, Any]
) -> None:
    file = checkpoint(tmp_path)
    network = trained(file, adapters, **options)
    merge_lora(network)  # which makes no difference
    save_model(tmp_path / "model.safetensors", network, description())
    from safetensors import safe_open

    with safe_open(tmp_path / "model.safetensors", "pt") as opened:
        names = set(opened.keys())
    unmerge_lora(network)
    assert set(learning(network)) <= names
    # Besides: what was resampled to 64 pixels or adapted to two channels, and what is new.
    report = network.report
    assert report is not None
    assert names - set(learning(network)) <= {*report.resampled, *report.adapted, *report.new}
    again, _ = load_model(tmp_path / "model.safetensors")
    x = torch.randn(1, 2, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(again(x).logits, network(x).logits, atol=1e-6, rtol=0)
    assert set(learning(again)) == set(learning(network))


def test_averaging_weights_leaves_what_is_frozen_to_the_bit() -> None:
    network = tiny(adapters=["lora", "decoder"]).train()
    mean = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        network(torch.randn(2, 2, 64, 64)).logits.square().mean().backward()
        optimizer.step()
        mean.update_parameters(network)
    averaged = mean.module.state_dict()
    for name, tensor in network.state_dict().items():
        if name in learning(network):
            continue
        assert torch.equal(averaged[name], tensor), name
    name = "image_encoder.blocks.0.attn.qkv.b.q"
    assert not torch.equal(averaged[name], network.state_dict()[name])


class TestTask:
    """What the training of any network makes of it."""

    def task(self, **options: Any) -> SegmentationTask:
        network = tiny(adapters=["lora", "decoder"], deep_supervision=True)
        return SegmentationTask(
            network, Classes(["background", "one", "two"]), Patch((64, 64)), ["a", "b"], **options
        )

    def batch(self) -> Batch:
        mask = torch.randint(0, 3, (2, 64, 64))
        here = torch.ones(2, 3, dtype=torch.bool)
        return Batch(
            image=torch.randn(2, 2, 64, 64),
            mask=mask,
            geometry=[None, None],
            key=["a", "b"],
            group=[None, None],
            annotated=here,
            present=here[:, :2],
        )

    def test_the_optimizer_gets_what_learns(self) -> None:
        task = self.task()
        optimizer = task.configure_optimizers()
        given = {id(p) for group in optimizer.param_groups for p in group["params"]}
        assert given == {id(p) for p in learning(task.network).values()}

    def test_sameds_loss_is_on_the_logits_as_they_are_made(self) -> None:
        task = self.task(loss=DiceCE(dice=0.8, ce=0.2, background=True), coarse=True).train()
        batch = self.batch()
        found = task.compute_loss(batch)
        logits = task.network(batch.image).aux[0]
        assert logits.shape == (2, 3, 16, 16)
        # Nearest neighbour: the third of every four pixels.
        mask = batch.mask[:, 2::4, 2::4]
        target = F.one_hot(mask, 3).permute(0, 3, 1, 2).float()
        p = logits.softmax(1)
        overlap = (p * target).sum((0, 2, 3))
        dice = 1 - 2 * overlap / (p.sum((0, 2, 3)) + target.sum((0, 2, 3)))
        torch.testing.assert_close(found, 0.2 * F.cross_entropy(logits, mask) + 0.8 * dice.mean())

    def test_without_coarse_logits_all_is_as_ever(self) -> None:
        torch.manual_seed(0)
        batch = self.batch()
        task, coarse = self.task().train(), self.task(coarse=True).train()
        for one in (task, coarse):
            one.network.deep_supervision = False
        torch.testing.assert_close(task.compute_loss(batch), coarse.compute_loss(batch))


def test_the_schedule() -> None:
    layer = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=2.0)
    schedule = WarmupPolynomial(optimizer, total=6, warmup=2, power=0.5)
    rates = []
    for _ in range(8):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    wanted = [1 / 3, 2 / 3, *(math.sqrt(1 - t / 4) for t in range(4)), 0, 0]
    assert rates == pytest.approx([2 * w for w in wanted])
    with pytest.raises(ValueError, match="warmup < total"):
        WarmupPolynomial(optimizer, total=2, warmup=2)


@pytest.mark.slow
def test_sameds_vit_b_in_less_than_25_mb(tmp_path: Path) -> None:
    from segment_anything import sam_model_registry

    torch.save(sam_model_registry["vit_b"](None).state_dict(), tmp_path / "sam_vit_b.pth")
    network = SamSegmenter(
        in_channels=1,
        num_classes=9,
        size="vit_b",
        image_size=512,
        weights=str(tmp_path / "sam_vit_b.pth"),
        adapters=[{"name": "lora", "rank": 4}, "decoder", "prompt_encoder"],
    )
    with torch.no_grad():
        for parameter in learning(network).values():
            parameter += 0.01
    model = tmp_path / "model.safetensors"
    save_model(model, network, description())
    size = model.stat().st_size / 1e6
    assert 15 < size < 25, size
    again, _ = load_model(model)
    state: dict[str, Tensor] = again.state_dict()
    assert all(torch.equal(t, state[n]) for n, t in network.state_dict().items())
