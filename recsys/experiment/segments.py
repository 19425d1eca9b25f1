"""For whom did it work? Effects by segment, all corrected for together, and drawn towards what they have in common.

Of many segments some look good by chance, most of all small ones. So p-values are adjusted for all segments of all
metrics, whatever the plan says of its own; and each effect is drawn towards the mean of its kind, as far as segments
are not shown to differ: the hierarchical normal model with a flat prior of the mean and of the deviation between
segments (Rubin, Journal of Educational Statistics, 1981), which is integrated over, not estimated, since few segments
tell little of it.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from scipy import stats

from recsys.experiment.design import Experiment
from recsys.experiment.effects import NAN, Effect
from recsys.experiment.metrics import Linear
from recsys.experiment.moments import Moments
from recsys.experiment.multiple import adjust
from recsys.experiment.units import Units, moments_of, of

# Values of a segment that are told apart; those with fewer units are one, OTHER.
MOST, OTHER = 20, "(other)"
# Deviations between segments that are integrated over: how many, and how far, in deviations of the effects.
POINTS, FAR = 400, 5.0


@dataclass(frozen=True)
class Part:
    """A metric's effect in one value of a segment.

    shrunk, shrunk_ci : drawn towards the mean of all values
    """

    metric: Linear
    variant: str
    segment: str
    value: str
    n: Mapping[str, int]
    effect: Effect
    p_adjusted: float
    shrunk: float
    shrunk_ci: tuple[float, float]


@dataclass(frozen=True)
class Spread:
    """Whether values of a segment differ in their effects.

    q, p : Cochran's test that they do not; deviation : between true effects, on average over what is likely
    """

    metric: Linear
    variant: str
    segment: str
    q: float
    p: float
    p_adjusted: float
    deviation: float


def parts_of(units: Units, plan: Experiment) -> tuple[tuple[Part, ...], tuple[Spread, ...]]:
    """Of every linear metric, treatment and segment."""
    found: list[Part] = []
    spreads: list[Spread] = []
    for segment in plan.segments:
        few = _named(units, segment)
        for metric in plan.linear:
            moments, _, _ = moments_of(units, metric, list(plan.shares), of(segment))
            by_value = gathered(moments, few)
            for name in plan.treatments:
                own = list(_effects(by_value, metric, segment, name, plan))
                (q, p, deviation), drawn = shrink([part.effect for part in own], plan.confidence)
                found += [replace(part, shrunk=s, shrunk_ci=ci) for part, (s, ci) in zip(own, drawn, strict=True)]
                spreads.append(Spread(metric, name, segment, q, p, p, deviation))
    how = "bh" if plan.correction == "none" else plan.correction
    p_parts, p_spreads = adjust([part.effect.p for part in found], how), adjust([s.p for s in spreads], how)
    return (
        tuple(replace(part, p_adjusted=float(p)) for part, p in zip(found, p_parts, strict=True)),
        tuple(replace(spread, p_adjusted=float(p)) for spread, p in zip(spreads, p_spreads, strict=True)),
    )


def shrink(
    effects: Sequence[Effect], confidence: float
) -> tuple[tuple[float, float, float], list[tuple[float, tuple[float, float]]]]:
    """How far effects spread: q, p and deviation as of `Spread`; and each drawn towards their mean, with its interval.

    Those without a standard error stay out, and are NaN.
    """
    nothing: tuple[float, tuple[float, float]] = (math.nan, NAN)
    sound = [math.isfinite(e.se) and e.se > 0 for e in effects]
    value, se = (np.array([x for x, s in zip(xs, sound, strict=True) if s]) for xs in _columns(effects))
    if len(value) < 2:
        return (math.nan, math.nan, math.nan), [nothing] * len(effects)
    weight = 1 / se**2
    q = float(weight @ (value - weight @ value / weight.sum()) ** 2)
    # (deviations, 1) on which the flat prior lies, and the likelihood of each with the mean integrated out.
    between = np.linspace(0, FAR * max(value.std(ddof=1), float(np.median(se))), POINTS)[:, None]
    own = 1 / (se**2 + between**2)
    middle = (own @ value / own.sum(axis=1))[:, None]
    log_p = (np.log(own) - own * (value - middle) ** 2).sum(axis=1) / 2 - np.log(own.sum(axis=1)) / 2
    chance = np.exp(log_p - log_p.max())
    chance /= chance.sum()
    kept = between**2 / (between**2 + se**2)
    means = middle + kept * (value - middle)
    variances = kept * se**2 + (1 - kept) ** 2 / own.sum(axis=1)[:, None]
    at = chance @ means
    half = float(stats.norm.ppf((1 + confidence) / 2)) * np.sqrt(chance @ (variances + (means - at) ** 2))
    drawn = iter([(float(a), (float(a - h), float(a + h))) for a, h in zip(at, half, strict=True)])
    p = float(stats.chi2.sf(q, len(value) - 1))
    return (q, p, float(chance @ between[:, 0])), [next(drawn) if s else nothing for s in sound]


def _columns(effects: Sequence[Effect]) -> tuple[list[float], list[float]]:
    return [e.effect for e in effects], [e.se for e in effects]


def _named(units: Units, segment: str) -> set[str]:
    """The values that have most units."""
    sizes = units.counts(of(segment)).group_by(of(segment)).agg(pl.col("units").sum())
    return set(sizes.sort("units", of(segment), descending=[True, False]).head(MOST)[of(segment)])


def gathered(moments: Mapping[tuple[str, ...], Moments], named: set[str]) -> dict[str, dict[str, Moments]]:
    """Moments by value and variant, where values that are not named are one."""
    found: dict[str, dict[str, Moments]] = {}
    for (value, variant), own in moments.items():
        there = found.setdefault(value if value in named else OTHER, {})
        there[variant] = there[variant] + own if variant in there else own
    return dict(sorted(found.items()))


def _effects(
    by_value: Mapping[str, Mapping[str, Moments]], metric: Linear, segment: str, name: str, plan: Experiment
) -> Iterator[Part]:
    none = Moments.none(len(metric.totals))
    for value, variants in by_value.items():
        control, treatment = (variants.get(variant, none) for variant in (plan.control, name))
        if min(control.n, treatment.n) < 2:
            continue
        effect = metric.effect(*metric.estimates(control, treatment)[:2], plan.confidence, plan.planned)
        yield Part(
            metric, name, segment, value, {plan.control: control.n, name: treatment.n}, effect, math.nan, math.nan, NAN
        )
