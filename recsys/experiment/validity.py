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
from recsys.experiment.moments import Moments
from recsys.experiment.rows import Survey
from recsys.experiment.units import FIRST, VARIANT, Units, of

# Below this the sample ratio is taken as broken (Fabijan et al. use .0005 to .001: checks run all the time).
BROKEN = 0.001
# Share of units in several variants from which nothing is concluded; of those that come in the last tenth of the days.
MIXED, LATE, LATEST = 0.01, 0.2, 0.1
# Units that are expected in a variant below which the chi-square test's figures are not to be trusted.
FEW = 100
# Share of a variant's total in one unit that is worth a word.
HEAVY = 0.05
# Share of a variant's rows that another stage than its usual one answered, that is worth a word.
FALLBACK = 0.02
# By how much shares of repeated rows may differ between variants; they are looked for among the rows of some units, so
# that there are about so many; and not at all above so many rows, since to read them is what takes the time.
REPEATED, LOOKED_AT, MANY_ROWS = 0.1, 500_000, 5_000_000


def ratio_p(counts: Mapping[str, int], shares: Mapping[str, float]) -> float:
    """That units came in these shares: Pearson's chi-square test, and an exact one where two variants are few."""
    total = sum(counts.values())
    there = [counts.get(name, 0) for name in shares]
    if len(there) == 2 and total * min(shares.values()) < FEW:
        return float(stats.binomtest(there[0], total, next(iter(shares.values()))).pvalue) if total else 1.0
    return float(stats.chisquare(there, [total * share for share in shares.values()]).pvalue)


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
    if found.early:
        yield f"{found.early} rows lie before their unit's exposure ('{plan.exposed}'); they are left out."
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
    for metric in plan.linear:
        for place, total in enumerate(metric.covariates, start=len(metric.values)):
            (column,) = total.columns
            for treatment in plan.treatments:
                if (column, treatment) in seen:
                    continue
                seen.add((column, treatment))
                pair = [moments[metric.name][name] for name in (plan.control, treatment)]
                own = [Estimate(m.n, m.mean[place], m.covariance[place, place]) for m in pair]
                p = compare(own[0], own[1], plan.confidence, plan.planned).p
                if p < BROKEN:
                    yield (
                        f"'{column}' differed before the experiment between {plan.control} ({own[0].value:.4g}) "
                        f"and {treatment} ({own[1].value:.4g}), p = {p:.2g}: the variants may not be comparable."
                    )


def concentrations(plan: Experiment, units: Units) -> Iterator[str]:
    """Metrics whose total lies with few units: bots, or whales."""
    own = [metric for metric in plan.metrics if metric.kind == "mean" and not metric.winsorize]
    names = list(dict.fromkeys(metric.values[0].name for metric in own))
    tops = [pl.col(name).max().alias(f"top {name}") for name in names]
    found = pl.concat([f.group_by(VARIANT).agg(pl.col(names).sum(), *tops) for f in units.frames([VARIANT, *names])])
    found = found.group_by(VARIANT).agg(pl.col(names).sum(), *(pl.col(f"top {name}").max() for name in names))
    for metric in own:
        name = metric.values[0].name
        for variant, most, total in found.sort(VARIANT).select(VARIANT, f"top {name}", name).iter_rows():
            if most is not None and most > HEAVY * total > 0:
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


def served(rows: pl.LazyFrame, plan: Experiment) -> pl.DataFrame:
    """Which stage answered, by variant, the most frequent first: variant, served_by, rows, share. Empty where the plan
    does not name the column."""
    if plan.served_by is None:
        return pl.DataFrame(
            schema={"variant": pl.String, "served_by": pl.String, "rows": pl.UInt32, "share": pl.Float64}
        )
    found = (
        rows.group_by(pl.col(plan.variant).alias("variant"), pl.col(plan.served_by).alias("served_by"))
        .agg(pl.len().alias("rows"))
        .collect(engine="streaming")
    )
    share = pl.col("rows") / pl.col("rows").sum().over("variant")
    return found.with_columns(share.alias("share")).sort(["variant", "rows"], descending=[False, True])


def repeats(data: pl.LazyFrame, plan: Experiment, rows: int) -> Iterator[str]:
    """Rows of one variant that are the same in every column, where there are far more than in another."""
    if rows > MANY_ROWS:
        return
    row, some = pl.struct(pl.all()).hash(), max(1, rows // LOOKED_AT)
    if some > 1:
        data = data.filter(pl.col(plan.unit).hash(1) % some == 0)  # what is there twice is of one unit
    found = data.group_by(pl.col(plan.variant).cast(pl.String).alias("variant")).agg(
        (1 - row.n_unique() / pl.len()).alias("again")
    )
    shares = {name: share for name, share in found.collect().sort("variant").iter_rows() if name in plan.shares}
    if len(shares) > 1 and max(shares.values()) - min(shares.values()) > REPEATED:
        there = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
        yield (
            f"Rows that are there once more, the same in every column: {there}. Were some of them logged twice? They "
            "count as they are."
        )


def fallbacks(table: pl.DataFrame) -> Iterator[str]:
    """Variants of which a good part was answered by another stage than most of it."""
    for (name,), own in table.partition_by("variant", as_dict=True).items():
        most, other = own.row(0, named=True), own.slice(1)
        if other["share"].sum() > FALLBACK:
            there = ", ".join(f"{row['share']:.1%} by {row['served_by']}" for row in other.iter_rows(named=True))
            yield (
                f"{name} was not served by {most['served_by']} throughout, but {there}: effects are those of the "
                "mixture."
            )


def odd_segments(units: Units, plan: Experiment) -> Iterator[str]:
    """Values of segments in which variants did not come in the shares planned, with Bonferroni's correction."""
    for segment in plan.segments:
        parts = units.counts(of(segment)).partition_by(of(segment), as_dict=True)
        for (value,), frame in parts.items():
            sizes = dict(frame.select(VARIANT, "units").iter_rows())
            if len(plan.shares) > 2 and sum(sizes.values()) * min(plan.shares.values()) < 5:
                continue  # too few for the chi-square test
            if (p := ratio_p(sizes, plan.shares)) < BROKEN / len(parts):
                there = ", ".join(f"{name} {sizes.get(name, 0)}" for name in plan.shares)
                yield f"Sample-ratio mismatch where '{segment}' is {value} (p = {p:.2g}): {there}."
