"""A small SVG canvas: shapes and escaped text as strings, one style sheet for light and dark, nothing from outside.

Coordinates are pixels, printed with one decimal, so the same drawing is the same bytes.
"""

from collections.abc import Sequence
from xml.sax.saxutils import escape, quoteattr

FONT_PX = 12
_CHAR_PX = 6.6
"""Width of a character of the sans-serif fonts that readers have, on the wide side."""

TIER_COLORS = ("#4477aa", "#2a9158", "#d9772b", "#aa4499", "#3a9fb5", "#997a00")
LINK_COLOR = "#8a8f98"
COMPUTING_COLOR = "#6b5ca5"

_STYLE = f"""
text {{ font: {FONT_PX}px system-ui, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; fill: #1b1f24; }}
.bg {{ fill: #ffffff; }} .lane {{ fill: #f1f3f5; }} .small {{ font-size: 11px; }} .dim {{ fill: #5c6570; }}
.title {{ font-size: 17px; font-weight: 600; }} .head {{ font-size: 13px; font-weight: 600; }}
.on {{ fill: #ffffff; }} .axis {{ stroke: #c4cad1; }} .arrow {{ stroke: #4a525c; fill: none; stroke-width: 1.5; }}
.tip {{ fill: #4a525c; }} .end {{ text-anchor: end; }} .mid {{ text-anchor: middle; }} .off {{ opacity: 0.45; }}
@media (prefers-color-scheme: dark) {{
text {{ fill: #e4e8ec; }} .bg {{ fill: #16191d; }} .lane {{ fill: #21262c; }} .dim {{ fill: #9aa4af; }}
.on {{ fill: #ffffff; }} .axis {{ stroke: #3c444d; }} .arrow {{ stroke: #b6bfc9; }} .tip {{ fill: #b6bfc9; }}
}}
"""


def width_of(text: str) -> float:
    """About how wide a text is, pixels."""
    return _CHAR_PX * len(text)


def shortened(text: str, room: float) -> str:
    """A text that fits, cut with an ellipsis; empty where not even a few letters do."""
    most = int(room / _CHAR_PX)
    if len(text) <= most:
        return text
    return f"{text[: most - 1]}…" if most >= 4 else ""


def wrapped(text: str, room: float) -> list[str]:
    """A text in lines that fit."""
    lines = [""]
    for word in text.split():
        if lines[-1] and width_of(f"{lines[-1]} {word}") > room:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


class Canvas:
    """What has been drawn so far.

    Args:
        width: pixels.
    """

    def __init__(self, width: float) -> None:
        self.width = width
        self._parts: list[str] = []

    def rect(self, x: float, y: float, w: float, h: float, *, css: str = "", fill: str = "", title: str = "") -> None:
        """A rectangle; its title shows where a pointer rests on it."""
        look = (f" class={quoteattr(css)}" if css else "") + (f' fill="{fill}"' if fill else "")
        box = f'x="{x:.1f}" y="{y:.1f}" width="{max(w, 0):.1f}" height="{h:.1f}"'
        self._parts.append(f"<rect {box}{look}>{_title(title)}</rect>" if title else f"<rect {box}{look}/>")

    def text(self, x: float, y: float, text: str, css: str = "") -> None:
        """A line of text, its baseline at y."""
        look = f" class={quoteattr(css)}" if css else ""
        self._parts.append(f'<text x="{x:.1f}" y="{y:.1f}"{look}>{escape(text)}</text>')

    def line(self, x1: float, y1: float, x2: float, y2: float, css: str = "axis") -> None:
        """A straight line."""
        self._parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class={quoteattr(css)}/>')

    def arrow(self, points: Sequence[tuple[float, float]], title: str = "") -> None:
        """A line along points with a tip at the last, which must be above or below the one before."""
        x, y = points[-1]
        back = -6.0 if y > points[-2][1] else 6.0
        way = " ".join(f"{'L' if i else 'M'}{px:.1f} {py:.1f}" for i, (px, py) in enumerate(points))
        tip = f"{x:.1f},{y:.1f} {x - 3.5:.1f},{y + back:.1f} {x + 3.5:.1f},{y + back:.1f}"
        said = _title(title) if title else ""
        self._parts.append(f'<g>{said}<path d="{way}" class="arrow"/><polygon points="{tip}" class="tip"/></g>')

    def finished(self, height: float, title: str) -> str:
        """The document."""
        size = f'width="{self.width:.0f}" height="{height:.0f}" viewBox="0 0 {self.width:.0f} {height:.0f}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">{_title(title)}<style>{_STYLE}</style>'
        ground = f'<rect width="{self.width:.0f}" height="{height:.0f}" class="bg"/>'
        return "\n".join([head, ground, *self._parts, "</svg>"]) + "\n"


def _title(text: str) -> str:
    return f"<title>{escape(text)}</title>"
