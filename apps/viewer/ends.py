"""Sessions end: what a person had open is removed some minutes after the page is closed, whether or not others come.

Streamlit forgets a session that is gone only when another one begins, so that a last visitor's images would stay.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable

from apps.viewer.session.session import Session

# Longer than Streamlit waits for a page that lost its connection (server.disconnectedSessionTTL).
PATIENCE = 150.0
_EVERY = 20.0


class Ends:
    """Watches sessions and closes those whose page is gone.

    Args:
        is_open: whether the page of this number is open.
        patience: seconds after which a page that is gone does not come back.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        is_open: Callable[[str], bool],
        patience: float = PATIENCE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._is_open = is_open
        self._patience = patience
        self._clock = clock
        self._watched: dict[str, tuple[weakref.ref[Session], float]] = {}
        self._lock = threading.Lock()

    def watch(self, number: str, session: Session) -> None:
        """Close this session when the page of this number has been gone for long enough."""
        with self._lock:
            self._watched[number] = (weakref.ref(session), self._clock())

    def look(self) -> None:
        """Look once."""
        with self._lock:
            for number, (held, seen) in list(self._watched.items()):
                session = held()
                if session is None:
                    del self._watched[number]
                elif self._is_open(number):
                    self._watched[number] = (held, self._clock())
                elif self._clock() - seen > self._patience:
                    session.close()
                    del self._watched[number]

    def start(self) -> Ends:
        """Look every now and then, in a thread that ends with the process."""
        threading.Thread(target=self._look_on, name="ends of sessions", daemon=True).start()
        return self

    def _look_on(self) -> None:
        while True:
            time.sleep(_EVERY)
            self.look()
