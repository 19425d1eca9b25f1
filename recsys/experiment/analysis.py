"""From a plan and its data to a readout: whether it may be read, then what it did."""

import math
from collections.abc import Iterator, Mapping

import polars as pl

from recsys.experiment import validity
from recsys.experiment.design import Experiment
from recsys.experiment.effects import Effect, Estimate, compare
from recsys.experiment.metrics import Metric, Proportion, Quantile
from recsys.experiment.moments import Moments
from recsys.experiment.multiple import adjust
from recsys.experiment.readout import Comparison, Readout, SampleRatio
from recsys.experiment.units import moments_of, quantiles_of, rows_of, survey, units_of


def analyze(plan: Experiment, data: pl.LazyFrame) -> Readout:
    """Analyse rows (exposures, or days of units) by the plan.

    Errors: `DataError` naming what is wrong with a column, or the variant that no row has.
    """
    rows, found = survey(rows_of(data, plan), plan)
    with units_of(rows, plan, found) as units:
        counts = units.counts()
        p = validity.ratio_p(counts, plan.shares)
        refused = list(validity.refusals(plan, found, counts, len(units.mixed), p))
        warned = list(validity.warnings(plan, found, len(units.mixed)))
        moments: dict[str, Mapping[str, Moments]] = {}
        compared: list[tuple[Metric, str, tuple[Estimate, Estimate, float], Effect, Mapping[str, Estimate]]] = []
        for metric in plan.metrics:
            estimates: Mapping[str, Estimate]
            if isinstance(metric, Quantile):
                estimates = quantiles_of(rows, plan, metric, units.mixed)
            else:
                moments[metric.name], left_out, filled = moments_of(units, metric, list(plan.shares))
                warned += _gaps(metric, left_out, filled)
                estimates = {
                    name: Estimate(m.n, *(float(x.flat[0]) for x in metric.linear(m, 1)))
                    for name, m in moments[metric.name].items()
                }
            for name in plan.treatments:
                if isinstance(metric, Quantile):
                    pair = (estimates[plan.control], estimates[name], 0.0)
                else:
                    pair = metric.estimates(moments[metric.name][plan.control], moments[metric.name][name])
                compared.append((metric, name, pair, effect_of(metric, pair, plan), estimates))
        warned += validity.imbalances(plan, moments)
        warned += validity.concentrations(plan, units)
        warned += validity.latecomers(plan, found, units)
    corrected = adjust([effect.p for _, _, _, effect, _ in compared], plan.correction)
    comparisons = []
    for (metric, name, pair, effect, estimates), p_adjusted in zip(compared, corrected, strict=True):
        if math.isnan(effect.se) or effect.se == 0:
            warned.append(
                f"'{metric.name}' has no variance that could be told in {name} and {plan.control}: no interval."
            )
        decision = "not concluded" if refused else decide(metric, effect, float(p_adjusted), plan.confidence)
        comparisons.append(Comparison(metric, name, estimates, effect, float(p_adjusted), pair[2], decision))
    ratio = SampleRatio(p, validity.sequential_ratio_p(counts, plan.shares), counts, p >= validity.BROKEN)
    return Readout(plan, ratio, tuple(comparisons), tuple(refused), tuple(warned), found)


def effect_of(metric: Metric, pair: tuple[Estimate, Estimate, float], plan: Experiment) -> Effect:
    """Of two estimates, by the metric's test."""
    control, treatment, _ = pair
    if isinstance(metric, Proportion) and metric.test == "pooled":
        n = control.n + treatment.n
        share = (control.n * control.value + treatment.n * treatment.value) / n
        return compare(control, treatment, plan.confidence, plan.planned, normal=True, pooled=share * (1 - share))
    return compare(control, treatment, plan.confidence, plan.planned)


def decide(metric: Metric, effect: Effect, p_adjusted: float, confidence: float) -> str:
    """What may be said of one comparison.

    With a margin: "not worse" where the interval stays on the good side of the loss allowed, "broken" where it lies
    beyond, "open" in between. Without one: "better", "worse", or "no difference shown", by the adjusted p-value.
    """
    sign = 1 if metric.direction == "up" else -1
    if math.isnan(effect.p) or math.isnan(effect.ci[0]):
        return "no difference shown" if effect.p == 1 else "not concluded"
    low, high = sorted((sign * effect.ci[0], sign * effect.ci[1]))
    if metric.margin is not None:
        if low > -metric.margin:
            return "not worse"
        return "broken" if high < -metric.margin else "open"
    if p_adjusted >= 1 - confidence:
        return "no difference shown"
    return "better" if sign * effect.effect > 0 else "worse"


def _gaps(metric: Metric, left_out: int, filled: int) -> Iterator[str]:
    if left_out:
        yield f"{left_out} units have no value of '{metric.name}'; they are left out of it."
    if filled:
        yield f"{filled} units lack a covariate of '{metric.name}'; they got the mean of the others."
