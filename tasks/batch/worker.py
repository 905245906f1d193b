"""What one process does: a model is loaded once, and inputs are done one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from datamodules.errors import DataError
from datamodules.open import open_image
from tasks.batch import bids, products
from tasks.batch.hashes import sha256, sha256_of
from tasks.batch.jobs import Job
from tasks.batch.reasons import reason
from tasks.batch.records import Records, printable
from tasks.batch.runners import Runner
from tasks.batch.settings import Settings, region_text
from tasks.batch.status import Status
from tasks.model_file import versions
from tasks.networks import is_exported
from tasks.predictor import load

# Told the name of an input and the share of it that is done.
Progress = Callable[[str, float], None]


class Worker:
    """Draws masks into a folder. Every engine has one in each of its processes, so all do the same.

    Args:
        model: a ``model.safetensors``, or several whose probabilities are averaged.
        folder: where masks go.
        settings: how.

    Raises:
        ModelFileError: the model cannot be used.
        DataError: the settings do not fit the model.
    """

    def __init__(self, model: str | Path | Sequence[str | Path], folder: Path, settings: Settings) -> None:
        self.model = model
        self.models = [Path(model)] if isinstance(model, str | Path) else [Path(file) for file in model]
        self.folder = folder
        self.settings = settings
        self.predictor = load(
            self.models,
            settings.device,
            settings.trust,
            settings.windows,
            settings.fast,
            settings.threshold,
        )
        wanted = {
            **settings.maps,
            **({"attention": {}} if settings.attention else {}),
            **settings.products,
        }
        self.products = products.checked(wanted, len(self.predictor.description.patch.size))
        if "attention" in self.products and any(map(is_exported, self.models)):
            raise DataError("attention cannot be read from an exported model; give its model.safetensors")
        if "attention" in self.products and len(self.models) > 1:
            raise DataError("attention is that of one network; give one model, or leave --attention out")
        axes = len(self.predictor.description.patch.size)
        if settings.region is not None and len(settings.region) != axes:
            raise DataError(
                f"region {region_text(settings.region)} has {len(settings.region)} part(s), and the images of this "
                f"model have {axes} axes; give first:end for each"
            )
        if settings.layout == "bids":
            bids.check_classes(self.predictor.classes)
        hashes = [sha256(file) for file in self.models]
        self.model_sha256 = sha256_of(hashes)
        # Of several models the one hash says nothing by itself.
        self.ensemble = {"ensemble": sorted(hashes)} if len(hashes) > 1 else {}
        tiler, windows = self.predictor.tiler, self.predictor.windows
        # Not the device, and not the engine: a run may go on on another machine.
        self._how = {
            "tiling": {
                "overlap": tiler.overlap,
                "blend": tiler.blend,
                "mirror": tiler.mirror,
                "rotate": tiler.rotate,
                "skip_background": windows.skip_background,
            },
            "fast": settings.fast,
            "region": None if settings.region is None else region_text(settings.region),
            "allow_gaps": settings.allow_gaps,
            **({} if settings.threshold is None else {"threshold": settings.threshold}),
            **self.ensemble,
        }
        made_by = {"version": versions().get("delineate", ""), "model": self.model_sha256, **self._how}
        self.records = Records(folder, made_by, self.products)

    def one(self, runner: Runner, job: Job, on_progress: Progress | None) -> Status:
        """Do one input. Whatever goes wrong with it becomes its row; the others go on."""
        if job.problem:
            return Status(job.name, "failed", job.problem, "", "", "")
        start, work = time.perf_counter(), _Work()
        try:
            with runner.claim(job.target) as mine:
                if not mine:
                    return Status(job.name, "elsewhere", "", "", "", printable(job.target))
                self._work(job, work, start, on_progress)
        except Exception as error:
            work.problems.append(reason(error, self.folder))
        status = work.status if not work.problems else "partial" if work.written else "failed"
        seconds = work.seconds or f"{time.perf_counter() - start:.2f}"
        output = printable(job.target) if work.written else ""
        return Status(job.name, status, "; ".join(work.problems), seconds, work.digest, output)

    def _work(self, job: Job, work: _Work, start: float, on_progress: Progress | None) -> None:
        image = open_image(job.item.source, allow_gaps=self.settings.allow_gaps)
        before = [_stamp(file) for file in image.files]
        sources = [sha256(file) for file in image.files]
        work.digest = sha256_of(sources)
        if not self.settings.overwrite and (record := self.records.finished(job.target, sources)) is not None:
            work.written, work.status, work.seconds = True, "skipped", record.seconds
            return
        mask = self.folder / job.target
        told = None if on_progress is None else lambda share: on_progress(job.name, share)
        drawn = products.Drawn(
            mask,
            image,
            self.predictor,
            self.model_sha256,
            work.digest,
            self._how,
            region=self.settings.region,
        )
        earlier = _number(mask)
        try:
            files = products.draw(drawn, self.products, told)
        except Exception:
            work.written = _number(mask) not in (None, earlier)  # then it is something else that failed
            raise
        if [_stamp(file) for file in image.files] != before:
            mask.unlink(missing_ok=True)
            raise DataError(f"{image.path}: changed while it was read; run the command again")
        work.written = True
        for name, options in self.products.items():
            try:
                files += products.write(name, replace(drawn, others=tuple(files[1:])), options)
            except Exception as error:
                work.problems.append(f"the mask is written, but not its {name}: {reason(error, self.folder)}")
        if not work.problems:
            work.seconds = f"{time.perf_counter() - start:.2f}"
            names = [file.relative_to(self.folder).as_posix() for file in files]
            self.records.write(job.target, sources, names, work.seconds)


@dataclass
class _Work:
    """How far one input got."""

    status: str = "done"
    written: bool = False
    digest: str = ""
    seconds: str = ""

    def __post_init__(self) -> None:
        self.problems: list[str] = []


def _stamp(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_size, found.st_mtime_ns


def _number(file: Path) -> int | None:
    """Tells a file from the one that took its place."""
    return file.stat().st_ino if file.is_file() else None
