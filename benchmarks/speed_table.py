"""Figures of speed as plain data (docs/speed.json) and as the tables of docs/speed.md.

python -m benchmarks.speed_table    # writes the tables into the page
"""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent.parent / "docs" / "speed.md"
FIGURES = PAGE.with_suffix(".json")
# A table stands between a line that names its command and the next empty comment.
_PLACE = re.compile(r"(<!-- (python -m [^\n]+) -->\n).*?(<!-- -->)", re.DOTALL)
_HEAD = "| | wall s | x bare | CPU s | outside the network s | of it class decision s | MiB above the model | equal |"


def table(record: dict[str, Any]) -> str:
    """A command, and what it found, as Markdown."""
    machine = record["machine"]
    threads = f"{machine['torch threads']} thread{'s' * (machine['torch threads'] > 1)}"
    lines = [
        f"`{record['command']}` ({threads}, load before {machine['load before']})",
        "",
        _HEAD,
        "|---|" + "---:|" * (_HEAD.count("|") - 2),
    ]
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
    path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def with_tables(page: str, records: list[dict[str, Any]]) -> str:
    """The page with the table of each command that it names; it says where there is none yet."""
    tables = {record["command"]: table(record) for record in records}

    def filled(place: re.Match[str]) -> str:
        return f"{place[1]}\n{tables.get(place[2], f'`{place[2]}`: not measured yet.' + chr(10))}\n{place[3]}"

    return _PLACE.sub(filled, page)


def main() -> None:
    records = json.loads(FIGURES.read_text("utf-8"))
    PAGE.write_text(with_tables(PAGE.read_text("utf-8"), records), encoding="utf-8")


if __name__ == "__main__":
    main()
