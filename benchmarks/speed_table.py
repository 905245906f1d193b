"""Figures of speed as plain data and as the tables of docs/speed.md."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

_HEAD = "| | wall s | x bare | CPU s | outside the network s | of it class decision s | MiB above the model | equal |"


def table(record: dict[str, Any]) -> str:
    """A command, and what it found, as Markdown."""
    lines = [f"`{record['command']}`", "", _HEAD, "|---|" + "---:|" * (_HEAD.count("|") - 2)]
    for name, found in record["methods"].items():
        label = f"{name} {found['version']}" if found.get("version") else name
        cells = [
            f"{statistics.median(found['wall']):.2f}" if "wall" in found else "",
            f"{found['over bare']:.2f}" if "over bare" in found else "",
            f"{statistics.median(found['cpu']):.2f}" if "cpu" in found else "",
            f"{found['outside']:.2f}" if "outside" in found and name != "bare" else "",
            f"{found['decision']:.2f}" if "decision" in found else "",
            f"{found['peak']}" if "peak" in found else "",
            f"{found['equal']:.4f}" if "equal" in found else "",
        ]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    if record["not run"]:
        lines += ["", f"Not run, since not installed: {', '.join(record['not run'])}."]
    return "\n".join(lines) + "\n"


def keep(path: Path, record: dict[str, Any]) -> None:
    """Put a record into a file of records, in place of an earlier one of the same command."""
    kept: list[dict[str, Any]] = json.loads(path.read_text("utf-8")) if path.exists() else []
    kept = [other for other in kept if other["command"] != record["command"]] + [record]
    path.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n", encoding="utf-8")
