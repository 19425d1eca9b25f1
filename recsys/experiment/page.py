"""The readout as one HTML file that asks for nothing from outside and runs no script: the decision first."""

import math

from recsys.experiment.charts import course, forest
from recsys.experiment.readout import Readout, as_percent, as_share, short

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
    environment.filters |= {"short": short, "percent": as_percent, "share": as_share}
    decisions = {c.decision for c in readout.comparisons if c.metric.role != "secondary"}
    tone = "refused" if readout.refusals else "worse" if decisions & {"worse", "broken"} else ""
    return environment.get_template("page.html.j2").render(
        readout=readout,
        tone=tone or ("better" if "better" in decisions else ""),
        percent=f"{readout.plan.confidence:.0%}",
        units=sum(readout.ratio.counts.values()),
        correction=CORRECTIONS[readout.plan.correction],
        methods={c.metric.name: c.method for c in readout.comparisons},
        looks=bool(readout.plan.looks),
        resampled=any(c.bootstrap_se is not None for c in readout.comparisons),
        forest=forest(readout),
        courses=_courses(readout),
        told=[part for part in readout.parts if math.isfinite(part.shrunk)],
    )


def _courses(readout: Readout) -> list[tuple[str, str]]:
    """A title and a plot for each primary metric and guardrail in each treatment."""
    found = []
    for c in readout.comparisons:
        own = [look for look in readout.looks if look.metric is c.metric and look.variant == c.variant]
        if plot := course(own):
            found.append(
                (c.metric.name if len(readout.plan.treatments) == 1 else f"{c.metric.name}, {c.variant}", plot)
            )
    return found
