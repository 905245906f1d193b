"""What is seen of a model besides its mask: against sums done by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from torch import nn

from apps.viewer.samples import MODELS
from apps.viewer.session.gradcam import GradCam, gradcam
from apps.viewer.session.insight import (
    agreement,
    attention,
    compare,
    differing,
    level_classes,
    levels,
    swiped,
)
from apps.viewer.session.models import ModelEntry
from apps.viewer.session.session import Session
from apps.viewer.session.uploads import Upload
from datamodules.classes import IGNORE, Classes
from datamodules.errors import DataError
from models.interfaces import Output
from tasks.interactive.planes import Planes

XRAY = ModelEntry("xray", MODELS["xray"].file, True)


class Two(nn.Module):
    """Two maps of half the size; logits are a matrix of them, and the class is drawn where its own is larger."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.tensor([[1.0, 0.0], [0.5, -2.0]]))

    def encode(self, image: torch.Tensor) -> list[torch.Tensor]:
        half = image[:, :, ::2, ::2]
        return [image, torch.cat([half, half.square() - 1], 1)]

    def decode(self, maps: list[torch.Tensor], size: tuple[int, ...], prompts: None = None) -> Output:
        logits = torch.einsum("kc,bchw->bkhw", self.matrix, maps[-1])
        return Output(nn.functional.interpolate(logits, size=tuple(size), mode="nearest"))


def test_grad_cam_is_what_is_computed_by_hand() -> None:
    values = np.array([[0.0, 3.0], [-2.0, 0.5]])
    image = torch.from_numpy(np.kron(values, np.ones((2, 2)))).float()[None, None]
    first, second = values, values**2 - 1
    own, other = 0.5 * first - 2 * second, first
    count = (own > other).sum() * 4 / 4  # each coarse position stands for four, and the mean is over four
    # Gradient of the summed logits: a constant where the class is drawn, so that its mean counts those.
    weights = np.array([0.5, -2.0]) * count
    cam = np.maximum(weights[0] * first + weights[1] * second, 0)
    assert cam.max() > 0
    look = GradCam(Two(), 1, True)
    with torch.inference_mode():  # as the windows of a prediction come
        found = look(image * 1)
    # Linear between the centres of the coarse positions: the corners are theirs.
    assert found.shape == (1, 1, 4, 4)
    np.testing.assert_allclose(found[0, 0, ::3, ::3].numpy(), cam, rtol=1e-5)


def test_grad_cam_of_a_class_that_is_not_drawn_looks_everywhere() -> None:
    image = torch.full((2, 1, 4, 4), 3.0)
    image[1] = 0.0  # here the class is drawn: -2 * -1 > 0
    found = GradCam(Two(), 1, True)(image)
    # Nowhere drawn: all four coarse positions count as drawn, four fine ones each, over four.
    np.testing.assert_allclose(found[0], max(0.5 * 4 * 3 - 2 * 4 * 8, 0), atol=1e-5)
    np.testing.assert_allclose(found[1], 8.0, rtol=1e-5)


def test_grad_cam_wants_a_network_that_torch_runs() -> None:
    with pytest.raises(DataError, match="exported"):
        GradCam(nn.Identity(), 0, True)


def opened(session: Session, file: Path) -> Session:
    with file.open("rb") as stream:
        session.open_uploads([Upload(file.name, stream)])
    session.choose_model(XRAY)
    return session


def test_maps_of_a_model_lie_on_the_image(session: Session, radiograph: Path) -> None:
    opened(session, radiograph)
    assert session.model is not None
    assert session.opened is not None
    predictor, shape = session.model.predictor, (96, 96)
    planes = Planes(session.opened.image, predictor.description)
    heart = gradcam(predictor, planes, 2, (0, 0))
    assert heart.shape == shape
    assert heart.min() >= 0
    assert heart.max() > 0
    weights = attention(predictor, session.opened, (0, 0))
    wanted = predictor.attention(session.opened.image)
    assert tuple(weights) == wanted.names
    for one, other in zip(weights.values(), wanted.maps, strict=True):
        np.testing.assert_array_equal(one, other)


def test_levels_are_equal_steps() -> None:
    values = np.array([np.nan, -1, 0.19, 0.2, 0.299, 0.31, 0.95, 1.0, 7.0])
    assert levels(values, 0.2, 1.0).tolist() == [0, 0, 0, 1, 1, 2, 8, 8, 8]
    classes = level_classes(0.2, 1.0, "entropy")
    assert [c.value for c in classes] == list(range(9))
    assert classes[1].name == "entropy 0.2 to 0.3"
    assert len(level_classes(1.0, 1.0 + 1e-9, "weight")) == 9
    assert levels(np.ones(3), 1.0, 1.0).tolist() == [1, 1, 1]


def test_agreement_has_four_cases_and_skips_what_nobody_knows() -> None:
    prediction = np.array([0, 1, 1, 2, 0, 1], np.uint8)
    reference = np.array([0, 1, 2, 1, 1, IGNORE], np.uint8)
    assert agreement(prediction, reference, 1).tolist() == [0, 1, 2, 3, 3, 0]
    both = np.stack([prediction == 1, prediction == 2]).astype(np.uint8)
    true = np.stack([reference == 1, reference == 2]).astype(np.uint8)
    assert agreement(both, true, 1, exclusive=False).tolist() == [0, 0, 3, 2, 0, 0]


def test_a_reference_is_measured(session: Session, radiograph: Path, tmp_path: Path) -> None:
    result = opened(session, radiograph).predict()
    reference = np.roll(result.mask, 2, axis=1)
    PIL.Image.fromarray(reference).save(tmp_path / "reference.png")
    found = compare(result, tmp_path / "reference.png")
    for row, k in zip(found.rows, result.classes.foreground, strict=True):
        drawn, true = result.mask == k, reference == k
        both = (drawn & true).sum()
        assert row["class"] == result.classes[k].name
        assert row["Dice"] == pytest.approx(2 * both / (drawn.sum() + true.sum()))
        assert row["IoU"] == pytest.approx(both / (drawn | true).sum())
        shown = agreement(found.prediction, found.reference, k)
        assert np.bincount(shown.ravel(), minlength=4)[1:].tolist() == [
            both, drawn.sum() - both, true.sum() - both,
        ]  # fmt: skip
    PIL.Image.fromarray(reference[:50]).save(tmp_path / "reference.png")
    with pytest.raises(DataError, match="grid"):
        compare(result, tmp_path / "reference.png")


def test_two_models_are_compared_by_names() -> None:
    first, second = Classes({"none": 0, "a": 1, "b": 2}), Classes({"ground": 0, "b": 1, "c": 5})
    one, two = np.array([[0, 1, 2, 2, 0, 1]]), np.array([[0, 0, 1, 5, 5, 1]])
    assert differing(one, two, first, second).tolist() == [[0, 1, 0, 3, 2, 3]]
    mask, classes = swiped(one, two, first, second, 1, 3)
    names = [classes[int(v)].name for v in mask[0]]
    assert names == ["nothing", "a", "b", "c", "c", "b"]
    assert {c.name: c.colour for c in classes}["b"] == first[2].colour
    for act in (differing, lambda *given: swiped(*given, 0, 0)):
        with pytest.raises(DataError, match="overlap"):
            act(one, two, first, Classes(["a", "b"], exclusive=False))
