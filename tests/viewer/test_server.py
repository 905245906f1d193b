"""The server is local, quiet, and says in a sentence what keeps it from starting."""

from __future__ import annotations

import gc
import socket
import sys
from pathlib import Path

import pytest

from apps.cli import build_parser, main
from apps.viewer import server
from apps.viewer.answers import keep_answers
from datamodules.errors import DataError


def test_the_settings_keep_everything_here() -> None:
    found = server.settings(8501, "127.0.0.1", "", 5)
    assert found["browser.gatherUsageStats"] is False
    assert found["server.enableXsrfProtection"] is True
    assert found["server.enableCORS"] is True
    assert found["client.showErrorDetails"] == "none"
    assert found["server.maxUploadSize"] == 5
    assert found["server.headless"] is True
    assert build_parser().parse_args(["view"]).address == "127.0.0.1"


def test_streamlit_knows_every_setting() -> None:
    config = pytest.importorskip("streamlit").config
    known = config.get_config_options()
    assert set(server.settings(8501, "127.0.0.1", "", 5)) <= set(known)


def test_what_is_imported_is_passed_over_by_garbage_collection() -> None:
    pytest.importorskip("rasterio")
    before = gc.get_freeze_count()
    try:
        server.warm_up()
        assert gc.get_freeze_count() > before
        assert {"rasterio", "pyproj"} <= set(sys.modules)
        assert gc.isenabled()
    finally:
        gc.unfreeze()
    # After each run of the page, Streamlit would look through everything.
    assert server.settings(8501, "127.0.0.1", "", 5)["runner.postScriptGC"] is False


def test_nobody_is_asked_for_the_address_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("streamlit")
    from streamlit import net_util
    from streamlit.web.server import server_util

    def asked(*_: object, **__: object) -> None:
        raise AssertionError("somebody was asked")

    monkeypatch.setattr(net_util, "get_external_ip", net_util.get_external_ip)
    monkeypatch.setattr(net_util, "_make_blocking_http_get", asked)
    server.ask_nobody()
    assert not server_util.is_url_from_allowed_origins("http://elsewhere.example")


def test_a_download_is_answered_though_the_page_runs_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("streamlit")
    from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
    from streamlit.runtime.forward_msg_queue import ForwardMsgQueue

    monkeypatch.setattr(ForwardMsgQueue, "clear", ForwardMsgQueue.clear)  # as it was, afterwards
    keep_answers()
    keep_answers()  # a second time changes nothing
    answer, delta, finished = ForwardMsg(), ForwardMsg(), ForwardMsg()
    answer.backend_operation_response.request_id = "file"
    delta.delta.new_element.text.body = "old"
    finished.script_finished = ForwardMsg.FINISHED_SUCCESSFULLY
    queue = ForwardMsgQueue()
    for fragments in (None, ["a fragment"]):
        for message in (finished, answer, delta):
            queue.enqueue(message)
        queue.clear(True, fragments) if fragments is None else queue.clear(
            retain_lifecycle_msgs=True, fragment_ids_this_run=fragments
        )
        sent = queue.flush()
        assert sum(message is answer for message in sent) == 1
        assert (delta in sent) is (fragments is not None)
        assert queue.is_empty()


def test_a_port_that_is_taken() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(DataError, match=f"port {port} of 127.0.0.1 cannot be used .*--port"):
            server.free_port(port, "127.0.0.1")
        assert server.free_port(None, "127.0.0.1") >= server.FIRST_PORT


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--data-root", "nowhere"], "give --data-root a folder"),
        (["--models", "nowhere"], "give --models a folder"),
        (["--upload-limit", "0"], "give 1 MB or more"),
        (["--port", "70000"], "choose another with --port"),
    ],
)
def test_what_keeps_it_from_starting_is_one_sentence(
    arguments: list[str], wanted: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("streamlit")
    assert main(["view", "--no-browser", *arguments]) == 2
    assert wanted in capsys.readouterr().err
