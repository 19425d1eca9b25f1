"""Matplotlib figures as inline SVG: theme-aware, readable by a screen reader, the same bytes for the same data.

Matplotlib draws in placeholder colours, which are then replaced by the page's CSS variables; so one drawing serves
the light and the dark scheme. Text stays text, in the page's font.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any

# Placeholder colour in the drawing -> CSS variable on the page.
INK, SOFT, GRID, ACCENT = "#010203", "#010204", "#010205", "#010206"
SERIES = ("#010207", "#010208", "#010209")
VARIABLES = {
    **{INK: "ink", SOFT: "soft", GRID: "grid", ACCENT: "accent"},
    **{colour: f"series-{i}" for i, colour in enumerate(SERIES)},
}
# Inches: narrow, so that the text stays readable when a phone shrinks the drawing.
WIDTH = 4.9


@dataclass(frozen=True)
class Plot:
    """A drawing with its title, its caption, and the text that stands for it where it can't be seen."""

    key: str
    title: str
    caption: str
    alt: str
    svg: str


@contextmanager
def figure(height: float, **subplots: Any) -> Iterator[tuple[Any, Any]]:
    """A figure outside pyplot's global state, drawn under the report's own settings."""
    import matplotlib
    from matplotlib.figure import Figure

    style = {
        **{"font.size": 10, "legend.fontsize": 10, "text.parse_math": False},
        **{"text.color": INK, "axes.labelcolor": SOFT, "xtick.labelcolor": INK, "ytick.labelcolor": INK},
        **{"axes.edgecolor": GRID, "xtick.color": GRID, "ytick.color": GRID, "grid.color": GRID},
        **{"axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False, "ytick.major.size": 0},
        **{"axes.axisbelow": True, "grid.linewidth": 0.7, "legend.frameon": False, "axes.unicode_minus": True},
        **{"svg.fonttype": "none", "svg.hashsalt": "recsys", "lines.markersize": 5.5, "lines.linewidth": 1.8},
    }
    with matplotlib.rc_context(style):
        drawn = Figure(figsize=(WIDTH, height), layout="constrained")
        yield drawn, drawn.subplots(**subplots)


def to_svg(drawn: Any, key: str, title: str, alt: str) -> str:
    """The figure as an <svg> element: own id space, CSS colours, title and description, nothing from outside."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    drawn.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = re.sub(r"<!--.*?-->\s*", "", buffer.getvalue(), flags=re.DOTALL)
    body = text[text.index(">", text.index("<svg ")) + 1 :]
    box = re.search(r'viewBox="([^"]+)"', text)
    body = re.sub(r'\bid="', f'id="{key}-', body)
    body = re.sub(r'(url\(#|href="#)', rf"\g<1>{key}-", body)
    for colour, name in VARIABLES.items():
        body = body.replace(colour, f"var(--{name})")
    head = (
        f'<svg viewBox="{box.group(1) if box else ""}" role="img" aria-labelledby="{key}-title {key}-alt" '
        'xmlns:xlink="http://www.w3.org/1999/xlink">'
        f'<title id="{key}-title">{escape(title)}</title><desc id="{key}-alt">{escape(alt)}</desc>'
    )
    return head + body.strip()
