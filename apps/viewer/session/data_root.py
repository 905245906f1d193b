"""Images below the folder that the server was started with, and nothing else."""

from __future__ import annotations

from pathlib import Path

from apps.viewer.session.opened import Opened, open_named
from datamodules.errors import DataError
from datamodules.guard import inside, local_path
from tasks.inputs import collect_inputs

# A list that nobody scrolls through helps nobody.
MOST = 5000


class DataRoot:
    """A folder of images on the server.

    Args:
        folder: as given at start.

    Raises:
        DataError: it is no folder.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; give --data-root a folder with images")
        self.folder = folder.resolve()

    def images(self) -> list[str]:
        """Names of the images (files, and folders that hold a DICOM series), relative to the folder."""
        try:
            items = collect_inputs([str(self.folder)], ("image",))
        except DataError:
            return []
        names = []
        for item in items:
            file = item.files[0]
            try:
                inside(self.folder, file)  # a link may lead out
            except DataError:
                continue
            names.append(file.relative_to(self.folder).as_posix())
        return names[:MOST]

    def folders(self) -> list[str]:
        """The folder itself (``.``) and those below it that hold images."""
        found = {"."}
        for name in self.images():
            found.update(parent.as_posix() for parent in Path(name).parents)
        return sorted(found)

    def path(self, name: str) -> Path:
        """The path behind a name, links followed.

        Raises:
            DataError: it leads out of the folder, or there is nothing.
        """
        return local_path(self._inside(name))

    def open(self, name: str, unpack: Path | None = None) -> Opened:
        """Open an image by its name.

        Args:
            name: as :meth:`images` has it.
            unpack: as :func:`~apps.viewer.session.opened.open_named` has it.

        Raises:
            DataError: as :meth:`path` and :func:`datamodules.open_image`.
        """
        path = self.path(name)
        if path.is_dir():
            for file in path.iterdir():  # the slices of a series may be links
                self._inside(file.relative_to(self.folder).as_posix())
        return open_named(path, name, unpack=unpack)

    def _inside(self, name: str) -> Path:
        try:
            return inside(self.folder, name)
        except DataError as error:
            raise DataError(str(error).replace(str(self.folder), "the data folder")) from error
