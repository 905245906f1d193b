"""Our SAM gives what segment-anything gives, with the same weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor, sam_model_registry

from models.interfaces import Prompts
from models.sam import SamSegmenter
from models.sam import attention as attention_module
from tests.sam.official import TINY, awake, checkpoint, official_tiny, one_by_one


@pytest.fixture(scope="module")
def official():
    return official_tiny()


@pytest.fixture
def ours(official):
    network = SamSegmenter(num_classes=1, prompts=True, **TINY).eval()
    network.load_state_dict(official.state_dict(), strict=True)
    return network


def images(count=2, size=(128, 128), seed=1):
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
@pytest.mark.parametrize("budget", [2**24, 3000, 1])
def test_embedding(official, ours, budget, monkeypatch):
    """Also where the bias is made in parts, and for grids that windows do not divide (8 by 4 is not 7 by 4)."""
    monkeypatch.setattr(attention_module, "BIAS_ELEMENTS", budget)
    torch.testing.assert_close(ours.encode(images())[0], official.image_encoder(images()), atol=1e-4, rtol=0)
    for image_size in (112, 208):
        reference = official_tiny(image_size)
        network = SamSegmenter(num_classes=1, prompts=True, size="tiny", image_size=image_size)
        network.load_state_dict(reference.state_dict())
        x = images(3, (image_size, image_size))
        torch.testing.assert_close(network.encode(x)[0], reference.image_encoder(x), atol=1e-4, rtol=0)


def test_positions_matter(ours):
    """The reference above would not see it if all positions were 0."""
    x = images()
    with torch.no_grad():
        before = ours.encode(x)[0]
        for block in ours.image_encoder.blocks:
            block.attn.rel_pos_w.zero_()
        assert (ours.encode(x)[0] - before).abs().max() > 0.01


POINTS = torch.tensor([[[20.0, 30.0], [90.5, 64.0]], [[1.0, 120.0], [70.0, 2.25]]])  # row, column
LABELS = torch.tensor([[1, 0], [1, 1]])
BOXES = torch.tensor([[[10.0, 20.0, 60.0, 100.0]], [[0.0, 5.0, 127.0, 31.0]]])
MASK = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["none", "points", "boxes", "mask", "points+boxes", "points+boxes+mask"])
def test_prompts_of_a_batch_equal_a_loop_over_the_package(official, ours, kind):
    x, xy = images(), POINTS.flip(-1)
    corners = BOXES.unflatten(-1, (2, 2)).flip(-1).flatten(-2)[:, 0]
    asked, prompts = [{}, {}], {}
    if "points" in kind:
        asked = [one | {"points": (xy[i : i + 1], LABELS[i : i + 1])} for i, one in enumerate(asked)]
        prompts |= {"points": POINTS, "labels": LABELS}
    if "boxes" in kind:
        asked = [one | {"boxes": corners[i : i + 1]} for i, one in enumerate(asked)]
        prompts |= {"boxes": BOXES}
    if "mask" in kind:
        asked = [one | {"masks": MASK[i : i + 1]} for i, one in enumerate(asked)]
        prompts |= {"mask": MASK}
    embedding = ours.encode(x)
    masks, quality, _ = ours.masks(embedding, (128, 128), Prompts(**prompts))
    wanted_masks, wanted_quality = one_by_one(official, embedding[0], asked)
    torch.testing.assert_close(masks, wanted_masks, atol=1e-4, rtol=0)
    torch.testing.assert_close(quality, wanted_quality, atol=1e-4, rtol=0)
    # Also as a whole, through its own upscaling.
    logits, _ = ours.candidates(embedding, (128, 128), Prompts(**prompts))
    torch.testing.assert_close(
        logits, official.postprocess_masks(wanted_masks[:, 1:], (128, 128), (128, 128)), atol=1e-4, rtol=0
    )


@torch.no_grad()
def test_rows_with_other_numbers_of_prompts_equal_a_loop(official, ours):
    embedding = ours.encode(images(4))
    points = torch.cat([POINTS, POINTS])
    labels = torch.tensor([[1, 0], [-1, 1], [-1, -1], [-1, -1]])
    boxes = torch.full((4, 1, 4), torch.nan)
    boxes[1], boxes[2] = BOXES[0], BOXES[1]
    corners = boxes.unflatten(-1, (2, 2)).flip(-1).flatten(-2)[:, 0]
    xy = points.flip(-1)
    asked = [
        {"points": (xy[:1], labels[:1])},
        {"points": (xy[1:2, 1:], labels[1:2, 1:]), "boxes": corners[1:2]},
        {"boxes": corners[2:3]},
        {},
    ]
    masks, quality, single = ours.masks(
        embedding, (128, 128), Prompts(points=points, labels=labels, boxes=boxes)
    )
    wanted = one_by_one(official, embedding[0], asked)
    torch.testing.assert_close(masks, wanted[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(quality, wanted[1], atol=1e-4, rtol=0)
    assert single.tolist() == [True, True, True, False]


@torch.no_grad()
def test_several_objects_of_one_image(official, ours):
    embedding = ours.encode(images(1))
    masks, _, _ = ours.masks(embedding, (128, 128), Prompts(points=POINTS, labels=LABELS))
    sparse, dense = official.prompt_encoder(points=(POINTS.flip(-1), LABELS), boxes=None, masks=None)
    wanted, _ = official.mask_decoder.predict_masks(
        embedding[0], official.prompt_encoder.get_dense_pe(), sparse, dense
    )
    torch.testing.assert_close(masks, wanted, atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("size", [(60, 100), (300, 200), (128, 77)])
def test_images_of_any_size_equal_the_packages_predictor(official, ours, size):
    """From the scaled image on: the package scales pictures of 8 bits through Pillow, which rounds."""
    predictor = SamPredictor(official)
    official.pixel_mean.zero_()
    official.pixel_std.fill_(1.0)
    try:
        image = images(1, size)
        height, width = predictor.transform.get_preprocess_shape(*size, 128)
        scaled = torch.nn.functional.interpolate(image, (height, width), mode="bilinear", antialias=True)
        predictor.set_torch_image(scaled, size)
        rows_columns = np.array([[10.0, 40.0], [50.0, 70.0]])
        wanted, scores, _ = predictor.predict(
            point_coords=rows_columns[:, ::-1].copy(),
            point_labels=np.array([1, 0]),
            box=np.array([5.0, 8.0, 70.0, 55.0]),
            return_logits=True,
        )
    finally:
        official.pixel_mean.copy_(torch.tensor([123.675, 116.28, 103.53]).view(-1, 1, 1))
        official.pixel_std.copy_(torch.tensor([58.395, 57.12, 57.375]).view(-1, 1, 1))
    prompts = Prompts(
        points=torch.from_numpy(rows_columns)[None],
        labels=torch.tensor([[1, 0]]),
        boxes=torch.tensor([[[8.0, 5.0, 55.0, 70.0]]]),
    )
    logits, quality = ours.candidates(ours.encode(image), size, prompts)
    assert logits.shape == (1, 3, *size)
    np.testing.assert_allclose(logits[0].numpy(), wanted, atol=2e-4)
    np.testing.assert_allclose(quality[0].numpy(), scores, atol=1e-4)


@torch.no_grad()
def test_which_of_the_masks_is_the_answer(ours):
    """The first for prompts that mean one object, else the one with the best predicted quality."""
    embedding, size = ours.encode(images(1)), (128, 128)
    single = Prompts(boxes=BOXES[:1])
    masks, quality, _ = ours.masks(embedding, size, single)
    output = ours.decode(embedding, size, single)
    torch.testing.assert_close(output.logits, ours.frame.take(masks[:, :1], size))
    torch.testing.assert_close(output.quality, quality[:, :1])
    one_point = Prompts(points=POINTS[:1, :1], labels=LABELS[:1, :1])
    logits, quality = ours.candidates(embedding, size, one_point)
    output = ours.decode(embedding, size, one_point)
    best = quality[0].argmax()
    torch.testing.assert_close(output.logits[0, 0], logits[0, best])
    torch.testing.assert_close(output.quality[0, 0], quality[0].max())


@torch.no_grad()
def test_under_bfloat16_prompts_of_every_kind_are_near(ours):
    prompts = Prompts(points=POINTS, labels=LABELS, boxes=BOXES, mask=MASK)
    exact = ours(images(), prompts).logits
    with torch.autocast("cpu", torch.bfloat16):
        near = ours(images(), prompts).logits
    assert near.dtype == torch.float32
    assert (near - exact).abs().mean() < 0.15 * exact.abs().mean()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_equal_the_packages(official, checkpointing):
    network = SamSegmenter(num_classes=1, prompts=True, checkpointing=checkpointing, **TINY).train()
    network.load_state_dict(official.state_dict())
    ours, theirs = images().requires_grad_(), images().requires_grad_()
    weights = torch.randn(2, 64, 8, 8, generator=torch.Generator().manual_seed(5))
    (network.encode(ours)[0] * weights).sum().backward()
    official.zero_grad()
    (official.image_encoder(theirs) * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=1e-3)
    wanted = dict(official.image_encoder.named_parameters())
    for name, parameter in network.image_encoder.named_parameters():
        scale = wanted[name].grad.abs().max()
        torch.testing.assert_close(parameter.grad / scale, wanted[name].grad / scale, atol=1e-4, rtol=0)


def test_parameters_of_vit_b():
    with torch.device("meta"):
        network = SamSegmenter(num_classes=1, prompts=True)
    counts = [
        sum(p.numel() for p in part.parameters())
        for part in (network.image_encoder, network.mask_decoder, network)
    ]
    assert [round(n / 1e6, 2) for n in counts] == [89.67, 4.06, 93.74]
    with torch.device("meta"):
        official = sam_model_registry["vit_b"]()
    assert {n: t.shape for n, t in network.state_dict().items()} == {
        n: t.shape for n, t in official.state_dict().items()
    }


@torch.no_grad()
@pytest.mark.slow
def test_vit_b_at_1024_from_a_file(tmp_path):
    torch.manual_seed(0)
    official = sam_model_registry["vit_b"]().eval()
    for name, parameter in official.named_parameters():
        if "pos" in name:
            parameter.normal_(std=0.05)
    network = SamSegmenter(
        num_classes=1, prompts=True, weights=str(checkpoint(tmp_path, official, "sam_vit_b_01ec64.pth"))
    ).eval()
    assert len(network.report.loaded) == 314
    x = images(1, (1024, 1024))
    embedding = network.encode(x)
    torch.testing.assert_close(embedding[0], official.image_encoder(x), atol=1e-4, rtol=0)
    masks, quality, _ = network.masks(embedding, (1024, 1024), Prompts(points=POINTS[:1], labels=LABELS[:1]))
    wanted = one_by_one(official, embedding[0], [{"points": (POINTS[:1].flip(-1), LABELS[:1])}])
    torch.testing.assert_close(masks, wanted[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(quality, wanted[1], atol=1e-4, rtol=0)


def test_random_weights_are_awake():
    """The helper of these tests leaves no parameter at a constant."""
    assert all(p.numel() == 1 or p.std() > 0 for p in awake(official_tiny()).parameters())
