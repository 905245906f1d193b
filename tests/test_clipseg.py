"""CLIPSeg: a mask per text, adapters, local snapshots; transformers' own network is the reference."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from datamodules.classes import Classes
from datamodules.patch import Patch
from datamodules.preprocessing import Preprocessing
from models.clipseg import ClipSegSegmenter
from models.clipseg.adapters import ADAPTERS
from models.clipseg.sizes import SIZES, make_network
from models.errors import ModelError
from models.interfaces import Prompts
from tasks.model_file import Description, load_model, save_model
from tests.small import fit, predict

TEXTS = ["background", "a lung"]


def tiny(**options: Any) -> ClipSegSegmenter:
    torch.manual_seed(0)
    given = {"size": "tiny", "image_size": 64, "texts": TEXTS, "num_classes": 2, **options}
    return ClipSegSegmenter(**given)


def learning(network: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in network.named_parameters() if p.requires_grad}


def awake(network: Any, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return network.eval()


def official() -> Any:
    torch.manual_seed(7)
    return awake(make_network("tiny"))


def test_the_published_size_has_the_published_tensors() -> None:
    """CIDAS/clipseg-rd64-refined: 150,747,746 parameters (its file of float32 has 575.1 MiB), positions of 224 / 16."""
    with torch.device("meta"):
        network = make_network("rd64_refined")
    assert sum(parameter.numel() for parameter in network.parameters()) == 150_747_746
    assert network.clip.vision_model.embeddings.position_embedding.weight.shape == (1 + 14 * 14, 768)
    assert network.decoder.reduces[0].out_features == 64


def assert_near(found: Tensor, wanted: Tensor) -> None:
    """With weights at random logits are of any size."""
    assert (found - wanted).abs().max() < 1e-4 * wanted.std(), ((found - wanted).abs().max(), wanted.std())


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """A folder as it is published, with a tokenizer that knows letters and one word."""
    folder = tmp_path / "clipseg"
    folder.mkdir()
    save_file({n: t.contiguous() for n, t in official().state_dict().items()}, folder / "model.safetensors")
    # As in CLIP: printable bytes, the same at the end of a word, then what is merged, then the two marks.
    letters = [chr(c) for c in range(33, 127)]
    words = [*letters, *(f"{c}</w>" for c in letters), "lu", "lun", "lung</w>"]
    vocab = {word: number for number, word in enumerate(words)} | {
        "<|startoftext|>": 256,
        "<|endoftext|>": 257,
    }
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\nl u\nlu n\nlun g</w>\n")
    return folder


@torch.no_grad()
def test_it_is_transformers_own(snapshot: Path) -> None:
    network = tiny(weights=str(snapshot), image_size=128).eval()
    reference = official()
    # "a lung": the start, the word "a", "lung" as merged, the end.
    words = json.loads((snapshot / "vocab.json").read_text())
    assert network.tokens[1, :4].tolist() == [256, words["a</w>"], words["lung</w>"], 257]
    image = torch.randn(2, 3, 128, 128)
    found = network(image)
    assert found.logits.shape == (2, 2, 128, 128)
    for number in range(2):
        one = network.tokens[number : number + 1].expand(2, -1)
        wanted = reference(input_ids=one, pixel_values=image).logits
        assert_near(found.logits[:, number], wanted)


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 64), (45, 90), (30, 10)])
def test_logits_have_the_size_of_the_image(size: tuple[int, int]) -> None:
    network = awake(tiny(in_channels=2))
    x = torch.randn(3, 2, *size)
    output = network(x).logits
    assert output.shape == (3, 2, *size)
    assert_near(network(x[1:2]).logits, output[1:2])
    assert (output[:, 0] - output[:, 1]).abs().max() > 0.1 * output.std()  # texts make a difference


@pytest.mark.parametrize(
    "adapters",
    [
        ["dense"],
        [{"name": "dense", "hidden": 8, "at": "vision"}, "decoder"],
        ["shallow"],
        [{"name": "shallow", "at": ["text"]}],
    ],
)
def test_what_is_declared_learns_and_nothing_else(adapters: list[Any]) -> None:
    network = tiny(adapters=adapters).train()
    frozen = {n: t.clone() for n, t in network.state_dict().items() if n not in learning(network)}
    started = {n: p.detach().clone() for n, p in learning(network).items()}
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01, weight_decay=0.1)
    network(torch.randn(2, 3, 64, 64)).logits.square().mean().backward()
    assert {n for n, p in network.named_parameters() if p.grad is not None} == set(started)
    optimizer.step()
    state = network.state_dict()
    assert all(torch.equal(state[n], t) for n, t in frozen.items())
    assert all(not torch.equal(state[n], t) for n, t in started.items())


@torch.no_grad()
def test_adapters_begin_near_to_nothing_and_copies_have_their_own() -> None:
    plain = awake(tiny())
    x = torch.randn(1, 3, 64, 64)
    before = plain(x).logits
    for adapters in (["dense"], ["shallow"]):
        network = tiny(adapters=adapters).eval()
        assert not network.load_state_dict(plain.state_dict(), strict=False).unexpected_keys
        near = network(x).logits
        assert not torch.equal(near, before)
        assert (near - before).abs().mean() < 0.1 * before.std()
        other = copy.deepcopy(network)
        for name, parameter in other.named_parameters():
            if "adapter" in name:
                parameter += 0.1
        assert torch.equal(network(x).logits, near)
        assert not torch.equal(other(x).logits, near)


def test_counts_as_published() -> None:
    """Dense: two adapters per layer, 64 wide; vision as far as the decoder reads (ten layers of 768), text twelve of 512."""

    def adapter(dim: int) -> int:
        return 2 * dim * 64 + 64 + dim

    with torch.device("meta"):
        network = ClipSegSegmenter(adapters=["dense"])
        assert sum(p.numel() for p in learning(network).values()) == 2 * 10 * adapter(768) + 2 * 12 * adapter(
            512
        )
        network = ClipSegSegmenter(adapters=["shallow"])
        assert sum(p.numel() for p in learning(network).values()) == 3 * adapter(768) + adapter(512)


@pytest.mark.parametrize("channels", [3, 1])
def test_a_model_file_holds_what_is_not_the_bases(snapshot: Path, tmp_path: Path, channels: int) -> None:
    network = tiny(weights=str(snapshot), adapters=["dense"], in_channels=channels).eval()
    with torch.no_grad():
        for parameter in learning(network).values():
            parameter += 0.1
    out = tmp_path / "run" / "model.safetensors"
    out.parent.mkdir()
    description = Description(
        Preprocessing(("a",) * channels), Patch((64, 64)), Classes(["background", "lung"])
    )
    save_model(out, network, description)
    from safetensors import safe_open

    with safe_open(out, "pt") as opened:
        names = set(opened.keys())
    changed = {"vision_model.embeddings.patch_embedding.weight"} if channels == 1 else set()
    assert names == {*learning(network), "tokens", *changed}
    again, _ = load_model(out, base_folders=[snapshot])
    x = torch.randn(1, channels, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(again(x).logits, network(x).logits, atol=1e-6, rtol=0)
    # From scratch there is no base, and the file is whole.
    save_model(out, tiny(), description)
    assert torch.equal(load_model(out)[0].tokens, tiny().tokens)


def test_a_grey_image_in_one_channel_is_that_in_three(snapshot: Path) -> None:
    three, one = (tiny(weights=str(snapshot), in_channels=n).eval() for n in (3, 1))
    x = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        assert_near(one(x).logits, three(x.expand(-1, 3, -1, -1)).logits)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"texts": ["one"]}, "give one for each of the 2 classes"),
        ({"texts": ["background", "a" * 40]}, "42 tokens; shorten it, or raise text_length"),
        ({"text_length": 100}, "from 3 to 77"),
        ({"size": "huge"}, "choose from: rd64_refined, tiny"),
        ({"image_size": 50}, "multiple of 16"),
        ({"ndim": 3}, "exists in 2D"),
        ({"adapters": ["magic"]}, "'magic' is not known"),
        ({"adapters": ["dense", "dense"]}, "stands twice"),
        ({"adapters": [{"name": "dense", "at": ["audio"]}]}, "one or more of: vision, text"),
        ({"weights": "nowhere"}, "nowhere is not a file"),
    ],
)
def test_what_does_not_fit_is_said(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        tiny(**options)


def test_snapshots_that_cannot_be_used(snapshot: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="this size"), torch.device("meta"):
        ClipSegSegmenter(weights=str(snapshot))
    (snapshot / "vocab.json").unlink()
    with pytest.raises(ModelError, match="no tokenizer"):
        tiny(weights=str(snapshot))
    file = snapshot / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ModelError, match="not a complete safetensors"):
        tiny(weights=str(snapshot))
    file.rename(snapshot / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickles are not read"):
        tiny(weights=str(snapshot))


def test_it_takes_no_prompts() -> None:
    with pytest.raises(ModelError, match="takes no prompts"):
        tiny().eval()(torch.zeros(1, 3, 64, 64), Prompts(boxes=torch.zeros(1, 1, 4)))


def test_the_page_names_every_adapter_and_size() -> None:
    page = (Path(__file__).parents[1] / "docs" / "sam.md").read_text("utf-8")
    assert all(f"`{name}`" in page for name in [*ADAPTERS, *SIZES])


@pytest.mark.slow
def test_fit_and_predict_from_a_recipe(picture_dataset: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "clipseg.yaml"
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
      class_path: models.clipseg.ClipSegSegmenter
      init_args:
        size: tiny
        image_size: 64
        texts: [the background, a disc, a ring]
        adapters: [{name: dense, hidden: 8, at: [vision]}, shallow, decoder]
trainer: {max_epochs: 1, num_sanity_val_steps: 0, accelerator: cpu}
"""
    )
    run = fit(picture_dataset, tmp_path / "run", recipe=["-c", str(recipe)])
    network, _ = load_model(run / "model.safetensors")
    assert isinstance(network, ClipSegSegmenter)
    assert network.tokens[1, 1:7].tolist() == list(b"a disc")
    code, rows = predict(
        run / "model.safetensors", tmp_path / "out", next((picture_dataset / "images").iterdir())
    )
    assert code == 0
    assert rows
