"""``delineate view``: the viewer, in a browser on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "look at images and masks in the browser, predict, and save"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "--data-root", type=Path, metavar="FOLDER", help="images that can be opened; nothing else is"
    )
    parser.add_argument(
        "--models",
        type=Path,
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="folders (or files) with model.safetensors",
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="where masks of whole folders go")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: a GPU where there is one)")
    server = parser.add_argument_group("the server")
    server.add_argument("--port", type=int, help="default: 8501, or the next one that is free")
    server.add_argument(
        "--address",
        default="127.0.0.1",
        help="of this machine to listen on (default: 127.0.0.1, this machine only)",
    )
    server.add_argument(
        "--upload-limit", type=int, default=1024, metavar="MB", help="largest upload (default: 1024)"
    )
    server.add_argument(
        "--base-path", default="", metavar="PATH", help="below which a proxy shows it, such as masks"
    )
    server.add_argument(
        "--origin",
        action="append",
        default=[],
        metavar="URL",
        help="address under which a proxy shows it, such as https://masks.example.org",
    )
    server.add_argument("--no-browser", action="store_true", help="do not open the page")


def run(args: argparse.Namespace) -> int:
    """Start the server, say where it is, open the page, and work until it is ended."""
    from apps.viewer.options import Options
    from apps.viewer.server import serve

    options = Options(args.data_root, tuple(args.models), args.output, args.upload_limit, args.device)
    serve(options, args.port, args.address, args.base_path, not args.no_browser, args.origin)
    return 0
