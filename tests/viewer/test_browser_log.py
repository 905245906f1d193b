"""The proof that nobody else is asked would notice if somebody were."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.viewer.browser import only_this_machine

PAGE = "http://127.0.0.1:8501"


def log(folder: Path, *requests: tuple[str, str], cut: bool = False) -> Path:
    events = [{"params": {"url": url, "initiator": initiator}} for url, initiator in requests]
    text = json.dumps({"constants": {}, "events": [*events, {"params": {"url": "http://dns.example"}}]})
    file = folder / "net.json"
    file.write_text(text[:-2] + ",\n" if cut else text)
    return file


@pytest.mark.parametrize("cut", [False, True])
def test_a_page_that_asks_this_machine_alone(tmp_path: Path, cut: bool) -> None:
    own = ("https://accounts.google.com/x", "not an origin")
    only_this_machine(
        log(tmp_path, (f"{PAGE}/", "not an origin"), (f"{PAGE}/static/a.js", PAGE), own, cut=cut)
    )


@pytest.mark.parametrize(
    "strange",
    [
        ("https://cdn.jsdelivr.net/npm/x.js", PAGE),
        ("wss://webhooks.fivetran.com/x", PAGE),
        ("https://fonts.googleapis.com/css", PAGE),  # the browser's maker, but a page asked
        ("https://evil.example/", "not an origin"),
        ("https://notgoogle.com/", "not an origin"),
    ],
)
def test_another_host_is_noticed(tmp_path: Path, strange: tuple[str, str]) -> None:
    with pytest.raises(AssertionError, match="other hosts were asked"):
        only_this_machine(log(tmp_path, (f"{PAGE}/static/a.js", PAGE), strange))


def test_a_log_without_requests_proves_nothing(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="proves nothing"):
        only_this_machine(log(tmp_path))
