"""How the effect came about: up to each day, and whether it wears off.

A line of cumulative effects is read with the intervals that hold at any look. Novelty is asked of each unit's own days:
the first ones after its first exposure against as many later ones, over units that were seen for both, so that neither
the calendar nor who came when can be mistaken for it. It is asked of relative effects, since units are busiest in the
days in which they are first seen: a constant lift of each visit would look like one that wears off.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Any

import numpy as np
import polars as pl

from recsys.experiment.design import Experiment
from recsys.experiment.effects import Effect, Estimate, compare, ratios
from recsys.experiment.metrics import DAY, EXPOSED, Linear, Mean, OfTotals
from recsys.experiment.moments import Floats, Moments
from recsys.experiment.multiple import adjust
from recsys.experiment.rows import Survey
from recsys.experiment.strata import used_of
from recsys.experiment.units import VARIANT, Units, units_of

# Days at which the cumulative effect is worked out, at most; days of each window of novelty, at most.
LOOKS, WINDOW = 14, 7


@dataclass(frozen=True)
class Look:
    """A metric's effect from the start up to and with a day."""

    metric: Linear
    variant: str
    day: date
    units: int
    effect: Effect


@dataclass(frozen=True)
class Change:
    """How much a metric's relative effect changed from a unit's first days to as many later ones.

    early, late : relative effects in both; days: of each; n: units that were seen for both, by variant
    change      : (1 + late) / (1 + early) - 1, with its interval ci and p-value
    """

    metric: Linear
    variant: str
    days: int
    n: dict[str, int]
    early: float
    late: float
    change: float
    ci: tuple[float, float]
    p: float
    p_adjusted: float


def cumulative(rows: pl.LazyFrame, plan: Experiment, found: Survey) -> tuple[Look, ...]:
    """Of linear metrics but secondary ones, at up to `LOOKS` days; nothing where the plan has no time."""
    metrics = [metric for metric in plan.linear if metric.role != "secondary"]
    if found.days is None or found.days < 2 or not metrics:
        return ()
    last: Any = found.last
    back = sorted({round(d) for d in np.linspace(0, found.days - 1, min(LOOKS, found.days))}, reverse=True)
    looks = []
    for day in (last - timedelta(days=b) for b in back):
        short = replace(found, last=day)
        with units_of(rows.filter(pl.col(DAY) <= day), plan, short) as units:
            looks += list(_at(units, plan, metrics, day))
    return tuple(looks)


def _at(units: Units, plan: Experiment, metrics: list[Linear], day: date) -> Iterator[Look]:
    for metric in metrics:
        moments = used_of(units, metric, plan).used
        control = moments[plan.control]
        for name in plan.treatments:
            treatment = moments[name]
            if min(control.n, treatment.n) > 1:
                pair = metric.estimates(control, treatment)
                effect = metric.effect(*pair[:2], plan.confidence, plan.planned)
                yield Look(metric, name, day, control.n + treatment.n, effect)


def changes(rows: pl.LazyFrame, plan: Experiment, found: Survey, mixed: pl.Series) -> tuple[Change, ...]:
    """Of means and ratios of totals, without covariates and caps; nothing where the data span fewer than four days, or
    a value is not above zero."""
    metrics = [metric for metric in plan.linear if isinstance(metric, Mean | OfTotals)]
    metrics = [metric for metric in metrics if all(total.slates is None for total in metric.values)]
    if found.days is None or found.days < 4 or not metrics:
        return ()
    days = min(WINDOW, found.days // 4)
    last: Any = found.last
    totals = list({total.name: total for metric in metrics for total in metric.values}.values())
    if len(mixed):
        rows = rows.filter(~pl.col(plan.unit).is_in(mixed.implode()))
    firsts = rows.group_by(plan.unit).agg(pl.col(EXPOSED).min().alias("|first"))
    firsts = firsts.filter(pl.col("|first") <= last - timedelta(days=2 * days - 1))
    aged = rows.join(firsts, on=plan.unit).with_columns(
        ((pl.col(DAY) - pl.col("|first")).dt.total_days() // days).alias("|window")
    )
    by_window = (
        aged.group_by(plan.unit, "|window")
        .agg(pl.col(plan.variant).min().alias(VARIANT), *(total.expr.alias(total.name) for total in totals))
        .collect(engine="streaming")
    )
    everyone = by_window.select(plan.unit, VARIANT).unique(plan.unit)
    early, late = (
        everyone.join(by_window.filter(pl.col("|window") == w).drop(VARIANT), on=plan.unit, how="left").sort(plan.unit)
        for w in (0, 1)
    )
    found_changes = [c for metric in metrics for c in _changes(metric, early, late, plan, days)]
    adjusted = adjust([c.p for c in found_changes], "bh" if plan.correction == "none" else plan.correction)
    return tuple(replace(c, p_adjusted=float(p)) for c, p in zip(found_changes, adjusted, strict=True))


def _changes(metric: Linear, early: pl.DataFrame, late: pl.DataFrame, plan: Experiment, days: int) -> Iterator[Change]:
    own = [total.name for total in metric.values]
    # No row in a window is nothing, and not a gap.
    values = np.hstack([frame.select(pl.col(own).fill_null(0.0)).to_numpy() for frame in (early, late)])
    variant = early[VARIANT].to_numpy()
    both = {name: _both(metric, values[variant == name]) for name in plan.shares}
    sizes = {name: int((variant == name).sum()) for name in plan.shares}
    sign = np.array([-1.0, 1.0])
    for name in plan.treatments:
        (one, spread), (other, other_spread) = both[plan.control], both[name]
        if min(sizes[plan.control], sizes[name]) < 2 or not (one > 0).all() or not (other > 0).all():
            continue
        # On the logarithm's scale (delta method), where relative effects are differences.
        pair = [
            Estimate(sizes[who], float(np.log(v[1] / v[0])), float((s @ (sign / v)) @ (sign / v)))
            for who, v, s in ((plan.control, one, spread), (name, other, other_spread))
        ]
        found = compare(pair[0], pair[1], plan.confidence, plan.planned)
        early_lift, late_lift = (float(lift) for lift in other / one - 1)
        low, high = np.expm1(found.ci)
        used = {plan.control: sizes[plan.control], name: sizes[name]}
        ends = (float(low), float(high))
        change = float(np.expm1(found.effect))
        yield Change(metric, name, days, used, early_lift, late_lift, change, ends, found.p, found.p)


def _both(metric: Linear, values: Floats) -> tuple[Floats, Floats]:
    """The metric in both windows (2,), and the covariance (2, 2) of a unit's share in them."""
    moments = Moments.of(values)
    return ratios(moments, 2) if isinstance(metric, OfTotals) else (moments.mean, moments.covariance)


def wearing(found: tuple[Change, ...], confidence: float) -> Iterator[str]:
    """Effects that change, in words."""
    for c in found:
        if c.p_adjusted < 1 - confidence:
            near = abs(c.late) < abs(c.early) and c.early * c.late >= 0
            what = "wears off" if near else "grows" if c.early * c.late >= 0 else "turns"
            yield (
                f"The effect of {c.variant} on '{c.metric.name}' {what}: {c.early:+.2%} in units' first {c.days} days, "
                f"{c.late:+.2%} in the {c.days} after (p = {c.p_adjusted:.2g}, adjusted). The mean over the whole time "
                "is not what will last."
            )
