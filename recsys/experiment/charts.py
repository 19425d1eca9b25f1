"""The readout's plots as SVG, with every name from outside escaped."""

import math
from collections.abc import Sequence
from html import escape

from recsys.experiment.overtime import Look
from recsys.experiment.readout import Comparison, Readout, as_percent, short

# Of the plots, in pixels.
ROW, LEFT, RIGHT, PLOT, HIGH = 30, 260, 110, 480, 180
GOOD, BAD, PLAIN = "#1a7f37", "#c62828", "#888"
COLOURS = {"better": GOOD, "not worse": GOOD, "worse": BAD, "broken": BAD}


def forest(readout: Readout) -> str:
    """Relative effects with their intervals, as SVG, with names escaped; nothing where no metric has one."""
    shown = [c for c in readout.comparisons if math.isfinite(c.effect.relative_ci[0])]
    if not shown:
        return ""
    ends = [end for c in shown for end in (*c.effect.relative_ci, *_sequential(c))]
    low, high = min(0.0, *ends), max(0.0, *ends)
    spare = 0.05 * (high - low or 1)
    low, high = low - spare, high + spare

    def x(value: float) -> float:
        return LEFT + PLOT * (value - low) / (high - low)

    height = ROW * len(shown) + 40
    lines = [
        f'<svg viewBox="0 0 {LEFT + PLOT + RIGHT} {height}" width="100%" role="img" '
        'aria-label="Relative effects with intervals; the table below has the same figures">',
        f'<line x1="{x(0):.1f}" x2="{x(0):.1f}" y1="5" y2="{height - 30}" stroke="currentColor" stroke-opacity=".4"/>',
    ]
    for place, c in enumerate(shown):
        y = ROW * place + 22
        colour = COLOURS.get(c.decision, PLAIN)
        (start, end), (first, last) = c.effect.relative_ci, _sequential(c)
        label = c.metric.name if len(readout.plan.treatments) == 1 else f"{c.metric.name}, {c.variant}"
        lines += [
            f'<text x="{LEFT - 12}" y="{y + 4}" text-anchor="end">{escape(label)}</text>',
            f'<line x1="{x(first):.1f}" x2="{x(last):.1f}" y1="{y}" y2="{y}" stroke="{colour}"/>',
            f'<line x1="{x(start):.1f}" x2="{x(end):.1f}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="6"/>',
            f'<circle cx="{x(c.effect.relative):.1f}" cy="{y}" r="5" fill="{colour}"/>',
            f'<text x="{LEFT + PLOT + 10}" y="{y + 4}">{as_percent(c.effect.relative)}</text>',
        ]
    for value in (low + spare, 0.0, high - spare):
        lines.append(f'<text x="{x(value):.1f}" y="{height - 10}" text-anchor="middle">{as_percent(value)}</text>')
    return "\n".join([*lines, "</svg>"])


def _sequential(c: Comparison) -> tuple[float, float]:
    """On the relative scale: as much wider as it is on the metric's own."""
    wider = (c.effect.sequential_ci[1] - c.effect.effect) / (c.effect.ci[1] - c.effect.effect)
    low, high = c.effect.relative_ci
    middle = c.effect.relative
    return middle - (middle - low) * wider, middle + (high - middle) * wider


def course(looks: Sequence[Look]) -> str:
    """One metric's cumulative effect in one treatment by day: the line, and the band that holds at any look."""
    known = [look for look in looks if math.isfinite(look.effect.sequential_ci[0])]
    if len(known) < 2:
        return ""
    # The first days' bands would flatten all others: they may leave the picture.
    last = known[-1].effect
    reach = max(4 * (last.sequential_ci[1] - last.effect), *(1.2 * abs(look.effect.effect) for look in known[1:]))
    days = [(look.day - known[0].day).days for look in known]

    def x(day: int) -> float:
        return 70 + PLOT * day / days[-1]

    def y(value: float) -> float:
        return HIGH / 2 - (HIGH / 2 - 10) * max(-1.0, min(1.0, value / reach)) + 5

    def path(values: Sequence[float], order: int = 1) -> str:
        points = list(zip(days, values, strict=True))[::order]
        return " ".join(f"{x(day):.1f},{y(value):.1f}" for day, value in points)

    upper, lower = ([look.effect.sequential_ci[side] for look in known] for side in (1, 0))
    middle = [look.effect.effect for look in known]
    lines = [
        f'<svg viewBox="0 0 {PLOT + 150} {HIGH + 35}" width="100%" style="max-width: 40rem" role="img" '
        f'aria-label="Effect by day of {escape(known[0].metric.name)}, {escape(known[0].variant)}">',
        f'<polygon points="{path(upper)} {path(lower, -1)}" fill="{PLAIN}" fill-opacity=".25"/>',
        f'<line x1="{x(0):.1f}" x2="{x(days[-1]):.1f}" y1="{y(0):.1f}" y2="{y(0):.1f}" stroke="currentColor" '
        'stroke-opacity=".5"/>',
        f'<polyline points="{path(middle)}" fill="none" stroke="currentColor" stroke-width="2"/>',
        f'<text x="{x(days[-1]) + 8:.1f}" y="{y(middle[-1]) + 4:.1f}">{short(middle[-1])}</text>',
        f'<text x="{x(0):.1f}" y="{HIGH + 25}">{known[0].day.isoformat()}</text>',
        f'<text x="{x(days[-1]):.1f}" y="{HIGH + 25}" text-anchor="end">{known[-1].day.isoformat()}</text>',
    ]
    for value in (reach, 0.0, -reach):
        lines.append(f'<text x="60" y="{y(value) + 4:.1f}" text-anchor="end">{short(value)}</text>')
    return "\n".join([*lines, "</svg>"])
