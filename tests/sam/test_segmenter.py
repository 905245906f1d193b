"""SAM as any other segmenter: sizes, channels, classes, volumes, learning, model files, the command line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.errors import ModelError
from models.interfaces import Output, Prompts
from models.sam import SamSegmenter
from models.sam.image_encoder import Branch
from tasks.model_file import load_model
from tests.sam.official import TINY, awake
from tests.small import fit, predict


def tiny(**options: Any) -> SamSegmenter:
    torch.manual_seed(0)
    return SamSegmenter(**{**TINY, "in_channels": 2, "num_classes": 3, **options})


@pytest.mark.parametrize("size", [(128, 128), (64, 64), (45, 90), (200, 30), (1, 5)])
@pytest.mark.parametrize("fit", ["keep", "stretch"])
def test_logits_have_the_size_of_the_image(size: tuple[int, int], fit: str) -> None:
    output = tiny(fit=fit).eval()(torch.randn(2, 2, *size))
    assert isinstance(output, Output)
    assert output.logits.shape == (2, 3, *size)
    assert output.quality.shape == (2, 3)
    assert output.aux == []


def test_all_parameters_learn_but_those_of_other_prompts() -> None:
    network = awake(tiny(deep_supervision=True)).train()
    output = network(torch.randn(1, 2, 60, 100))
    # A quarter of the frame, without what the image does not fill: 128 * 60 / 100 / 4.
    assert [a.shape for a in output.aux] == [(1, 3, math.ceil(77 / 4), 32)]
    (sum(m.square().sum() for m in (output.logits, *output.aux)) + output.quality.sum()).backward()
    asleep = {name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()}
    # What belongs to prompts that were not given, and the mask for those.
    assert {name.split(".")[1] for name in asleep if name.startswith("prompt_encoder.")} == {
        "point_embeddings",
        "not_a_point_embed",
        "mask_downscaling",
    }
    rest = {n for n in asleep if not n.startswith("prompt_encoder.")}
    assert all(n.startswith("mask_decoder.output_hypernetworks_mlps.0.") for n in rest), rest


def test_samples_of_a_batch_do_not_mix() -> None:
    network = awake(tiny())
    x = torch.randn(3, 2, 100, 128)
    with torch.no_grad():
        alone = torch.cat([network(x[i : i + 1]).logits for i in range(3)])
        torch.testing.assert_close(network(x).logits, alone, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_volume_is_its_slices() -> None:
    flat, volume = awake(tiny()), awake(tiny(ndim=3))
    x = torch.randn(2, 2, 3, 40, 50)
    output = volume(x)
    assert output.logits.shape == (2, 3, 3, 40, 50)
    for d in range(3):
        torch.testing.assert_close(output.logits[:, :, d], flat(x[:, :, d]).logits, atol=1e-4, rtol=1e-4)
    assert volume.encode(x)[0].shape == (2, 64, 3, 8, 8)


@torch.no_grad()
def test_prompts_of_a_volume_go_to_their_slices() -> None:
    options = {"num_classes": 1, "prompts": True}
    flat, volume = awake(tiny(**options)), awake(tiny(ndim=3, **options))
    x = torch.randn(1, 2, 3, 40, 50)
    prompts = Prompts(
        points=torch.tensor([[[0.0, 10.0, 20.0], [2.0, 30.0, 5.0]]]),
        labels=torch.tensor([[1, 0]]),
        boxes=torch.tensor([[[1.0, 4.0, 6.0, 2.0, 30.0, 44.0]]]),
    )
    found = volume(x, prompts).logits
    box = torch.tensor([[[4.0, 6.0, 30.0, 44.0]]])
    per_slice = [
        Prompts(points=prompts.points[:, :1, 1:], labels=prompts.labels[:, :1]),
        Prompts(boxes=box),
        Prompts(points=prompts.points[:, 1:, 1:], labels=prompts.labels[:, 1:], boxes=box),
    ]
    for d, one in enumerate(per_slice):
        torch.testing.assert_close(found[:, :, d], flat(x[:, :, d], one).logits, atol=1e-4, rtol=1e-4)


def test_an_earlier_mask_is_read_at_image_size_and_as_the_decoder_makes_it() -> None:
    network = awake(tiny(num_classes=1, prompts=True))
    with torch.no_grad():
        features = network.encode(torch.randn(1, 2, 96, 128))
        size = (96, 128)
        coarse, _, _ = network.masks(features, size)
        first = network.decode(features, size, Prompts(mask=coarse[:, :1])).logits
        large = network.frame.take(coarse[:, :1], size)
        second = network.decode(features, size, Prompts(mask=large)).logits
        none = network.decode(features, size).logits
    assert (first - none).abs().mean() > 5 * (first - second).abs().mean()


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        (Prompts(points=torch.zeros(1, 2, 2)), "belong together"),
        (Prompts(points=torch.zeros(1, 2, 3), labels=torch.zeros(1, 2)), r"wanted are \(1, P, 2\)"),
        (Prompts(boxes=torch.zeros(1, 2, 4)), "one object at a time"),
        (Prompts(boxes=torch.zeros(1, 1, 6)), "6 numbers; wanted are 4"),
        (
            Prompts(points=torch.zeros(2, 1, 2), labels=torch.zeros(2, 1), boxes=torch.zeros(1, 1, 4)),
            "same images",
        ),
        (Prompts(support=(torch.zeros(1), torch.zeros(1))), "no support images"),
    ],
)
def test_prompts_that_do_not_fit(prompts: Prompts, said: str) -> None:
    network = tiny(num_classes=1, prompts=True).eval()
    with pytest.raises(ModelError, match=said):
        network(torch.zeros(1, 2, 128, 128), prompts)


def test_prompts_for_other_images() -> None:
    network = tiny(num_classes=1, prompts=True).eval()
    with pytest.raises(ModelError, match=r"3 image\(s\), there are 2"):
        network(torch.zeros(2, 2, 128, 128), Prompts(boxes=torch.zeros(3, 1, 4)))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": "vit_x"}, "choose from: vit_b, vit_l, vit_h, tiny"),
        ({"size": {"embed_dim": 8}}, "size lacks depth, num_heads, global_attn_indexes"),
        ({"size": {"width": 8}}, "no number 'width'"),
        ({"image_size": 100}, "multiple of the patch, 16"),
        ({"fit": "crop"}, "keep, stretch"),
        ({"ndim": 1}, "2D and 3D"),
        ({"adapters": ["magic"]}, "'magic' is not known"),
    ],
)
def test_options_that_do_not_exist(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        tiny(**options)


def test_with_prompts_it_draws_one_object_of_any_class() -> None:
    """The data say how many classes there are, the network is asked for one object at a time."""
    network = tiny(num_classes=5, prompts=True).eval()
    assert network.num_classes == 1
    assert network.arguments["num_classes"] == 5
    with torch.no_grad():
        assert network(torch.zeros(1, network.in_channels, 32, 32)).logits.shape == (1, 1, 32, 32)


def test_size_in_numbers_and_arguments_that_build_it_again() -> None:
    size = {"embed_dim": 24, "depth": 2, "num_heads": 2, "global_attn_indexes": [1], "patch_size": 8}
    size |= {"window_size": 3, "out_chans": 32, "decoder_heads": 2, "decoder_mlp_dim": 16}
    network = tiny(size=size, image_size=32)
    again = SamSegmenter(**json.loads(json.dumps(network.arguments)))
    assert {n: t.shape for n, t in again.state_dict().items()} == {
        n: t.shape for n, t in network.state_dict().items()
    }
    assert network(torch.zeros(1, 2, 32, 32)).logits.shape == (1, 3, 32, 32)


@pytest.mark.parametrize("name", ["paper", "tiny"])
def test_presets(name: str) -> None:
    with torch.device("meta"):
        network = SamSegmenter.preset(name, in_channels=1, num_classes=2)
    side = network.arguments["image_size"]
    assert network.encode(torch.zeros(1, 1, side, side, device="meta"))[0].shape[2:] == (
        side // 16,
        side // 16,
    )


@torch.no_grad()
def test_without_prompts_it_can_be_exported() -> None:
    class Logits(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.network(image).logits

    network = Logits(awake(tiny())).eval()
    x = torch.randn(1, 2, 100, 60)
    program = torch.export.export(network, (x,), strict=False)
    torch.testing.assert_close(program.module()(x), network(x), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_no_prompts_are_empty_prompts() -> None:
    network = awake(tiny())
    x = torch.randn(2, 2, 100, 60)
    torch.testing.assert_close(network(x, Prompts()).logits, network(x).logits)


class TestPlacesOfAdapters:
    """What other modules build on."""

    @torch.no_grad()
    def test_each_place_is_called_with_what_it_says(self) -> None:
        class Note(nn.Module):
            def __init__(self, place: str) -> None:
                super().__init__()
                self.place = place

            def forward(self, *given: Any) -> torch.Tensor:
                seen.append((self.place, len(given), given[-1]))
                x = given[-2]
                return x if self.place in ("attention", "behind") else torch.zeros_like(x)

        seen: list[Any] = []
        network = awake(tiny(ndim=3))
        x = torch.randn(1, 2, 4, 32, 32)
        before = network(x).logits
        block = network.image_encoder.blocks[1]
        for place, adapters in block.adapters.items():
            adapters.append(Note(place))
        torch.testing.assert_close(network(x).logits, before)
        assert seen == [("attention", 2, 4), ("depth", 3, 4), ("mlp", 2, 4), ("behind", 2, 4)]

    @torch.no_grad()
    def test_a_branch_runs_beside_the_blocks(self) -> None:
        class Count(Branch):
            def begin(self, image: torch.Tensor) -> Any:
                return [image.shape]

            def after(self, index: int, tokens: torch.Tensor, state: Any) -> Any:
                return tokens, [*state, index]

            def end(self, tokens: torch.Tensor, state: Any) -> torch.Tensor:
                assert state == [(1, 2, 128, 128), 0, 1, 2, 3]
                return tokens * 0

        network = awake(tiny())
        x = torch.randn(1, 2, 128, 128)
        before = network.encode(x)[0]
        network.image_encoder.branch = Count()
        assert not torch.equal(network.encode(x)[0], before)


def test_it_learns() -> None:
    torch.manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    mask = (((rows - 24) ** 2 + (columns - 40) ** 2) < 200).long()[None]
    x = mask[:, None] + 0.3 * torch.randn(1, 1, 64, 64)
    network = tiny(in_channels=1, num_classes=2, image_size=64)
    optimizer = torch.optim.AdamW(network.parameters(), lr=4e-3)
    losses = []
    for _ in range(25):
        loss = F.cross_entropy(network(x).logits, mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0], losses


@pytest.mark.slow
def test_fit_and_predict_from_a_recipe(picture_dataset: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "sam.yaml"
    recipe.write_text(
        """
data:
  class_path: datamodules.Folder
  init_args: {classes: [background, disc, ring], channels: [red, green, blue], patch: [32, 32], batch_size: 2,
              patches_per_epoch: 2}
model:
  class_path: tasks.SegmentationTask
  init_args:
    network:
      class_path: models.sam.SamSegmenter
      init_args: {size: tiny, image_size: 64}
trainer: {max_epochs: 1, num_sanity_val_steps: 0, accelerator: cpu}
"""
    )
    run = fit(picture_dataset, tmp_path / "run", recipe=["-c", str(recipe)])
    network, _ = load_model(run / "model.safetensors")
    assert isinstance(network, SamSegmenter)
    assert network.arguments["image_size"] == 64
    image = next((picture_dataset / "images").iterdir())
    code, rows = predict(run / "model.safetensors", tmp_path / "out", image)
    assert code == 0
    assert rows
