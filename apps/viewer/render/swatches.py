"""Colours with names as a small table in HTML. Names are escaped here, and only here they become markup."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")


def swatches_html(rows: Sequence[tuple[str, str, str]]) -> str:
    """A table of ``(name, colour, what stands at the right)``; colours that are none become grey."""
    lines = []
    for name, colour, right in rows:
        shade = colour if _COLOUR.fullmatch(colour) else "#808080"
        lines.append(
            '<tr><td style="padding:3px 10px 3px 0;border:0"><span aria-hidden="true" style="display:inline-block;'
            f'width:14px;height:14px;border-radius:3px;background:{shade}"></span></td>'
            f'<td style="padding:3px 24px 3px 0;border:0">{html.escape(name)}</td>'
            '<td style="padding:3px 0;border:0;text-align:right;opacity:0.75;font-variant-numeric:tabular-nums">'
            f"{html.escape(right)}</td></tr>"
        )
    return f'<table style="border-collapse:collapse;border:0">{"".join(lines)}</table>'
