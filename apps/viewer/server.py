"""Starts Streamlit with our settings: local, quiet, and sending nothing anywhere."""

from __future__ import annotations

import gc
import os
import socket
import threading
import time
import webbrowser
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from apps.viewer import options as options_of_process
from apps.viewer.answers import keep_answers
from apps.viewer.options import Options
from apps.viewer.session.data_root import DataRoot
from apps.viewer.session.models import entries
from datamodules.errors import DataError
from datamodules.formats import gdal

SCRIPT = Path(__file__).resolve().parent / "app.py"
FIRST_PORT = 8501
# How long the page may take to answer before we stop waiting to open it.
_PATIENCE = 60.0


def settings(
    port: int, address: str, base_path: str, upload_mb: int, origins: Sequence[str] = ()
) -> dict[str, Any]:
    """Streamlit's options. What stands here is not left to files of the user or of the folder we run in."""
    return {
        "browser.gatherUsageStats": False,
        "client.showErrorDetails": "none",
        "client.toolbarMode": "minimal",
        "global.developmentMode": False,
        # Streamlit would hash and keep every message with slices or tiles; none is ever sent twice.
        "global.minCachedMessageSize": 1e12,
        "logger.hideWelcomeMessage": True,
        "runner.fastReruns": True,
        # Each slice and tile is a run: to look through all objects after every one stalls the wheel. Python still does,
        # when enough of them are new.
        "runner.postScriptGC": False,
        "server.address": address,
        "server.baseUrlPath": base_path,
        "server.corsAllowedOrigins": list(origins),
        "server.disconnectedSessionTTL": 120,
        "server.enableCORS": True,
        "server.enableXsrfProtection": True,
        "server.enableStaticServing": (SCRIPT.parent / "static").is_dir(),
        # Streamlit's own way to open a page asks for an e-mail address first.
        "server.headless": True,
        "server.fileWatcherType": "none",
        "server.maxUploadSize": upload_mb,
        "server.port": port,
        "theme.primaryColor": "#0f766e",
        "theme.dark.primaryColor": "#2dd4bf",
    }


def serve(
    options: Options,
    port: int | None,
    address: str,
    base_path: str,
    open_page: bool,
    origins: Sequence[str] = (),
) -> None:
    """Run the viewer until it is ended.

    Args:
        options: what it can open.
        port: where to listen; the first free one from 8501 on, when None.
        address: of this machine.
        base_path: where a proxy shows it.
        open_page: open it in the browser.
        origins: addresses under which a proxy shows it.

    Raises:
        DataError: a folder is missing, the port is taken, or Streamlit is not installed.
    """
    try:
        from streamlit.web import bootstrap
    except ImportError as error:
        raise DataError(
            "the viewer needs Streamlit, which is not installed; run pip install 'delineate[viewer]'"
        ) from error
    _check(options)
    chosen = free_port(port, address)
    base = base_path.strip("/")
    options_of_process.use(options)
    shown = "127.0.0.1" if address in ("0.0.0.0", "::", "") else address
    url = f"http://{shown}:{chosen}/{base}"
    print(f"Delineate is at {url}\nResearch use only. Not for diagnosis. Ctrl-C ends it.", flush=True)
    if shown != address:
        print(
            "It answers every machine that can reach this one, without a password; docs/viewer.md says how to put it "
            "behind a proxy.",
            flush=True,
        )
    if open_page:
        threading.Thread(target=_open_when_ready, args=(url, shown, chosen), daemon=True).start()
    flags = settings(chosen, address, base, options.upload_mb, origins)
    ask_nobody()
    keep_answers()
    warm_up()
    bootstrap.load_config_options(flags)
    bootstrap.run(str(SCRIPT), False, [], flags)


def ask_nobody() -> None:
    """Keep Streamlit from asking a server on the internet which address this machine has.

    It does so where a page is shown under a name that it does not know, such as a proxy's.
    """
    from streamlit import net_util

    net_util.get_external_ip = lambda: None


def warm_up() -> None:
    """Import what the first map would wait for, and let garbage collection pass over all that is imported.

    That is some 300 000 objects, which stay until the end: to look through them takes a fifth of a second, while
    nothing else runs. Called before anybody has a session, so that nothing of a person is passed over.
    """
    if gdal.available():
        with suppress(ImportError):
            import pyproj  # noqa: F401
    gc.collect()
    gc.freeze()


def free_port(port: int | None, address: str) -> int:
    """The port, if nobody listens there; the first free one from 8501 on, when None.

    Raises:
        DataError: it is taken, or may not be used.
    """
    tried = [port] if port is not None else range(FIRST_PORT, FIRST_PORT + 100)
    problem = ""
    for one in tried:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            if os.name == "posix":
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, one))
                return one
            except (OSError, OverflowError) as error:
                problem = getattr(error, "strerror", None) or str(error)
    raise DataError(f"port {tried[0]} of {address} cannot be used ({problem}); choose another with --port")


def _check(options: Options) -> None:
    """Say now what would otherwise be said on the page."""
    if options.data_root is not None:
        DataRoot(options.data_root)
    entries(options.models)
    if options.upload_mb < 1:
        raise DataError(f"--upload-limit is {options.upload_mb}; give 1 MB or more")


def _open_when_ready(url: str, address: str, port: int) -> None:
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex((address, port)) == 0:
                webbrowser.open(url)
                return
        time.sleep(0.2)
