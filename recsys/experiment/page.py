"""The readout as one HTML file that asks for nothing from outside and runs no script: the decision first."""

import math
from html import escape

from recsys.experiment.readout import Comparison, Readout, as_percent, short

# Of the plot, in pixels.
ROW, LEFT, RIGHT, PLOT = 30, 260, 110, 480
CORRECTIONS = {
    "holm": "Holm: the chance of any false one",
    "bh": "Benjamini-Hochberg: the share of false ones",
    "by": "Benjamini-Yekutieli: the share of false ones, however the metrics depend on each other",
    "none": "none",
}


def page(readout: Readout) -> str:
    """Every value from outside is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("recsys.experiment", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"short": short, "percent": as_percent}
    decisions = {c.decision for c in readout.comparisons if c.metric.role != "secondary"}
    tone = "refused" if readout.refusals else "worse" if decisions & {"worse", "broken"} else ""
    return environment.get_template("page.html.j2").render(
        readout=readout,
        tone=tone or ("better" if "better" in decisions else ""),
        percent=f"{readout.plan.confidence:.0%}",
        units=sum(readout.ratio.counts.values()),
        correction=CORRECTIONS[readout.plan.correction],
        methods={metric.name: metric.method for metric in readout.plan.metrics},
        forest=forest(readout),
    )


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
        colour = {"better": "#1a7f37", "not worse": "#1a7f37", "worse": "#c62828", "broken": "#c62828"}.get(
            c.decision, "#888"
        )
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
