"""One person, one image, one promptable model: encode once, decode at every click."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from datamodules.classes import Classes
from datamodules.errors import DataError
from datamodules.formats.geotiff import stripes
from datamodules.geometry import Geometry
from datamodules.image import Image, Window
from datamodules.open import Source, open_image, open_mask_writer
from tasks.interactive.asking import asked_once, given
from tasks.interactive.embeddings import EmbeddingCache
from tasks.interactive.following import Followed, follow
from tasks.interactive.model import PromptModel
from tasks.interactive.objects import Objects
from tasks.interactive.planes import Planes, View
from tasks.interactive.prompted import Asked, Box, Candidate, Choice, Click, Given, Prompted, Step
from tasks.interactive.record import read_record, to_record

# Positions of a mask that are composed at a time when it is saved.
_STRIPE = 2**24


class InteractiveSession:
    """Objects of an image, asked for with points, boxes and masks.

    Positions, boxes and masks are in array indices of the image as stored, whatever the network's own grid is. The
    image is encoded view by view: a picture as a whole, of a volume a slice, of a scene the window that is looked at.
    Each view is encoded once; every prompt after that decodes only. What is asked goes to the current object.

    Methods may be called from several threads; they wait for each other.

    Args:
        image: what :func:`datamodules.open_image` takes, or an opened image.
        model: the network; sessions may share it.
        cache: of embeddings; sessions may share it. One of its own, also on disk, when not given.
        axis: of a volume, the axis of the image along which slices are taken; as in training when not given.

    Attributes:
        image: opened.
        model: as given.
        view: what is looked at now.
        encodings: how often the image encoder ran.

    Raises:
        DataError: the image cannot be read, or does not fit the model.
    """

    def __init__(
        self,
        image: Source | Image,
        model: PromptModel,
        cache: EmbeddingCache | None = None,
        axis: int | None = None,
    ) -> None:
        self.image = image if isinstance(image, Image) else open_image(image)
        self.model = model
        self.cache = EmbeddingCache() if cache is None else cache
        self.planes = Planes(self.image, model.description, axis)
        self.view = self.planes.whole()
        self.encodings = 0
        self._keys: dict[View, str] = {}
        self._objects = Objects()
        self._lock = threading.RLock()

    # ------------------------------------------------------------------------------------------- what is looked at

    @property
    def geometry(self) -> Geometry:
        """Where masks lie: the image's own grid."""
        return self.image.geometry

    @property
    def axis(self) -> int | None:
        """Of a volume, the axis of the image along which slices are taken."""
        return self.planes.image_axis

    def look_at(self, position: Sequence[float]) -> View:
        """Look at the slice of a volume that holds a position; pictures are seen whole."""
        with self._lock:
            self.view = self.planes.at(position)
            return self.view

    def look_through(self, window: Sequence[slice]) -> View:
        """Look at a window of a picture or scene, a slice per axis of the image.

        Raises:
            DataError: a volume, or the window is not inside the image.
        """
        with self._lock:
            self.view = self.planes.window(window)
            return self.view

    def reach(self) -> Window:
        """Where on the image the view lies, a slice per axis."""
        return self.planes.reach(self.view)

    def encode(self, progress: Callable[[float], None] | None = None) -> bool:
        """Make sure that the view is encoded, so that the next prompt is quick.

        Args:
            progress: called with the share done, from 0 to 1.

        Returns:
            Whether the encoder ran; False where the embedding was in memory or on disk.

        Raises:
            DataError: the image is damaged.
        """
        with self._lock:
            before = self.encodings
            self._features(self.view, progress)
            return self.encodings > before

    # ------------------------------------------------------------------------------------------- objects

    @property
    def objects(self) -> list[str]:
        """Names, in the order of their values in the mask: the first is 1."""
        return self._objects.names

    @property
    def current(self) -> str:
        """The object that prompts go to; empty where there is none yet."""
        return self._objects.current

    @current.setter
    def current(self, name: str) -> None:
        self._objects.current = name

    def add_object(self, name: str = "") -> str:
        """Begin another object; prompts go to it from now on.

        Raises:
            DataError: the name is taken, or there are too many objects.
        """
        with self._lock:
            return self._objects.add(name)

    def rename_object(self, name: str, new: str) -> None:
        """Call an object something else.

        Raises:
            DataError: there is no such object, or the new name is taken.
        """
        with self._lock:
            self._objects.rename(name, new)

    def remove_object(self, name: str) -> None:
        """Take an object away, with all that was asked for it; undo brings it back.

        Raises:
            DataError: there is no such object.
        """
        with self._lock:
            self._objects.remove(name)

    def __contains__(self, name: object) -> bool:
        return name in self.objects

    # ------------------------------------------------------------------------------------------- prompts

    def add_point(self, position: Sequence[float], inside: bool = True) -> list[Candidate]:
        """Click; of a volume the view moves to the slice of the position.

        Args:
            position: array index of the image.
            inside: whether it lies in the object or beside it.

        Returns:
            The candidates.

        Raises:
            DataError: the position lies outside of the view, or the image is damaged.
        """
        with self._lock:
            self._move(position)
            return self._asked(Click(self._position(position), bool(inside)))

    def add_box(self, lower: Sequence[float], upper: Sequence[float]) -> list[Candidate]:
        """Draw a box around the object, in place of an earlier one. Of a volume it lies in one slice.

        Args:
            lower: array index of one corner.
            upper: of the other.

        Raises:
            DataError: as :meth:`add_point`; or the corners of a volume are in two slices.
        """
        with self._lock:
            low, high = self._position(lower), self._position(upper)
            self._move(low)
            a = tuple(min(x, y) for x, y in zip(low, high, strict=True))
            b = tuple(max(x, y) for x, y in zip(low, high, strict=True))
            return self._asked(Box(a, b))

    def add_mask(self, mask: np.ndarray) -> list[Candidate]:
        """Begin with a mask, such as a model's, and mend it by clicks. It counts as it is until the next prompt.

        Args:
            mask: ``(*S)`` of the image, not 0 where the object is; what the view shows of it is taken.

        Raises:
            DataError: its shape is not the image's.
        """
        with self._lock:
            found = np.asarray(mask)
            if found.shape != self.geometry.shape:
                raise DataError(
                    f"the mask has shape {found.shape}; the image {self.geometry.shape}: give one on its grid"
                )
            return self._asked(Given(self.planes.from_image(self.view, found != 0)))

    def candidates(self) -> list[Candidate]:
        """What the prompts of the current object in this view may mean, three of them; empty before a prompt."""
        asked = self._here()
        return [] if asked is None else list(asked.candidates)

    @property
    def chosen(self) -> int:
        """Which of the candidates counts."""
        asked = self._here()
        return 0 if asked is None else asked.chosen

    def choose(self, number: int) -> None:
        """Let another candidate count, counted from 0; the next prompt goes on from it.

        Raises:
            DataError: there is none of that number.
        """
        with self._lock:
            found = self.candidates()
            if not 0 <= number < len(found):
                raise DataError(
                    f"candidate {number} does not exist; there are {len(found)}, counted from 0: add a prompt first"
                    if not found
                    else f"candidate {number} does not exist; choose from 0 to {len(found) - 1}"
                )
            self._asked(Choice(number))

    def prompts(self) -> tuple[Step, ...]:
        """What was done for the current object in this view, in order."""
        asked = self._here()
        return () if asked is None else asked.steps

    def clear(self) -> None:
        """Forget what was asked for the current object in this view."""
        with self._lock:
            if self._here() is not None:
                self._objects.put(self.current, self._objects[self.current].with_view(self.view, None))

    def undo(self) -> bool:
        """Take back what was done last, whatever it was; nothing is computed. False where there is nothing."""
        with self._lock:
            return self._objects.history.undo()

    def redo(self) -> bool:
        """Do again what was taken back; False where nothing was."""
        with self._lock:
            return self._objects.history.redo()

    @property
    def can_undo(self) -> bool:
        """Whether there is something to take back."""
        return self._objects.history.can_undo

    @property
    def can_redo(self) -> bool:
        """Whether something was taken back."""
        return self._objects.history.can_redo

    # ------------------------------------------------------------------------------------------- volumes

    def propagate(
        self,
        both: bool = True,
        step: int = 1,
        min_quality: float = 0.5,
        most: int | None = None,
        progress: Callable[[float], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> Followed:
        """Follow the current object from this slice through the volume.

        Each slice is asked with the mask of the one before, a box around it and its innermost point. It ends where
        the answer is empty or its predicted quality low, and at slices with prompts of a person: those stay. One undo
        takes all of it back. To correct it, click in a slice that went wrong and propagate from there.

        Args:
            both: in both directions; else in that of ``step``.
            step: 1 towards higher indices of the network's slices, -1 towards lower ones.
            min_quality: below it the object is thought lost.
            most: slices in each direction; to the end of the volume when not given.
            progress: called with the share of the slices that may come, from 0 to 1.
            stop: asked before each slice; True ends it, and what was found until then stays.

        Returns:
            Which slices were drawn, and why each direction ended.

        Raises:
            DataError: no volume, or no object in this slice.
        """
        with self._lock:
            if self.view.axis is None:
                raise DataError(f"{self.image.path}: has one slice; objects are followed through volumes")
            here = self._here()
            if here is None or here.answer is None or not here.answer.mask.any():
                raise DataError("there is nothing to follow: ask for the object in this slice first")
            before = self._objects[self.current]
            found, drawn = follow(
                self.model,
                self._features,
                before,
                self.view,
                self.planes.grid.shape[self.view.axis],
                (1, -1) if both else (1 if step > 0 else -1,),
                min_quality,
                most,
                progress,
                stop,
            )
            if found is not before:
                self._objects.put(self.current, found)
            return drawn

    # ------------------------------------------------------------------------------------------- results

    def logits(self, name: str | None = None, window: Sequence[slice] | None = None) -> np.ndarray:
        """Logits of one object on the image's grid, ``(*window)`` float32; far below 0 where nobody looked.

        Args:
            name: of the object; the current one when not given.
            window: a slice per axis of the image; everything when not given.

        Raises:
            DataError: there is no such object, or the window is not inside the image.
        """
        with self._lock:
            state = self._objects[self.current if name is None else name]
            place = self.image.checked(None if window is None else tuple(window))
            answers = {view: answer.logits for view, answer in state.answers.items()}
        return self.planes.onto_image(answers, place)

    def mask(self, name: str | None = None, window: Sequence[slice] | None = None) -> np.ndarray:
        """One object on the image's grid, ``(*window)`` booleans; see :meth:`logits`."""
        return self.logits(name, window) > 0

    def labels(self, window: Sequence[slice] | None = None) -> np.ndarray:
        """All objects, ``(*window)`` uint8: 0 background, then by their order. Where two overlap, the surer one."""
        place = self.image.checked(None if window is None else tuple(window))
        size = [part.stop - part.start for part in place]
        best = np.zeros(size, dtype=np.float32)
        found = np.zeros(size, dtype=np.uint8)
        with self._lock:
            for number, name in enumerate(self.objects, start=1):
                logits = self.logits(name, place)
                surer = logits > best
                found[surer] = number
                np.copyto(best, logits, where=surer)
        return found

    @property
    def classes(self) -> Classes:
        """What the values of :meth:`labels` mean.

        Raises:
            DataError: there is no object.
        """
        if not self.objects:
            raise DataError("there is no object yet; add a point, a box or a mask first")
        ground = "background" if "background" not in self.objects else "background (0)"
        return Classes([ground, *self.objects])

    def save(self, path: str | Path) -> None:
        """Write the mask of all objects in the image's geometry; the suffix chooses the format.

        It is composed stripe by stripe: scenes are not held.

        Raises:
            DataError: there is no object, or the format cannot hold the mask.
        """
        with self._lock, open_mask_writer(path, self.image, self.classes) as writer:
            first, *others = self.geometry.shape
            for part in stripes(slice(0, first), 4 * int(np.prod(others))):
                window = (part, *(slice(0, n) for n in others))
                writer.write(window, self.labels(window))

    def to_json(self) -> dict[str, Any]:
        """All prompts as plain data; with the same image and model, :meth:`restore` makes the same masks of it."""
        with self._lock:
            return to_record(self._objects.now, self.model.key, self.geometry)

    def restore(self, record: dict[str, Any], progress: Callable[[float], None] | None = None) -> None:
        """Ask again what a record of :meth:`to_json` says, in place of all objects. One undo takes it back.

        Args:
            record: plain data; from another model the masks are other ones.
            progress: called with the share of the views that are done.

        Raises:
            DataError: it is no such record, or of an image of another size.
        """
        with self._lock:
            objects = read_record(record, self.geometry)
            count = sum(len(views) for _, views in objects)
            done, state = 0, []
            for name, views in objects:
                prompted = Prompted(name)
                for view, steps, origin in views:
                    self._check_view(view)
                    asked = Asked(origin=origin)
                    for step in steps:
                        asked = self._after(view, asked, step)
                    prompted = prompted.with_view(view, asked)
                    done += 1
                    if progress is not None:
                        progress(done / count)
                state.append(prompted)
            self._objects.history.push(tuple(state))

    # ------------------------------------------------------------------------------------------- inside

    def _asked(self, step: Step) -> list[Candidate]:
        """Take a step for the current object in this view."""
        before = self._here() or Asked()
        if before.origin == "followed":
            # From now on it is a person's, who begins with what is seen there.
            number = step.number if isinstance(step, Choice) else before.chosen
            seen = Given(before.candidates[number].mask)
            before, step = (Asked(), seen) if isinstance(step, Choice) else (given(Asked(), seen), step)
        after = self._after(self.view, before, step)  # first, so that an error leaves everything as it was
        if not self.objects:
            self._objects.history.push((Prompted("object 1").with_view(self.view, after),))
        else:
            self._objects.put(self.current, self._objects[self.current].with_view(self.view, after))
        return list(after.candidates)

    def _after(self, view: View, before: Asked, step: Step) -> Asked:
        if isinstance(step, Choice):
            return Asked((*before.steps, step), before.candidates, step.number, before.origin)
        if isinstance(step, Given):
            return given(before, step)
        return asked_once(self.model, self._features(view), self.planes, view, before, step)

    def _features(self, view: View, progress: Callable[[float], None] | None = None) -> list[Tensor]:
        key = self._keys.get(view)
        found = None if key is None else self.cache.get(key)
        if found is None:
            pixels = self.planes.pixels(view)
            key = self._keys[view] = self.model.key_of(pixels)
            found = self.cache.get(key)
            if found is None:
                found = self.model.encode(pixels, progress)
                self.encodings += 1
                self.cache.put(key, found)
        if progress is not None:
            progress(1.0)
        return found

    def _here(self) -> Asked | None:
        return self._objects[self.current].views.get(self.view) if self.objects else None

    def _check_view(self, view: View) -> None:
        shape = self.planes.grid.shape
        inside = len(view.window) == len(shape) and all(
            0 <= a < b <= n for (a, b), n in zip(view.window, shape, strict=True)
        )
        if not inside or (view.axis is None) != (len(shape) == 2):
            raise DataError(f"the record names the window {list(view.window)}, which is not inside {shape}")

    def _move(self, position: Sequence[float]) -> None:
        if self.view.axis is not None:
            self.view = self.planes.at(self._position(position))

    def _position(self, position: Sequence[float]) -> tuple[float, ...]:
        found = tuple(float(x) for x in position)
        shape = self.geometry.shape
        if len(found) != len(shape) or not all(
            -0.5 <= x <= n - 0.5 for x, n in zip(found, shape, strict=True)
        ):
            shown = ", ".join(f"{x:g}" for x in found)
            raise DataError(f"the position ({shown}) is not in the image of {shape}; give an array index")
        return found
