"""The LightningCLI behind fit, validate and test."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger

from datamodules.atomic import atomic_path
from datamodules.segmentation import SegmentationData
from tasks.callbacks import CHECKPOINTS, MODEL_FILE, LastCheckpoint, ModelFileWriter, is_rehearsal
from tasks.model_file import ModelFileError, load_model
from tasks.prompting.answers import is_promptable_network
from tasks.segmentation import SegmentationTask

CONFIG_FILE = "config.yaml"
DEFAULT_FOLDER = "runs/unnamed"


class DelineateCLI(LightningCLI):
    """Classes, channels and patch are stated once, in the data; network and task take them from there."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Our own arguments, links and defaults."""
        parser.add_argument("--ckpt_path", type=str | None, default=None, help="resume from this checkpoint")
        parser.add_argument(
            "--weights", type=str | None, default=None, help="start from, or measure, this model.safetensors"
        )
        parser.add_argument(
            "--test_after_fit", type=bool, default=True, help="measure the test split after training"
        )
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                "checkpoint.monitor": "val/dice",
                "checkpoint.mode": "max",
                "checkpoint.filename": "best",
                "checkpoint.enable_version_counter": False,
            }
        )
        network = "model.init_args.network.init_args"
        parser.link_arguments("data.in_channels", f"{network}.in_channels", apply_on="instantiate")
        parser.link_arguments("data.num_classes", f"{network}.num_classes", apply_on="instantiate")
        parser.link_arguments("data.ndim", f"{network}.ndim", apply_on="instantiate")
        parser.link_arguments("data.classes", "model.init_args.classes", apply_on="instantiate")
        parser.link_arguments("data.patch", "model.init_args.patch", apply_on="instantiate")
        parser.link_arguments("data.channels", "model.init_args.channels", apply_on="instantiate")

    def before_instantiate_classes(self) -> None:
        """Fill in what depends on the machine and on the run's folder."""
        trainer = self.config.trainer
        if trainer.default_root_dir is None:
            trainer.default_root_dir = DEFAULT_FOLDER
        if self.config.checkpoint.dirpath is None:
            self.config.checkpoint.dirpath = str(Path(trainer.default_root_dir) / CHECKPOINTS)
        if trainer.precision is None:
            trainer.precision = default_precision()
        elif "16" in str(trainer.precision) and not torch.cuda.is_available():
            warnings.warn(
                f"trainer.precision {trainer.precision} on a CPU: instance-normalised 3D networks became NaN in it "
                "here; leave it out for float32",
                stacklevel=2,
            )


def data_of(recipe: str | Path, arguments: Sequence[str] = ()) -> SegmentationData:
    """The data of a recipe alone, without network and trainer.

    Args:
        recipe: its file.
        arguments: those of ``fit`` that begin with ``--data.``; others are passed over.

    Raises:
        DataError: the data cannot be used.
    """
    parser = ArgumentParser()
    parser.add_subclass_arguments(SegmentationData, "data")
    stated = yaml.safe_load(Path(recipe).read_text("utf-8"))["data"]
    pairs = zip(arguments[::2], arguments[1::2], strict=True)
    own = [f"{name}={value}" for name, value in pairs if name.startswith("--data.")]
    return parser.instantiate(parser.parse_args([f"--data={json.dumps(stated)}", *own])).data


def default_precision() -> str:
    """Mixed precision where the device has it: bfloat16 on recent GPUs, float16 on older ones, else float32.

    On CPUs it is never chosen: bfloat16 turned the loss of instance-normalised 3D networks into NaN there, and
    is slower where the processor has no instructions for it.
    """
    if not torch.cuda.is_available():
        return "32-true"
    return "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"


def train_or_measure(verb: str, arguments: Sequence[str], quiet: bool) -> int:
    """Build everything from configuration and run ``verb``.

    Args:
        verb: fit, validate or test.
        arguments: of LightningCLI.
        quiet: no progress bar, no summary.

    Returns:
        0.

    Raises:
        DataError, ModelFileError, NonFiniteError: said in one sentence each.
    """
    torch.set_float32_matmul_precision("high")
    cli = DelineateCLI(
        SegmentationTask,
        SegmentationData,
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=0,
        save_config_callback=None,
        auto_configure_optimizers=False,
        parser_kwargs={
            "prog": f"delineate {verb}",
            "description": "-c takes a file or the name of a recipe and may be repeated. Every setting can be given here; "
            "docs/recipes.md explains those that matter, most of those below are Lightning's.",
        },
        trainer_defaults={
            "callbacks": [ModelFileWriter(), LastCheckpoint()],
            "enable_model_summary": False,
            "enable_progress_bar": not quiet,
        },
        args=list(arguments),
        run=False,
    )
    if cli.trainer.loggers and isinstance(cli.trainer.logger, CSVLogger):
        cli.trainer.logger = CSVLogger(cli.trainer.default_root_dir, name="logs")
    if verb == "fit":
        _fit(cli, quiet)
    else:
        _measure(cli, verb)
    return 0


def _fit(cli: DelineateCLI, quiet: bool) -> None:
    folder = Path(cli.trainer.default_root_dir)
    if cli.config.weights:
        _load_weights(cli)
    if not is_rehearsal(cli.trainer) and cli.trainer.is_global_zero:
        with atomic_path(folder / CONFIG_FILE) as temporary:
            cli.parser.save(cli.config, temporary, skip_unset=False, skip_validation=True, overwrite=True)
    cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=cli.config.ckpt_path, weights_only=True)
    if cli.config.test_after_fit and cli.datamodule.splits["test"]:
        cli.trainer.test(cli.model, datamodule=cli.datamodule, verbose=False)
        _print_scores(cli, "test")
    else:
        _print_scores(cli, "val")
    if not is_rehearsal(cli.trainer) and not quiet and cli.trainer.is_global_zero:
        print(f"model: {folder / MODEL_FILE}")
        verb = "masks" if is_promptable_network(cli.model.network) else "predict"
        print(f"next:  delineate {verb} -m {folder / MODEL_FILE} -i IMAGES -o OUT")


def _measure(cli: DelineateCLI, verb: str) -> None:
    checkpoint = cli.config.ckpt_path
    if checkpoint is None:
        cli.config.weights = cli.config.weights or str(Path(cli.trainer.default_root_dir) / MODEL_FILE)
        _load_weights(cli)
    run = cli.trainer.validate if verb == "validate" else cli.trainer.test
    run(cli.model, datamodule=cli.datamodule, ckpt_path=checkpoint, verbose=False, weights_only=True)
    _print_scores(cli, "val" if verb == "validate" else "test")


def _load_weights(cli: DelineateCLI) -> None:
    """Take the tensors of a model file; its architecture must be the configured one."""
    file = cli.config.weights
    network, _ = load_model(file)
    try:
        cli.model.network.load_state_dict(network.state_dict())
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise ModelFileError(f"{file}: is not of the configured architecture ({lines[1].strip()})") from error


def _print_scores(cli: DelineateCLI, split: str) -> None:
    """The scores of a split, a line each."""
    scores = {k: float(v) for k, v in cli.trainer.callback_metrics.items() if k.startswith(f"{split}/")}
    if not scores or not cli.trainer.is_global_zero:
        return
    width = max(map(len, scores))
    for name, score in sorted(scores.items()):
        print(f"{name:{width}}  {score:.6f}")
