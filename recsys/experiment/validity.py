"""May this experiment be read at all? Asked before any effect is shown.

The sample-ratio check compares how many units there are with how many there should be: a difference that chance does
not explain means that units were lost or doubled in one variant, and then no effect below it can be trusted (Fabijan et
al., "Diagnosing sample ratio mismatch in online controlled experiments", KDD 2019).
"""

import math
from collections.abc import Iterator, Mapping

import polars as pl
from scipy import special, stats

from recsys.experiment.design import Experiment
from recsys.experiment.effects import Estimate, compare
from recsys.experiment.metrics import Quantile
from recsys.experiment.moments import Moments
from recsys.experiment.units import FIRST, VARIANT, Survey, Units

# Below this the sample ratio is taken as broken (Fabijan et al. use .0005 to .001: checks run all the time).
BROKEN = 0.001
# Share of units in several variants from which nothing is concluded; of those that come in the last tenth of the days.
MIXED, LATE, LATEST = 0.01, 0.2, 0.1
# Share of a variant's total in one unit that is worth a word.
HEAVY = 0.05


def ratio_p(counts: Mapping[str, int], shares: Mapping[str, float]) -> float:
    """Pearson's chi-square test that units came in these shares."""
    total = sum(counts.values())
    return float(
        stats.chisquare([counts[name] for name in shares], [total * share for share in shares.values()]).pvalue
    )


def sequential_ratio_p(counts: Mapping[str, int], shares: Mapping[str, float], weight: float = 1.0) -> float:
    """A p-value of the same question that may be read at every look: one over the Bayes factor of a Dirichlet mixture
    (Lindon and Malek, "Anytime-valid inference for multinomial count data", NeurIPS 2022), at most 1.

    weight : of the mixture, in units for each variant at even shares
    """
    prior = {name: weight * len(shares) * share for name, share in shares.items()}
    n, of = sum(counts.values()), sum(prior.values())
    log_evidence = special.gammaln(of) - special.gammaln(of + n)
    for name, share in shares.items():
        log_evidence += special.gammaln(prior[name] + counts[name]) - special.gammaln(prior[name])
        log_evidence -= counts[name] * math.log(share)
    return float(math.exp(min(0.0, -log_evidence)))


def refusals(plan: Experiment, found: Survey, counts: Mapping[str, int], mixed: int, p: float) -> Iterator[str]:
    """Why nothing may be concluded, each in a sentence; none where it may."""
    if p < BROKEN:
        total = sum(counts.values())
        there = ", ".join(f"{name} {counts[name]} instead of about {total * s:.0f}" for name, s in plan.shares.items())
        yield (
            f"Sample-ratio mismatch (p = {p:.2g}): {there}. Units were lost or doubled in one variant, so no "
            "difference below can be trusted. Look for what is logged, redirected or filtered in one of them only."
        )
    if mixed > MIXED * (mixed + sum(counts.values())):
        yield f"{mixed} units were in more than one variant, over {MIXED:.0%} of all: the assignment does not hold."
    if found.days is not None and found.days < plan.min_days:
        yield f"The data span {found.days} days; the plan asks for {plan.min_days} before anything is concluded."


def warnings(plan: Experiment, found: Survey, mixed: int) -> Iterator[str]:
    """What was left out or looks odd, each in a sentence."""
    if mixed:
        yield f"{mixed} units were in more than one variant; they are left out."
    if found.nameless:
        yield f"{found.nameless} rows have no unit, variant or time; they are left out."
    if found.outside:
        yield f"{found.outside} rows lie before start or after end; they are left out."
    for name, n in found.strangers.items():
        yield f"{n} rows are of variant '{name}', which the plan does not have; they are left out."
    for column, n in found.missing.items():
        yield f"Column '{column}' has {n} missing values; they do not count."
    for column, n in found.negative.items():
        yield f"Column '{column}' has {n} values below zero; they count as they are."


def imbalances(plan: Experiment, moments: Mapping[str, Mapping[str, Moments]]) -> Iterator[str]:
    """Covariates, which were there before, that differ between variants by more than chance. moments : by metric and
    variant."""
    seen = set()
    for metric in plan.metrics:
        if isinstance(metric, Quantile):
            continue
        for place, total in enumerate(metric.covariates, start=len(metric.values)):
            for treatment in plan.treatments:
                if (total.column, treatment) in seen:
                    continue
                seen.add((total.column, treatment))
                pair = [moments[metric.name][name] for name in (plan.control, treatment)]
                own = [Estimate(m.n, m.mean[place], m.covariance[place, place]) for m in pair]
                p = compare(own[0], own[1], plan.confidence, plan.planned).p
                if p < BROKEN:
                    yield (
                        f"'{total.column}' differed before the experiment between {plan.control} ({own[0].value:.4g}) "
                        f"and {treatment} ({own[1].value:.4g}), p = {p:.2g}: the variants may not be comparable."
                    )


def concentrations(plan: Experiment, units: Units) -> Iterator[str]:
    """Metrics whose total lies with few units: bots, or whales."""
    for metric in plan.metrics:
        if metric.kind != "mean" or metric.winsorize:
            continue
        name = str(metric.values[0])
        top = pl.concat(
            [
                f.group_by(VARIANT).agg(pl.col(name).max().alias("top"), pl.col(name).sum())
                for f in units.frames([VARIANT, name])
            ]
        )
        top = top.group_by(VARIANT).agg(pl.col("top").max(), pl.col(name).sum()).filter(pl.col(name) > 0)
        for variant, most, total in top.sort(VARIANT).iter_rows():
            if most > HEAVY * total:
                yield (
                    f"One unit has {most / total:.0%} of '{metric.name}' in {variant}: a bot or an outlier; "
                    "set winsorize = 0.999 for this metric, or leave the unit out."
                )


def latecomers(plan: Experiment, found: Survey, units: Units) -> Iterator[str]:
    """Whether many units came when the experiment was nearly over, and had no time to react."""
    if plan.time is None or found.days is None or found.days < 3:
        return
    firsts = units.column(FIRST)
    edge = firsts.max() - pl.duration(days=max(1, round(LATEST * found.days)) - 1)
    share = float(firsts.to_frame("d").select((pl.col("d") >= edge).mean()).item())
    if share > LATE:
        yield f"{share:.0%} of the units came in the last tenth of the days: what they do later is not seen."
