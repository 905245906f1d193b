"""One person's work: what is open, which model, what it drew. Nothing of it is shared; it ends with its folder."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from apps.viewer.options import Options
from apps.viewer.samples import SAMPLES
from apps.viewer.session.data_root import DataRoot
from apps.viewer.session.fit import misfit
from apps.viewer.session.models import LoadedModel, ModelEntry, ModelStore, entries
from apps.viewer.session.opened import Opened, open_named
from apps.viewer.session.prompted_models import prompt_entries, promptable
from apps.viewer.session.result import Result
from apps.viewer.session.uploads import Upload, open_uploads, stored_names
from datamodules.errors import DataError
from tasks.batch.reasons import reason

# Kind of image -> in which format masks lie while the session lasts: quick to write, and read window by window.
_MASK = {"volume": "mask.nii", "scene": "mask.tif", "picture": "mask.tif"}
_MAP = {"volume": ".nii", "scene": ".tif", "picture": ".tif"}


class Session:
    """One person's work.

    Args:
        options: what the server was started with.
        store: the models of all sessions.

    Attributes:
        opened: the image, once one is opened.
        entry: the model file that is chosen.
        model: the same, loaded.
        result: what the model drew on the image; None when either changes.
        parts: what panels keep for this image (prompts, embeddings ...), by a name of their own; empty again
            when another image is opened.
        closed: whether it has ended.
    """

    def __init__(self, options: Options, store: ModelStore) -> None:
        self.options = options
        self.store = store
        # Removed when the session is, and at the end of the process.
        self._temporary = tempfile.TemporaryDirectory(prefix="delineate-view-", ignore_cleanup_errors=True)
        self.folder = Path(self._temporary.name)
        self.opened: Opened | None = None
        self.entry: ModelEntry | None = None
        self.model: LoadedModel | None = None
        self.result: Result | None = None
        self.parts: dict[str, Any] = {}
        self._names: dict[str, str] = {}
        self._number = 0
        self.closed = False

    # ------------------------------------------------------------------------------------------- the image

    def open_sample(self, name: str) -> Opened:
        """Open one of :data:`~apps.viewer.samples.SAMPLES`.

        Raises:
            DataError: it cannot be made here; says what to install.
        """
        sample = SAMPLES[name]
        folder = self._new_folder("image")
        try:
            file = sample.make(folder)
            return self._opened(open_named(file, sample.title, name, self.folder), {str(file): sample.title})
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def open_uploads(self, uploads: Sequence[Upload]) -> Opened:
        """Keep and open what came through the browser; see :func:`~apps.viewer.session.uploads.open_uploads`.

        Raises:
            DataError: too large, or no image.
        """
        folder = self._new_folder("image")
        names = stored_names(uploads, folder)
        try:
            return self._opened(open_uploads(uploads, folder, self.options.upload_mb * 10**6), names)
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, DataError):
                raise DataError(_renamed(str(error), names)) from error
            raise

    def open_from_root(self, name: str) -> Opened:
        """Open an image below the data folder by its name there.

        Raises:
            DataError: there is no data folder, the name leads out of it, or it is no image.
        """
        root = self.data_root
        if root is None:
            raise DataError("the viewer was started without a data folder; start it with --data-root FOLDER")
        return self._opened(root.open(name, self.folder), {str(root.folder): "the data folder"})

    @property
    def data_root(self) -> DataRoot | None:
        """The data folder, where the server was started with one."""
        folder = self.options.data_root
        return None if folder is None else DataRoot(folder)

    def close_image(self) -> None:
        """Forget the image and all that was made of it."""
        self._forget_result()
        self.opened, self.parts, self._names = None, {}, {}
        for folder in self.folder.glob("image-*"):
            shutil.rmtree(folder, ignore_errors=True)

    def _opened(self, opened: Opened, names: dict[str, str]) -> Opened:
        """Take the place of what was open before."""
        kept = {file for path in opened.image.files for file in path.parents}
        self._forget_result()
        self.opened, self.parts, self._names = opened, {}, names
        for folder in self.folder.glob("image-*"):
            if folder not in kept:
                shutil.rmtree(folder, ignore_errors=True)
        return opened

    # ------------------------------------------------------------------------------------------- the model

    def models(self) -> list[ModelEntry]:
        """The model files that can be chosen to predict; those that are asked are in :meth:`prompt_models`.

        Raises:
            DataError: a folder that the server was started with is not there.
        """
        return [entry for entry in entries(self.options.models) if not promptable(entry.file)]

    def prompt_models(self) -> list[ModelEntry]:
        """The model files that draw what they are asked for.

        Raises:
            DataError: as :meth:`models`.
        """
        return prompt_entries(self.options.models)

    def choose_model(self, entry: ModelEntry) -> LoadedModel:
        """Load a model, or find it loaded.

        Raises:
            ModelFileError: it cannot be used.
        """
        if self.entry is not None and self.model is not None and self.entry.file == entry.file:
            return self.model
        self.entry, self.model = None, None
        self._forget_result()
        self.model = self.store.get(entry.file)
        self.entry = entry
        return self.model

    @property
    def misfit(self) -> str:
        """Why the model cannot draw on the image, in words; empty where it can, or one of them is missing."""
        if self.opened is None or self.model is None:
            return ""
        return misfit(self.model.predictor.description, self.opened)

    # ------------------------------------------------------------------------------------------- the result

    def predict(self, progress: Callable[[float], None] | None = None, maps: Sequence[str] = ()) -> Result:
        """Let the model draw on the image, as ``delineate predict`` does.

        Args:
            progress: called with the share done, from 0 to 1.
            maps: names of :data:`tasks.maps.MAPS` to keep too.

        Raises:
            DataError: no image, no model, they do not fit, or the image is damaged.
        """
        opened, model, entry = self.opened, self.model, self.entry
        if opened is None or model is None or entry is None:
            raise DataError("open an image and choose a model first")
        if self.misfit:
            raise DataError(self.misfit)
        self._forget_result()
        folder = self._new_folder("result")
        mask = folder / _MASK[opened.kind]
        files = {name: folder / f"{name}{_MAP[opened.kind]}" for name in maps}
        start = time.perf_counter()
        # One person at a time: a network keeps what it is doing in itself.
        with model.lock:
            model.predictor.draw(opened.image, mask, progress, maps=files)
        self.result = Result(
            opened,
            mask,
            model.predictor.classes,
            model.predictor.description,
            model.key,
            entry.name,
            files,
            time.perf_counter() - start,
        )
        return self.result

    def _forget_result(self) -> None:
        self.result = None
        for folder in self.folder.glob("result-*"):
            shutil.rmtree(folder, ignore_errors=True)

    # ------------------------------------------------------------------------------------------- the rest

    def words(self, error: BaseException) -> str:
        """An error as one sentence, with the names that the person knows in place of our paths."""
        return _renamed(reason(error, self.folder), self._names | {str(self.folder): "the session"})

    def new_folder(self, name: str) -> Path:
        """A new folder below the session's own, for a panel's files; removed with the session."""
        return self._new_folder(f"own-{name}")

    def close(self) -> None:
        """Remove everything. Happens by itself when nobody holds the session any more."""
        self.closed = True
        self.opened, self.result, self.model, self.parts = None, None, None, {}
        self._temporary.cleanup()

    def _new_folder(self, name: str) -> Path:
        self._number += 1
        folder = self.folder / f"{name}-{self._number}"
        folder.mkdir()
        return folder


def _renamed(text: str, names: dict[str, str]) -> str:
    """Replace paths by names; the longest first, since a folder begins the paths of its files."""
    for path in sorted(names, key=len, reverse=True):
        text = text.replace(path, names[path])
    return text
