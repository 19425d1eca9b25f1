"""Before an experiment: how many units it takes, and whether the analysis keeps its promises on one's own data.

Power is that of the two-sided t-test with one variance for both (noncentral t, degrees of freedom n - 2), as in
statsmodels' `TTestIndPower`; covariates take the variance down before.
"""

import math
from collections.abc import Iterator

import numpy as np
import polars as pl
from scipy import optimize, stats
from tqdm import tqdm

from recsys.errors import SpecError
from recsys.experiment.design import Experiment
from recsys.experiment.metrics import Linear
from recsys.experiment.moments import Floats, Moments
from recsys.experiment.rows import rows_of
from recsys.experiment.units import read, values_of

# Largest number of units that is looked for.
MOST = 1e12


def power(effect: float, variance: float, control: float, treatment: float, alpha: float = 0.05) -> float:
    """The chance of a significant difference where the true one is `effect`.

    variance : of one unit; control, treatment : units of each
    """
    df = control + treatment - 2
    away = effect / math.sqrt(variance * (1 / control + 1 / treatment))
    edge = stats.t.isf(alpha / 2, df)
    found = float(stats.nct.sf(edge, df, away) + stats.nct.cdf(-edge, df, away))
    # Far out scipy gives NaN.
    return found if math.isfinite(found) else float(abs(away) > edge)


def sample_size(
    effect: float, variance: float, wanted: float = 0.8, alpha: float = 0.05, treated: float = 0.5
) -> float:
    """Units of both variants together, not rounded, for this power. treated : share of them in the treatment.

    Errors: `SpecError` for an effect or a variance that no sample could tell.
    """
    if effect == 0 or not (math.isfinite(effect) and variance > 0 and math.isfinite(variance)):
        raise SpecError(f"no sample size tells an effect of {effect:g} where a unit's variance is {variance:g}")

    def lacks(log_n: float) -> float:
        n = math.exp(log_n)
        return wanted - power(abs(effect), variance, (1 - treated) * n, treated * n, alpha)

    least = math.log(2.5 / min(treated, 1 - treated))
    if lacks(least) <= 0:
        return math.exp(least)
    if lacks(math.log(MOST)) > 0:
        raise SpecError(f"an effect of {effect:g} takes more than {MOST:g} units")
    return math.exp(optimize.brentq(lacks, least, math.log(MOST), xtol=1e-13))


def detectable(n: float, variance: float, wanted: float = 0.8, alpha: float = 0.05, treated: float = 0.5) -> float:
    """The smallest effect that this many units of both variants tell with this power."""
    sizes = (1 - treated) * n, treated * n
    scale = math.sqrt(variance / sizes[0] + variance / sizes[1])
    most = scale
    while power(most, variance, *sizes, alpha) < wanted:
        most *= 1.5
    found = optimize.brentq(lambda e: wanted - power(e, variance, *sizes, alpha), 0, most, xtol=scale * 1e-12)
    return float(found)


def needed(
    plan: Experiment, history: pl.LazyFrame, relative: float, *, wanted: float = 0.8, daily: float | None = None
) -> pl.DataFrame:
    """Units that the plan needs, a row for each metric that follows from units' totals.

    It has the "mean" and a unit's "deviation" in the history, how much of the variance covariates have "explained", and
    the "units" of all variants together for an "effect" of `relative` times the mean (its margin, where a metric has
    one), in the smallest treatment, at the plan's confidence shared out among all that is tested.

    history : rows as in the experiment; the variant may be missing. daily : new units a day, for the "days" it takes
    Errors: `DataError` as of the analysis; `SpecError` where no number of units is enough.
    """
    control, treatment = plan.shares[plan.control], min(plan.shares[name] for name in plan.treatments)
    tests = len(plan.treatments) * max(1, sum(metric.margin is None for metric in plan.metrics))
    found = []
    for metric, values in _history(plan, history):
        moments = Moments.of(values)
        value, spread = metric.linear(moments, 1)
        variance, left = float(spread[0, 0]), metric.estimates(moments, moments)[0].variance
        effect = metric.margin or relative * float(value[0])
        # Holm's first step is Bonferroni's; a margin is decided by its own interval.
        alpha = (1 - plan.confidence) / (1 if metric.margin is not None or plan.correction == "none" else tests)
        try:
            n = sample_size(effect, left, wanted, alpha, treatment / (control + treatment))
        except SpecError as error:
            raise SpecError(f"metric '{metric.name}': {error}") from error
        units = math.ceil(n / (control + treatment))
        row = {
            "metric": metric.name,
            "mean": float(value[0]),
            "deviation": math.sqrt(variance),
            "explained": 1 - left / variance,
            "effect": effect,
            "units": units,
        }
        found.append(row | ({"days": math.ceil(units / daily)} if daily else {}))
    return pl.DataFrame(found)


def a_a(plan: Experiment, history: pl.LazyFrame, runs: int = 1000, seed: int = 0) -> pl.DataFrame:
    """The plan's analysis where there is no effect: units of the history are dealt out at random, again and again.

    A row for each metric that follows from units' totals: the share of "false" alarms at the plan's confidence, the
    band within which 99 of 100 such shares lie ("low", "high"), and "uniform": the p-value of Kolmogorov and Smirnov's
    test that p-values are uniform.
    Errors: `DataError` as of the analysis.
    """
    control, treatment = plan.shares[plan.control], plan.shares[plan.treatments[0]]
    alpha = 1 - plan.confidence
    low, high = (float(stats.binom.ppf(q, runs, alpha)) / runs for q in (0.005, 0.995))
    found = []
    for metric, values in _history(plan, history):
        rng = np.random.default_rng(seed)
        p = np.empty(runs)
        for run in tqdm(range(runs), desc=metric.name, leave=False, disable=None):
            treated = rng.random(len(values)) < treatment / (control + treatment)
            pair = metric.estimates(Moments.of(values[~treated]), Moments.of(values[treated]))
            p[run] = metric.effect(*pair[:2], plan.confidence, plan.planned).p
        found.append(
            {
                "metric": metric.name,
                "false": float((p < alpha).mean()),
                "low": low,
                "high": high,
                "uniform": float(stats.kstest(p, "uniform").pvalue),
            }
        )
    return pl.DataFrame(found)


def _history(plan: Experiment, history: pl.LazyFrame) -> Iterator[tuple[Linear, Floats]]:
    """(units, totals) of each metric, in an order that depends on the totals alone: what is drawn follows the seed."""
    if not plan.linear:
        raise SpecError(
            "no metric follows from units' totals: there is nothing that a history says of the units needed"
        )
    # The history is from before: the experiment's own days, and its exposures, are none of its.
    plan = plan.model_copy(update={"start": None, "end": None, "exposed": None, "segments": (), "strata": None})
    rows = rows_of(history.with_columns(pl.lit(plan.control).alias(plan.variant)), plan)
    with read(rows, plan, [plan.control]) as (_, _, units):
        for metric in plan.linear:
            values = values_of(units, metric, plan.control)
            yield metric, values[np.lexsort(values.T)]
