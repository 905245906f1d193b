"""``delineate fit | validate | test``: LightningCLI with our task and datamodules.

``-c`` may be repeated and may name a file or a recipe; dotted overrides win over files wherever they stand.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

from apps.verbs.recipes import path_of

HELP = {
    "fit": "train from a recipe: delineate fit -c RECIPE --data.root FOLDER",
    "validate": "measure a trained model on the validation cases",
    "test": "measure a trained model on the test cases",
}
_CONFIG_FLAGS = ("-c", "--config")
_QUIET_FLAGS = ("-q", "--quiet")
# Notices of libraries that tell a user nothing to act on.
_NOISE = (
    r".*does not have many workers.*",
    r".*tensorboardX.*has been removed.*",
    r".*nvImageCodec is not available.*",
    r".*smaller than the logging interval.*",
    r".*exists and is not empty.*",
    r".*LightningCLI's args parameter.*",
    r".*isinstance\(treespec, LeafSpec\).*",
    r".*WeightAveraging callback, but .*",
    r".*WeightAveraging state cannot be restored.*",
    r".*`run_test_on_fit`.*",
    # A case that several processes measure counts once (tasks/overlap.py).
    r".*Using `DistributedSampler` with the dataloaders.*",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Nothing: the arguments are LightningCLI's, which ``delineate fit --help`` shows."""


def run(verb: str, arguments: Sequence[str]) -> int:
    """Train or measure.

    Args:
        verb: fit, validate or test.
        arguments: everything else of the command line, in any order.

    Returns:
        0 where it went well; errors are raised.
    """
    quiet = any(argument in _QUIET_FLAGS for argument in arguments)
    arguments = configs_first([a for a in arguments if a not in _QUIET_FLAGS])
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in (
        "lightning.pytorch.utilities.rank_zero",
        "lightning.fabric.utilities.rank_zero",
        "lightning.fabric.utilities.seed",
    ):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in _NOISE:
        warnings.filterwarnings("ignore", message=message)
    from apps.training import train_or_measure

    return train_or_measure(verb, arguments, quiet)


def configs_first(arguments: Sequence[str]) -> list[str]:
    """Move ``-c FILE`` to the front, in their order, and resolve names of recipes.

    The parser applies arguments from left to right, so a file behind an override would undo it.
    """
    configs: list[str] = []
    rest: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        flag, equals, value = argument.partition("=")
        if flag not in _CONFIG_FLAGS:
            rest.append(argument)
            continue
        configs += ["--config", _resolved(value if equals else next(remaining, ""))]
    return configs + rest


def _resolved(name: str) -> str:
    if Path(name).is_file():
        return name
    recipe = path_of(name)
    if recipe is None:
        raise UnknownRecipeError(f"-c {name!r} is neither a file nor a recipe; delineate recipes lists them")
    return str(recipe)


class UnknownRecipeError(ValueError):
    """``-c`` names nothing that is there."""
