"""The mark in the browser's tab, drawn here so that it is not fetched."""

from __future__ import annotations

import PIL.Image
import PIL.ImageDraw


def icon(side: int = 64) -> PIL.Image.Image:
    """A shape with its outline, ``(side, side)``."""
    large = PIL.Image.new("RGBA", (4 * side, 4 * side))
    draw = PIL.ImageDraw.Draw(large)
    s = 4 * side
    draw.rounded_rectangle((0, 0, s - 1, s - 1), s // 5, "#0b1f24")
    draw.ellipse((s * 0.2, s * 0.24, s * 0.8, s * 0.76), "#0f766e", "#5eead4", s // 16)
    draw.ellipse((s * 0.42, s * 0.4, s * 0.62, s * 0.58), "#0b1f24", "#fbbf24", s // 24)
    return large.resize((side, side), PIL.Image.Resampling.LANCZOS)
