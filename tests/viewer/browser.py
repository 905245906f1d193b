"""A real browser before a real server: ``delineate view`` in a process of its own, and headless Chromium.

All tests of the viewer in a browser go through here, so that all of them prove that nothing but this machine is asked:
Chromium writes down every request it makes (its own net log, not what a page tells), and :class:`Browser` reads it.
Screenshots go to the folder that the environment variable DELINEATE_SCREENSHOTS names, else to a temporary one; those of
the docs to that of DELINEATE_PICTURES.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LOCAL = ("127.0.0.1", "localhost", "::1")
# Whom Chromium asks about itself on any page, flags or not (sign-in, messages, forms); never reached, see FLAGS.
MAKER = (".google.com", ".googleapis.com", ".gvt1.com")
# Behaves like a person's browser but for what it would tell its maker.
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-domain-reliability",
    # No name is found: a page that wants another host would be seen broken, too.
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
    "--no-first-run",
    "--no-default-browser-check",
    # It asks for accounts and messages of its maker once it runs long enough, whatever is switched off.
    "--gaia-url=http://127.0.0.1:9/",
    "--gcm-checkin-url=http://127.0.0.1:9/",
    "--gcm-registration-url=http://127.0.0.1:9/",
    "--force-color-profile=srgb",
)
_SECONDS = 90
# Pictures of the docs: pixels across, and bytes.
_WIDE, _MOST_BYTES = 1200, 300_000


def _missing() -> str:
    if CHROMIUM is None:
        return "no Chromium is installed (Debian: apt install chromium)"
    if importlib.util.find_spec("playwright") is None:
        return "playwright is not installed (pip install -e '.[dev]')"
    if importlib.util.find_spec("streamlit") is None:
        return "Streamlit is not installed (pip install -e '.[viewer]')"
    return ""


needs_browser = pytest.mark.skipif(bool(_missing()), reason=_missing() or "there is a browser")


@dataclass
class Server:
    """A viewer that runs.

    Attributes:
        url: where.
        log: what it prints.
        process: its own.
    """

    url: str
    log: Path
    process: subprocess.Popen[bytes]

    def memory(self) -> int:
        """Bytes that the process has in memory (Linux)."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def server(folder: Path, *arguments: str | Path) -> Iterator[Server]:
    """``delineate view --no-browser`` on a free port, with more arguments; ended as Ctrl-C ends it.

    Args:
        folder: for its log.
        arguments: of the verb.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder / "server.log"
    command = [sys.executable, "-m", "apps.cli", "view", "--no-browser", "--port", str(port)]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [*command, *map(str, arguments)], cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT
        )
    try:
        _wait(f"http://127.0.0.1:{port}/_stcore/health", process, log)
        yield Server(f"http://127.0.0.1:{port}/", log, process)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    # A proxy of the environment must not see what is meant for this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + _SECONDS
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text("utf-8", "replace")
        try:
            with opener.open(url, timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"the server did not answer: {log.read_text('utf-8', 'replace')}")


@dataclass
class Browser:
    """A window that is open.

    Attributes:
        page: playwright's page.
        folder: for downloads.
        problems: errors that the page wrote to its console.
    """

    page: Any
    folder: Path
    problems: list[str] = field(default_factory=list)

    def settled(self) -> None:
        """Until the page has no work under way: twice in a row, since one run may begin another."""
        idle = (
            "() => document.querySelector('[data-testid=stApp]')?.dataset.testScriptState === 'notRunning'"
            " && !document.querySelector('[aria-busy=true]')"
            " && !document.querySelector('[data-testid=stSpinner]')"
            " && !document.querySelector('[data-testid=stSkeleton]')"
        )
        end = time.monotonic() + 3 * _SECONDS  # a volume may be predicted meanwhile
        quiet = 0
        while quiet < 2:
            assert time.monotonic() < end, "the page has not come to rest"
            self.page.wait_for_timeout(200)
            quiet = quiet + 1 if self.page.evaluate(idle) else 0

    def press(self, name: str) -> None:
        """Press the button of this name, and wait."""
        self.page.get_by_role("button", name=name, exact=True).click()
        self.settled()

    def download(self, name: str) -> Path:
        """Press a button that downloads; where the file is."""
        with self.page.expect_download(timeout=_SECONDS * 1000) as waiting:
            self.page.get_by_role("button", name=name, exact=True).click()
        found = waiting.value
        target = self.folder / found.suggested_filename
        found.save_as(target)
        return target

    def screenshot(self, name: str, full: bool = False) -> Path:
        """Take a picture of the page for the docs."""
        folder = Path(os.environ.get("DELINEATE_SCREENSHOTS") or self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{name}.png"
        self.page.screenshot(path=file, full_page=full)
        return file

    def picture(self, name: str) -> Path:
        """Take a picture that the docs show: small enough for a page, and no button under the mouse.

        It goes to the folder that DELINEATE_PICTURES names, else to a temporary one.
        """
        import PIL.Image

        self.page.mouse.move(3, 3)
        self.page.evaluate("document.activeElement?.blur()")
        self.page.wait_for_timeout(400)
        taken = PIL.Image.open(self.screenshot(name)).convert("RGB")
        size = (_WIDE, round(taken.height * _WIDE / taken.width))
        small = taken.resize(size, PIL.Image.Resampling.LANCZOS)
        folder = Path(os.environ.get("DELINEATE_PICTURES") or self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{name}.png"
        small.quantize(256, PIL.Image.Quantize.MAXCOVERAGE, dither=PIL.Image.Dither.NONE).save(
            file, optimize=True
        )
        assert file.stat().st_size < _MOST_BYTES
        return file


@contextmanager
def browser(
    url: str, folder: Path, dark: bool = False, size: Sequence[int] = (1440, 960)
) -> Iterator[Browser]:
    """Open a page in a browser that knows nothing of any other; at the end, assert that only this machine was asked.

    Args:
        url: the page.
        folder: for downloads.
        dark: whether the person likes dark pages.
        size: of the window in pixels.
    """
    from playwright.sync_api import sync_playwright

    profile = tempfile.mkdtemp(prefix="chromium-")
    net_log = Path(profile) / "net.json"
    try:
        with sync_playwright() as driver:
            context = driver.chromium.launch_persistent_context(
                str(Path(profile) / "profile"),
                executable_path=CHROMIUM,
                headless=True,
                args=[*FLAGS, f"--log-net-log={net_log}"],
                viewport={"width": size[0], "height": size[1]},
                color_scheme="dark" if dark else "light",
                accept_downloads=True,
            )
            try:
                context.set_default_timeout(_SECONDS * 1000)
                page = context.pages[0] if context.pages else context.new_page()
                found = Browser(page, folder)
                page.on("console", lambda m: found.problems.append(m.text) if m.type == "error" else None)
                page.on("pageerror", lambda error: found.problems.append(str(error)))
                page.goto(url)
                page.wait_for_selector("[data-testid=stAppViewContainer]", timeout=_SECONDS * 1000)
                found.settled()
                yield found
            finally:
                context.close()
        only_this_machine(net_log)
    finally:
        shutil.rmtree(profile, ignore_errors=True)


class Asked(NamedTuple):
    """A request: who was asked, and whether a page did (else the browser, by itself)."""

    host: str
    by_page: bool


def asked(net_log: Path) -> list[Asked]:
    """Every request in a net log of Chromium, whatever made it."""
    text = net_log.read_text("utf-8", "replace")
    try:
        events = json.loads(text)["events"]
    except ValueError:  # the browser was killed before it wrote the end
        events = json.loads(text.rstrip().rstrip(",") + "]}")["events"]
    found = []
    for event in events:
        params = event.get("params") or {}
        if "initiator" not in params or not isinstance(params.get("url"), str):
            continue
        parts = urlsplit(params["url"])
        if parts.scheme in ("http", "https", "ws", "wss", "ftp"):
            found.append(Asked(parts.hostname or "", params["initiator"] != "not an origin"))
    return found


def only_this_machine(net_log: Path) -> None:
    """Assert that pages asked this machine alone, and the browser by itself at most its maker."""
    requests = asked(net_log)
    strange = {
        one.host
        for one in requests
        if one.host not in LOCAL and (one.by_page or not one.host.endswith(MAKER))
    }
    assert not strange, f"other hosts were asked: {sorted(strange)}"
    assert any(one.by_page for one in requests), "the log names no request of a page, so it proves nothing"
