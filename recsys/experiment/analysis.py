"""From a plan and its data to a readout: whether it may be read, then what it did."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from recsys.experiment import overtime, segments, validity
from recsys.experiment.bayes import posterior
from recsys.experiment.bootstrap import resampled
from recsys.experiment.design import Experiment, Metric
from recsys.experiment.effects import Effect, Estimate
from recsys.experiment.metrics import Linear
from recsys.experiment.moments import Moments
from recsys.experiment.multiple import adjust
from recsys.experiment.pooled import Pooled, Quantile
from recsys.experiment.readout import Comparison, Readout, SampleRatio
from recsys.experiment.rows import rows_of
from recsys.experiment.sequential import boundary_at
from recsys.experiment.strata import used_of
from recsys.experiment.units import VARIANT, Units, read

# A resampled standard error that differs from the formula's by more is worth a word.
APART = 0.15
# Below this many resamples their own noise is as large.
RESAMPLES = 200
# A covariate that explains more of the variance than this was hardly known before.
EXPLAINED = 0.95


@dataclass(frozen=True)
class _Measured:
    """A metric in all variants (`estimates`), and in each treatment the pair to be compared, with what covariates and
    strata took off the variance. uneven : whether values are missing in one variant more than in another."""

    metric: Metric
    estimates: Mapping[str, Estimate]
    pairs: Mapping[str, tuple[Estimate, Estimate, float]]
    moments: Mapping[str, Moments]
    warnings: tuple[str, ...]
    uneven: bool = False


def analyze(plan: Experiment, data: pl.LazyFrame) -> Readout:
    """Analyse rows (exposures, or days of units) by the plan.

    Errors: `DataError` naming what is wrong with a column, or the variant that no row has.
    """
    with read(rows_of(data, plan), plan) as (rows, found, units):
        counts = {str(name): int(n) for name, n in units.counts().select(VARIANT, "units").iter_rows()}
        counts = {name: counts.get(name, 0) for name in plan.shares}
        p = validity.ratio_p(counts, plan.shares)
        refused = list(validity.refusals(plan, found, counts, len(units.mixed), p))
        warned = list(validity.warnings(plan, found, len(units.mixed)))
        warned += validity.odd_segments(units, plan)
        warned += validity.repeats(data, plan, found.rows)
        measured = []
        for metric in plan.metrics:
            if isinstance(metric, Pooled):
                measured.append(_pooled(metric, rows, plan, units.mixed))
            else:
                measured.append(_linear(metric, units, plan, counts))
        warned += [warning for own in measured for warning in own.warnings]
        warned += validity.imbalances(plan, {own.metric.name: own.moments for own in measured})
        warned += validity.concentrations(plan, units)
        warned += validity.latecomers(plan, found, units)
        resamples = _resamples(units, plan)
        parts, spreads = segments.parts_of(units, plan)
    served = validity.served(rows, plan)
    warned += validity.fallbacks(served)
    looks = overtime.cumulative(rows, plan, found)
    changes = overtime.changes(rows, plan, found, units.mixed)
    warned += overtime.wearing(changes, plan.confidence)
    compared = [(own, name, _effect(own, name, plan)) for own in measured for name in plan.treatments]
    tested = [math.nan if own.metric.margin is not None else effect.p for own, _, effect in compared]
    corrected = adjust(tested, plan.correction)
    early = bool(plan.looks) and sum(counts.values()) < plan.planned
    comparisons = []
    boundary = _boundary(plan, sum(counts.values()))
    for (own, name, effect), p_of_all in zip(compared, corrected, strict=True):
        # A margin is decided by its interval: its p-value is no part of the family.
        p_adjusted = effect.p if own.metric.margin is not None else float(p_of_all)
        metric, (control, treatment, less) = own.metric, own.pairs[name]
        if math.isnan(effect.se) or effect.se == 0:
            coarse = isinstance(metric, Quantile) and math.isfinite(control.value)
            why = (
                "too few rows, or too many with one and the same value" if coarse else "no variance that could be told"
            )
            warned.append(f"'{metric.name}' has {why} in {name} and {plan.control}: no interval.")
        if less > EXPLAINED:
            warned.append(
                f"Covariates explain {less:.0%} of '{metric.name}': were they really known before the experiment?"
            )
        at = boundary if metric.role == "primary" and metric.margin is None else None
        decision = "not concluded"
        if not refused and not own.uneven:
            decision = decide(metric, effect, p_adjusted, plan.confidence, at, early=early)
        again = resamples.get((metric.name, name))
        if again is not None and plan.bootstrap >= RESAMPLES and effect.se > 0 and abs(again / effect.se - 1) > APART:
            warned.append(
                f"Resampling units gives '{metric.name}' in {name} a standard error of {again:.4g}, the formula "
                f"{effect.se:.4g}: too few units for its tails; winsorize, or wait."
            )
        comparisons.append(
            Comparison(
                metric=metric,
                variant=name,
                estimates=own.estimates,
                effect=effect,
                p_adjusted=p_adjusted,
                variance_reduction=less,
                decision=decision,
                posterior=posterior(
                    metric, control, treatment, effect, plan.confidence, stratified=plan.strata is not None
                ),
                boundary=at,
                bootstrap_se=again,
                stratified=plan.strata is not None and isinstance(metric, Linear),
            )
        )
    return Readout(
        plan=plan,
        ratio=SampleRatio(p, validity.sequential_ratio_p(counts, plan.shares), counts, p >= validity.BROKEN),
        comparisons=tuple(comparisons),
        refusals=tuple(refused),
        warnings=tuple(warned),
        survey=found,
        parts=parts,
        spreads=spreads,
        looks=looks,
        changes=changes,
        served=served,
    )


def _effect(own: _Measured, name: str, plan: Experiment) -> Effect:
    control, treatment, _ = own.pairs[name]
    return own.metric.effect(control, treatment, plan.confidence, plan.planned)


def _pooled(metric: Pooled, rows: pl.LazyFrame, plan: Experiment, mixed: pl.Series) -> _Measured:
    """Over rows of units that were in one variant only."""
    if len(mixed):
        rows = rows.filter(~pl.col(plan.unit).is_in(mixed.implode()))
    estimates = {name: metric.estimate(rows.filter(pl.col(plan.variant) == name), plan.unit) for name in plan.shares}
    pairs = {name: (estimates[plan.control], estimates[name], 0.0) for name in plan.treatments}
    return _Measured(metric, estimates, pairs, {}, ())  # type: ignore[arg-type]  # of the union, all pooled ones


def _linear(metric: Linear, units: Units, plan: Experiment, counts: Mapping[str, int]) -> _Measured:
    found = used_of(units, metric, plan)
    plain, used = found.plain, found.used
    warned = list(_gaps(metric, found.left_out, found.filled))
    if found.small:
        warned.append(
            f"'{metric.name}': strata of '{plan.strata}' that are too small in some variant were put together: "
            f"{', '.join(found.small[:10])}."
        )
    values = {name: moments.n for name, moments in plain.items()}
    total = sum(counts.values())
    uneven = (
        found.left_out > 0
        and min(counts.values()) > 0
        and (validity.ratio_p(values, {name: n / total for name, n in counts.items()}) < validity.BROKEN)
    )
    if uneven:
        there = ", ".join(f"{name} {counts[name] - n} of {counts[name]}" for name, n in values.items())
        warned.append(f"'{metric.name}' is missing in one variant more than in another ({there} units): not concluded.")
    estimates = {name: Estimate(m.n, *(float(x.flat[0]) for x in metric.linear(m, 1))) for name, m in plain.items()}
    pairs = {}
    for name in plan.treatments:
        control, treatment, less = metric.estimates(used[plan.control], used[name])
        if plan.strata is not None:
            wide, narrow = (
                sum(e.variance / e.n for e in pair)
                for pair in ((estimates[plan.control], estimates[name]), (control, treatment))
            )
            less = 1 - narrow / wide if wide > 0 else 0.0
        pairs[name] = (control, treatment, less)
    return _Measured(metric, estimates, pairs, plain, tuple(warned), uneven)  # type: ignore[arg-type]  # of the union, all linear


def _resamples(units: Units, plan: Experiment) -> dict[tuple[str, str], float]:
    """Standard errors by resampling, of each linear metric and treatment; with strata there are none: they would have
    to be drawn within them."""
    if not plan.bootstrap or plan.strata is not None:
        return {}
    names = [plan.control, *plan.treatments]
    return {
        (metric.name, name): float(effects[np.isfinite(effects)].std(ddof=1))
        for metric in plan.linear
        for name, effects in resampled(units, metric, names, plan.bootstrap).items()
        if np.isfinite(effects).sum() > plan.bootstrap / 2
    }


def _boundary(plan: Experiment, units: int) -> float | None:
    """|z| that a primary metric must cross at this look; infinite before the first; None where the plan has no looks.

    The error is shared out among primary comparisons (Bonferroni)."""
    if not plan.looks:
        return None
    primary = [metric for metric in plan.metrics if metric.role == "primary" and metric.margin is None]
    alpha = (1 - plan.confidence) / max(1, len(primary) * len(plan.treatments))
    return boundary_at(min(1.0, units / plan.planned), plan.looks, alpha, plan.spending)


def decide(
    metric: Metric,
    effect: Effect,
    p_adjusted: float,
    confidence: float,
    boundary: float | None = None,
    *,
    early: bool = False,
) -> str:
    """What may be said of one comparison.

    With a margin: "not worse" where the interval stays on the good side of the loss allowed, "broken" where it lies
    beyond, "open" in between. Without one: "better", "worse", or "no difference shown", by the adjusted p-value, or
    where there is a boundary by whether |z| crosses it. `early`, before the last planned look, what has no boundary
    goes by the interval and the p-value that hold at any look.
    """
    sign = 1 if metric.direction == "up" else -1
    if math.isnan(effect.p) or math.isnan(effect.ci[0]):
        return "no difference shown" if effect.p == 1 else "not concluded"
    low, high = sorted(sign * end for end in (effect.sequential_ci if early else effect.ci))
    if metric.margin is not None:
        if low > -metric.margin:
            return "not worse"
        return "broken" if high < -metric.margin else "open"
    if boundary is not None:
        shown = abs(effect.effect) > boundary * effect.se
    else:
        shown = (effect.sequential_p if early else p_adjusted) < 1 - confidence
    if not shown:
        return "no difference shown"
    return "better" if sign * effect.effect > 0 else "worse"


def _gaps(metric: Linear, left_out: int, filled: int) -> Iterator[str]:
    if left_out and metric.span:
        yield f"{left_out} units were not seen for {metric.span} days; '{metric.name}' leaves them out."
    elif left_out:
        yield f"{left_out} units have no value of '{metric.name}'; they are left out of it."
    if filled:
        yield f"{filled} units lack a covariate of '{metric.name}'; they got the mean of the others."
