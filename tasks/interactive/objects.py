"""The objects of a session, by name, and every state they were in: what was done last can be taken back."""

from __future__ import annotations

from datamodules.errors import DataError
from tasks.interactive.prompted import Prompted

# As many as one mask of bytes can hold beside the background and what is unknown.
_MOST = 254


class Objects:
    """Named objects with a current one, and the history of all of them.

    Attributes:
        history: what is pushed can be undone.
    """

    def __init__(self) -> None:
        self.history = History()
        self._current = ""

    @property
    def now(self) -> tuple[Prompted, ...]:
        """All of them."""
        return self.history.now

    @property
    def names(self) -> list[str]:
        """In the order of their values in the mask: the first is 1."""
        return [o.name for o in self.now]

    @property
    def current(self) -> str:
        """The object that prompts go to; empty where there is none yet."""
        return self._current if self._current in self.names else (self.names or [""])[-1]

    @current.setter
    def current(self, name: str) -> None:
        self.find(name)
        self._current = name

    def __getitem__(self, name: str) -> Prompted:
        return self.now[self.find(name)]

    def find(self, name: str) -> int:
        """Where in the order an object stands.

        Raises:
            DataError: there is none of that name.
        """
        names = self.names
        if name not in names:
            raise DataError(f"there is no object {name!r}; there are: {', '.join(names) or 'none yet'}")
        return names.index(name)

    def add(self, name: str = "") -> str:
        """Begin another object, which is current from now on.

        Raises:
            DataError: the name is taken, or there are too many objects.
        """
        taken = self.names
        if not name:
            name = next(f"object {i}" for i in range(1, len(taken) + 2) if f"object {i}" not in taken)
        self._check(name)
        self.history.push((*self.now, Prompted(name)))
        self._current = name
        return name

    def rename(self, name: str, new: str) -> None:
        """Call an object something else.

        Raises:
            DataError: there is no such object, or the new name is taken.
        """
        if new == name:
            return
        found = self[name]
        self._check(new)
        self.put(name, Prompted(new, found.views))
        self._current = new

    def remove(self, name: str) -> None:
        """Take an object away, with all that was asked for it.

        Raises:
            DataError: there is no such object.
        """
        index = self.find(name)
        self.history.push((*self.now[:index], *self.now[index + 1 :]))

    def put(self, name: str, prompted: Prompted) -> None:
        """Let ``prompted`` stand where the object of that name stood."""
        index = self.find(name)
        self.history.push((*self.now[:index], prompted, *self.now[index + 1 :]))

    def _check(self, name: str) -> None:
        if name in self.names or not name.strip():
            raise DataError(f"the name {name!r} is empty or taken; give each object one of its own")
        if len(self.names) >= _MOST:
            raise DataError(
                f"there are {_MOST} objects, the most that one mask can hold; save it and begin another"
            )


class History:
    """States of all objects, and where in them one is."""

    def __init__(self) -> None:
        self._states: list[tuple[Prompted, ...]] = [()]
        self._at = 0

    @property
    def now(self) -> tuple[Prompted, ...]:
        """The objects."""
        return self._states[self._at]

    @property
    def can_undo(self) -> bool:
        """Whether there is something before."""
        return self._at > 0

    @property
    def can_redo(self) -> bool:
        """Whether something was undone."""
        return self._at + 1 < len(self._states)

    def push(self, state: tuple[Prompted, ...]) -> None:
        """Go on; what was undone is gone."""
        kept = {id(asked) for prompted in state for asked in prompted.views.values()}
        for prompted in self.now:
            for asked in prompted.views.values():
                if id(asked) not in kept:
                    for candidate in asked.candidates:
                        candidate.forget()
        self._states[self._at + 1 :] = [state]
        self._at += 1

    def undo(self) -> bool:
        """One back; False where there is nothing before."""
        if not self.can_undo:
            return False
        self._at -= 1
        return True

    def redo(self) -> bool:
        """One forth again; False where nothing was undone."""
        if not self.can_redo:
            return False
        self._at += 1
        return True
