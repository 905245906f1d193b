"""Answers to the browser that Streamlit would throw away: a file that somebody asked for is always sent."""

from __future__ import annotations

from typing import Any

# What a download button that makes its file on demand waits for.
_ANSWER = "backend_operation_response"
_MARK = "_keeps_answers"


def keep_answers() -> None:
    """Keep Streamlit from forgetting the answer to a download when the page runs again at that moment.

    Where a run of the page begins, Streamlit 1.67 empties the queue of what the browser has not got yet, but for a few
    kinds of messages. The address of a file that was asked for is none of them: the button then waits for ever. Runs
    begin with every click on an image, so people do meet this.
    """
    from streamlit.runtime import forward_msg_queue

    queue: Any = forward_msg_queue.ForwardMsgQueue
    clear = queue.clear
    if getattr(clear, _MARK, False):
        return

    def keeping(self: Any, retain_lifecycle_msgs: bool = False, *more: Any, **named: Any) -> None:
        waiting = [m for m in self._queue if m.WhichOneof("type") == _ANSWER] if retain_lifecycle_msgs else []
        clear(self, retain_lifecycle_msgs, *more, **named)
        left = {id(message) for message in self._queue}
        self._queue += [message for message in waiting if id(message) not in left]

    setattr(keeping, _MARK, True)
    queue.clear = keeping
