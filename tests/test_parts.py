"""Parts named by configuration: lookup, options, and what is said when they are wrong."""

import re

import pytest
from jsonargparse import ArgumentParser

from models.encoders import PlainEncoder
from models.parts import Part, make_part, split_part


class Box:
    """A part with a runtime argument, a positional one, and two options."""

    def __init__(self, channels, ndim=2, width=1, colour="red"):
        self.channels, self.ndim, self.width, self.colour = channels, ndim, width, colour


class Point:
    """A part without options."""

    def __init__(self, channels):
        self.channels = channels


TABLE = {"point": Point, "box": Box}


def test_a_name_alone():
    assert split_part("box", "part") == ("box", {})
    made = make_part(TABLE, "box", "part", 3, ndim=3)
    assert isinstance(made, Box)
    assert (made.channels, made.ndim, made.width, made.colour) == (3, 3, 1, "red")


def test_a_mapping_gives_options_and_is_not_changed():
    part = {"name": "box", "width": 5}
    assert split_part(part, "part") == ("box", {"width": 5})
    made = make_part(TABLE, part, "part", 3)
    assert (made.channels, made.width, made.colour) == (3, 5, "red")
    assert part == {"name": "box", "width": 5}


def test_unknown_name_lists_those_there_are():
    with pytest.raises(ValueError, match=re.escape("shape 'ball' is not known; choose from: box, point")):
        make_part(TABLE, "ball", "shape", 3)


def test_unknown_option_lists_those_accepted():
    message = "shape 'box' has no option 'weight', 'size'; it accepts: ndim, width, colour"
    with pytest.raises(ValueError, match=re.escape(message)):
        make_part(TABLE, {"name": "box", "weight": 1, "size": 2}, "shape", 3)


@pytest.mark.parametrize("option", ["ndim", "channels"])
def test_what_the_caller_knows_cannot_be_configured(option):
    with pytest.raises(ValueError, match=rf"no option '{option}'; it accepts: width, colour"):
        make_part(TABLE, {"name": "box", option: 2}, "shape", 3, ndim=3)


def test_part_without_options_says_none():
    with pytest.raises(ValueError, match="it accepts: none"):
        make_part(TABLE, {"name": "point", "width": 2}, "shape", 3)


@pytest.mark.parametrize("part", [{"width": 2}, {"name": None}, {"name": 3}, {}])
def test_mapping_without_a_name(part):
    with pytest.raises(ValueError, match=r"shape: .* has no name; write e\.g\."):
        make_part(TABLE, part, "shape", 3)


def test_errors_of_the_part_itself_pass_through():
    with pytest.raises(ValueError, match="strides has 1 entries; widths has 4"):
        make_part({"plain": PlainEncoder}, {"name": "plain", "strides": [1]}, "encoder", 1, ndim=2)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("eca", "eca"),
        (
            "{name: plain, strides: [1, 2, [1, 2, 2]], norm: batch}",
            {"name": "plain", "strides": [1, 2, [1, 2, 2]], "norm": "batch"},
        ),
        (
            "{name: plain, kernels: [[1, 3, 3], [3, 3, 3]]}",
            {"name": "plain", "kernels": [[1, 3, 3], [3, 3, 3]]},
        ),
        (
            "{name: psa, at: [skips, decoder], levels: [0, 1], official: true}",
            {"name": "psa", "at": ["skips", "decoder"], "levels": [0, 1], "official": True},
        ),
        ("{name: timm, weights: null}", {"name": "timm", "weights": None}),
        (
            "{name: pyramid, ratio: [8, 2.5], mixer: [none, {name: bra, topk: 4}, eca]}",
            {"name": "pyramid", "ratio": [8, 2.5], "mixer": ["none", {"name": "bra", "topk": 4}, "eca"]},
        ),
        (
            "{name: pyramid, strides: [[1, 2, 2], 2], mixer: {name: neighborhood, kernel: [3, 5, 5]}}",
            {
                "name": "pyramid",
                "strides": [[1, 2, 2], 2],
                "mixer": {"name": "neighborhood", "kernel": [3, 5, 5]},
            },
        ),
    ],
)
def test_configuration_parser_reads_what_the_docstrings_show(text, expected):
    """``Part`` is the type that the command line checks against: a form it lacks is silently misread."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--part", type=Part)
    assert parser.parse_args([f"--part={text}"]).part == expected
